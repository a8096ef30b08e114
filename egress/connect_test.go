package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"notifyd/notification"
)

// P6: reset in the handshake, nothing of the request sent: one reconnect at once, one attempt.
func TestSendReconnectsAfterReset(t *testing.T) {
	cert, roots := certificate(t)
	secure := &tls.Config{Certificates: []tls.Certificate{cert}}
	m := play(t, (*side).reset, overTLS(secure, answers(okAnswer)))
	c := newClient(t, func(c *Config) { c.Roots = roots })
	a := c.Send(t.Context(), callTo("https://"+m.addr, []byte("{}")))
	check(t, a, want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 2})
	if len(m.seen()) != 1 || a.TLS == "" || a.Phases.TLS <= 0 {
		t.Errorf("%d requests, tls %q", len(m.seen()), a.TLS)
	}

	m = play(t, (*side).reset)
	a = c.Send(t.Context(), callTo("https://"+m.addr, []byte("{}")))
	check(t, a, want{notification.OutcomeRetryable, notification.ReasonResetBeforeWrite, 2})
	if n := m.connections(); n != 2 {
		t.Errorf("%d connections, want exactly one reconnect", n)
	}
}

// The same without TLS: the merchant's RST is there before the request is written.
func TestSendReconnectsBeforeWrite(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("hungUp looks only on linux")
	}
	m := play(t, (*side).reset, answers(okAnswer))
	c := newClient(t, nil)
	var dials int
	c.dial = func(ctx context.Context, l *leg, address string) (*conn, error) {
		dials++
		conn, err := c.dialTCP(ctx, l, address)
		if err != nil {
			return nil, err // the RST was faster than our connect
		}
		if dials == 1 {
			for !conn.hungUp() {
				runtime.Gosched()
			}
		}
		return conn, nil
	}
	check(t, c.Send(t.Context(), callTo(m.url(), payload)), want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 2})
	if n := len(m.seen()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// P6: a local port or descriptor missing is tried once more, and is never the merchant's fault.
func TestSendLocalPorts(t *testing.T) {
	m := play(t, answers(okAnswer))
	for _, failures := range []int{1, 5} {
		c := newClient(t, nil)
		var dials int
		guard := c.dialer.ControlContext
		c.dialer.ControlContext = func(ctx context.Context, network, address string, raw syscall.RawConn) error {
			if dials++; dials <= failures {
				return os.NewSyscallError("socket", syscall.EMFILE)
			}
			return guard(ctx, network, address, raw)
		}
		a := c.Send(t.Context(), callTo(m.url(), nil))
		if failures == 1 {
			check(t, a, want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 2})
		} else {
			check(t, a, want{notification.OutcomeRetryable, notification.ReasonLocalPorts, 2})
		}
	}
}

// The merchant closed the idle connection: the next attempt takes a new one.
func TestSendIdleConnectionClosed(t *testing.T) {
	m := play(t, once(okAnswer))
	c := newClient(t, nil)
	for range 20 {
		a := c.Send(t.Context(), callTo(m.url(), payload))
		if a.Outcome == notification.OutcomeUnconfirmed {
			continue // the FIN was still on its way: unconfirmed is the truth
		}
		check(t, a, delivered)
	}
}

// A look before the write finds out that it is closed: nothing leaves, and a new connection carries the request. A whole
// pool of such connections is passed over.
func TestSendDeadPool(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("hungUp looks only on linux")
	}
	const pool = 5
	var together sync.WaitGroup
	together.Add(pool)
	closing := make(chan struct{})
	first := func(s *side) {
		s.read()
		together.Done()
		together.Wait() // so that each has a connection of its own
		s.say(okAnswer)
		<-closing
	}
	m := play(t, first, first, first, first, first, answers(okAnswer))
	c := newClient(t, nil)
	var done sync.WaitGroup
	for range pool {
		done.Go(func() { check(t, c.Send(context.Background(), callTo(m.url(), payload)), delivered) })
	}
	done.Wait()
	close(closing)
	m.mu.Lock()
	conns := m.conns
	m.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
	a := c.Send(t.Context(), callTo(m.url(), payload))
	check(t, a, delivered)
	if n := len(m.seen()); n != pool+1 || m.connections() != pool+1 {
		t.Errorf("%d requests on %d connections", n, m.connections())
	}
}

