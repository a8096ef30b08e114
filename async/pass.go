package async

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// pass is one way through an own queue, from its oldest notification to its end, or to the first that the gate defers.
// Notifications begin in order, as many at once as the key may have; one that takes long holds up no others as long as
// there are slots.
type pass struct {
	*Lane
	q       *merchantQueue
	next    uint64        // sequence from which to read on
	limiter *rate.Limiter // nil: nothing was bound yet
	found   int           // what was read
	tidied  time.Time     // when what is settled was last removed because of the time

	mu        sync.Mutex
	ready     []resting       // read, or put back because of the rate; in order
	ramp      int             // attempts at once, if the key may have as many: doubles with each round
	inFlight  int             // not settled
	asking    int             // begun without a slot: the gate is asked, or has said yes
	sending   int             // with a slot
	permitted []chan struct{} // those the gate has said yes to and that wait for a slot, in order
	left      int             // have left the queue
	reason    notification.Reason
	until     time.Time
	notYet    time.Time // over rate until then
	open      []uint64  // read and not settled, in order
	done      []uint64  // settled and not removed
}

func newPass(l *Lane, q *merchantQueue, ramp int) *pass {
	return &pass{Lane: l, q: q, next: 1, ramp: ramp}
}

// run returns when all that began is settled.
func (p *pass) run(ctx context.Context) error {
	defer p.finish(ctx)
	for {
		r, ok, err := p.take(ctx)
		if !ok || err != nil {
			return err
		}
		if !p.start(ctx, r) {
			return nil
		}
	}
}

// take is the next one; not ok: there is none, and nothing is in flight that could be followed by one.
func (p *pass) take(ctx context.Context) (resting, bool, error) {
	for {
		p.Lane.mu.Lock()
		moved := p.q.moved
		p.Lane.mu.Unlock()
		if r, ok := p.pop(); ok {
			return r, true, nil
		}
		last, err := p.read(ctx)
		if err != nil {
			return resting{}, false, err
		}
		if last > 0 {
			continue
		}
		p.remove(ctx, 1)
		if !p.wait(ctx, time.Time{}, func() bool { return p.nothingMore(moved) }) || p.isIdle() {
			return resting{}, false, nil
		}
	}
}

// nothingMore holds while neither something arrives, nor is put back, nor all is settled.
func (p *pass) nothingMore(movedBefore uint64) bool {
	p.Lane.mu.Lock()
	moved := p.q.moved != movedBefore
	p.Lane.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return !moved && len(p.ready) == 0 && p.inFlight > 0
}

func (p *pass) isIdle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight == 0 && len(p.ready) == 0
}

func (p *pass) pop() (r resting, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) == 0 {
		return r, false
	}
	r = p.ready[0]
	p.ready = p.ready[1:]
	return r, true
}

// read reads on; last is 0 at the end of the queue.
func (p *pass) read(ctx context.Context) (last uint64, err error) {
	p.mu.Lock()
	limit := min(drainBatch, p.ramp*8)
	p.mu.Unlock()
	batch, last, err := p.readOwnFrom(ctx, envelope.OwnQueueSubject(p.q.key), p.next, limit)
	if err == nil {
		err = p.goByLedger(ctx, batch)
	}
	if err != nil || last == 0 {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = last + 1
	for _, r := range batch {
		p.open = append(p.open, r.seq)
		if !r.unreadable() {
			p.ready = append(p.ready, r)
			p.found++
		}
	}
	return last, nil
}

// start begins one attempt when it may. False: the pass is over.
func (p *pass) start(ctx context.Context, r resting) bool {
	if !p.awaitTurn(ctx, r.work) {
		return false
	}
	settled := make(chan struct{})
	item, ok := p.enter(ctx, r.work, func(err error) {
		p.running.Go(func() { // not in the ledger's goroutine: NATS may be slow
			if err == nil {
				p.settle(ctx, r.seq)
			}
			close(settled)
		})
	})
	if !ok { // another copy is in hand: the next pass sees to it
		p.end(false)
		return true
	}
	p.mu.Lock()
	p.inFlight++
	p.mu.Unlock()
	p.running.Go(func() {
		sent := false
		deferred, verdict := p.attempt(ctx, p.q, &entry{Item: item}, func() {
			p.awaitSlot(ctx)
			sent = true
		})
		p.end(sent)
		if deferred {
			p.hand.Leave(item, errStaysInOwnQueue)
		} else {
			p.letThrough()
		}
		p.heed(r, deferred, verdict)
		select {
		case <-settled:
		case <-ctx.Done(): // the lane stops and the ledger does not answer
		}
		p.mu.Lock()
		p.inFlight--
		p.mu.Unlock()
		p.q.nudge()
	})
	return true
}

// enter takes one in hand. It may be on its way out of hand still, if it has only just been put into the queue: then that
// is waited for, so that it keeps its place.
func (p *pass) enter(ctx context.Context, w notification.Work, settled func(error)) (item *hand.Item, ok bool) {
	p.wait(ctx, time.Time{}, func() bool {
		p.Lane.mu.Lock()
		moving := p.q.moving > 0
		p.Lane.mu.Unlock()
		item, ok = p.hand.Enter(w, time.Now(), settled)
		return !ok && moving
	})
	return item, ok
}

// heed draws the pass' conclusions from an answer of the gate: what is over rate for a moment is asked about again in its
// turn, another deferral ends the pass.
func (p *pass) heed(r resting, deferred bool, verdict notification.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !deferred:
		p.left++
		p.ramp = min(p.ramp+1, 1<<20)
	case verdict.Reason == notification.ReasonInFlight:
	case verdict.Reason == notification.ReasonRateLimited && time.Until(verdict.Until) < time.Second && !verdict.Until.IsZero():
		at, _ := slices.BinarySearchFunc(p.ready, r, func(a, b resting) int { return cmp.Compare(a.seq, b.seq) })
		p.ready = slices.Insert(p.ready, at, r)
		p.notYet = laterOf(p.notYet, verdict.Until)
	default:
		p.reason, p.until = verdict.Reason, laterOf(p.until, verdict.Until)
	}
}

