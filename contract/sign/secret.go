package sign

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a secret's text may begin with. Without any of them the text's bytes are the secret.
const (
	prefixStandard = "whsec_"  // Standard Webhooks: base64 of 16 to 64 bytes
	prefixHex      = "hex:"    // for example Adyen's
	prefixBase64   = "base64:" //
	prefixText     = "text:"   // for those that look like one of the others: Stripe's key is the whole text whsec_…
)

// MaxSecret is how many bytes a secret has at most.
const MaxSecret = 1024

const mask = "[secret]"

// Secret is what both sides know: the key of a hash, an HMAC or a cipher. The zero value is none.
type Secret struct {
	// A function, because fmt looks into unexported fields without asking for String, and through pointers: of a function
	// it shows an address, whatever the verb.
	reveal func() []byte
}

// ErrNoSecret says that a secret is empty.
var ErrNoSecret = errors.New("secret: must not be empty")

// NewSecret takes bytes as they are.
func NewSecret(secret []byte) Secret {
	own := bytes.Clone(secret)
	return Secret{reveal: func() []byte { return own }}
}

// ParseSecret reads a secret's text: whsec_ and base64, hex: and hex digits, base64: and base64, text: and the text itself,
// or just the text. No error shows any of it.
func ParseSecret(text string) (Secret, error) {
	secret, err := decodeSecret(text)
	switch {
	case err != nil:
		return Secret{}, err
	case len(secret) == 0:
		return Secret{}, ErrNoSecret
	case len(secret) > MaxSecret:
		return Secret{}, fmt.Errorf("secret: %d bytes must be at most %d", len(secret), MaxSecret)
	}
	return Secret{reveal: func() []byte { return secret }}, nil
}

func decodeSecret(text string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(text, prefixStandard); ok {
		secret, err := decodeBase64(base64.StdEncoding, rest)
		if err != nil || len(secret) < 16 || len(secret) > 64 {
			return nil, errors.New("secret: whsec_ must be followed by base64 of 16 to 64 bytes; a secret that only looks like it is given as text:whsec_…")
		}
		return secret, nil
	}
	if rest, ok := strings.CutPrefix(text, prefixHex); ok {
		secret, err := hex.DecodeString(rest)
		if err != nil {
			return nil, errors.New("secret: hex: must be followed by pairs of hex digits") // the library's error quotes a digit
		}
		return secret, nil
	}
	if rest, ok := strings.CutPrefix(text, prefixBase64); ok {
		secret, err := decodeBase64(base64.StdEncoding, rest)
		if err != nil {
			return nil, errors.New("secret: base64: must be followed by base64 with its padding, on one line")
		}
		return secret, nil
	}
	return checkPlain(strings.TrimPrefix(text, prefixText))
}

// checkPlain refuses what came along by accident: the newline at a file's end, the blank of a copy.
func checkPlain(text string) ([]byte, error) {
	switch {
	case text == mask: // settings that were read and are written back
		return nil, fmt.Errorf("secret: %s is what is shown instead of one", mask)
	case !utf8.ValidString(text):
		return nil, errors.New("secret: must be UTF-8; give other bytes as hex:… or base64:…")
	case strings.ContainsFunc(text, unicode.IsControl):
		return nil, errors.New("secret: must have no newlines and other control characters; give such bytes as hex:… or base64:…")
	case strings.TrimSpace(text) != text:
		return nil, errors.New("secret: must not begin or end with a blank; give such bytes as hex:… or base64:…")
	}
	return []byte(text), nil
}

// Bytes are the secret itself: read only.
func (s Secret) Bytes() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// Len is the number of bytes; zero for no secret.
func (s Secret) Len() int { return len(s.Bytes()) }

// String is a mask.
func (Secret) String() string { return mask }

// GoString is a mask.
func (Secret) GoString() string { return mask }

// LogValue is a mask.
func (Secret) LogValue() slog.Value { return slog.StringValue(mask) }

// MarshalText is a mask, in JSON and wherever else text is made of values.
func (Secret) MarshalText() ([]byte, error) { return []byte(mask), nil }
