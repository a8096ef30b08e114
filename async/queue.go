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
	waiting    []*entry
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

// entry is an item in hand and the message that stands for it; nil: an own queue's, or none, as its row does.
type entry struct {
	*hand.Item
	from *message
}

func (e *entry) fromLedger() bool { return e.Work().FromLedger }

// Offer takes a work in hand; settled is called once, when its message need not come again. It blocks while the node
// has as much in hand as it may. A work of which another copy is in hand already is settled with
// an error: its message comes again, and by then the other copy is on record.
func (l *Lane) Offer(ctx context.Context, w notification.Work, settled func(error)) {
	l.offer(ctx, nil, w, settled)
}

func (l *Lane) offer(ctx context.Context, from *message, w notification.Work, settled func(error)) {
	select {
	case l.room <- struct{}{}:
	case <-ctx.Done():
		settled(errStopping)
		return
	}
	l.untilCalm(ctx)
	item, ok := l.hand.Enter(w, time.Now(), func(err error) {
		<-l.room
		settled(err)
	})
	if !ok {
		<-l.room
		settled(errSecondCopyInHand)
		return
	}
	l.place(ctx, &entry{item, from})
}

// place gives an item a slot, a place in the short queue, or sends it to the own queue. What comes from the ledger while
// NATS is away is asked about though its key has an own queue, which nobody can read then.
func (l *Lane) place(ctx context.Context, e *entry) {
	w := e.Work()
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue(w)
	switch {
	case q.resting && !w.FromLedger:
		l.startMove(ctx, q, e)
	case q.inFlight < q.cap:
		q.inFlight++
		l.running.Go(func() { l.work(ctx, q, e) })
	case len(q.waiting) < l.cfg.Depth:
		q.waiting = append(q.waiting, e)
		l.crowd.came(len(q.waiting))
	default:
		l.deferItem(ctx, q, e, notification.ReasonBacklog, time.Time{})
	}
}

// deferItem sends an item to where it waits: its key's own queue, or back to the ledger. Lane.mu is held.
func (l *Lane) deferItem(ctx context.Context, q *merchantQueue, e *entry, reason notification.Reason, until time.Time) {
	if e.fromLedger() {
		l.running.Go(func() { l.putBack(ctx, e.Item, reason, backAt(time.Now(), until)) })
		return
	}
	l.rest(ctx, q, reason, until)
	l.startMove(ctx, q, e)
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
func (l *Lane) work(ctx context.Context, q *merchantQueue, e *entry) {
	for e != nil {
		if deferred, verdict := l.attempt(ctx, q, e); deferred && verdict.Reason == notification.ReasonInFlight {
			l.hand.Leave(e.Item, errInFlight) // of this one only: its message comes again, or its row is due again
		} else if deferred {
			l.mu.Lock()
			l.deferItem(ctx, q, e, verdict.Reason, verdict.Until)
			l.mu.Unlock()
		}
		e = l.nextWaiting(q)
	}
}

// nextWaiting takes the slot's next item, or gives the slot back.
func (l *Lane) nextWaiting(q *merchantQueue) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(q.waiting) > 0 {
		e := q.waiting[0]
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
		l.crowd.went(len(q.waiting), 1)
		return e
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
func (l *Lane) attempt(ctx context.Context, q *merchantQueue, e *entry) (bool, notification.Verdict) {
	w, ok := e.Send()
	if !ok { // taken back by a cancel, which settles it
		return false, notification.Verdict{}
	}
	w.Claim = w.Claim || l.lapsed(e.from) || l.waitedLong(e.from) // another taker, or another copy, may have it too: the ledger decides
	q.began.Store(time.Now().UnixNano())
	q.sending.Add(1)
	verdict := l.deliver.Deliver(ctx, w, func(err error) { l.hand.Leave(e.Item, err) })
	q.sending.Add(-1)
	l.crowd.attempts.Add(1)
	if verdict.Deferred {
		e.Requeue(verdict.After)
		return true, verdict
	}
	e.Sent(verdict.After, verdict.Attempts)
	return false, verdict
}

// watch moves what has waited too long to where it waits better, until the lane stops.
func (l *Lane) watch(ctx context.Context) {
	tick := time.NewTicker(l.cfg.Patience / 4)
	defer tick.Stop()
	for {
		select {
		case <-l.stopping:
			return
		case now := <-tick.C:
			l.crowd.measure(now, l.cfg.Patience)
			l.mu.Lock()
			for _, q := range l.queues {
				if len(q.waiting) > 0 && now.Sub(q.waiting[0].Since()) > l.patienceWith(q) {
					l.relieve(ctx, q, notification.ReasonBacklog)
				}
			}
			l.mu.Unlock()
		}
	}
}

// relieve clears a key's short queue: what came from the ledger goes back to it, the rest to the own queue. Lane.mu is held.
func (l *Lane) relieve(ctx context.Context, q *merchantQueue, reason notification.Reason) {
	waiting := q.waiting
	q.waiting = nil
	l.crowd.went(0, len(waiting))
	for _, e := range waiting {
		l.deferItem(ctx, q, e, reason, time.Time{})
	}
}

// rest gives a key its own queue: what waits in process moves there, and so does what arrives from now on, until the
// drain has emptied it. A key whose shard is another node's is drained there: here it gets none. Lane.mu is held.
func (l *Lane) rest(ctx context.Context, q *merchantQueue, reason notification.Reason, until time.Time) {
	if until.After(q.wakeAt) {
		q.wakeAt = until
	}
	q.reason = reason
	if q.resting {
		return
	}
	stopping, owns := isClosed(l.stopping), l.owns(q.key)
	q.resting = owns || stopping
	l.relieve(ctx, q, reason)
	if stopping || !owns {
		l.forgetIdle(q)
		return
	}
	l.log.Info("merchant gets its own queue", zap.String("isolation_key", q.key), zap.String("reason", string(reason)))
	l.running.Go(func() { l.drain(ctx, q) })
}
