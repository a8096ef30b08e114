package async

import (
	"cmp"
	"context"
	"slices"
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
	pace       pace
	waiting    shortQueue
	inFlight   int             // slots taken, by Lane.work and by the drain
	ended      [sentLately]int // attempts made: since the last look of Lane.watch, and between the two before
	crowds     int             // what it adds to the crowd
	speed      float64         // attempts made between two looks of Lane.watch, smoothed over seconds
	slow       bool            // see pace.slow, as Lane.watch saw it

	// resting says that new arrivals go to the key's own queue in NATS.
	resting  bool
	reason   notification.Reason // why
	moves    []*entry            // arrivals on their way there, in order
	moving   int                 // as many
	mover    bool                // somebody takes them there
	moved    uint64              // arrivals that got there, ever
	woken    uint64              // how often somebody said that it is worth asking again
	overflow overflow
	wakeAt   time.Time // no use in draining earlier
	wake     chan struct{}

	sending atomic.Int32 // attempts being made, in the slots and by the drain
	began   atomic.Int64 // the last of them, in Unix nanoseconds
}

func (q *merchantQueue) sentLately() int { return q.ended[0] + q.ended[1] }

// entry is an item in hand and the message that stands for it; nil: an own queue's, or none, as its row does.
type entry struct {
	*hand.Item
	from    *message
	class   class
	arrived uint64 // its number among all that this lane has taken
}

func (e *entry) fromLedger() bool { return e.Work().FromLedger }

// classOf is whose turn a work is; what comes from a shard was never tried.
func classOf(w notification.Work) class {
	switch {
	case w.Trigger == notification.TriggerResend || w.Trigger == notification.TriggerSweep:
		return resent
	case w.Attempts > 0:
		return again
	default:
		return first
	}
}

// Offer takes a work in hand; settled is called once, when its message need not come again. It blocks while the node
// has as much in hand as it may. A work of which another copy is in hand already is settled with
// an error: its message comes again, and by then the other copy is on record.
func (l *Lane) Offer(ctx context.Context, w notification.Work, settled func(error)) {
	l.offer(ctx, nil, w, settled)
}

func (l *Lane) offer(ctx context.Context, from *message, w notification.Work, settled func(error)) {
	shard := notification.ShardOf(w.Route.IsolationKey)
	l.waitWhile(ctx, func() bool { return int(l.movingIn[shard].Load()) >= l.mayMove() })
	leave, ok := l.enter(ctx, from.isFresh())
	if !ok {
		settled(errStopping)
		return
	}
	l.untilCalm(ctx)
	item, ok := l.hand.Enter(w, time.Now(), func(err error) {
		leave()
		settled(err)
	})
	if !ok {
		leave()
		settled(errSecondCopyInHand)
		return
	}
	l.place(ctx, &entry{Item: item, from: from, class: classOf(w), arrived: l.arrivals.Add(1)})
}

// enter takes a place for one notification in hand; leave gives it back. What has come due takes no more than half of
// all places, so that there are some for what is new, however much comes due at once.
func (l *Lane) enter(ctx context.Context, fresh bool) (leave func(), ok bool) {
	rooms := []chan struct{}{l.dueRoom, l.room}
	if fresh {
		rooms = rooms[1:]
	}
	for i, room := range rooms {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			for _, taken := range rooms[:i] {
				<-taken
			}
			return nil, false
		}
	}
	if fresh {
		return func() { <-l.room }, true
	}
	return func() { <-l.room; <-l.dueRoom }, true
}

