package sync

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"notifyd/internal/crew"
	"notifyd/notification"
	"notifyd/notification/hand"
)

// Deliverer makes attempts.
type Deliverer interface {
	// Deliver makes one attempt now, or says why not. begin, unless nil, is waited for between the permission and the
	// request. Unless the verdict is Deferred, settled is called once, when what followed is durable.
	Deliver(ctx context.Context, w notification.Work, begin func(), settled func(error)) notification.Verdict
}

// Net keeps a notification durable while the merchant is asked: it comes due again by itself if this process dies.
type Net interface {
	// Spread makes w durable, to come due at its NextAt or a little later, unless it is taken away before: once at most.
	Spread(ctx context.Context, w notification.Work) (takeAway func(context.Context), err error)
}

// Config of the lane.
type Config struct {
	// PerKey is how many callers may wait for one isolation key's merchant; more go async.
	PerKey int `yaml:"per_key"`
	// Total is how many callers may wait at all; more go async.
	Total int `yaml:"total"`
	// Deadline is how long a caller waits that names no deadline of its own.
	Deadline time.Duration `yaml:"deadline"`
	// Margin is kept of the caller's deadline for making the notification durable and answering.
	Margin time.Duration `yaml:"margin"`
}

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{PerKey: 64, Total: 2048, Deadline: 5 * time.Second, Margin: 100 * time.Millisecond}
}

// Validate names the first key that has a value nobody can work with.
func (c Config) Validate() error {
	switch {
	case c.PerKey < 1:
		return fmt.Errorf("sync.per_key: %d: must be at least 1", c.PerKey)
	case c.Total < c.PerKey:
		return fmt.Errorf("sync.total: %d: must be at least per_key (%d)", c.Total, c.PerKey)
	case c.Deadline < 10*time.Millisecond:
		return fmt.Errorf("sync.deadline: %s: must be at least 10ms", c.Deadline)
	case c.Margin < 0 || c.Margin >= c.Deadline:
		return fmt.Errorf("sync.margin: %s: must be less than the deadline (%s)", c.Margin, c.Deadline)
	}
	return nil
}

// ErrFull says that the merchant's or the whole lane's places are taken.
var ErrFull = errors.New("sync lane: full")

// ErrInHand says that another copy is being sent by this process right now.
var ErrInHand = errors.New("sync lane: another copy is in hand")

// Lane is the synchronous lane of one node.
type Lane struct {
	cfg     Config
	deliver Deliverer
	net     Net
	hand    *hand.Table

	mu      sync.Mutex
	waiting map[string]int // callers by isolation key
	total   int
	running crew.Crew
}

// New returns a lane.
func New(cfg Config, deliver Deliverer, net Net, table *hand.Table) (*Lane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Lane{cfg: cfg, deliver: deliver, net: net, hand: table, waiting: map[string]int{}}, nil
}

// Place is one caller's place in the lane. Ask gives it back; a place that is not used is given back by Release.
type Place struct {
	lane *Lane
	key  string
	once sync.Once
}

// Enter takes a place, or returns ErrFull.
func (l *Lane) Enter(isolationKey string) (*Place, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.cfg.Total || l.waiting[isolationKey] >= l.cfg.PerKey {
		return nil, ErrFull
	}
	l.total++
	l.waiting[isolationKey]++
	return &Place{lane: l, key: isolationKey}, nil
}

// Release gives the place back.
func (p *Place) Release() {
	if p.lane == nil { // another node counts its places
		return
	}
	p.once.Do(func() {
		p.lane.mu.Lock()
		defer p.lane.mu.Unlock()
		p.lane.total--
		if p.lane.waiting[p.key]--; p.lane.waiting[p.key] == 0 {
			delete(p.lane.waiting, p.key)
		}
	})
}

// Stats is how full the lane is.
type Stats struct {
	Waiting int // callers
	Limit   int // as many may wait
}

// Stats is a snapshot.
func (l *Lane) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Waiting: l.total, Limit: l.cfg.Total}
}

// Wait returns when no attempt of this lane is running, or with an error when ctx ends first.
func (l *Lane) Wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		l.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for attempts: %w", context.Cause(ctx))
	}
}

