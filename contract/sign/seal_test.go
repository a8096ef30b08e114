package sign

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func sealerOf(tb testing.TB, c Cipher) *Sealer {
	tb.Helper()
	sealer, err := NewSealer(c, NewSecret([]byte("0123456789abcdef0123456789ABCDEF")[:c.KeySize()]))
	if err != nil {
		tb.Fatal(err)
	}
	return sealer
}

func TestSealedOpens(t *testing.T) {
	for _, c := range []Cipher{AES256GCM, SM4GCM, SM4CBC} {
		sealer := sealerOf(t, c)
		nonce := []byte("fdasflkja4841234")[:sealer.NonceSize()]
		for _, size := range []int{0, 1, 15, 16, 17, 1000} {
			plain := bytes.Repeat([]byte{7}, size)
			given := append(bytes.Clone(plain), "what comes after"...)
			sealed, err := sealer.Seal(nonce, given[:size], nil)
			if err != nil || string(given) != string(plain)+"what comes after" {
				t.Fatalf("%s: %v, given became %x", c, err, given)
			}
			before := bytes.Clone(sealed)
			got, err := sealer.Open(nonce, sealed, nil)
			if err != nil || !bytes.Equal(got, plain) || !bytes.Equal(sealed, before) {
				t.Errorf("%s: %d bytes open as %x (%v)", c, size, got, err)
			}
			if c == SM4CBC {
				continue
			}
			for bit := range 8 * len(sealed) {
				sealed[bit/8] ^= 1 << (bit % 8)
				if _, err := sealer.Open(nonce, sealed, nil); !errors.Is(err, ErrUnsealed) {
					t.Fatalf("%s: with bit %d flipped: %v", c, bit, err)
				}
				sealed[bit/8] ^= 1 << (bit % 8)
			}
			if _, err := sealer.Open(nonce, sealed, []byte("other")); !errors.Is(err, ErrUnsealed) {
				t.Errorf("%s: with other additional data: %v", c, err)
			}
		}
	}
}

func TestSM4CBCThatDoesNotOpen(t *testing.T) {
	sealer, nonce := sealerOf(t, SM4CBC), make([]byte, 16)
	sealed, err := sealer.Seal(nonce, []byte("0123456789abcdef"), nil) // two blocks, the second all padding
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(sealed)
	bad[0] ^= 1 // a bit of the padding's first byte
	for name, sealed := range map[string][]byte{"nothing": nil, "not whole blocks": sealed[:31], "without its padding": sealed[:16], "wrong padding": bad} {
		if got, err := sealer.Open(nonce, sealed, nil); !errors.Is(err, ErrUnsealed) {
			t.Errorf("%s opens as %x (%v)", name, got, err)
		}
	}
}

func TestSealersThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		cipher Cipher
		key    int
		want   string
	}{
		{AES256GCM, 31, "aes-256-gcm: a key of 31 bytes must have 32"},
		{AES256GCM, 16, "aes-256-gcm: a key of 16 bytes must have 32"},
		{SM4GCM, 32, "sm4-gcm: a key of 32 bytes must have 16"},
		{SM4CBC, 0, "sm4-cbc: a key of 0 bytes must have 16"},
		{0, 16, `cipher: "cipher(0)" must be one of aes-256-gcm, sm4-gcm, sm4-cbc`},
	} {
		if _, err := NewSealer(c.cipher, NewSecret(make([]byte, c.key))); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	for _, c := range []struct {
		cipher            Cipher
		nonce, additional int
		want              string
	}{
		{AES256GCM, 16, 0, "aes-256-gcm: a nonce of 16 bytes must have 12"},
		{SM4CBC, 12, 0, "sm4-cbc: a nonce of 12 bytes must have 16"},
		{SM4CBC, 16, 3, "sm4-cbc: additional data of 3 bytes: it takes none"},
	} {
		sealer, nonce, additional := sealerOf(t, c.cipher), make([]byte, c.nonce), []byte(strings.Repeat("a", c.additional))
		if _, err := sealer.Seal(nonce, []byte("m"), additional); err == nil || err.Error() != c.want {
			t.Errorf("Seal: %v, want %s", err, c.want)
		}
		if _, err := sealer.Open(nonce, make([]byte, 32), additional); err == nil || err.Error() != c.want {
			t.Errorf("Open: %v, want %s", err, c.want)
		}
	}
}
