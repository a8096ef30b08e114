package notification

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash"
	"maps"
	"slices"
	"strings"
	"time"
)

// ID names a notification for ever: a hash of (source, request_id), so every copy, node, restart, retry and resend
// agrees on it without asking anybody. Its text is safe as a NATS subject token and as an HTTP header value.
type ID [16]byte

const idPrefix = "ntf_"

// lowerBase32 is RFC 4648 in lower case without padding: 16 bytes are 26 characters.
var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ErrBadID is returned for a text that no ID has.
var ErrBadID = errors.New("parse id: want ntf_ and 26 characters a-z2-7")

// String is the text that callers and merchants see.
func (id ID) String() string {
	var buf [len(idPrefix) + 26]byte
	copy(buf[:], idPrefix)
	lowerBase32.Encode(buf[len(idPrefix):], id[:])
	return string(buf[:])
}

// IsZero reports whether no id has been derived.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads an ID's text.
func ParseID(text string) (ID, error) {
	rest, ok := strings.CutPrefix(text, idPrefix)
	if !ok || len(rest) != 26 {
		return ID{}, ErrBadID
	}
	var id ID
	var raw [17]byte
	n, err := lowerBase32.Decode(raw[:], []byte(rest))
	if err != nil || n != len(id) {
		return ID{}, ErrBadID
	}
	copy(id[:], raw[:])
	if id.String() != text { // the last character carries two unused bits
		return ID{}, ErrBadID
	}
	return id, nil
}

// Shards is the number of shards that healthy merchants share. It is part of how subjects are laid out on disk.
const Shards = 16

// ShardOf says which shard an isolation key belongs to.
func ShardOf(isolationKey string) int {
	sum := sha256.Sum256([]byte(isolationKey))
	return int(sum[0]) % Shards
}

// KeyToken stands for an isolation key in a NATS subject: caller text never becomes part of one.
func KeyToken(isolationKey string) string {
	sum := sha256.Sum256([]byte("isolation-key\x00" + isolationKey))
	return lowerBase32.EncodeToString(sum[:15])
}

// DeriveID derives the id from what the caller gave: (source, request_id), or without a request_id
// (source, merchant, order, event type, status version).
func (n *Notification) DeriveID() ID {
	h := newFieldHash("notifyd/id/v1")
	if n.RequestID != "" {
		h.text("request", n.Source, n.RequestID)
	} else {
		h.text("order", n.Source, n.MerchantID, n.OrderID, n.EventType)
		h.number(n.StatusVersion)
	}
	var id ID
	copy(id[:], h.Sum(nil))
	return id
}

// ContentDigest covers everything the caller gave except the name of the submission: submitting the same id with
// another digest is an error, with the same digest a duplicate.
func (n *Notification) ContentDigest() [32]byte {
	h := newFieldHash("notifyd/content/v1")
	h.text(n.MerchantID, n.AppID, n.Scene, n.EventType, n.OrderID, n.OrderStatus, n.BatchID, n.NotifyURL)
	h.bytes(n.Body)
	h.text(n.ContentType, n.Amount.Currency, n.OrderingKey, n.SupersedeKey)
	h.number(n.Amount.MinorUnits, n.StatusVersion, boolNumber(n.Terminal), int64(n.RequestedLane))
	for _, at := range []time.Time{n.OccurredAt, n.OrderCreatedAt, n.NotBefore, n.ExpiresAt} {
		if at.IsZero() {
			h.number(0)
		} else {
			h.number(at.UnixMicro())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		h.text(key, n.Labels[key])
	}
	return [32]byte(h.Sum(nil))
}

// fieldHash hashes length-prefixed fields, so that no two lists of fields share an input.
type fieldHash struct{ hash.Hash }

func newFieldHash(domain string) fieldHash {
	h := fieldHash{sha256.New()}
	h.text(domain)
	return h
}

func (h fieldHash) bytes(field []byte) {
	h.number(int64(len(field)))
	h.Write(field) // a hash never returns an error
}

func (h fieldHash) text(fields ...string) {
	for _, f := range fields {
		h.bytes([]byte(f))
	}
}

func (h fieldHash) number(values ...int64) {
	var buf [8]byte
	for _, v := range values {
		binary.BigEndian.PutUint64(buf[:], uint64(v)) //nolint:gosec // every bit pattern is wanted
		h.Write(buf[:])
	}
}

func boolNumber(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