// Answer is what the caller is told.
type Answer struct {
	Verdict notification.Verdict
	// TimedOut says that the caller's time was up first: the notification is durable and the attempt goes on.
	TimedOut bool

	netAway func(context.Context)
}

// TakeNetAway is for a deferred work, when it is durable elsewhere. A net that stays comes due, and the claim refuses it.
func (a Answer) TakeNetAway(ctx context.Context) {
	if a.netAway != nil { // nil: another node's
		a.netAway(ctx)
	}
}

// Ask asks the merchant and waits for the answer, at most until the caller's deadline less the margin. Neither that
// deadline nor the caller's cancellation reaches the merchant's request. durableUntil is when the net brings the
// notification back if this process dies; with PersistAfter the net is spread only when the caller's time is up.
//
// A deferred verdict leaves the work to the caller, who gives it to the asynchronous lane.
func (l *Lane) Ask(ctx context.Context, place *Place, w notification.Work, durableUntil time.Time) (Answer, error) {
	deadline := time.Now().Add(l.cfg.Deadline)
	if d, ok := ctx.Deadline(); ok {
		deadline = d.Add(-l.cfg.Margin)
	}
	netted := w.Route.Persist != notification.PersistAfter
	spread := *w.Notification
	spread.NextAt = durableUntil
	net := w
	net.Notification = &spread
	durable := make(chan error, 1)
	item, ok := l.hand.Enter(w, time.Now(), func(err error) { durable <- err })
	if !ok {
		place.Release()
		return Answer{}, ErrInHand
	}
	item.SetDurable(w.HasRow)
	netAway := func(context.Context) {}
	if netted { // P1: durable before anything else
		var err error
		if netAway, err = l.net.Spread(ctx, net); err != nil {
			place.Release()
			l.hand.Leave(item, err)
			return Answer{}, fmt.Errorf("make durable: %w", err)
		}
		item.SetDurable(true)
	}

	work := context.WithoutCancel(ctx)
	answered := make(chan outcome, 1)
	l.running.Go(func() {
		defer place.Release()
		verdict, err := l.attempt(work, item, durable, netAway)
		answered <- outcome{verdict, err}
	})
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case o := <-answered:
		if o.err != nil && netted {
			return awaiting(w), nil
		}
		return Answer{Verdict: o.verdict, netAway: netAway}, o.err
	case <-timer.C:
	case <-ctx.Done(): // the caller is gone or out of time; the attempt goes on
	}
	if w.Route.Persist == notification.PersistAfter {
		netAway, err := l.net.Spread(work, net)
		if err != nil {
			return Answer{}, fmt.Errorf("make durable: %w", err)
		}
		l.running.Go(func() {
			if o := <-answered; o.err == nil && !o.verdict.Deferred {
				netAway(work)
			}
		})
	}
	return awaiting(w), nil
}

// awaiting is the answer when the outcome is not known, or not durable, and the notification is.
func awaiting(w notification.Work) Answer {
	return Answer{Verdict: notification.Verdict{After: w.Notification, Reason: notification.ReasonAwaitingAnswer}, TimedOut: true}
}

// outcome of an attempt; err says that it is not durable.
type outcome struct {
	verdict notification.Verdict
	err     error
}

// attempt delivers, and takes the net away once the outcome, and whatever follows from it, is durable. The answer waits for
// that: what a caller was told does not change by a crash.
func (l *Lane) attempt(ctx context.Context, item *hand.Item, durable <-chan error, netAway func(context.Context)) (notification.Verdict, error) {
	w, ok := item.Send()
	if !ok { // P12: taken back by a cancel, which settles it; the claim refuses what the net brings
		return notification.Verdict{Reason: notification.ReasonCanceled}, nil
	}
	verdict := l.deliver.Deliver(ctx, w, nil, func(err error) { l.hand.Leave(item, err) })
	if verdict.Deferred {
		l.hand.Leave(item, nil)
		return verdict, nil
	}
	item.Sent(verdict.After, verdict.Attempts)
	if err := <-durable; err != nil { // otherwise the net brings it back
		return verdict, fmt.Errorf("make outcome durable: %w", err)
	}
	l.running.Go(func() { netAway(ctx) })
	return verdict, nil
}
