// Package source holds the payment services that submit notifications: what each may do, and how it proves who it is.
package source

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Source is a payment service. It is stored as JSON without its secrets; those are encrypted beside it.
type Source struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	// Merchants it may submit for: ids; `shop-*` allows every id that begins so, `*` every merchant.
	Merchants []string `json:"merchants,omitempty"`
	// Certificates that prove it: `dns:…`, `uri:…` or `subject:…` (RFC 2253).
	Certificates []string `json:"certificates,omitempty"`
	// AllowNonTerminal takes statuses that are not the order's last one.
	AllowNonTerminal bool   `json:"allow_non_terminal,omitempty"`
	Limits           Limits `json:"limits,omitzero"`
	Disabled         bool   `json:"disabled,omitempty"`
	Keys             []Key  `json:"keys,omitempty"`

	// Secrets belong to Keys, by key id: of each what Secret.Kept says.
	Secrets Secrets `json:"-"`

	Version   int64     `json:"-"` // grows with every change of any source
	UpdatedAt time.Time `json:"-"`
}

// Limits bound a source on each node; zero values do not.
type Limits struct {
	RatePerSecond   float64 `json:"rate_per_second,omitempty"` // notifications
	Burst           int     `json:"burst,omitempty"`           // 0: a second of RatePerSecond, at least 1
	MaxRequestBytes int64   `json:"max_request_bytes,omitempty"`
}

// Kind says what a key is used for. The numbers are stored.
type Kind uint8

// The kinds of keys.
const (
	KindAPIKey Kind = 1 // sent as it is
	KindHMAC   Kind = 2 // signs requests
)

// String is the word for a kind.
func (k Kind) String() string {
	switch k {
	case KindAPIKey:
		return "API key"
	case KindHMAC:
		return "HMAC key"
	}
	return fmt.Sprintf("key of kind %d", uint8(k))
}

// Key is what is known of a key besides its secret.
type Key struct {
	ID        string    `json:"id"`
	Kind      Kind      `json:"kind"`
	Label     string    `json:"label,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"` // zero: never
}

// Live reports whether a key is good at an instant.
func (k Key) Live(now time.Time) bool { return k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt) }

// Secrets are encrypted at rest, never logged and never shown again.
type Secrets map[string][]byte

// String keeps a secret out of every log and error that formats it.
func (Secrets) String() string { return "[secrets]" }

// GoString does the same for %#v.
func (Secrets) GoString() string { return "[secrets]" }

// LiveKeys are the keys of a kind that are good at an instant.
func (s *Source) LiveKeys(kind Kind, now time.Time) []Key {
	var live []Key
	for _, k := range s.Keys {
		if k.Kind == kind && k.Live(now) {
			live = append(live, k)
		}
	}
	return live
}

// Holds reports whether a secret is the one of a key of this source, expired or not.
func (s *Source) Holds(secret Secret) bool {
	kept := s.Secrets[secret.KeyID]
	switch secret.Kind {
	case KindAPIKey:
		return len(kept) == sha256.Size && subtle.ConstantTimeCompare(kept, secret.Kept()) == 1
	case KindHMAC: // is never sent: whoever shows it has given it away
		return false
	}
	return false
}

// Allows reports whether the source may submit for a merchant.
func (s *Source) Allows(merchantID string) bool {
	for _, pattern := range s.Merchants {
		prefix, open := strings.CutSuffix(pattern, "*")
		if merchantID == pattern || open && strings.HasPrefix(merchantID, prefix) {
			return true
		}
	}
	return false
}

// CheckMerchant refuses a text that Merchants cannot have.
func CheckMerchant(pattern string) error {
	if i := strings.IndexByte(pattern, '*'); i >= 0 && i != len(pattern)-1 {
		return fmt.Errorf("%q: * is allowed at the end only", pattern)
	}
	return nil
}

// The ways in which Certificates name one.
const (
	byDNS     = "dns:"
	byURI     = "uri:"
	bySubject = "subject:"
)

// CheckCertificate refuses a text that Certificates cannot have.
func CheckCertificate(name string) error {
	for _, prefix := range []string{byDNS, byURI, bySubject} {
		rest, ok := strings.CutPrefix(name, prefix)
		switch {
		case !ok:
		case rest == "":
			return fmt.Errorf("%q: nothing follows %s", name, prefix)
		case prefix == byDNS && rest != strings.ToLower(rest):
			return fmt.Errorf("%q: write DNS names in lower case", name)
		default:
			return nil
		}
	}
	return fmt.Errorf("%q: want dns:<name>, uri:<URI> or subject:<RFC 2253 subject>", name)
}

// WithKey is the source with one more key; kept is what Secret.Kept said.
func (s *Source) WithKey(k Key, kept []byte) *Source {
	with := *s
	with.Keys = append(slices.Clone(s.Keys), k)
	with.Secrets = maps.Clone(s.Secrets)
	if with.Secrets == nil {
		with.Secrets = Secrets{}
	}
	with.Secrets[k.ID] = kept
	return &with
}

// WithoutKeys is the source without some of its keys.
func (s *Source) WithoutKeys(gone func(Key) bool) *Source {
	without := *s
	without.Keys, without.Secrets = nil, Secrets{}
	for _, k := range s.Keys {
		if !gone(k) {
			without.Keys = append(without.Keys, k)
			without.Secrets[k.ID] = s.Secrets[k.ID]
		}
	}
	return &without
}
