package egress

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The headers of the standard contract (Standard Webhooks), as they are sent.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
	HeaderAttempt   = "notifyd-attempt"
	headerDelivery  = "Webhook-Delivery" // an answer's; canonical, for lookups
)

const (
	secretPrefix     = "whsec_"
	signatureVersion = "v1,"
	secretBytes      = 32
)

// What is wrong with a secret or a signed request.
var (
	ErrBadSecret         = errors.New("parse signing secret: want whsec_ and base64 of 16 to 64 bytes")
	ErrSignatureMissing  = errors.New("verify signature: webhook-id, webhook-timestamp or webhook-signature is missing")
	ErrTimestamp         = errors.New("verify signature: webhook-timestamp is not a number of seconds")
	ErrTimestampTooOld   = errors.New("verify signature: webhook-timestamp is too old")
	ErrTimestampTooNew   = errors.New("verify signature: webhook-timestamp is in the future")
	ErrSignatureMismatch = errors.New("verify signature: no signature matches")
)

// Secret signs for one merchant. [ParseSecret] makes one.
type Secret struct {
	key  []byte
	macs *sync.Pool // of keyed hash.Hash: making one costs as much as signing a short body
}

func newSecret(key []byte) Secret {
	return Secret{key: key, macs: &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

// String keeps a secret out of every log and error that formats it.
func (Secret) String() string { return "[secret]" }

// GoString does the same for %#v.
func (Secret) GoString() string { return "[secret]" }

// ParseSecret reads whsec_ and base64.
func ParseSecret(text string) (Secret, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	if !ok {
		return Secret{}, ErrBadSecret
	}
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(key) < 16 || len(key) > 64 || strings.ContainsAny(encoded, "\r\n") {
		return Secret{}, ErrBadSecret
	}
	return newSecret(key), nil
}

// GenerateSecret makes a new secret's text.
func GenerateSecret() string {
	var key [secretBytes]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process instead
	return secretPrefix + base64.StdEncoding.EncodeToString(key[:])
}

// Sign is the webhook-signature of a body under an id and a time. P5: the caller sends the very same bytes.
func (s Secret) Sign(id string, at time.Time, body []byte) string {
	var room [96]byte
	return s.sign(id, string(strconv.AppendInt(room[:0], at.Unix(), 10)), body)
}

func (s Secret) sign(id, timestamp string, body []byte) string {
	var room [len(signatureVersion) + 44]byte
	sum := s.sum(id, timestamp, body)
	copy(room[:], signatureVersion)
	base64.StdEncoding.Encode(room[len(signatureVersion):], sum[:])
	return string(room[:])
}

func (s Secret) sum(id, timestamp string, body []byte) (sum [sha256.Size]byte) {
	mac, _ := s.macs.Get().(hash.Hash)
	defer s.macs.Put(mac)
	mac.Reset()
	var room [128]byte
	head := append(room[:0], id...)
	head = append(head, '.')
	head = append(head, timestamp...)
	head = append(head, '.')
	mac.Write(head) // a hash never returns an error
	mac.Write(body)
	mac.Sum(sum[:0])
	return sum
}

// Verify is the merchant's side: it checks one of the signatures in the headers, and that the timestamp is within
// the tolerance. Zero tolerance accepts any time.
func Verify(secret Secret, headers http.Header, body []byte, now time.Time, tolerance time.Duration) error {
	id, timestamp, signatures := headers.Get(HeaderID), headers.Get(HeaderTimestamp), headers.Get(HeaderSignature)
	if id == "" || timestamp == "" || signatures == "" {
		return ErrSignatureMissing
	}
	if err := verifyTimestamp(timestamp, now, tolerance); err != nil {
		return err
	}
	if len(secret.key) == 0 {
		return ErrSignatureMismatch
	}
	want := secret.sum(id, timestamp, body)
	for signature := range strings.FieldsSeq(signatures) {
		encoded, ok := strings.CutPrefix(signature, signatureVersion)
		if !ok {
			continue
		}
		got, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil && hmac.Equal(got, want[:]) {
			return nil
		}
	}
	return ErrSignatureMismatch
}

func verifyTimestamp(text string, now time.Time, tolerance time.Duration) error {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return ErrTimestamp
	}
	if tolerance <= 0 {
		return nil
	}
	switch at := time.Unix(seconds, 0); {
	case now.Sub(at) > tolerance:
		return ErrTimestampTooOld
	case at.Sub(now) > tolerance:
		return ErrTimestampTooNew
	}
	return nil
}