// place gives an item a slot, a place in the short queue, or sends it to the own queue. What comes from the ledger while
// NATS is away is asked about though its key has an own queue, which nobody can read then.
func (l *Lane) place(ctx context.Context, e *entry) {
	w := e.Work()
	limits := l.limits(w.MerchantID)
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue(w, limits)
	switch {
	case q.resting && !w.FromLedger:
		l.startMove(ctx, q, e)
	case !w.FromLedger && limits.OwnQueue:
		l.rest(ctx, q, notification.ReasonQueued, time.Time{})
		l.startMove(ctx, q, e)
	case !w.FromLedger && limits.Release.bounds(w): // the drain counts
		l.rest(ctx, q, notification.ReasonBacklog, time.Time{})
		l.startMove(ctx, q, e)
	case q.inFlight < l.capOf(q):
		l.takeSlot(q)
		l.running.Go(func() { l.work(ctx, q, e) })
	case q.waiting.len < l.cfg.Depth:
		q.waiting.push(e)
		l.recount(q)
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
func (l *Lane) queue(w notification.Work, limits Limits) *merchantQueue {
	key := w.Route.IsolationKey
	q := l.queues[key]
	if q == nil {
		q = &merchantQueue{key: key, merchantID: w.MerchantID, wake: make(chan struct{}, 1)}
		q.pace = l.paceOf(key)
		l.queues[key] = q
	}
	q.pace.width.bound(l.cfg.InFlight, cmp.Or(limits.InFlight, l.cfg.MaxInFlight))
	return q
}

// work makes attempts for one slot of a key until nothing waits.
func (l *Lane) work(ctx context.Context, q *merchantQueue, e *entry) {
	for e != nil {
		if deferred, verdict := l.attempt(ctx, q, e, nil); deferred && verdict.Reason == notification.ReasonInFlight {
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
	if q.inFlight <= l.capOf(q) {
		if e := q.waiting.pop(); e != nil {
			l.recount(q)
			return e
		}
	}
	l.giveSlot(q)
	l.forgetIdle(q)
	return nil
}

func (l *Lane) takeSlot(q *merchantQueue) {
	if q.inFlight == 0 {
		q.pace.stillSince = time.Now()
	}
	q.inFlight++
	l.inFlight++
}

func (l *Lane) giveSlot(q *merchantQueue) {
	q.inFlight--
	l.inFlight--
	q.nudge()
}

// forgetIdle drops a key that has nothing in hand and no own queue. Lane.mu is held.
func (l *Lane) forgetIdle(q *merchantQueue) {
	if q.inFlight == 0 && q.waiting.len == 0 && q.moving == 0 && !q.resting {
		l.remember(q, time.Now())
		delete(l.queues, q.key)
	}
}

// attempt delivers one item; begin is Deliver's. When it was deferred, the item is queued again and is the caller's to place.
func (l *Lane) attempt(ctx context.Context, q *merchantQueue, e *entry, begin func()) (bool, notification.Verdict) {
	w, ok := e.Send()
	if !ok { // taken back by a cancel, which settles it
		return false, notification.Verdict{}
	}
	w.Claim = w.Claim || l.lapsed(e.from) || l.waitedLong(e.from) // another taker, or another copy, may have it too: the ledger decides
	q.began.Store(time.Now().UnixNano())
	q.sending.Add(1)
	verdict := l.deliver.Deliver(ctx, w, begin, func(err error) { l.hand.Leave(e.Item, err) })
	q.sending.Add(-1)
	l.learn(q, verdict.Attempt())
	if verdict.Deferred {
		e.Requeue(verdict.After)
		return true, verdict
	}
	e.Sent(verdict.After, verdict.Attempts)
	return false, verdict
}

// learn takes in how long an attempt took and how it ended; nil: none was made.
func (l *Lane) learn(q *merchantQueue, a *notification.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.ended[0]++
	l.ended[0]++
	if a != nil {
		q.pace.learn(a, q.inFlight >= q.pace.width.cap(), l.slowAfter(), time.Now())
	}
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
			l.strain.look(now)
			l.mu.Lock()
			l.measure()
			l.shareSlow(now)
			for _, q := range l.queues {
				if q.waiting.len > 0 && now.Sub(q.waiting.oldest()) > l.patienceWith(q) {
					l.relieve(ctx, q, notification.ReasonBacklog)
				} else {
					l.fillSlots(ctx, q)
				}
			}
			l.mu.Unlock()
		}
	}
}

// fillSlots gives what waits the slots that a wider cap has. Lane.mu is held.
func (l *Lane) fillSlots(ctx context.Context, q *merchantQueue) {
	for q.inFlight < l.capOf(q) {
		e := q.waiting.pop()
		if e == nil {
			return
		}
		l.recount(q)
		l.takeSlot(q)
		l.running.Go(func() { l.work(ctx, q, e) })
	}
}

// relieve clears a key's short queue: what came from the ledger goes back to it, the rest to the own queue, in order of
// arrival. Lane.mu is held.
func (l *Lane) relieve(ctx context.Context, q *merchantQueue, reason notification.Reason) {
	waiting := q.waiting.clear()
	l.recount(q)
	slices.SortFunc(waiting, inOrder)
	for _, e := range waiting {
		l.deferItem(ctx, q, e, reason, time.Time{})
	}
}

func inOrder(a, b *entry) int { return cmp.Compare(a.arrived, b.arrived) }

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
	l.logOwnQueue("merchant gets its own queue", q)
	l.running.Go(func() { l.drain(ctx, q) })
}

// logOwnQueue is for changes; a merchant that has its own queue for good comes and goes with each notification.
func (l *Lane) logOwnQueue(what string, q *merchantQueue) {
	log := l.log.Info
	if q.reason == notification.ReasonQueued {
		log = l.log.Debug
	}
	log(what, zap.String("isolation_key", q.key), zap.String("reason", string(q.reason)))
}
