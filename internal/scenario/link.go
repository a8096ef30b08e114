package scenario

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Link is a faulty connection to a server: a TCP proxy in front of it. Each node gets one of its own, so that one node
// alone can be cut off. Its methods may be called concurrently.
type Link struct {
	addr   string
	target string // host:port, or the path of a Unix socket
	done   chan struct{}
	ended  sync.WaitGroup

	mu      sync.Mutex
	mode    linkMode
	delay   time.Duration
	changed chan struct{} // closed, and made anew, when the mode changes
	door    net.Listener  // nil while connections are refused
	conns   map[net.Conn]bool
}

type linkMode int

const (
	passing linkMode = iota // to the other side at once, or after the delay
	cut                     // no bytes, no end of a connection
	refusing
)

// NewLink puts a link before a server at host:port, or at the path of a Unix socket. It passes everything until told
// otherwise, and ends with the test.
func NewLink(tb testing.TB, target string) *Link {
	tb.Helper()
	l := &Link{target: target, done: make(chan struct{}), changed: make(chan struct{}), conns: map[net.Conn]bool{}, mode: refusing}
	l.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(tb)))
	l.Pass(tb)
	tb.Cleanup(func() {
		close(l.done)
		l.set(tb, refusing, 0)
		l.ended.Wait()
	})
	return l
}

// Addr is where the link listens: host:port.
func (l *Link) Addr() string { return l.addr }

// Pass lets everything through. What was held back while the link was cut goes on, as it does when a network comes back.
func (l *Link) Pass(tb testing.TB) { tb.Helper(); l.set(tb, passing, 0) }

// Cut lets nothing through: no bytes in either direction, no answer to a new connection, and nobody hears of an end.
func (l *Link) Cut(tb testing.TB) { tb.Helper(); l.set(tb, cut, 0) }

// Refuse closes every connection and refuses new ones.
func (l *Link) Refuse(tb testing.TB) { tb.Helper(); l.set(tb, refusing, 0) }

// Slow delays whatever the server says.
func (l *Link) Slow(tb testing.TB, delay time.Duration) { tb.Helper(); l.set(tb, passing, delay) }

func (l *Link) set(tb testing.TB, mode linkMode, delay time.Duration) {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode, l.delay = mode, delay
	close(l.changed)
	l.changed = make(chan struct{})
	if mode == refusing {
		l.refuse()
		return
	}
	if l.door != nil {
		return
	}
	var lc net.ListenConfig
	door, err := lc.Listen(context.Background(), "tcp", l.addr)
	if err != nil {
		tb.Errorf("open link to %s: %v", l.target, err)
		return
	}
	l.door = door
	l.ended.Go(func() { l.accept(door) })
}

// refuse is for a caller that holds the lock.
func (l *Link) refuse() {
	if l.door != nil {
		_ = l.door.Close()
		l.door = nil
	}
	for conn := range l.conns {
		abort(conn)
	}
}

// abort resets the connection, as a server that died does.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

func (l *Link) accept(door net.Listener) {
	for {
		conn, err := door.Accept()
		if err != nil {
			return
		}
		l.ended.Go(func() { l.carry(conn) })
	}
}

// carry is one connection from its beginning to its end.
func (l *Link) carry(client net.Conn) {
	defer abort(client)
	if !l.keep(client) {
		return
	}
	defer l.forget(client)
	if l.hold(time.Time{}) != nil {
		return
	}
	network := "tcp"
	if strings.HasPrefix(l.target, "/") {
		network = "unix"
	}
	server, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, l.target)
	if err != nil {
		return
	}
	defer abort(server)
	if !l.keep(server) {
		return
	}
	defer l.forget(server)
	first := make(chan struct{}, 2)
	l.ended.Go(func() { l.pump(server, client, false); first <- struct{}{} })
	l.ended.Go(func() { l.pump(client, server, true); first <- struct{}{} })
	<-first
}

func (l *Link) keep(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mode == refusing {
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *Link) forget(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

type chunk struct {
	bytes []byte
	at    time.Time // when it arrived; zero: it is not to be delayed
}

// pump carries one direction until one side ends it. Each chunk is delayed by itself, so a slow link is late, not narrow.
func (l *Link) pump(to, from net.Conn, slow bool) {
	chunks := make(chan chunk, 256)
	over := make(chan struct{})
	defer close(over)
	l.ended.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			c := chunk{bytes: buf[:n]}
			if slow {
				c.at = time.Now()
			}
			if n > 0 {
				select {
				case chunks <- c:
				case <-over:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range chunks {
		if l.hold(c.at) != nil {
			return
		}
		if _, err := to.Write(c.bytes); err != nil {
			return
		}
	}
	_ = l.hold(time.Time{}) // the end of a connection does not cross a cut link either
}

var errLinkRefuses = errors.New("link refuses")

// hold returns when what arrived at an instant may go on, or an error when it never may.
func (l *Link) hold(arrived time.Time) error {
	for {
		l.mu.Lock()
		mode, changed, wait := l.mode, l.changed, time.Duration(0)
		if !arrived.IsZero() {
			wait = l.delay - time.Since(arrived)
		}
		l.mu.Unlock()
		if mode == refusing {
			return errLinkRefuses
		}
		var later <-chan time.Time // never, while it is cut
		if mode == passing {
			if wait <= 0 {
				return nil
			}
			timer := time.NewTimer(wait)
			defer timer.Stop()
			later = timer.C
		}
		select {
		case <-later:
		case <-changed:
		case <-l.done:
			return errLinkRefuses
		}
	}
}

// FreePort finds a port that nothing listens on, below those that the kernel gives to outgoing connections: it is still
// free when a server that was stopped wants it again.
func FreePort(tb testing.TB) int {
	tb.Helper()
	const lowest, highest = 10_000, 32_000
	var lc net.ListenConfig
	for range 100 {
		port := lowest + rand.IntN(highest-lowest)
		door, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		_ = door.Close()
		return port
	}
	tb.Fatalf("no free port from %d to %d", lowest, highest)
	return 0
}
