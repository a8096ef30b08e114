package ledger

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"notifyd/notification"
)

// A page token is base64 of: its version, four bytes of the filter's digest, microseconds since 1970, the id.
const (
	tokenVersion = 2
	tokenDigest  = 4
	tokenSize    = 1 + tokenDigest + 8 + len(notification.ID{})
	// Tokens of version 1 were the last two fields alone.
	tokenSize1 = 8 + len(notification.ID{})
)

// What is wrong with a page token.
var (
	ErrBadToken = errors.New("is not one of ours; take next_page_token from the answer before as it is")
	// ErrOldToken: it cannot be told which filter it belongs to.
	ErrOldToken   = errors.New("was made by an earlier version; start again from the first page")
	ErrOtherToken = errors.New("belongs to another filter; repeat the filter, or start again from the first page")
)

// Token is a page token for the list that f makes; empty for the zero value.
func (c Cursor) Token(f Filter) string {
	if c.IsZero() {
		return ""
	}
	raw := append(make([]byte, 0, tokenSize), tokenVersion)
	raw = append(raw, f.digest()...)
	raw = binary.BigEndian.AppendUint64(raw, uint64(c.AcceptedAt.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(raw, c.ID[:]...))
}

// ParseToken reads a page token that belongs to f.
func ParseToken(token string, f Filter) (Cursor, error) {
	if token == "" {
		return Cursor{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	switch {
	case err != nil || base64.RawURLEncoding.EncodeToString(raw) != token: // the decoder passes over line breaks
		return Cursor{}, ErrBadToken
	case len(raw) == tokenSize1:
		return Cursor{}, ErrOldToken
	case len(raw) != tokenSize || raw[0] != tokenVersion:
		return Cursor{}, ErrBadToken
	}
	digest, place := raw[1:1+tokenDigest], raw[1+tokenDigest:]
	micros := int64(binary.BigEndian.Uint64(place)) //nolint:gosec // every bit pattern is wanted
	c := Cursor{AcceptedAt: time.UnixMicro(micros).UTC(), ID: notification.ID(place[8:])}
	switch year := c.AcceptedAt.Year(); {
	case year < minYear || year > maxYear:
		return Cursor{}, ErrBadToken
	case !bytes.Equal(digest, f.digest()):
		return Cursor{}, ErrOtherToken
	}
	return c, nil
}

// digest tells filters apart well enough to catch a mistake; it is no protection. States in another order are the same filter.
func (f Filter) digest() []byte {
	f.States = slices.Compact(slices.Sorted(slices.Values(f.States)))
	text, err := json.Marshal(f)
	if err != nil { // texts, numbers, and instants between the years 0 and 9999, which is what the API can say
		text = []byte(err.Error())
	}
	sum := sha256.Sum256(text)
	return sum[:tokenDigest]
}

// before orders by (accepted at, id).
func (c Cursor) before(other Cursor) bool {
	return cmp.Or(c.AcceptedAt.Compare(other.AcceptedAt), bytes.Compare(c.ID[:], other.ID[:])) < 0
}
