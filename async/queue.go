package async

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/hand"
)

// merchantQueue is what one isolation key has in hand: a short queue and the attempts in flight. Everything is guarded
// by Lane.mu but the atomic fields.
type merchantQueue struct {
	key        string
	merchantID string // of the work that made it
	cap        int
	waiting    []*hand.Item
	inFlight   int

	// resting says that new arrivals go to the key's own queue in NATS.
	resting bool
	reason  notification.Reason // why
	moving  int                 // arrivals on their way there
	moved   uint64              // arrivals that got there, ever
	wakeAt  time.Time           // no use in draining earlier
	wake    chan struct{}

	sending atomic.Int32 // attempts being made, in the slots and by the drain
	began   atomic.Int64 // the last of them, in Unix nanoseconds
}

// Offer takes a work in hand; settled is called once, when its message need not come again. It blocks while the node
// has as much in hand as it may. A work of which another copy is in hand already is settled with
// an error: its message comes again, and by then the other copy is on record.
func (l *Lane) Offer(ctx context.Context, w notification.Work, settled func(error)) {
	select {
	case l.room <- struct{}{}:
	case <-ctx.Done():
		settled(errStopping)
		return
	}
	item, ok := l.hand.Enter(w, time.Now(), func(err error) {
		<-l.room
		settled(err)
	})
	if !ok {
		<-l.room
		settled(errSecondCopyInHand)
		return
	}
	l.place(ctx, item)
}

// place gives an item a slot, a place in the short queue, or sends it to the own queue.
func (l *Lane) place(ctx context.Context, item *hand.Item) {
	w := item.Work()
	l.mu.Lock()
	q := l.queue(w)
	switch {
	case q.resting:
		l.startMove(ctx, q, item)
	case q.inFlight < q.cap:
		q.inFlight++
		l.running.Go(func() { l.work(ctx, q, item) })
	case len(q.waiting) < l.cfg.Depth:
		q.waiting = append(q.waiting, item)
	default:
		l.rest(ctx, q, notification.ReasonBacklog, time.Time{})
		l.startMove(ctx, q, item)
	}
	l.mu.Unlock()
}

// queue finds or makes the key's queue. Lane.mu is held.
func (l *Lane) queue(w notification.Work) *merchantQueue {
	key := w.Route.IsolationKey
	q := l.queues[key]
	if q == nil {
		q = &merchantQueue{key: key, merchantID: w.MerchantID, cap: l.cfg.InFlight, wake: make(chan struct{}, 1)}
		if own := l.limits(w.MerchantID); own > 0 {
			q.cap = own
		}
		l.queues[key] = q
	}
	return q
}

// work makes attempts for one slot of a key until nothing waits.
func (l *Lane) work(ctx context.Context, q *merchantQueue, item *hand.Item) {
	for item != nil {
		if deferred, verdict := l.attempt(ctx, q, item); deferred && verdict.Reason == notification.ReasonInFlight {
			l.hand.Leave(item, errInFlight) // of this one only: its message comes again
		} else if deferred {
			l.mu.Lock()
			l.rest(ctx, q, verdict.Reason, verdict.Until)
			l.startMove(ctx, q, item)
			l.mu.Unlock()
		}
		item = l.nextWaiting(q)
	}
}

// nextWaiting takes the slot's next item, or gives the slot back.
func (l *Lane) nextWaiting(q *merchantQueue) *hand.Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(q.waiting) > 0 {
		item := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		return item
	}
	q.inFlight--
	l.forgetIdle(q)
	return nil
}

// forgetIdle drops a key that has nothing in hand and no own queue. Lane.mu is held.
func (l *Lane) forgetIdle(q *merchantQueue) {
	if q.inFlight == 0 && len(q.waiting) == 0 && !q.resting {
		delete(l.queues, q.key)
	}
}

// attempt delivers one item. When it was deferred, the item is queued again and is the caller's to place.
func (l *Lane) attempt(ctx context.Context, q *merchantQueue, item *hand.Item) (bool, notification.Verdict) {
	w, ok := item.Send()
	if !ok { // taken back by a cancel, which settles it
		return false, notification.Verdict{}
	}
	q.began.Store(time.Now().UnixNano())
	q.sending.Add(1)
	verdict := l.deliver.Deliver(ctx, w, func(err error) { l.hand.Leave(item, err) })
	q.sending.Add(-1)
	if verdict.Deferred {
		item.Requeue(verdict.After)
		return true, verdict
	}
	item.Sent(verdict.After, verdict.Attempts)
	return false, verdict
}

// watch moves keys whose notifications have waited too long to their own queue, until the lane stops.
func (l *Lane) watch(ctx context.Context) {
	tick := time.NewTicker(l.cfg.Patience / 4)
	defer tick.Stop()
	for {
		select {
		case <-l.stopping:
			return
		case now := <-tick.C:
			l.mu.Lock()
			for _, q := range l.queues {
				if !q.resting && len(q.waiting) > 0 && now.Sub(q.waiting[0].Since()) > l.cfg.Patience {
					l.rest(ctx, q, notification.ReasonBacklog, time.Time{})
				}
			}
			l.mu.Unlock()
		}
	}
}

// rest gives a key its own queue: what waits in process moves there, and so does what arrives from now on, until the
// drain has emptied it. Lane.mu is held.
func (l *Lane) rest(ctx context.Context, q *merchantQueue, reason notification.Reason, until time.Time) {
	if until.After(q.wakeAt) {
		q.wakeAt = until
	}
	q.reason = reason
	if q.resting {
		return
	}
	q.resting = true
	waiting := q.waiting
	q.waiting = nil
	for _, item := range waiting {
		l.startMove(ctx, q, item)
	}
	l.log.Info("merchant gets its own queue", zap.String("isolation_key", q.key), zap.String("reason", string(reason)), zap.Int("moved", len(waiting)))
	l.running.Go(func() { l.drain(ctx, q) })
}
