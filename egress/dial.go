package egress

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"strings"
	"time"
)

// dialError is a connection that did not come about.
type dialError struct {
	phase Phase
	steps steps
	err   error
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// connect gives a leg a new connection.
func (c *Client) connect(ctx context.Context, l *leg, to target) error {
	conn, err := c.dial(ctx, l, to.address)
	if err == nil && to.url.Scheme == "https" {
		err = c.secure(ctx, l, conn, to.address)
	}
	if err != nil {
		return err
	}
	conn.origin, l.conn = to.origin, conn
	return nil
}

// dialTCP finds the address and connects.
func (c *Client) dialTCP(ctx context.Context, l *leg, address string) (*conn, error) {
	l.dialing = PhaseConnect
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, earlier(began.Add(l.timeouts.Connect), l.softEnd))
	defer cancel()

	phase, resolved := PhaseConnect, began
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { phase = PhaseResolve },
		DNSDone: func(info httptrace.DNSDoneInfo) {
			resolved = time.Now()
			if info.Err == nil {
				phase = PhaseConnect
			}
		},
	})
	tcp, err := c.dialer.DialContext(ctx, "tcp", address)
	took := steps{dns: resolved.Sub(began)}
	if phase == PhaseResolve {
		took.dns = time.Since(began)
	} else {
		took.connect = time.Since(resolved)
	}
	if err != nil {
		return nil, &dialError{phase, took, err}
	}
	w := newWire(tcp)
	return &conn{
		Conn: w, wire: w, steps: took,
		local: tcp.LocalAddr().String(), remote: tcp.RemoteAddr().String(),
	}, nil
}

// secure makes a connection one over TLS, or closes it. A handshake has its own time, and is not counted as sent.
func (c *Client) secure(ctx context.Context, l *leg, conn *conn, address string) error {
	l.dialing = PhaseTLS
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, earlier(began.Add(l.timeouts.TLS), l.softEnd))
	defer cancel()
	session := tls.Client(conn.wire, c.tlsFor(address))
	err := session.HandshakeContext(ctx)
	conn.steps.tls = time.Since(began)
	if err != nil {
		_ = conn.Close() // the handshake's error says more
		return &dialError{PhaseTLS, conn.steps, err}
	}
	state := session.ConnectionState()
	conn.Conn = session
	conn.tlsWords = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	return nil
}

func (c *Client) tlsFor(address string) *tls.Config {
	config := c.tls.Clone()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	config.ServerName = strings.TrimSuffix(host, ".")
	return config
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
