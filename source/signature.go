package source

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Scheme begins the authorization header of a signed request:
//
//	authorization: NOTIFYD-HMAC-SHA256 key=<key id>,timestamp=<unix seconds>,signature=<base64 HMAC-SHA256>
//
// Signed is: method "\n" path "\n" timestamp "\n" lower-case hex SHA-256 of the body as it is sent. The HMAC's key is the
// text of the key's secret part, not decoded.
const Scheme = "NOTIFYD-HMAC-SHA256"

// Tolerance is how far a request's timestamp may be from the engine's clock, either way: clocks differ, and requests wait
// in queues. No nonces are kept, which nodes would have to share: until a timestamp is too old its request can be played
// again, unchanged, and acts as if its source sent it anew. Submitting what was accepted is answered with the first one's
// state, but takes from the rate; what had been refused may be accepted now. Reading answers whoever plays it. Cancelling
// cancels what is open by then, for example what an operator has resent after the first cancel.
const Tolerance = 5 * time.Minute

// Signature is what a signed request's authorization header says.
type Signature struct {
	KeyID string
	At    time.Time
	sum   []byte
}

// ErrNotSigning says that a key of another kind cannot sign.
var ErrNotSigning = errors.New("sign request: an HMAC key signs; an API key is sent as it is, after Bearer")

// SignRequest returns the authorization header of a request. The path is the URL's, escaped as it is sent, without a query.
func (s Secret) SignRequest(method, path string, body []byte, at time.Time) (string, error) {
	if s.Kind != KindHMAC {
		return "", ErrNotSigning
	}
	timestamp := at.Unix()
	sum := signatureOf([]byte(s.text), method, path, timestamp, body)
	return fmt.Sprintf("%s key=%s,timestamp=%d,signature=%s", Scheme, s.KeyID, timestamp, base64.StdEncoding.EncodeToString(sum)), nil
}

// ParseSignature reads an authorization header as SignRequest makes it; spaces after commas are allowed.
func ParseSignature(header string) (Signature, error) {
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, Scheme) {
		return Signature{}, fmt.Errorf("parse signature: want %s key=…,timestamp=…,signature=…", Scheme)
	}
	given := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch _, twice := given[name]; {
		case name != "key" && name != "timestamp" && name != "signature":
			return Signature{}, errors.New("parse signature: want key, timestamp and signature, and nothing else")
		case twice:
			return Signature{}, fmt.Errorf("parse signature: %s is given twice", name)
		}
		given[name] = value
	}
	if !isBase32(given["key"], keyIDBytes) {
		return Signature{}, errors.New("parse signature: key: want the key's id, 16 characters a-z2-7")
	}
	seconds, err := strconv.ParseInt(given["timestamp"], 10, 64)
	if err != nil || seconds < 0 || strconv.FormatInt(seconds, 10) != given["timestamp"] {
		return Signature{}, errors.New("parse signature: timestamp: want seconds since 1970")
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(given["signature"])
	if err != nil || len(sum) != sha256.Size {
		return Signature{}, errors.New("parse signature: signature: want the base64 of 32 bytes")
	}
	return Signature{KeyID: given["key"], At: time.Unix(seconds, 0).UTC(), sum: sum}, nil
}

// Timely reports whether the request was signed within Tolerance of an instant.
func (s Signature) Timely(now time.Time) bool { return s.At.Sub(now).Abs() <= Tolerance }

// Verify reports whether kept, see Secret.Kept, made the signature of this request.
func (s Signature) Verify(kept []byte, method, path string, body []byte) bool {
	return len(kept) > 0 && hmac.Equal(s.sum, signatureOf(kept, method, path, s.At.Unix(), body))
}

func signatureOf(key []byte, method, path string, timestamp int64, body []byte) []byte {
	content := sha256.Sum256(body)
	mac := hmac.New(sha256.New, key)
	// None of the parts can contain a newline, so no two requests sign the same text.
	mac.Write([]byte(method + "\n" + path + "\n" + strconv.FormatInt(timestamp, 10) + "\n" + hex.EncodeToString(content[:])))
	return mac.Sum(nil)
}
