// Package keys holds what notifications are signed, encrypted, verified and proven with: keys and certificates under names,
// with versions that take over from each other, and the live snapshot that every attempt reads. It does no I/O.
package keys

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// Purpose is what a name's keys are for; a key serves no other.
type Purpose string

// The purposes.
const (
	PurposeSign      Purpose = "sign"
	PurposeEncrypt   Purpose = "encrypt"
	PurposeTLSClient Purpose = "tls_client" // proves the engine to a merchant's server
	PurposeVerify    Purpose = "verify"     // of a merchant's signed answers: a public key, a certificate or a shared secret
)

// Purposes are all of them.
func Purposes() []Purpose {
	return []Purpose{PurposeSign, PurposeEncrypt, PurposeTLSClient, PurposeVerify}
}

// Algorithm names a kind of key: rsa-<bits>, or one of those below.
type Algorithm string

// The algorithms beside rsa-<bits>.
const (
	ECDSAP256 Algorithm = "ecdsa-p256"
	ECDSAP384 Algorithm = "ecdsa-p384"
	ECDSAP521 Algorithm = "ecdsa-p521"
	Ed25519   Algorithm = "ed25519"
	SM2       Algorithm = "sm2"
	Symmetric Algorithm = "symmetric"

	RSA2048 Algorithm = "rsa-2048"
	RSA4096 Algorithm = "rsa-4096"
)

// Key is one version of a name. Nobody changes one that is in a Ring.
type Key struct {
	Name       string  `json:"-"` // of its set, as the next two are
	Purpose    Purpose `json:"-"`
	MerchantID string  `json:"-"` // empty: the platform's, which any merchant's settings may name

	Version   int       `json:"version"` // from 1
	Algorithm Algorithm `json:"algorithm"`
	// Fingerprint is the SHA-256 of the SubjectPublicKeyInfo in hexadecimal digits. Of a symmetric key it is `keyed:` and an
	// HMAC under a key that is sealed beside the secret: it names the key, and nobody can try guesses against it.
	Fingerprint  string    `json:"fingerprint"`
	Public       []byte    `json:"public,omitempty"`       // SubjectPublicKeyInfo, DER; none of a symmetric key
	Certificates [][]byte  `json:"certificates,omitempty"` // DER, the key's own first, then its issuers
	SerialNumber string    `json:"serial_number,omitempty"`
	NotBefore    time.Time `json:"not_before,omitzero"`
	NotAfter     time.Time `json:"not_after,omitzero"`
	ActiveFrom   time.Time `json:"active_from"`
	RetireAt     time.Time `json:"retire_at,omitzero"` // zero: not decided
	CreatedAt    time.Time `json:"created_at"`
	CreatedBy    string    `json:"created_by,omitempty"`
	Note         string    `json:"note,omitempty"`

	Material Material `json:"-"`
}

// ID names a version, for example `platform-rsa/2`.
func (k *Key) ID() string { return k.Name + "/" + strconv.Itoa(k.Version) }

// Live reports whether it is in use. The end of its certificate ends no key: what a merchant makes of an expired
// certificate is the merchant's word, and the alarms come first.
func (k *Key) Live(at time.Time) bool { return !at.Before(k.ActiveFrom) && !k.Retired(at) }

// Retired reports whether its time is over, for good.
func (k *Key) Retired(at time.Time) bool { return !k.RetireAt.IsZero() && !at.Before(k.RetireAt) }

// Decimal is the certificate's serial number in decimal digits, as UnionPay's certId has it; empty: no certificate.
func (k *Key) Decimal() string {
	n, ok := new(big.Int).SetString(k.SerialNumber, 16)
	if !ok {
		return ""
	}
	return n.String()
}