// awaitTurn waits until the gate may be asked for the next attempt. False: the pass is over.
func (p *pass) awaitTurn(ctx context.Context, w notification.Work) bool {
	at := p.turn(w, time.Now())
	again := p.again(time.Now())
	return p.wait(ctx, again, func() bool { return time.Now().Before(again) }) &&
		p.awaitInstant(ctx, func() time.Time { return at }) && p.awaitInstant(ctx, p.overRateUntil) &&
		p.wait(ctx, time.Time{}, func() bool { return !p.ask() })
}

// turn is when the next may go out at the rate at which it is released. The merchant's own rate is the gate's to keep, over
// both lanes; it is kept here too, so that the gate is not asked in vain.
func (p *pass) turn(w notification.Work, now time.Time) time.Time {
	limits := p.limits(p.q.merchantID)
	perSecond := limits.PerSecond
	if bound := limits.Release.PerSecond; limits.Release.bounds(w) && (perSecond == 0 || bound < perSecond) {
		perSecond = bound
	}
	if perSecond == 0 {
		return now
	}
	if p.limiter == nil || p.limiter.Limit() != rate.Limit(perSecond) {
		p.limiter = rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond/20)))
	}
	return now.Add(p.limiter.ReserveN(now, 1).DelayFrom(now))
}

// again is when a key whose last attempt timed out has its turn among all of them; any other has it now.
func (p *pass) again(now time.Time) time.Time {
	p.Lane.mu.Lock()
	defer p.Lane.mu.Unlock()
	if !p.q.pace.timedOut {
		return now
	}
	return now.Add(p.pacing.again.ReserveN(now, 1).DelayFrom(now))
}

func (p *pass) overRateUntil() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notYet
}

// awaitInstant waits until an instant, which may move. False: the pass is over.
func (p *pass) awaitInstant(ctx context.Context, instant func() time.Time) bool {
	until := instant()
	if !time.Now().Before(until) {
		return true
	}
	p.because(p.q, notification.ReasonRateLimited)
	p.postpone(p.q, until)
	return p.wait(ctx, until, func() bool { return time.Now().Before(instant()) })
}

// ask notes that one more asks the gate, if it may.
func (p *pass) ask() bool {
	p.Lane.mu.Lock()
	defer p.Lane.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sending+p.asking >= p.mayAsk() {
		return false
	}
	p.asking++
	return true
}

// quick is how fast a merchant answers of whose notifications some have their claim before there is a slot for them.
const quick = time.Second

// mayAsk is how many attempts may be under way, those without a slot included. A claim takes as long as the ledger takes, and
// the slots of a merchant that answers are not to stand empty meanwhile: as many ask as send. One that is slow, or was only
// just let through, would be sent them when nobody would ask for it any more; and one that takes one at a time gets them in
// order. Both mu are held.
func (p *pass) mayAsk() int {
	most := p.capOf(p.q)
	if most == 1 || p.ramp < most || p.q.pace.took > quick {
		return min(p.ramp, most)
	}
	return 2 * most
}

// awaitSlot waits for a slot, behind those that were permitted before. It is granted in the end, as the claim is taken, and
// before the claim lapses: it waits for the end of one attempt at most, see end.
func (p *pass) awaitSlot(ctx context.Context) {
	permitted := make(chan struct{})
	p.mu.Lock()
	p.permitted = append(p.permitted, permitted)
	p.mu.Unlock()
	p.grant()
	select {
	case <-permitted:
	case <-ctx.Done(): // the lane stops, and the request ends at once
		p.Lane.mu.Lock()
		defer p.Lane.mu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		if at := slices.Index(p.permitted, permitted); at >= 0 {
			p.slot(at)
		}
	}
}

