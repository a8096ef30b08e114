package async

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// moveBatch is how many of a key's notifications move at once.
const moveBatch = 256

// mayMove is how many notifications of one shard may be on their way to own queues. When a flood arrives faster than it
// moves, its shard waits for it, not the node.
func (l *Lane) mayMove() int { return max(1, l.cfg.InHand/8) }

// startMove sends an item to its key's own queue, in order of arrival. Lane.mu is held.
func (l *Lane) startMove(ctx context.Context, q *merchantQueue, e *entry) {
	q.moving++
	l.movingIn[notification.ShardOf(q.key)].Add(1)
	at, _ := slices.BinarySearchFunc(q.moves, e, inOrder)
	q.moves = slices.Insert(q.moves, at, e)
	if !q.mover {
		q.mover = true
		l.running.Go(func() { l.moveAll(ctx, q) })
	}
}

// moveAll takes to the own queue what is on its way there, one batch after another: so the own queue has them in order.
func (l *Lane) moveAll(ctx context.Context, q *merchantQueue) {
	for {
		l.mu.Lock()
		n := min(moveBatch, len(q.moves))
		if n == 0 {
			q.mover = false
			l.forgetIdle(q)
			l.mu.Unlock()
			return
		}
		batch := slices.Clone(q.moves[:n])
		q.moves = slices.Delete(q.moves, 0, n)
		reason := q.reason
		l.mu.Unlock()

		l.move(ctx, q, batch, reason)

		l.movingIn[notification.ShardOf(q.key)].Add(int32(-n))
		l.mu.Lock()
		q.moving -= n
		q.moved += uint64(n)
		l.mu.Unlock()
		q.nudge()
	}
}

// moving is one item on its way out of hand.
type moving struct {
	*entry
	work   notification.Work
	after  *notification.Notification // as it rests
	stored jetstream.PubAckFuture     // nil: not published
	full   bool                       // the own queue takes no more
	err    error
}

// move takes items out of hand to where they wait: their own queue, or what that does not take, and what cannot reach it,
// the ledger. A row is written first, then the own queue has it, then its message may go. Dying in between leaves the
// message to be redelivered; the copy that is found second is refused by the claim.
func (l *Lane) move(ctx context.Context, q *merchantQueue, batch []*entry, reason notification.Reason) {
	away := l.away()
	var own, all []*moving
	for _, e := range batch {
		w, ok := e.Move()
		if !ok {
			continue
		}
		m := &moving{entry: e, work: w}
		if all = append(all, m); !w.HasRow || !away {
			own = append(own, m)
		}
	}
	l.showResting(ctx, own, reason)
	l.storeOwn(ctx, q, own)
	l.leaveToLedger(ctx, q, all, reason, away)
	for _, m := range all {
		if m.err != nil {
			l.log.Warn("notification cannot be put where it should wait; its message comes again", zap.Stringer("id", m.work.ID), zap.Error(m.err))
		}
		m.Sent(m.after, nil)
		l.hand.Leave(m.Item, m.err)
	}
}

// showResting writes the rows that say that notifications rest in their own queue, and waits for them.
func (l *Lane) showResting(ctx context.Context, all []*moving, reason notification.Reason) {
	now := time.Now()
	wait := make([]chan error, len(all))
	for i, m := range all {
		m.after, wait[i] = asResting(m.work.Notification, reason, now), make(chan error, 1)
		l.memory.Remember(ctx, m.after, !m.work.HasRow, func(err error) { wait[i] <- err })
	}
	for i, m := range all {
		select {
		case m.err = <-wait[i]:
		case <-ctx.Done(): // the lane stops and the ledger does not answer: the message comes again
			m.err = errStopping
		}
	}
}

