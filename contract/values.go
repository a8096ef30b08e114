package contract

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"notifyd/contract/encode"
	"notifyd/notification"
)

// Told is one notification, as a request tells it.
type Told struct {
	Notification *notification.Notification
	Number       int // of the attempt, from 1
	At           time.Time
	Entropy      [32]byte // random: the nonces are made of it. See Book.Request
}

// valueKinds are the names of what the engine knows, for @name in a source and {name} in a pattern, and what each is.
//
//	id attempt merchant_id app_id scene event_type order_id order_status status_version batch_id
//	currency minor_units                 the notification's amount
//	occurred_at order_created_at create_time   RFC 3339, UTC; create_time is the acceptance
//	timestamp timestamp_ms datetime rfc3339    the attempt's time; datetime is 2006-01-02 15:04:05 in China
//	nonce                                32 hexadecimal digits
//	key_id serial serial_decimal         of the key that signs, and of its certificate
//	charset charset_upper sign_type      of the contract
//	ciphertext seal_nonce associated_data      of what is encrypted
func valueKinds() encode.Names {
	names := encode.Names{}
	for name := range strings.FieldsSeq(`id merchant_id app_id scene event_type order_id order_status batch_id currency
		occurred_at order_created_at create_time timestamp timestamp_ms datetime rfc3339 nonce key_id serial serial_decimal
		charset charset_upper sign_type ciphertext seal_nonce associated_data`) {
		names[name] = encode.KindString
	}
	for _, name := range []string{"attempt", "status_version", "minor_units"} {
		names[name] = encode.KindNumber
	}
	return names
}

// values are what the names stand for in one request.
type values struct {
	c     *Contract
	told  Told
	at    time.Time // of the signature: the acceptance where it is frozen
	nonce string
	key   *Key

	id, timestamp string // made once, for several places

	ciphertext, sealNonce, associated string
}

func (c *Contract) valuesOf(told Told, key *Key) *values {
	v := &values{c: c, told: told, at: told.At, key: key}
	if c.settings.Signer.Frozen {
		v.at = told.Notification.AcceptedAt
	}
	return v
}

// china is where the field's timestamps without a zone are from; it has no daylight saving time.
var china = time.FixedZone("CST", 8*60*60)

const datetime = "2006-01-02 15:04:05"

// get is the value of a name; false: this notification has none.
func (v *values) get(name string) (string, bool) {
	n := v.told.Notification
	switch name {
	case "id":
		if v.id == "" {
			v.id = n.ID.String()
		}
		return v.id, true
	case "attempt":
		return strconv.Itoa(v.told.Number), true
	case "merchant_id":
		return n.MerchantID, true
	case "app_id":
		return n.AppID, n.AppID != ""
	case "scene":
		return n.Scene, true
	case "event_type":
		return n.EventType, n.EventType != ""
	case "order_id":
		return n.OrderID, n.OrderID != ""
	case "order_status":
		return n.OrderStatus, n.OrderStatus != ""
	case "status_version":
		return strconv.FormatInt(n.StatusVersion, 10), true
	case "batch_id":
		return n.BatchID, n.BatchID != ""
	case "currency":
		return n.Amount.Currency, n.Amount.Currency != ""
	case "minor_units":
		return strconv.FormatInt(n.Amount.MinorUnits, 10), n.Amount.Currency != ""
	}
	return v.ofRequest(name)
}

// ofRequest are the values that are not the notification's.
func (v *values) ofRequest(name string) (string, bool) {
	n := v.told.Notification
	switch name {
	case "occurred_at":
		return instant(n.OccurredAt)
	case "order_created_at":
		return instant(n.OrderCreatedAt)
	case "create_time":
		return instant(n.AcceptedAt)
	case "timestamp":
		if v.timestamp == "" {
			v.timestamp = strconv.FormatInt(v.at.Unix(), 10)
		}
		return v.timestamp, true
	case "timestamp_ms":
		return strconv.FormatInt(v.at.UnixMilli(), 10), true
	case "datetime":
		return v.at.In(china).Format(datetime), true
	case "rfc3339":
		return v.at.UTC().Format(time.RFC3339), true
	case "nonce":
		return v.theNonce(), true
	case "key_id":
		return v.key.ID, v.key.ID != ""
	case "serial":
		return v.key.Serial, v.key.Serial != ""
	case "serial_decimal":
		return v.key.SerialDecimal, v.key.SerialDecimal != ""
	case "charset":
		return v.c.charset(), true
	case "charset_upper":
		return strings.ToUpper(v.c.charset()), true
	case "sign_type":
		return v.c.word, v.c.word != ""
	case "ciphertext":
		return v.ciphertext, true
	case "seal_nonce":
		return v.sealNonce, true
	case "associated_data":
		return v.associated, true
	}
	return "", false
}

func instant(t time.Time) (string, bool) {
	return t.UTC().Format(time.RFC3339), !t.IsZero()
}

// theNonce is the notification's own where the signature is frozen.
func (v *values) theNonce() string {
	if v.nonce == "" {
		random := v.told.Entropy[:16]
		if v.c.settings.Signer.Frozen {
			random = v.told.Notification.ID[:]
		}
		v.nonce = hex.EncodeToString(random)
	}
	return v.nonce
}

// letters of a nonce that is sent as text and used as bytes: RFC 8446's ciphers and WeChat Pay v3 take 12 of them.
const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// sealing is a nonce of so many letters, 6 random bits each.
func (v *values) sealing(size int) []byte {
	nonce := make([]byte, size)
	for i := range nonce {
		nonce[i] = letters[v.told.Entropy[16+i]&63]
	}
	return nonce
}

func (c *Contract) charset() string {
	return orElse(c.settings.Encoding.Charset, "utf-8")
}
