package dispatcher

import (
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"notifyd/notification"
)

// Observer is told what happens, from the goroutines in which it happens: it returns at once, keeps nothing waiting and
// changes nothing that it is shown. One event may be told twice or never around a crash: the ledger is the truth.
type Observer interface {
	// Answered is told once for each submission, when its answer stands.
	Answered(a Answer)
	// Attempted is told after each attempt, with the notification as it is afterwards.
	Attempted(after *notification.Notification, a *notification.Attempt)
	// Deferred is told each time that an attempt was asked for and not made.
	Deferred(n *notification.Notification, reason notification.Reason)
	// Settled is told when a notification becomes final, before that is durable.
	Settled(n *notification.Notification)
	// BreakerOpened is told when a breaker opens, also again after a probe that failed.
	BreakerOpened(isolationKey string)
}

// CodeOK is the Answer.Code of a notification that is accepted.
const CodeOK = "ok"

// Answer is how one submission was answered.
type Answer struct {
	Notification *notification.Notification // as it was submitted, or as it stands when it is accepted; nil: it could not be read
	Code         string                     // CodeOK, or the code's word, for example invalid_argument
	Err          error                      // as the caller is told; nil with CodeOK
	Duplicate    bool                       // its id was accepted before
	Reserved     Reserving
	Took         time.Duration
}

// Reserving is what became of taking an id; empty: it was not tried.
type Reserving string

// What becomes of taking an id.
const (
	ReservingFresh     Reserving = "fresh"
	ReservingDuplicate Reserving = "duplicate" // same id, same content
	ReservingConflict  Reserving = "conflict"  // same id, other content
	ReservingFailed    Reserving = "failed"    // the ledger did not answer
)

// Observers tells each of them, in order.
type Observers []Observer

// Answered tells all.
func (os Observers) Answered(a Answer) {
	for _, o := range os {
		o.Answered(a)
	}
}

// Attempted tells all.
func (os Observers) Attempted(after *notification.Notification, a *notification.Attempt) {
	for _, o := range os {
		o.Attempted(after, a)
	}
}

// Deferred tells all.
func (os Observers) Deferred(n *notification.Notification, reason notification.Reason) {
	for _, o := range os {
		o.Deferred(n, reason)
	}
}

// Settled tells all.
func (os Observers) Settled(n *notification.Notification) {
	for _, o := range os {
		o.Settled(n)
	}
}

// BreakerOpened tells all.
func (os Observers) BreakerOpened(isolationKey string) {
	for _, o := range os {
		o.BreakerOpened(isolationKey)
	}
}

// tellAnswers tells the observer how submissions were answered.
func (d *Dispatcher) tellAnswers(subs []*submission, began time.Time) {
	took := d.now().Sub(began)
	for _, s := range subs {
		a := Answer{Notification: s.n, Code: CodeOK, Err: s.err, Duplicate: s.duplicate, Reserved: s.reserved, Took: took}
		if s.err != nil {
			a.Code = connect.CodeOf(s.err).String()
		} else if s.standing != nil {
			a.Notification = s.standing
		}
		d.observer.Answered(a)
	}
}

// Stats is what the dispatcher is doing right now.
type Stats struct {
	Sending      int       // attempts on the wire
	Started      uint64    // attempts, ever
	LastStarted  time.Time // zero: none yet
	Panics       uint64    // attempts that a bug has ended, ever
	OpenBreakers int       // keys whose merchant is not asked until its breaker's time is over
}

// wire counts the attempts that are being made.
type wire struct {
	sending     atomic.Int64
	started     atomic.Uint64
	panics      atomic.Uint64
	lastStarted atomic.Int64 // Unix nanoseconds
}

func (w *wire) begin(now time.Time) {
	w.sending.Add(1)
	w.started.Add(1)
	w.lastStarted.Store(now.UnixNano())
}

func (w *wire) end() { w.sending.Add(-1) }

// Stats is a snapshot.
func (d *Dispatcher) Stats() Stats {
	s := Stats{Sending: int(d.wire.sending.Load()), Started: d.wire.started.Load(), Panics: d.wire.panics.Load(), OpenBreakers: d.gate.openBreakers()}
	if at := d.wire.lastStarted.Load(); at != 0 {
		s.LastStarted = time.Unix(0, at).UTC()
	}
	return s
}