func TestSendConnectFailures(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	c := newClient(t, nil)
	check(t, c.Send(t.Context(), callTo("http://"+gone.Addr().String(), nil)), want{notification.OutcomeRetryable, notification.ReasonConnectRefused, 1})

	t.Run("black hole", func(t *testing.T) {
		addr := blackHole(t)
		c := newClient(t, func(c *Config) { c.ConnectTimeout = 100 * time.Millisecond })
		a := c.Send(t.Context(), callTo("http://"+addr, nil))
		check(t, a, want{notification.OutcomeRetryable, notification.ReasonConnectTimeout, 1})
		if a.Phases.Connect < 90*time.Millisecond || a.Phases.DNS != 0 || a.Took > 5*time.Second {
			t.Errorf("%+v, took %v", a.Phases, a.Took)
		}
	})
	t.Run("black hole longer than the total", func(t *testing.T) {
		addr := blackHole(t)
		c := newClient(t, func(c *Config) { c.TotalTimeout = 100 * time.Millisecond })
		a := c.Send(t.Context(), callTo("http://"+addr, nil))
		check(t, a, want{notification.OutcomeRetryable, notification.ReasonConnectTimeout, 1})
		if a.Took > 2*time.Second {
			t.Errorf("took %v: connecting must not eat the grace", a.Took)
		}
	})
}

// blackHole listens with a full backlog: the kernel drops every further SYN.
func blackHole(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) })
	if err != nil {
		t.Skip("cannot shorten the backlog:", err)
	}
	for range 10 {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), 100*time.Millisecond)
		var timer net.Error
		if errors.As(err, &timer) && timer.Timeout() {
			return listener.Addr().String()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Skip("the kernel drops no SYN here")
	return ""
}

// A merchant that never reads: the request cannot be written in time. Some of it left.
func TestSendWriteTimeout(t *testing.T) {
	m := play(t, func(s *side) { <-s.of.done })
	slow := func(c *Config) { short(c); c.TotalTimeout = time.Second } // to connect takes a moment, too
	c := newClient(t, slow)
	a := c.Send(t.Context(), callTo(m.url(), make([]byte, 16<<20)))
	check(t, a, want{notification.OutcomeUnconfirmed, notification.ReasonWriteTimeout, 1})
	if a.Took > 3*time.Second {
		t.Errorf("took %v", a.Took)
	}
	cert, roots := certificate(t)
	m = play(t, overTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, func(s *side) { <-s.of.done }))
	c = newClient(t, func(c *Config) { slow(c); c.Roots = roots })
	a = c.Send(t.Context(), callTo("https://"+m.addr, make([]byte, 16<<20)))
	check(t, a, want{notification.OutcomeUnconfirmed, notification.ReasonWriteTimeout, 1})
	if a.Took > 3*time.Second {
		t.Errorf("took %v: crypto/tls waited for its farewell", a.Took)
	}
}

