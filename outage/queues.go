package outage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

// Lane is the asynchronous lane.
type Lane interface {
	Accept(w notification.Work, accepted func(error))
	Wake(merchantID string)
	Full() bool
}

// Window is the delay window.
type Window interface {
	Within(at, now time.Time) bool
	Latest(at, now time.Time) time.Time
	DelayThen(w notification.Work, delayed func(error))
	SpreadThen(w notification.Work, spread func(takeAway func(context.Context), err error))
	Now(ctx context.Context, w notification.Work) error
	Cancel(ctx context.Context, w notification.Work) error
	Room() int
}

// Rows writes rows into Postgres or fails with ledger.ErrAway; see Ledger.Write.
type Rows interface {
	Write(r ledger.Record, written func(error))
}

// QueueParts are what the queues work with.
type QueueParts struct {
	Window Window
	Rows   Rows
	NATS   *Watch
	// Full reports whether a lane's error says that a queue is at its own bound: the submission is refused.
	Full func(error) bool
	Now  func() time.Time // UTC, microseconds
}

// Queues are the lane and the delay window, also while NATS is away: then a notification becomes a row that is due, which
// whoever has the lane takes from there. While NATS is known to be away nothing is tried, so nothing waits.
type Queues struct {
	cfg  Config
	p    QueueParts
	lane Lane // the lane asks for the window, so it is made later; see Connect

	mu      sync.Mutex
	flights map[*flight]struct{}

	running sync.WaitGroup // goroutines that publish or write for somebody

	rows, refused atomic.Uint64
}

// flight is a publish of which nothing is known yet.
type flight struct {
	work notification.Work
	due  bool // it is due at once, not at its NextAt
	done func(error)
}

// QueueStats count since the start, and what is on its way now.
type QueueStats struct {
	Rows     uint64 // works that became rows, because NATS did not take them
	Refused  uint64 // works that neither NATS nor Postgres took
	InFlight int    // publishes that nothing is known of yet
}

// NewQueues returns queues without a lane.
func NewQueues(cfg Config, p QueueParts) (*Queues, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Queues{cfg: cfg, p: p, flights: map[*flight]struct{}{}}, nil
}

// Connect gives the queues their lane, before anything is accepted.
func (q *Queues) Connect(lane Lane) { q.lane = lane }

// Run gives up publishes that hang as soon as NATS is known to be away, until ctx ends.
func (q *Queues) Run(ctx context.Context) error {
	for {
		select {
		case <-q.p.NATS.Left():
		case <-ctx.Done():
			return nil
		}
		for _, f := range q.all() {
			q.failed(f, errHung)
		}
		select {
		case <-q.p.NATS.Returned():
		case <-ctx.Done():
			return nil
		}
	}
}

var errHung = fmt.Errorf("publish: it went away meanwhile: %w", errNoAck)

// Wait returns when nothing is on its way to Postgres any more that NATS did not take.
func (q *Queues) Wait() { q.running.Wait() }

// Stats is a snapshot.
func (q *Queues) Stats() QueueStats {
	return QueueStats{Rows: q.rows.Load(), Refused: q.refused.Load(), InFlight: len(q.all())}
}

// Wake is the lane's.
func (q *Queues) Wake(merchantID string) { q.lane.Wake(merchantID) }

// Full reports whether the lane takes nothing at the moment. A lane that is away is not full: rows take its place.
func (q *Queues) Full() bool { return !q.p.NATS.Away() && q.lane.Full() }

// Within is the window's.
func (q *Queues) Within(at, now time.Time) bool { return q.p.Window.Within(at, now) }

// Room is the window's.
func (q *Queues) Room() int { return q.p.Window.Room() }

// Latest is the window's.
func (q *Queues) Latest(at, now time.Time) time.Time { return q.p.Window.Latest(at, now) }

// Accept makes w durable in its shard, or as a row that is due: at once if NATS is known not to have it, else when a copy
// that NATS may have has left a trace. It fails when neither takes it.
func (q *Queues) Accept(w notification.Work, accepted func(error)) {
	q.try(&flight{work: w, due: true, done: accepted}, q.lane.Accept)
}

// DelayThen makes w due at its NextAt: in the window, or as a row.
func (q *Queues) DelayThen(w notification.Work, delayed func(error)) {
	q.try(&flight{work: w, done: delayed}, q.p.Window.DelayThen)
}

