package async

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/hand"
)

const (
	// dueEvery is the time between two looks into the ledger while NATS is away.
	dueEvery = 200 * time.Millisecond
	// dueBatch bounds one look; a full one is followed by another at once.
	dueBatch = 500
	// dueLease is when something taken is due again should this process die with it, or not hear that it was given it. What
	// waits in hand for longer is taken once more, which is refused: here by the hand, elsewhere by its claim.
	dueLease = 10 * time.Second
	// fedPatience is how long NATS may be late with what it was told of before it is taken from the ledger.
	fedPatience = 3 * time.Second
	// dueTimeout bounds one look.
	dueTimeout = 5 * time.Second
)

// takeDue sends what is due straight from the ledger while NATS is away (P9), until the lane stops.
func (l *Lane) takeDue(ctx context.Context) {
	tick := time.NewTicker(dueEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-l.stopping:
			return
		case <-tick.C:
		}
		for l.away() && !isClosed(l.stopping) {
			more, err := l.takeDueOnce(ctx)
			if err != nil && !failing {
				l.log.Warn("what is due cannot be taken from the ledger", zap.Error(err))
			}
			if failing = err != nil; !more {
				break
			}
		}
	}
}

// takeDueOnce reports whether there may be more.
func (l *Lane) takeDueOnce(ctx context.Context) (bool, error) {
	limit := min(cap(l.room)-len(l.room), cap(l.dueRoom)-len(l.dueRoom), dueBatch)
	if limit < 1 {
		return false, nil
	}
	asking, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	now := time.Now().UTC()
	due, err := l.due.TakeDue(asking, now, now.Add(-fedPatience), dueLease, limit)
	if err != nil {
		return false, err
	}
	for _, n := range due {
		w := notification.Work{Notification: n, Trigger: notification.TriggerAuto, Claim: true, HasRow: true, FromLedger: true}
		w.Interrupted = n.Route.Lane == notification.LaneSync && n.Attempts == 0
		l.Offer(ctx, w, func(error) {}) // whatever became of it: its row is due again, or it has moved on
	}
	return len(due) == limit, nil
}

// putBack gives an item that came from the ledger back to it: its row is due at the given instant.
func (l *Lane) putBack(ctx context.Context, item *hand.Item, reason notification.Reason, at time.Time) {
	w, ok := item.Move()
	if !ok {
		return
	}
	n, err := l.restInLedger(ctx, w.Notification, reason, at)
	if err != nil {
		l.log.Warn("ledger does not take a notification back; it is due again by itself", zap.Stringer("id", w.ID), zap.Error(err))
	}
	item.Sent(n, nil)
	l.hand.Leave(item, err)
}

// restInLedger leaves a notification to the ledger alone, until an instant.
func (l *Lane) restInLedger(ctx context.Context, n *notification.Notification, reason notification.Reason, at time.Time) (*notification.Notification, error) {
	c := *n
	c.Defer(reason, laterOf(time.Now().UTC().Truncate(time.Microsecond), n.UpdatedAt.Add(time.Microsecond)))
	c.Resting, c.NextAt = false, at.UTC().Truncate(time.Microsecond)
	done := make(chan error, 1)
	l.memory.PutBack(ctx, &c, func(err error) { done <- err })
	select {
	case err := <-done:
		return &c, err
	case <-ctx.Done(): // the lane stops and the ledger does not answer
		return &c, errStopping
	}
}

// backAt is when something that the gate deferred is due again. Nobody knows when a merchant is resumed: it is looked
// at every few seconds.
func backAt(now, until time.Time) time.Time {
	if until.IsZero() {
		return now.Add(4*time.Second + rand.N(time.Second))
	}
	return laterOf(until, now.Add(time.Second)).Add(rand.N(time.Second))
}
