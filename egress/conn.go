package egress

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection to a merchant, plain or TLS, that knows what was written to it.
type conn struct {
	net.Conn // what requests are written to: the TLS connection, or wire itself
	wire     *wire

	// sent counts the bytes that left on behalf of requests: those that went over the wire while a request was
	// being written. A handshake is none of them.
	sent atomic.Int64
	// suspect says that the merchant may have closed the connection since we last looked. Set before a request is
	// handed to the goroutine that writes it, cleared by that one.
	suspect bool

	local, remote, tlsWords string
	steps                   steps
}

// steps are how long it took to get the connection.
type steps struct {
	dns, connect, tls time.Duration
}

// errHungUp is a connection that the merchant had closed before anything was written to it.
var errHungUp = &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}

func (c *conn) Write(p []byte) (int, error) {
	if c.suspect {
		c.suspect = false
		if c.wire.hungUp() {
			return 0, errHungUp // P6: proven unsent
		}
	}
	before := c.wire.written.Load()
	n, err := c.Conn.Write(p)
	c.sent.Add(c.wire.written.Load() - before)
	return n, err
}

// Close does not wait for a merchant who does not read: crypto/tls gives its farewell five seconds.
func (c *conn) Close() error {
	c.wire.closing.Store(true)
	return c.Conn.Close()
}

// wire is the TCP connection; it counts what the kernel took.
type wire struct {
	net.Conn
	raw     syscall.RawConn // nil where there is none
	written atomic.Int64
	closing atomic.Bool
}

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c}
	if sys, ok := c.(syscall.Conn); ok {
		w.raw, _ = sys.SyscallConn() // without it we only learn later that the merchant hung up
	}
	return w
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.written.Add(int64(n))
	return n, err
}

const farewell = 100 * time.Millisecond

func (w *wire) SetWriteDeadline(at time.Time) error {
	if w.closing.Load() {
		if soon := time.Now().Add(farewell); at.IsZero() || at.After(soon) {
			at = soon
		}
	}
	return w.Conn.SetWriteDeadline(at)
}
