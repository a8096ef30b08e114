// Package source holds the payment services that submit notifications: what each may do, and how it proves who it is.
package source

import "time"

// Source is a payment service.
type Source struct {
	ID   string
	Name string
	// Merchants it may submit for: ids; `shop-*` allows every id that begins so, `*` every merchant.
	Merchants []string
	// Certificates that prove it: `dns:…`, `uri:…` or `subject:…` (RFC 2253).
	Certificates []string
	// AllowNonTerminal takes statuses that are not the order's last one.
	AllowNonTerminal bool
	Limits           Limits
	Disabled         bool
	Keys             []Key

	// Secrets belong to Keys, by key id. They are stored sealed, apart from the rest: of an API key the SHA-256 of its
	// secret part, of an HMAC key the secret itself.
	Secrets map[string][]byte `json:"-"`

	Version   int64     `json:"-"` // grows with every change of any source
	UpdatedAt time.Time `json:"-"`
}

// Limits bound a source on each node; zero values do not.
type Limits struct {
	RatePerSecond   float64 // notifications
	Burst           int
	MaxRequestBytes int64
}

// Kind says what a key is used for.
type Kind uint8

// The kinds of keys.
const (
	KindAPIKey Kind = 1 // sent as it is
	KindHMAC   Kind = 2 // signs requests
)

// Key is what is known of a key besides its secret.
type Key struct {
	ID        string
	Kind      Kind
	Label     string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
}
