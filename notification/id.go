package notification

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
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
	f := newFields("notifyd/id/v1", 0)
	if n.RequestID != "" {
		f.text("request", n.Source, n.RequestID)
	} else {
		f.text("order", n.Source, n.MerchantID, n.OrderID, n.EventType)
		f.number(n.StatusVersion)
	}
	var id ID
	sum := f.sum()
	copy(id[:], sum[:])
	return id
}

// ContentDigest covers everything the caller gave except the name of the submission: submitting the same id with
// another digest is an error, with the same digest a duplicate.
func (n *Notification) ContentDigest() [32]byte {
	f := newFields("notifyd/content/v1", len(n.Body))
	f.text(n.MerchantID, n.AppID, n.Scene, n.EventType, n.OrderID, n.OrderStatus, n.BatchID, n.NotifyURL)
	f.bytes(n.Body)
	f.text(n.ContentType, n.Amount.Currency, n.OrderingKey, n.SupersedeKey)
	f.number(n.Amount.MinorUnits, n.StatusVersion, boolNumber(n.Terminal), int64(n.RequestedLane))
	for _, at := range []time.Time{n.OccurredAt, n.OrderCreatedAt, n.NotBefore, n.ExpiresAt} {
		if at.IsZero() {
			f.number(0)
		} else {
			f.number(at.UnixMicro())
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		f.text(key, n.Labels[key])
	}
	return f.sum()
}

// fields are length-prefixed, so that no two lists of them share a hash.
type fields []byte

// fieldsRoom is enough for the fields of most notifications beside the body.
const fieldsRoom = 512

func newFields(domain string, body int) fields {
	f := make(fields, 0, fieldsRoom+body)
	f.text(domain)
	return f
}

func (f *fields) bytes(field []byte) {
	f.number(int64(len(field)))
	*f = append(*f, field...)
}

func (f *fields) text(texts ...string) {
	for _, t := range texts {
		f.number(int64(len(t)))
		*f = append(*f, t...)
	}
}

func (f *fields) number(values ...int64) {
	for _, v := range values {
		*f = binary.BigEndian.AppendUint64(*f, uint64(v)) //nolint:gosec // every bit pattern is wanted
	}
}

func (f *fields) sum() [sha256.Size]byte { return sha256.Sum256(*f) }

func boolNumber(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
