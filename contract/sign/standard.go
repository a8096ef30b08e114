package sign

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// The headers of Standard Webhooks.
const (
	StandardID        = "webhook-id"
	StandardTimestamp = "webhook-timestamp"
	StandardSignature = "webhook-signature"
)

const standardBytes = 32

// StandardSecret signs Standard Webhooks by HMAC-SHA256. It is for what is not a merchant's contract, such as the operators'
// alarms. It prints as a mask; the zero value is none.
type StandardSecret struct{ signer *Signer }

var errStandardSecret = errors.New("parse signing secret: want whsec_ and base64 of 16 to 64 bytes")

// ParseStandardSecret reads whsec_ and base64. No error shows any of it.
func ParseStandardSecret(text string) (StandardSecret, error) {
	if !strings.HasPrefix(text, prefixStandard) {
		return StandardSecret{}, errStandardSecret
	}
	secret, err := ParseSecret(text)
	if err != nil {
		return StandardSecret{}, errStandardSecret
	}
	key, err := SecretKey(secret)
	if err != nil {
		return StandardSecret{}, err
	}
	signer, err := NewSigner(HMACSHA256, key, Options{})
	return StandardSecret{signer}, err
}

// GenerateStandardSecret makes a new secret's text.
func GenerateStandardSecret() string {
	var key [standardBytes]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process instead
	return prefixStandard + base64.StdEncoding.EncodeToString(key[:])
}

// Sign is the webhook-signature of a body under an id and a time; empty for the zero value.
func (s StandardSecret) Sign(id string, at time.Time, body []byte) string {
	if s.signer == nil {
		return ""
	}
	message := make([]byte, 0, len(id)+len(body)+sha256.Size)
	message = append(append(message, id...), '.')
	message = append(strconv.AppendInt(message, at.Unix(), 10), '.')
	raw, err := s.signer.Sign(append(message, body...))
	if err != nil { // no HMAC fails
		return ""
	}
	return "v1," + Base64.Encode(raw)
}

// String is a mask.
func (StandardSecret) String() string { return mask }

// GoString is a mask.
func (StandardSecret) GoString() string { return mask }