// grant gives the slots that there are.
func (p *pass) grant() {
	p.Lane.mu.Lock()
	defer p.Lane.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.permitted) > 0 && p.q.inFlight < p.capOf(p.q) {
		p.slot(0)
	}
}

// slot gives one of the permitted its slot. Both mu are held.
func (p *pass) slot(at int) {
	close(p.permitted[at])
	p.permitted = slices.Delete(p.permitted, at, at+1)
	p.asking--
	p.sending++
	p.takeSlot(p.q)
}

// end notes that an attempt is over, or was none: sent says that it had a slot, which goes to the first of the permitted
// even if the key may have fewer now. A merchant that begins to hang gets narrower with each round, and a claim lapses.
func (p *pass) end(sent bool) {
	p.Lane.mu.Lock()
	p.mu.Lock()
	if sent {
		p.sending--
		p.giveSlot(p.q)
		if len(p.permitted) > 0 {
			p.slot(0)
		}
	} else {
		p.asking--
		p.q.nudge()
	}
	p.mu.Unlock()
	p.Lane.mu.Unlock()
	p.grant()
}

// letThrough notes that the gate lets the key's attempts through: others wait for nothing but those before them.
func (p *pass) letThrough() {
	p.Lane.mu.Lock()
	defer p.Lane.mu.Unlock()
	if p.q.reason != notification.ReasonQueued { // its own queue for good
		p.q.reason = notification.ReasonBacklog
	}
}

// lookAgain is how long a pass waits at most before it looks for itself.
const lookAgain = 250 * time.Millisecond

// wait returns true when something does not hold any more, false when the pass is over: because of a deferral, or because
// the lane stops, or because the shard goes to another node.
func (p *pass) wait(ctx context.Context, until time.Time, holds func() bool) bool {
	for {
		changed := p.owned.Changed()
		if p.isOver(ctx) {
			return false
		}
		if !holds() {
			return true
		}
		p.grant()
		p.tidy(ctx)
		pause := lookAgain
		if !until.IsZero() {
			pause = min(pause, time.Until(until))
		}
		timer := time.NewTimer(pause)
		select {
		case <-p.stopping:
		case <-changed:
		case <-ctx.Done():
		case <-timer.C:
		case <-p.q.wake:
		}
		timer.Stop()
	}
}

func (p *pass) isOver(ctx context.Context) bool {
	p.mu.Lock()
	deferred := p.reason != ""
	p.mu.Unlock()
	return deferred || ctx.Err() != nil || isClosed(p.stopping) || !p.owns(p.q.key)
}

// finish waits for what has begun, and removes what is settled.
func (p *pass) finish(ctx context.Context) {
	for ctx.Err() == nil {
		p.mu.Lock()
		settled := p.inFlight == 0
		p.mu.Unlock()
		if settled {
			break
		}
		p.grant()
		select {
		case <-ctx.Done(): // the lane stops and the ledger does not answer
		case <-p.q.wake:
		}
	}
	p.remove(ctx, 1)
}

// settle notes that a stored notification is settled.
func (p *pass) settle(ctx context.Context, seq uint64) {
	p.mu.Lock()
	if at, found := slices.BinarySearch(p.open, seq); found {
		p.open = slices.Delete(p.open, at, at+1)
	}
	p.done = append(p.done, seq)
	p.mu.Unlock()
	p.remove(ctx, removeBatch)
}

const (
	// removeBatch is how many settled notifications are removed together. Dying with them leaves them to their claims.
	removeBatch = 64
	// purgeFrom is from how many on a purge is cheaper than removing one by one.
	purgeFrom = 4
)

// tidy removes what is settled now and then, however little: one that hangs, or a low rate, may keep a pass for minutes,
// and what the merchant has been told is no backlog.
func (p *pass) tidy(ctx context.Context) {
	if now := time.Now(); now.Sub(p.tidied) >= lookAgain {
		p.tidied = now
		p.remove(ctx, 1)
	}
}

// remove takes what is settled out of the queue, if it is at least so many: what lies before everything that is not settled
// in one go, the rest one by one.
func (p *pass) remove(ctx context.Context, least int) {
	p.mu.Lock()
	if len(p.done) < least {
		p.mu.Unlock()
		return
	}
	done, before := p.done, p.next
	p.done = nil
	if len(p.open) > 0 {
		before = p.open[0]
	}
	p.mu.Unlock()
	slices.Sort(done)
	if purged, _ := slices.BinarySearch(done, before); purged >= purgeFrom {
		p.purgeOwn(ctx, p.q.key, before)
		done = done[purged:]
	}
	for _, seq := range done {
		p.deleteOwn(ctx, seq)
	}
}
