package sign

import (
	"bytes"
	"testing"
)

func TestEncodings(t *testing.T) {
	raw := []byte{0xfb, 0xff, 0x00, 0xab}
	for encoding, want := range map[Encoding]string{Base64: "+/8Aqw==", Base64URL: "-_8Aqw", Hex: "fbff00ab", HexUpper: "FBFF00AB"} {
		if got := encoding.Encode(raw); got != want {
			t.Errorf("%s: %s, want %s", encoding, got, want)
		}
		if got, err := encoding.Decode(want); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %s becomes %x (%v)", encoding, want, got, err)
		}
	}
}

// No two texts are the same signature.
func TestDecodeIsStrict(t *testing.T) {
	for encoding, texts := range map[Encoding][]string{
		Base64:    {"+/8Aqw", "-_8Aqw==", "+/8Aqx==", "+/8A\nqw==", "+/8Aqw==\n", " +/8Aqw=="},
		Base64URL: {"-_8Aqw==", "+/8Aqw", "-_8Aqx", "-_8Aqw\r\n"},
		Hex:       {"FBFF00AB", "fbff00a", "fbff00ag", "0xfb", " fb"},
		HexUpper:  {"fbff00ab", "FBFF00aB", "FBFF00A"},
		0:         {"", "ab"},
		9:         {"ab"},
	} {
		for _, text := range texts {
			if raw, err := encoding.Decode(text); err == nil {
				t.Errorf("%s: %q becomes %x", encoding, text, raw)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for i, seed := range []string{"+/8Aqw==", "-_8Aqw", "fbff00ab", "FBFF00AB"} {
		f.Add(i+1, seed)
	}
	f.Fuzz(func(t *testing.T, which int, text string) {
		encoding := Encoding(which)
		raw, err := encoding.Decode(text)
		if err == nil && encoding.Encode(raw) != text {
			t.Errorf("%s: %q becomes %x, which is %q", encoding, text, raw, encoding.Encode(raw))
		}
		if encoding < Base64 || encoding > HexUpper {
			return
		}
		if back, err := encoding.Decode(encoding.Encode([]byte(text))); err != nil || string(back) != text {
			t.Errorf("%s: %q comes back as %q (%v)", encoding, text, back, err)
		}
	})
}
