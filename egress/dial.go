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

func (c *Client) dialPlain(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err // not a typed nil
	}
	return conn, nil
}

// dial finds the address and connects. The transport calls it in a goroutine of its own that may outlive the
// attempt; so it only reads what the leg does not change, and stores through atomics.
func (c *Client) dial(ctx context.Context, network, address string) (*conn, error) {
	leg := legOf(ctx)
	leg.dialing.Store(uint32(PhaseConnect))
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, earlier(began.Add(leg.timeouts.Connect), leg.softEnd))
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
	tcp, err := c.dialer.DialContext(ctx, network, address)
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

func (c *Client) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	leg := legOf(ctx)
	leg.dialing.Store(uint32(PhaseTLS))
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, earlier(began.Add(leg.timeouts.TLS), leg.softEnd))
	defer cancel()

	// The handshake is ours and not the transport's, so that it has its own time and is not counted as sent.
	session := tls.Client(conn.wire, c.tlsFor(address))
	err = session.HandshakeContext(ctx)
	conn.steps.tls = time.Since(began)
	if err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, &dialError{PhaseTLS, conn.steps, err}
	}
	state := session.ConnectionState()
	conn.Conn = session
	conn.tlsWords = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	return conn, nil
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