// storeOwn publishes to the own queue, in order, and waits until NATS has it.
func (l *Lane) storeOwn(ctx context.Context, q *merchantQueue, all []*moving) {
	subject, full := envelope.OwnQueueSubject(q.key), l.isFull(q)
	for _, m := range all {
		if m.err != nil {
			continue
		}
		if m.full = full; full {
			continue
		}
		m.work.Notification = m.after
		m.stored, m.err = l.beginStore(subject, m.work)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	for _, m := range all {
		if m.stored == nil {
			continue
		}
		m.err = l.endStore(ctx, m.stored)
		if m.full = errors.Is(m.err, ErrFull); m.full {
			m.err = nil
		} else if m.err != nil {
			m.err = fmt.Errorf("publish to own queue: %w", m.err)
		}
	}
}

func (l *Lane) beginStore(subject string, w notification.Work) (jetstream.PubAckFuture, error) {
	data, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		return nil, err
	}
	if err := faults.Before(faults.Own); err != nil {
		return nil, err
	}
	return l.js.PublishAsync(subject, data)
}

func (l *Lane) endStore(ctx context.Context, stored jetstream.PubAckFuture) error {
	select {
	case <-stored.Ok():
		return faults.After(faults.Own)
	case err := <-stored.Err():
		return publishError(err)
	case <-ctx.Done(): // it may be there: the claim refuses the second copy
		return context.Cause(ctx)
	}
}

// leaveToLedger leaves to the ledger for a while what a full own queue does not take, and what has a row while NATS is away.
func (l *Lane) leaveToLedger(ctx context.Context, q *merchantQueue, all []*moving, reason notification.Reason, away bool) {
	var leaving sync.WaitGroup // the ledger writes them together
	for _, m := range all {
		switch {
		case m.err != nil:
		case m.full:
			at := l.overflows(q, m.work)
			leaving.Go(func() { m.after, m.err = l.restInLedger(ctx, m.after, notification.ReasonBacklog, at) })
		case m.after == nil && away:
			at := backAt(time.Now(), time.Time{})
			leaving.Go(func() { m.after, m.err = l.restInLedger(ctx, m.work.Notification, reason, at) })
		default:
			l.fits(q, m.work)
		}
	}
	leaving.Wait()
}

// asResting is the snapshot of a notification that waits in its own queue. It is not due: the drain asks for it.
func asResting(n *notification.Notification, reason notification.Reason, now time.Time) *notification.Notification {
	c := *n
	c.Defer(reason, now.UTC().Truncate(time.Microsecond))
	c.Resting, c.NextAt = true, time.Time{}
	return &c
}

// overflow is what a full own queue has left to the ledger, as far as this process knows.
type overflow struct {
	waiting int
	until   time.Time // nobody tries to publish before it
}

const (
	// fullLooks is how long a full own queue is taken to be full.
	fullLooks = time.Second
	// leastSpeed is how many notifications a second an own queue is taken to get rid of, at least.
	leastSpeed = 10
	// longestOverflow is how many times own_queue_rest something waits in the ledger, at most.
	longestOverflow = 10
)

func (l *Lane) isFull(q *merchantQueue) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(q.overflow.until)
}

// overflows says when something is tried again that its full own queue did not take: when those before it will have left, at
// the pace at which the queue is drained. So a long overflow neither spins nor comes back in one instant.
func (l *Lane) overflows(q *merchantQueue, w notification.Work) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !q.overflow.until.After(now) {
		q.overflow.until = now.Add(fullLooks)
	}
	if !cameBack(w) {
		q.overflow.waiting++
	}
	perSecond := max(leastSpeed, q.speed/(l.cfg.Patience/4).Seconds())
	wait := time.Duration(float64(q.overflow.waiting) / perSecond * float64(time.Second))
	wait = min(l.cfg.OwnQueueRest+wait, longestOverflow*l.cfg.OwnQueueRest)
	return now.Add(wait + rand.N(l.cfg.OwnQueueRest/4))
}

// fits notes that something has found a place in its own queue.
func (l *Lane) fits(q *merchantQueue, w notification.Work) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.overflow.waiting > 0 && cameBack(w) {
		q.overflow.waiting--
	}
}

// cameBack reports whether a work was left to the ledger before.
func cameBack(w notification.Work) bool { return w.HasRow && w.Reason == notification.ReasonBacklog }

func (q *merchantQueue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
