package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// scripted is a merchant that plays a script: its first connection the first part, and so on; all further ones the last.
type scripted struct {
	addr string
	done chan struct{} // closed when the test ends

	mu       sync.Mutex
	attempts []string // the notifyd-attempt of every request seen
	accepted int
	conns    []net.Conn
}

// side is the merchant's side of one connection.
type side struct {
	net.Conn
	in *bufio.Reader
	of *scripted
}

type part func(s *side)

func play(t *testing.T, script ...part) *scripted {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &scripted{addr: listener.Addr().String(), done: make(chan struct{})}
	var running sync.WaitGroup
	running.Go(func() {
		for i := 0; ; i++ {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.accepted++
			m.conns = append(m.conns, c)
			m.mu.Unlock()
			running.Go(func() {
				defer c.Close()
				script[min(i, len(script)-1)](&side{Conn: c, in: bufio.NewReader(c), of: m})
			})
		}
	})
	t.Cleanup(func() {
		close(m.done)
		_ = listener.Close()
		m.mu.Lock()
		for _, c := range m.conns {
			_ = c.Close()
		}
		m.mu.Unlock()
		running.Wait()
	})
	return m
}

func (m *scripted) url() string { return "http://" + m.addr + "/notify" }

func (m *scripted) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.attempts)
}

func (m *scripted) connections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accepted
}

// read takes one whole request; false when the connection is over.
func (s *side) read() bool {
	r, err := http.ReadRequest(s.in)
	if err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return false
	}
	s.of.mu.Lock()
	s.of.attempts = append(s.of.attempts, r.Header.Get("notifyd-attempt"))
	s.of.mu.Unlock()
	return true
}

func (s *side) say(text string) { _, _ = io.WriteString(s, text) }

// reset ends the connection with RST.
func (s *side) reset() {
	c := s.Conn
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// hold keeps the connection open until the client or the test has enough.
func (s *side) hold() { _, _ = io.Copy(io.Discard, s.in) }

// wait lets time pass, or the test end.
func (s *side) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.of.done:
	}
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsuccess"

// answers says the same to every request of a connection.
func answers(text string) part {
	return func(s *side) {
		for s.read() {
			s.say(text)
		}
	}
}

// once says something to one request and closes.
func once(text string) part {
	return func(s *side) {
		if s.read() {
			s.say(text)
		}
	}
}

// overTLS plays a part behind a handshake.
func overTLS(config *tls.Config, then part) part {
	return func(s *side) {
		c := tls.Server(s.Conn, config)
		if c.HandshakeContext(context.Background()) != nil {
			return
		}
		then(&side{Conn: c, in: bufio.NewReader(c), of: s.of})
	}
}

// certificate is httptest's own, for 127.0.0.1 and example.com, and the pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return s.TLS.Certificates[0], pool
}
