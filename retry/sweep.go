package retry

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"notifyd/notification"
)

// DueIndex is what the sweep asks of the ledger.
type DueIndex interface {
	// Feed returns notifications whose next attempt enters the window, each once, and marks them as fed.
	Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error)
	// Rescue returns notifications that are overdue though they were fed, under a new generation.
	Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error)
}

// Delayer puts on its way what the sweep has found.
type Delayer interface {
	// DelayThen makes w due at its NextAt; delayed is called once.
	DelayThen(w notification.Work, delayed func(error))
	// Now makes w due at once.
	Now(ctx context.Context, w notification.Work) error
	// Room is how many more may wait with it.
	Room() int
}

// Sweep feeds the delay window from the ledger's due index, and puts back on its way what got lost.
type Sweep struct {
	cfg   Config
	index DueIndex
	delay Delayer
	away  func() bool
	log   *zap.Logger

	fed, rescued, failures atomic.Uint64
}

// SweepStats count since the start.
type SweepStats struct {
	Fed      uint64 // notifications that entered the window as planned
	Rescued  uint64 // notifications that were overdue and forgotten, and are on their way again
	Failures uint64 // sweeps that broke off
}

// Stats is a snapshot.
func (s *Sweep) Stats() SweepStats {
	return SweepStats{Fed: s.fed.Load(), Rescued: s.rescued.Load(), Failures: s.failures.Load()}
}

// NewSweep returns a sweep. It rests while away says that NATS does not answer: what it took from the ledger then would
// count as fed for nothing. Nil: NATS always answers.
func NewSweep(cfg Config, index DueIndex, delay Delayer, away func() bool, log *zap.Logger) *Sweep {
	if away == nil {
		away = func() bool { return false }
	}
	return &Sweep{cfg: cfg, index: index, delay: delay, away: away, log: log}
}

// sweepBatch bounds one look into the ledger; a full batch is followed by another at once.
const sweepBatch = 1000

// Run sweeps until ctx ends.
func (s *Sweep) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.SweepEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			err := s.Once(ctx, now.UTC())
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				s.failures.Add(1)
			}
			switch {
			case err != nil && !failing:
				s.log.Warn("sweep failed; it is tried again", zap.Error(err), zap.Duration("every", s.cfg.SweepEvery))
			case err == nil && failing:
				s.log.Info("sweep works again")
			}
			failing = err != nil
		}
	}
}

// Once feeds and rescues until there is nothing left to do.
func (s *Sweep) Once(ctx context.Context, now time.Time) error {
	for !s.away() {
		ahead := s.cfg.Window
		if s.delay.Room() < sweepBatch {
			ahead = s.cfg.soon()
		}
		// Fed a little ahead of the window's edge, so that nothing is due before it has been fed.
		fed, err := s.index.Feed(ctx, now.Add(ahead-s.cfg.SweepEvery), sweepBatch)
		if err != nil {
			return err
		}
		if err := s.schedule(ctx, fed, notification.TriggerAuto); err != nil {
			return err // what was fed and not scheduled is overdue by and by, and is rescued
		}
		s.fed.Add(uint64(len(fed)))
		if len(fed) < sweepBatch {
			break
		}
	}
	for !s.away() {
		rescued, err := s.index.Rescue(ctx, now.Add(-s.cfg.Grace), now, sweepBatch)
		if err != nil {
			return err
		}
		if len(rescued) > 0 {
			s.log.Warn("sweep found overdue notifications and put them back on their way", zap.Int("rescued", len(rescued)), zap.Stringer("first", rescued[0].ID))
		}
		var failed error // the others are on their way all the same: nobody looks at them again for ledger.ResendLease
		for _, n := range rescued {
			if err := s.delay.Now(ctx, notification.Work{Notification: n, Trigger: notification.TriggerSweep, HasRow: true}); err != nil {
				failed = err
				continue
			}
			s.rescued.Add(1)
		}
		if failed != nil {
			return failed
		}
		if len(rescued) < sweepBatch {
			break
		}
	}
	return nil
}

func (s *Sweep) schedule(ctx context.Context, due []*notification.Notification, trigger notification.Trigger) error {
	results := make(chan error, len(due))
	for _, n := range due {
		s.delay.DelayThen(notification.Work{Notification: n, Trigger: trigger, HasRow: true}, func(err error) { results <- err })
	}
	var first error
	for range due {
		select {
		case err := <-results:
			if err != nil && first == nil {
				first = err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return first
}