// An answer that nobody asked for is not the next request's: that one takes another connection.
func TestSendUnaskedAnswer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("hungUp looks only on linux")
	}
	cert, roots := certificate(t)
	for name, secure := range map[string]func(part) part{
		"plain": func(p part) part { return p },
		"TLS":   func(p part) part { return overTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, p) },
	} {
		t.Run(name, func(t *testing.T) {
			speak, spoke := make(chan struct{}), make(chan struct{})
			m := play(t, secure(func(s *side) {
				s.read()
				s.say(okAnswer)
				<-speak
				s.say(okAnswer)
				close(spoke)
				s.hold()
			}), secure(answers("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")))
			c := newClient(t, func(c *Config) { c.Roots = roots })
			url := m.url()
			if name == "TLS" {
				url = "https://" + m.addr + "/notify"
			}
			check(t, c.Send(t.Context(), callTo(url, payload)), delivered)
			close(speak)
			<-spoke
			check(t, c.Send(t.Context(), callTo(url, payload)), want{notification.OutcomeRetryable, notification.ReasonHTTPServerError, 1})
			if n := m.connections(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

// One connection serves one attempt after another, session tickets or not.
func TestSendKeepsConnections(t *testing.T) {
	cert, roots := certificate(t)
	for name, script := range map[string][]part{
		"http":  {answers(okAnswer)},
		"https": {overTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, answers(okAnswer))},
	} {
		t.Run(name, func(t *testing.T) {
			m := play(t, script...)
			c := newClient(t, func(c *Config) { c.Roots = roots })
			connects := 0
			for range 5 {
				a := c.Send(t.Context(), callTo(name+"://"+m.addr+"/notify", payload))
				connects += a.Connects
				if a.Outcome != notification.OutcomeDelivered {
					t.Errorf("%v %v: %s", a.Outcome, a.Reason, a.Detail)
				}
			}
			if n := m.connections(); n != 1 || connects != 1 {
				t.Errorf("%d connections, %d on record, want one", n, connects)
			}
		})
	}
}

func TestSendTLS(t *testing.T) {
	cert, roots := certificate(t)
	retryable := notification.OutcomeRetryable
	serve := func(change func(*tls.Config)) []part {
		config := &tls.Config{Certificates: []tls.Certificate{cert}}
		change(config)
		return []part{overTLS(config, answers(okAnswer))}
	}
	same := func(*tls.Config) {}
	tests := []struct {
		name   string
		script []part
		config func(*Config)
		host   string
		want   want
	}{
		{"TLS 1.3", serve(same), nil, "", delivered},
		{"TLS 1.2", serve(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), nil, "", delivered},
		{"TLS 1.1 only", serve(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }), nil, "", want{retryable, notification.ReasonTLSFailure, 1}},
		{"unknown authority", serve(same), func(c *Config) { c.Roots = nil }, "", want{retryable, notification.ReasonTLSCertificate, 1}},
		{"another name", serve(same), nil, "localhost", want{retryable, notification.ReasonTLSCertificate, 1}},
		{"not TLS", []part{func(s *side) { s.say("HTTP/1.1 400 Bad Request\r\n\r\n"); s.hold() }}, nil, "", want{retryable, notification.ReasonTLSFailure, 1}},
		{"handshake stalls", []part{(*side).hold}, func(c *Config) { c.TLSTimeout = 100 * time.Millisecond }, "", want{retryable, notification.ReasonTLSTimeout, 1}},
		{"handshake stalls over the total", []part{(*side).hold}, func(c *Config) { c.TotalTimeout = 100 * time.Millisecond }, "", want{retryable, notification.ReasonTLSTimeout, 1}},
		{"client certificate required, TLS 1.3", serve(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }), nil, "", want{retryable, notification.ReasonTLSFailure, 1}},
		{"client certificate required, TLS 1.2", serve(func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 }), nil, "", want{retryable, notification.ReasonTLSFailure, 1}},
		{"reset after the request", []part{overTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, func(s *side) { s.read(); s.reset() })}, nil, "", afterWrite},
		{"closed after the request", []part{overTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, once(""))}, nil, "", afterWrite},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := play(t, test.script...)
			c := newClient(t, func(c *Config) {
				c.Roots = roots
				if test.config != nil {
					test.config(c)
				}
			})
			address := m.addr
			if test.host != "" {
				_, port, _ := net.SplitHostPort(address)
				address = net.JoinHostPort(test.host, port)
			}
			a := c.Send(t.Context(), callTo("https://"+address+"/?token=secret", payload))
			check(t, a, test.want)
			if a.Took > 4*time.Second {
				t.Errorf("took %v", a.Took)
			}
			if test.want == delivered {
				check(t, c.Send(t.Context(), callTo("https://"+address, payload)), want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 0})
			}
		})
	}
}

// A merchant that misses our certificate may close while the request is still being written: what its alert says goes
// before how the connection broke.
func TestSendHearsTheAlertOfAMerchantThatCloses(t *testing.T) {
	t.Parallel()
	cert, roots := certificate(t)
	m := play(t, overTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}, (*side).hold))
	c := newClient(t, func(c *Config) { c.Roots = roots })
	large := bytes.Repeat([]byte("x"), 8<<20) // more than fits between the two
	check(t, c.Send(t.Context(), callTo("https://"+m.addr, large)), want{notification.OutcomeRetryable, notification.ReasonTLSFailure, 1})
}

// HTTP/1.1 also where the merchant would speak HTTP/2.
func TestSendSpeaksHTTP1(t *testing.T) {
	proto := make(chan string, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { proto <- r.Proto }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	_, roots := certificate(t)
	check(t, newClient(t, func(c *Config) { c.Roots = roots }).Send(t.Context(), callTo(server.URL, nil)), delivered)
	if got := <-proto; got != "HTTP/1.1" {
		t.Error(got)
	}
}
