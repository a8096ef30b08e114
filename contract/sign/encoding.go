package sign

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Encoding is how a signature or a sealed text becomes characters. The zero value is none of them.
type Encoding int

const (
	// Base64 is RFC 4648's, with padding, on one line.
	Base64 Encoding = iota + 1
	// Base64URL is the URL-safe one, without padding.
	Base64URL
	// Hex has lower-case digits.
	Hex
	// HexUpper has upper-case digits; its name is HEX.
	HexUpper
)

var encodingNames = []string{"", "base64", "base64url", "hex", "HEX"}

// Encodings are the names, in order.
func Encodings() []string { return append([]string(nil), encodingNames[1:]...) }

// ParseEncoding reads a name; the error lists those there are.
func ParseEncoding(name string) (Encoding, error) {
	at, err := find("encoding", name, encodingNames)
	return Encoding(at), err
}

// String is the encoding's name.
func (e Encoding) String() string { return nameOf("encoding", int(e), encodingNames) }

// Encode makes the text. An encoding that is none of the four is a fault of the program: it gives no text.
func (e Encoding) Encode(raw []byte) string {
	switch e {
	case Base64:
		return base64.StdEncoding.EncodeToString(raw)
	case Base64URL:
		return base64.RawURLEncoding.EncodeToString(raw)
	case Hex:
		return hex.EncodeToString(raw)
	case HexUpper:
		return strings.ToUpper(hex.EncodeToString(raw))
	}
	return ""
}

// Decode reads exactly what Encode makes, so that no two texts are the same signature: the digits' case, the padding and
// its unused bits count, and there are no newlines.
func (e Encoding) Decode(text string) ([]byte, error) {
	var raw []byte
	var err error
	switch e {
	case Base64:
		raw, err = decodeBase64(base64.StdEncoding, text)
	case Base64URL:
		raw, err = decodeBase64(base64.RawURLEncoding, text)
	case Hex, HexUpper:
		raw, err = hex.DecodeString(text)
	default:
		return nil, fmt.Errorf("decode: %s is no encoding", e)
	}
	if err == nil && e.Encode(raw) != text {
		err = errors.New("the letters' case is the other one")
	}
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", e, err)
	}
	return raw, nil
}

func decodeBase64(encoding *base64.Encoding, text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") { // which the library skips
		return nil, errors.New("newlines do not belong into it")
	}
	return encoding.Strict().DecodeString(text)
}
