package egress

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"notifyd/merchant"
	"notifyd/notification"
)

// direct is the one way out for now.
const direct = "direct"

// Client sends attempts. It is safe for many callers at once.
type Client struct {
	config    Config
	dialer    net.Dialer
	dial      func(ctx context.Context, l *leg, address string) (*conn, error)
	tls       *tls.Config
	pool      *pool // one for each (egress, TLS identity): for now one
	targets   cache[target]
	contracts Contracts
	spare     spare
}

// Call is one attempt to make.
type Call struct {
	Work     notification.Work
	Merchant *merchant.Merchant // as the notification's scene sees it
	Number   int                // from 1
	Kind     notification.Kind  // zero: a send
	// WrongSignature signs wrongly on purpose: a test call that a merchant should refuse.
	WrongSignature bool
}

// New returns a client with a connection pool of its own.
func New(config Config, contracts Contracts) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("new egress client: %w", err)
	}
	c := &Client{
		config:    config,
		targets:   cache[target]{limit: 16384},
		contracts: contracts,
		dialer: net.Dialer{
			// Go's own resolver says whether a name does not exist or nobody could say; libc's blurs the two.
			Resolver:       &net.Resolver{PreferGo: true},
			ControlContext: config.Guard().control,
		},
		tls: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			RootCAs:            config.Roots,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(4096),
		},
	}
	// HTTP/1.1 only: one connection carries one request, so that what left on it is known to the byte (P6), and a
	// broken connection costs one attempt. HTTP/2 streams share both, and cost more CPU besides.
	c.dial = c.dialTCP
	c.pool = newPool(config)
	return c, nil
}

// Guard is what keeps this client away from private addresses.
func (c *Client) Guard() Guard { return c.config.Guard() }

// Close closes the idle connections; attempts in hand go on.
func (c *Client) Close() { c.pool.close() }
