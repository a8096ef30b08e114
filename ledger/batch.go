package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/notification"
)

// write ends each record of a batch: durable, quarantined, or, when ctx ends first, failed. Everything it repeats may be
// repeated: a commit whose answer was lost is written again, and the upsert finds it there.
func (w *writers) write(ctx context.Context, batch []*pending) {
	batch = w.refuse(ctx, batch, func(p *pending) error { return checkRecord(p) })
	careful := false
	backoff := &backoff{next: backoffFirst, wake: &w.l.answered}
	for len(batch) > 0 {
		err := w.l.store(ctx, batch, careful)
		if err == nil {
			w.counts.stored(len(batch))
			for _, p := range batch {
				w.finish(p, nil)
			}
			return
		}
		if other, ok := errors.AsType[*otherContentError](err); ok {
			batch = w.refuse(ctx, batch, func(p *pending) error { return other.ids[p.Notification.ID] })
			continue
		}
		switch classify(err) {
		case faultDuplicate:
			if careful { // cannot be: a careful batch meets no duplicate
				w.split(ctx, batch, err)
				return
			}
			careful = true
			continue
		case faultPartition: // dropped by another node a moment ago
			err = errors.Join(err, w.l.makePartitions(ctx, daysOf(batch)))
		case faultData:
			w.split(ctx, batch, err)
			return
		case faultPassing:
			if ctx.Err() == nil && len(batch) > 1 && errors.Is(err, context.DeadlineExceeded) {
				w.counts.failures.Add(1)
				w.l.log.Warn("a batch is written in halves: postgres took too long", zap.Int("records", len(batch)), zap.Error(err))
				w.halve(ctx, batch)
				return
			}
			careful = true // it may have taken effect
		case faultCollision:
		}
		w.counts.failures.Add(1)
		w.l.log.Warn("a batch waits: postgres does not take it", zap.Int("records", len(batch)), zap.Error(err))
		if !backoff.wait(ctx) {
			w.fail(batch, err)
			return
		}
	}
}

// split writes the halves of a batch that Postgres refuses, down to the one record that it is about.
func (w *writers) split(ctx context.Context, batch []*pending, cause error) {
	if len(batch) == 1 {
		w.quarantine(ctx, batch[0], cause)
		return
	}
	w.halve(ctx, batch)
}

// halve writes a batch in two, the first half first: the order of an id's records stays.
func (w *writers) halve(ctx context.Context, batch []*pending) {
	half := len(batch) / 2
	w.write(ctx, batch[:half])
	w.write(ctx, batch[half:])
}

// refuse quarantines what is not to be written at all and returns the others.
func (w *writers) refuse(ctx context.Context, batch []*pending, why func(*pending) error) []*pending {
	kept := batch[:0:0]
	for _, p := range batch {
		if err := why(p); err != nil {
			w.quarantine(ctx, p, err)
		} else {
			kept = append(kept, p)
		}
	}
	return kept
}

func (w *writers) fail(batch []*pending, cause error) {
	for _, p := range batch {
		w.finish(p, fmt.Errorf("%w: %w", ErrClosed, cause))
	}
}

// checkRecord finds what no row can be made of: it has no key, no partition, or a number that its column does not hold.
func checkRecord(p *pending) error {
	for _, n := range []int{p.Notification.Attempts, p.Notification.Step} {
		if n != int(int32(n)) { //nolint:gosec // that is the question
			return fmt.Errorf("it counts %d attempts", n)
		}
	}
	for i := range p.Attempts {
		a := &p.Attempts[i]
		status := 0
		if a.Response != nil {
			status = a.Response.Status
		}
		for _, n := range []int{a.Number, a.Connects, status} {
			if n != int(int32(n)) { //nolint:gosec // that is the question
				return fmt.Errorf("attempt %d has the number %d in it", a.Number, n)
			}
		}
	}
	switch year := p.acceptedAt.Year(); {
	case p.Notification.ID.IsZero():
		return errors.New("it has no id")
	case year < minYear || year > maxYear:
		return fmt.Errorf("it was accepted in the year %d", year)
	}
	return nil
}

// otherContentError says that other content was accepted under the same id, by a node that could not know.
type otherContentError struct{ ids map[notification.ID]error }

func (e *otherContentError) Error() string {
	return fmt.Sprintf("%d ids were accepted with other content", len(e.ids))
}

func daysOf(batch []*pending) []time.Time {
	var days []time.Time
	seen := map[time.Time]bool{}
	for _, p := range batch {
		if day := dayOf(p.acceptedAt); !seen[day] {
			seen[day] = true
			days = append(days, day)
		}
	}
	return days
}

// backoff waits longer each time: 20 ms to 2 s, with jitter, or until somebody had an answer.
type backoff struct {
	next time.Duration
	wake *signal // nil: nobody tells
}

const (
	backoffFirst = 20 * time.Millisecond
	backoffLast  = 2 * time.Second
)

func newBackoff() *backoff { return &backoff{next: backoffFirst} }

// wait reports whether there is any point in trying again.
func (b *backoff) wait(ctx context.Context) bool {
	timer := time.NewTimer(b.next/2 + rand.N(b.next/2))
	defer timer.Stop()
	b.next = min(2*b.next, backoffLast)
	select {
	case <-timer.C:
		return true
	case <-b.wake.next():
		return true
	case <-ctx.Done():
		return false
	}
}

// signal wakes everybody who waits for it.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil: nobody waits
}

// next is closed by the next send; of a nil signal never.
func (s *signal) next() <-chan struct{} {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) send() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
