package source

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
)

// Secret is a key as its owner has it: `nk_<key id>_<secret>` is an API key, `nh_<key id>_<secret>` an HMAC key. Both
// parts are letters a-z and digits 2-7, so that a double click takes all of it. It shows itself through Reveal only.
type Secret struct {
	Kind  Kind
	KeyID string
	text  string // the secret part
}

const (
	keyIDBytes  = 10 // enough that two never meet
	secretBytes = 32
)

var prefixes = map[Kind]string{KindAPIKey: "nk", KindHMAC: "nh"}

// lowerBase32 is RFC 4648 in lower case without padding: 10 bytes are 16 characters, 32 bytes 52. It has no '_'.
var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// errNotAKey quotes nothing: what was given may be a secret with a typing error.
var errNotAKey = errors.New("parse key: want nk_ or nh_, the key's id (16 characters a-z2-7), _ and its secret (52 of them)")

// NewSecret makes a key of a kind.
func NewSecret(kind Kind) Secret {
	return Secret{Kind: kind, KeyID: randomText(keyIDBytes), text: randomText(secretBytes)}
}

// ParseSecret reads what Reveal returned.
func ParseSecret(text string) (Secret, error) {
	for kind, prefix := range prefixes {
		rest, ok := strings.CutPrefix(text, prefix+"_")
		if !ok {
			continue
		}
		id, secret, ok := strings.Cut(rest, "_")
		if !ok || !isBase32(id, keyIDBytes) || !isBase32(secret, secretBytes) {
			return Secret{}, errNotAKey
		}
		return Secret{Kind: kind, KeyID: id, text: secret}, nil
	}
	return Secret{}, errNotAKey
}

// Reveal is the whole key, for its owner.
func (s Secret) Reveal() string { return prefixes[s.Kind] + "_" + s.KeyID + "_" + s.text }

// Kept is what the engine stores: of an API key the SHA-256 of its secret part, which is enough to know it again; of an
// HMAC key the secret part itself, without which nothing can be verified. 256 random bits need no slow hash.
func (s Secret) Kept() []byte {
	if s.Kind == KindHMAC {
		return []byte(s.text)
	}
	sum := sha256.Sum256([]byte(s.text))
	return sum[:]
}

// String names the key and hides its secret.
func (s Secret) String() string { return prefixes[s.Kind] + "_" + s.KeyID + "_…" }

// GoString does the same for %#v.
func (s Secret) GoString() string { return s.String() }

// isBase32 reports whether a text encodes so many bytes, in the one way that our encoding has for them.
func isBase32(text string, size int) bool {
	raw, err := lowerBase32.DecodeString(text)
	return err == nil && len(raw) == size && lowerBase32.EncodeToString(raw) == text
}

func randomText(size int) string {
	raw := make([]byte, size)
	_, _ = rand.Read(raw) // never fails: the process ends instead
	return lowerBase32.EncodeToString(raw)
}
