package egress

import (
	"bufio"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection to a merchant, plain or TLS. One exchange has it at a time.
type conn struct {
	net.Conn // what requests are written to: the TLS connection, or wire itself
	wire     *wire

	origin                  string
	local, remote, tlsWords string
	steps                   steps
	idleSince               time.Time // in the pool

	// Of an exchange.
	answers  *bufio.Reader
	readers  *sync.Pool  // where answers goes afterwards
	headLeft int         // bytes of an answer's head that may still come
	relieve  func() bool // see context.AfterFunc
}

// steps are how long it took to get the connection.
type steps struct {
	dns, connect, tls time.Duration
}

// errHungUp is a connection that the merchant had closed before anything was written to it.
var errHungUp = &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}

// Read bounds an answer's head.
func (c *conn) Read(p []byte) (int, error) {
	if c.headLeft <= 0 {
		return 0, errHeadTooLong
	}
	n, err := c.Conn.Read(p[:min(len(p), c.headLeft)])
	c.headLeft -= n
	return n, err
}

// hungUp reports whether the merchant has closed the connection, or has said something that nobody asked for, as far as
// the kernel knows by now. Over TLS the latter may be in order: see speaksUnasked.
func (c *conn) hungUp() bool { return c.wire.hungUp(c.tlsWords == "") }

// unaskedWait is how long TLS may take to read what has arrived already.
const unaskedWait = time.Millisecond

// speaksUnasked reports whether a kept connection over TLS has an answer that nobody asked for: the next request must not
// take it for its own. Tickets and the like, which are in order, are read on the way.
func (c *conn) speaksUnasked() bool {
	if c.tlsWords == "" || !c.wire.hungUp(true) {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(unaskedWait)) // else the read below says so
	_, err := c.Conn.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// lastWord is why the merchant has closed the connection. In TLS 1.3 a server judges the client's certificate after the
// client's part of the handshake is over.
func (c *conn) lastWord() error {
	if c.tlsWords == "" {
		return errHungUp
	}
	_ = c.SetReadDeadline(time.Now().Add(farewell)) // else the read below says so
	_, err := c.Conn.Read(make([]byte, 1))
	if tlsFault(err) == 0 {
		return errHungUp
	}
	return err
}

// release ends an exchange's part in the connection. It reports whether the connection is as it was: nobody has cut it off.
func (c *conn) release() bool {
	c.answers.Reset(nil)
	c.readers.Put(c.answers)
	c.answers = nil
	return c.relieve()
}

// abandon ends a connection after an exchange that failed.
func (c *conn) abandon() {
	c.release()
	_ = c.Close() // the exchange's error says more
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