// TLSCertificate is what crypto/tls proves itself with; for PurposeTLSClient only.
func (k *Key) TLSCertificate() (tls.Certificate, error) {
	if k.Purpose != PurposeTLSClient || k.Material.Signer() == nil || len(k.Certificates) == 0 {
		return tls.Certificate{}, fmt.Errorf("key %s: is no client certificate with a private key", k.ID())
	}
	leaf, err := smx509.ParseCertificate(k.Certificates[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key %s: its certificate cannot be read", k.ID())
	}
	return tls.Certificate{Certificate: k.Certificates, PrivateKey: k.Material.Signer(), Leaf: leaf.ToX509()}, nil
}

// Set is a name and all its versions. It is stored whole as JSON; the secret parts are sealed beside it.
type Set struct {
	Name       string  `json:"name"`
	Purpose    Purpose `json:"purpose"`
	MerchantID string  `json:"merchant_id,omitempty"`
	Keys       []Key   `json:"keys"` // in the order of versions

	UpdatedBy string `json:"updated_by,omitempty"` // who made the last change
	Change    string `json:"change,omitempty"`     // what the last change was

	Version   int64     `json:"-"` // grows over all sets with every change
	UpdatedAt time.Time `json:"-"`
}

const (
	// liveAtOnce lets one key take over from the other; more would be forgotten.
	liveAtOnce = 2
	// mostVersions bounds a set: the oldest retired ones are left to the record of changes.
	mostVersions = 64
	// material of a retired key is destroyed by the next change that is at least so long after it.
	keepMaterial = 24 * time.Hour
)

// What a change of a set can be refused for.
var (
	// ErrTooMany says that more than two versions would be live at once.
	ErrTooMany = errors.New("two versions are live at once already: retire one first")
	// ErrOrder says that a version would come into use before the one that it follows.
	ErrOrder = errors.New("must not come into use before the version that it follows")
	// ErrRetired says that a version is retired: it does not come back.
	ErrRetired = errors.New("is retired, which cannot be undone: rotate to a new version")
)

// Newest is the newest version; nil: there is none.
func (s *Set) Newest() *Key {
	if len(s.Keys) == 0 {
		return nil
	}
	return &s.Keys[len(s.Keys)-1]
}

// Get is a version, or nil.
func (s *Set) Get(version int) *Key {
	i := slices.IndexFunc(s.Keys, func(k Key) bool { return k.Version == version })
	if i < 0 {
		return nil
	}
	return &s.Keys[i]
}

// With returns a set that has one more version, which takes over at its ActiveFrom. Those before it are retired overlap later,
// unless that was decided already.
func (s *Set) With(k Key, overlap time.Duration, now time.Time) (*Set, error) {
	next := s.copy(now)
	k.Version = 1
	if newest := s.Newest(); newest != nil {
		if k.ActiveFrom.Before(newest.ActiveFrom) && !newest.Retired(now) {
			return nil, fmt.Errorf("active_from: %s: %w (%s, from %s)", k.ActiveFrom.Format(time.RFC3339), ErrOrder, newest.ID(), newest.ActiveFrom.Format(time.RFC3339))
		}
		k.Version = newest.Version + 1
	}
	for i := range next.Keys {
		if before := &next.Keys[i]; before.RetireAt.IsZero() {
			before.RetireAt = k.ActiveFrom.Add(overlap)
		}
	}
	next.Keys = append(next.Keys, k)
	next.adopt()
	for i := range next.Keys {
		if from := next.Keys[i].ActiveFrom; next.live(from) > liveAtOnce {
			return nil, fmt.Errorf("at %s: %w", from.Format(time.RFC3339), ErrTooMany)
		}
	}
	for len(next.Keys) > mostVersions && next.Keys[0].Retired(now) {
		next.Keys = next.Keys[1:]
	}
	return next, nil
}

// Retire returns a set in which a version's time is over at an instant, at the earliest now.
func (s *Set) Retire(version int, at, now time.Time) (*Set, error) {
	next := s.copy(now)
	k := next.Get(version)
	switch {
	case k == nil:
		return nil, fmt.Errorf("version %d of %q: there is none", version, s.Name)
	case k.Retired(now):
		return nil, fmt.Errorf("version %d of %q: %w", version, s.Name, ErrRetired)
	}
	if at.Before(now) {
		at = now
	}
	k.RetireAt = at
	for i := range next.Keys {
		if from := next.Keys[i].ActiveFrom; next.live(from) > liveAtOnce {
			return nil, fmt.Errorf("at %s: %w", from.Format(time.RFC3339), ErrTooMany)
		}
	}
	return next, nil
}

// live is how many versions are live at an instant.
func (s *Set) live(at time.Time) (n int) {
	for i := range s.Keys {
		if s.Keys[i].Live(at) {
			n++
		}
	}
	return n
}

// copy is a set to change. The secret parts of what is long retired are left out of it.
func (s *Set) copy(now time.Time) *Set {
	next := *s
	next.Keys = slices.Clone(s.Keys)
	for i := range next.Keys {
		if next.Keys[i].Retired(now.Add(-keepMaterial)) {
			next.Keys[i].Material = Material{}
		}
	}
	return &next
}

// adopt gives each version what is the set's.
func (s *Set) adopt() {
	for i := range s.Keys {
		s.Keys[i].Name, s.Keys[i].Purpose, s.Keys[i].MerchantID = s.Name, s.Purpose, s.MerchantID
	}
}
