package egress

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"notifyd/internal/bubble"
)

// piped is a connection to an origin, and whether it has been closed.
func piped(t *testing.T, origin string) (c *conn, isClosed func() bool) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	w := newWire(ours)
	return &conn{Conn: w, wire: w, origin: origin}, func() bool {
		_ = theirs.SetReadDeadline(time.Now().Add(time.Nanosecond))
		_, err := theirs.Read(make([]byte, 1))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
}

// kept is how many connections the pool has.
func (p *pool) kept() (count, origins int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count, len(p.idle)
}

// The last one comes first; there are bounds for each origin and for all; whoever is surplus, too old, or comes back after
// the end is closed.
func TestPool(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newPool(Config{MaxIdleConnections: 3, MaxIdlePerMerchant: 2, IdleTimeout: 10 * time.Second})
		a1, a1Closed := piped(t, "a")
		a2, _ := piped(t, "a")
		a3, a3Closed := piped(t, "a")
		for _, c := range []*conn{a1, a2, a3} {
			p.put(c)
		}
		if !a3Closed() || a1Closed() {
			t.Error("the third of an origin is not closed, or the first is")
		}
		if got := p.take("a"); got != a2 {
			t.Error("the last one does not come first")
		}
		if got := p.take("b"); got != nil {
			t.Error("another origin's")
		}
		b1, _ := piped(t, "b")
		b2, _ := piped(t, "b")
		c1, _ := piped(t, "c")
		for _, c := range []*conn{b1, b2, c1} {
			p.put(c)
		}
		if count, _ := p.kept(); count != 3 {
			t.Errorf("%d are kept, at most 3 may be", count)
		}
		<-time.NewTimer(16 * time.Second).C // older than they may be, and two sweeps and more later
		synctest.Wait()
		if count, origins := p.kept(); count != 0 || origins != 0 || p.take("c") != nil {
			t.Errorf("%d of %d origins are kept for too long", count, origins)
		}
		d1, d1Closed := piped(t, "d")
		d2, d2Closed := piped(t, "d")
		p.put(d1)
		p.close()
		p.put(d2)
		if count, _ := p.kept(); !d1Closed() || !d2Closed() || count != 0 {
			t.Error("some are kept after the end")
		}
	})
}
