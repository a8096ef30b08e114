package egress

import (
	"context"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"notifyd/merchant"
)

// leg is one way to the merchant within an attempt: a second one is made when the first ended before a byte left.
// Its goroutines are net/http's: what they write is atomic.
type leg struct {
	timeouts merchant.Timeouts // never changed
	softEnd  time.Time         // when the attempt's timeout is over; never changed

	dialing          atomic.Uint32 // the Phase of a dial under way; 0: none began
	wrote, firstByte atomic.Int64  // nanoseconds after began; 0: not yet

	// Written in the goroutine that sends.
	began   time.Time
	gotConn time.Duration // after began
	conn    *conn         // nil: never had one
	reused  bool
	before  int64 // what conn had sent for others
	// giveUp ends the leg when the answer's head is overdue; nil: the attempt's own end comes first.
	giveUp func()
	timer  *time.Timer

	trace httptrace.ClientTrace
}

type legKey struct{}

func legOf(ctx context.Context) *leg {
	l, _ := ctx.Value(legKey{}).(*leg)
	return l
}

// watch hangs the leg into a context, where the transport and our dial find it.
func (l *leg) watch(ctx context.Context) context.Context {
	l.trace.GotConn = l.onConn
	l.trace.WroteRequest = l.onWritten
	l.trace.GotFirstResponseByte = l.onFirstByte
	return httptrace.WithClientTrace(context.WithValue(ctx, legKey{}, l), &l.trace)
}

func (l *leg) onConn(info httptrace.GotConnInfo) {
	l.conn, _ = info.Conn.(*conn)
	l.reused = info.Reused
	l.gotConn = time.Since(l.began)
	if l.conn != nil {
		l.before = l.conn.sent.Load()
		l.conn.suspect = true
	}
	if l.giveUp != nil {
		l.timer = time.AfterFunc(l.timeouts.FirstByte, l.giveUp)
	}
}

func (l *leg) onWritten(info httptrace.WroteRequestInfo) {
	if info.Err == nil {
		l.wrote.Store(int64(time.Since(l.began)))
	}
}

func (l *leg) onFirstByte() { l.firstByte.Store(int64(time.Since(l.began))) }

// sent reports whether a byte of this leg's request left. It is true to the byte once the round trip has ended with
// an error: net/http then has waited for its writing goroutine.
func (l *leg) sent() bool { return l.conn != nil && l.conn.sent.Load() > l.before }

// phase is how far a failed round trip came.
func (l *leg) phase() Phase {
	switch {
	case l.conn == nil && l.dialing.Load() == 0:
		return PhasePrepare
	case l.conn == nil:
		return Phase(l.dialing.Load()) //nolint:gosec // one of the phases
	case l.firstByte.Load() > 0 || l.wrote.Load() > 0:
		return PhaseFirstByte
	}
	return PhaseWrite
}
