package sign

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
)

func TestSecretsAreDecoded(t *testing.T) {
	raw := []byte("sixteen bytes ok")
	for text, want := range map[string][]byte{
		"whsec_" + base64.StdEncoding.EncodeToString(raw): raw,
		"hex:00fFaB":                       {0x00, 0xff, 0xab},
		"base64:AP+r":                      {0x00, 0xff, 0xab},
		"192006250b4c09247ec02edce69f6a2d": []byte("192006250b4c09247ec02edce69f6a2d"),
		"text:whsec_" + base64.StdEncoding.EncodeToString(raw): []byte("whsec_" + base64.StdEncoding.EncodeToString(raw)),
		"text:hex:00":     []byte("hex:00"),
		"密钥 with a blank": []byte("密钥 with a blank"),
	} {
		secret, err := ParseSecret(text)
		if err != nil || !bytes.Equal(secret.Bytes(), want) || secret.Len() != len(want) {
			t.Errorf("%q becomes %x (%v), want %x", text, secret.Bytes(), err, want)
		}
	}
}

func TestSecretsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":               "must not be empty",
		"text:":          "must not be empty",
		"hex:":           "must not be empty",
		"whsec_":         "base64 of 16 to 64 bytes",
		"whsec_c2VjcmV0": "base64 of 16 to 64 bytes",
		"whsec_" + strings.Repeat("A", 88) + "AA==": "base64 of 16 to 64 bytes",
		"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n":  "base64 of 16 to 64 bytes",
		"hex:0":                   "pairs of hex digits",
		"hex:zz":                  "pairs of hex digits",
		"base64:AP+":              "base64 with its padding",
		"base64:AP+r\n":           "base64 with its padding",
		"[secret]":                "shown instead of one",
		"secret\n":                "no newlines",
		" secret":                 "begin or end with a blank",
		"secret\u00a0":            "begin or end with a blank",
		"\xff\xfe":                "must be UTF-8",
		strings.Repeat("s", 1025): "1025 bytes must be at most 1024",
	} {
		_, err := ParseSecret(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "secret: ") {
			t.Errorf("%q: %v, want … %s …", text, err, want)
		}
	}
}

func TestSecretIsACopy(t *testing.T) {
	given := []byte("mine")
	secret := NewSecret(given)
	clear(given)
	if string(secret.Bytes()) != "mine" {
		t.Error("it changes with what it was made of")
	}
}

func TestWebhookKeysThatAreRefused(t *testing.T) {
	good := "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	for _, text := range []string{
		"", good, "whsk_", "whpk_", "whpk_" + good, "whsk_" + good[:84], "whsk_" + strings.Replace(good, "X0dR", "X0dS", 1), "whsec_" + good, "whsk_" + good + "\n",
	} {
		if key, err := ParseWebhookKey(text); err == nil {
			t.Errorf("%q becomes %s", text, key)
		} else if len(text) > 20 && strings.Contains(err.Error(), text[6:20]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if _, err := WebhookPublicKey(secretKey(t, "s")); err == nil {
		t.Error("a secret has a public key")
	}
}

func FuzzParseSecret(f *testing.F) {
	for _, seed := range []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hex:00ff", "base64:AP+r", "text:whsec_x", "plain"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		secret, err := ParseSecret(text)
		if err != nil {
			// What could be the secret is not in the error; a piece of a few letters may be there by chance.
			if rest := strings.TrimPrefix(text, "hex:"); len(rest) > 30 && strings.Contains(err.Error(), rest) {
				t.Errorf("the error shows %q: %v", text, err)
			}
			return
		}
		if secret.Len() == 0 || secret.Len() > MaxSecret {
			t.Errorf("%q becomes %d bytes", text, secret.Len())
		}
		again, err := ParseSecret("hex:" + Hex.Encode(secret.Bytes()))
		if err != nil || !bytes.Equal(again.Bytes(), secret.Bytes()) {
			t.Errorf("as hex it becomes %x (%v)", again.Bytes(), err)
		}
	})
}