// Delay is DelayThen, waiting.
func (q *Queues) Delay(ctx context.Context, w notification.Work) error {
	result := make(chan error, 1)
	q.DelayThen(w, func(err error) { result <- err })
	return wait(ctx, result)
}

// Spread makes w durable, to come due at its NextAt or a little later, unless it is taken away before. A row that stands
// for it while NATS is away ends with its outcome.
func (q *Queues) Spread(ctx context.Context, w notification.Work) (takeAway func(context.Context), err error) {
	takeAway = func(context.Context) {}
	result := make(chan error, 1)
	var net func(context.Context) // set before result is heard of
	q.try(&flight{work: w, done: func(err error) { result <- err }}, func(w notification.Work, done func(error)) {
		q.p.Window.SpreadThen(w, func(away func(context.Context), err error) {
			if err == nil {
				net = away
			}
			done(err)
		})
	})
	if err := wait(ctx, result); err != nil {
		return takeAway, err
	}
	if net == nil {
		return takeAway, nil
	}
	return func(ctx context.Context) {
		ctx, cancel := q.p.NATS.Within(ctx)
		defer cancel()
		net(ctx)
	}, nil
}

// Now makes w due at once. A final one, which an operator resends, cannot be due as a row: it fails.
func (q *Queues) Now(ctx context.Context, w notification.Work) error {
	result := make(chan error, 1)
	q.try(&flight{work: w, due: true, done: func(err error) { result <- err }}, func(w notification.Work, done func(error)) {
		q.running.Go(func() { done(q.p.Window.Now(context.WithoutCancel(ctx), w)) }) // bounded by the window's own timeout
	})
	return wait(ctx, result)
}

func wait(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Cancel removes a schedule; while NATS is away it fails at once. What comes due nevertheless is refused by the claim.
func (q *Queues) Cancel(ctx context.Context, w notification.Work) error {
	if err := q.p.NATS.Err(); err != nil {
		return fmt.Errorf("cancel schedule: %w", err)
	}
	ctx, cancel := q.p.NATS.Within(ctx)
	defer cancel()
	return q.p.Window.Cancel(ctx, w)
}

// try publishes, unless NATS is known to be away. Whatever is heard first of the flight counts.
func (q *Queues) try(f *flight, publish func(notification.Work, func(error))) {
	q.mu.Lock()
	q.flights[f] = struct{}{}
	q.mu.Unlock()
	if q.p.NATS.Away() {
		q.failed(f, ErrQueuesAway)
		return
	}
	publish(f.work, func(err error) {
		if err == nil {
			q.end(f, nil)
			return
		}
		q.failed(f, err)
	})
}

// landed takes a flight out, and reports whether it was still on its way: true once.
func (q *Queues) landed(f *flight) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, there := q.flights[f]
	delete(q.flights, f)
	return there
}

func (q *Queues) end(f *flight, err error) {
	if q.landed(f) {
		f.done(err)
	}
}

func (q *Queues) all() []*flight {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]*flight, 0, len(q.flights))
	for f := range q.flights {
		all = append(all, f)
	}
	return all
}

// leastUnknown is longer than what a lane takes from its shard without a look whether another copy has left a trace.
const leastUnknown = 6 * time.Second

// failed makes a row of what NATS did not take, or may not have taken.
func (q *Queues) failed(f *flight, cause error) {
	if !q.landed(f) {
		return
	}
	unknown := outcomeUnknown(cause)
	q.p.NATS.Failed(cause)
	if q.p.Full(cause) || !unknown && !notStored(cause) || f.work.State.Final() {
		f.done(cause)
		return
	}
	now := q.p.Now()
	n := *f.work.Notification
	n.UpdatedAt = now
	if f.due {
		n.NextAt = now
		if unknown { // a copy may be on its way: by then it has left a trace
			n.NextAt = now.Add(max(q.cfg.AttemptBound, leastUnknown))
		}
	}
	r := ledger.Record{Notification: &n, Unfed: true, New: !f.work.HasRow, Unreserved: f.work.Unreserved}
	// From a goroutine of its own: the lane's, or the watch's, must not wait for room in Postgres' queue.
	q.running.Go(func() {
		q.p.Rows.Write(r, func(err error) {
			if err == nil {
				q.rows.Add(1)
				f.done(nil)
				return
			}
			q.refused.Add(1)
			f.done(errors.Join(cause, err))
		})
	})
}
