package egress

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"notifyd/merchant"
)

// Config is how the engine talks to merchants. Start from [DefaultConfig]. A merchant's own timeouts replace these.
type Config struct {
	ConnectTimeout time.Duration `yaml:"connect_timeout"` // finding the address and TCP
	TLSTimeout     time.Duration `yaml:"tls_timeout"`
	// FirstByteTimeout is for the answer's head, counted from having a connection. 0: only TotalTimeout holds.
	FirstByteTimeout time.Duration `yaml:"first_byte_timeout"`
	TotalTimeout     time.Duration `yaml:"total_timeout"` // soft: the answer may still come within Grace
	Grace            time.Duration `yaml:"grace"`

	MaxResponse        int           `yaml:"max_response_bytes"` // bytes of an answer's body that are read and kept
	MaxIdleConnections int           `yaml:"max_idle_connections"`
	MaxIdlePerMerchant int           `yaml:"max_idle_per_merchant"`
	IdleTimeout        time.Duration `yaml:"idle_timeout"` // just below the 60 s that many load balancers have

	AllowedNetworks []netip.Prefix `yaml:"allowed_networks"` // private networks that notify URLs may lead to

	Roots *x509.CertPool `yaml:"-"` // nil: the system's
}

// DefaultConfig is a working configuration that reaches public addresses only.
func DefaultConfig() Config {
	return Config{
		ConnectTimeout:     3 * time.Second,
		TLSTimeout:         5 * time.Second,
		TotalTimeout:       10 * time.Second,
		Grace:              5 * time.Second,
		MaxResponse:        64 << 10,
		MaxIdleConnections: 8192,
		MaxIdlePerMerchant: 256,
		IdleTimeout:        55 * time.Second,
	}
}

// Validate names every setting that cannot be.
func (c Config) Validate() error {
	const longest = 10 * time.Minute
	var errs []error
	within := func(name string, value, least, most int64, show func(int64) any) {
		if value < least || value > most {
			errs = append(errs, fmt.Errorf("egress.%s is %v, want %v to %v", name, show(value), show(least), show(most)))
		}
	}
	duration := func(name string, value, least, most time.Duration) {
		within(name, int64(value), int64(least), int64(most), func(v int64) any { return time.Duration(v) })
	}
	number := func(name string, value, least, most int) {
		within(name, int64(value), int64(least), int64(most), func(v int64) any { return v })
	}
	duration("connect_timeout", c.ConnectTimeout, time.Millisecond, longest)
	duration("tls_timeout", c.TLSTimeout, time.Millisecond, longest)
	duration("first_byte_timeout", c.FirstByteTimeout, 0, longest)
	duration("total_timeout", c.TotalTimeout, time.Millisecond, longest)
	duration("grace", c.Grace, 0, longest)
	duration("idle_timeout", c.IdleTimeout, time.Millisecond, longest)
	number("max_response_bytes", c.MaxResponse, 1, 1<<20)
	number("max_idle_connections", c.MaxIdleConnections, 1, 1<<20)
	number("max_idle_per_merchant", c.MaxIdlePerMerchant, 1, 1<<16)
	for _, network := range c.AllowedNetworks {
		if !network.IsValid() || network.Addr().Is4In6() {
			errs = append(errs, fmt.Errorf("egress.allowed_networks: %v is not a network", network))
		}
	}
	return errors.Join(errs...)
}

// Guard refuses what the configuration does not allow.
func (c Config) Guard() Guard { return Guard{Allowed: c.AllowedNetworks} }

// timeouts are the merchant's, filled from the configuration.
func (c Config) timeouts(own merchant.Timeouts) merchant.Timeouts {
	t := own.Or(merchant.Timeouts{
		Connect: c.ConnectTimeout, TLS: c.TLSTimeout, FirstByte: c.FirstByteTimeout,
		Total: c.TotalTimeout, Grace: c.Grace, NoGrace: c.Grace == 0,
	})
	if t.FirstByte == 0 || t.FirstByte > t.Total {
		t.FirstByte = t.Total
	}
	return t
}
