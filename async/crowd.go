package async

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// crowd tells an engine that has too much to do from merchants that are slow. Of a merchant that hangs, much waits for a
// slot and nothing is sent; when the engine has too much to do, what waits belongs to keys of which much is sent, and more
// waits. So a key adds to the crowd what it has waiting, but no more than was sent of it lately: one that hangs adds
// nothing, however many of them there are. Nothing is taken while the crowd is half of all that was sent lately (P10): own
// queues would cost the most when there is least to spend. What is in them already counts while the processor is the limit.
type crowd struct {
	waiting atomic.Int64 // over all keys, see Lane.recount
	most    atomic.Int64 // as many may wait
	pauses  atomic.Uint64
}

const (
	// crowdShare bounds what one key adds: one that floods gets its own queue.
	crowdShare = 32
	// fewestWaiting may wait however slow the engine is.
	fewestWaiting = 2 * crowdShare
	// calmAgain is the time between two looks whether fewer wait.
	calmAgain = 10 * time.Millisecond
	// sentLately is how many looks of Lane.watch a key's sent count over: half of the patience.
	sentLately = 2
)

func (c *crowd) calm() bool { return c.waiting.Load() < max(fewestWaiting, c.most.Load()) }

// recount brings up to date what a key adds to the crowd. Lane.mu is held.
func (l *Lane) recount(q *merchantQueue) {
	waiting := q.waiting.len
	if q.resting && l.strained() {
		waiting = crowdShare
	}
	adds := min(waiting, q.sentLately(), crowdShare)
	l.crowd.waiting.Add(int64(adds - q.crowds))
	q.crowds = adds
}

// measure counts what was sent of every key since the last look, and what that lets wait. Lane.mu is held.
func (l *Lane) measure() {
	lately := l.ended[0] + l.ended[1]
	l.ended = [sentLately]int{0, l.ended[0]}
	for _, q := range l.queues {
		q.speed += (float64(q.ended[0]) - q.speed) / 32
		q.ended = [sentLately]int{0, q.ended[0]}
		l.recount(q)
	}
	l.crowd.most.Store((l.crowd.most.Load() + int64(lately/2)) / 2)
}

// untilCalm waits while the engine has too much to do.
func (l *Lane) untilCalm(ctx context.Context) {
	l.waitWhile(ctx, func() bool { return !l.crowd.calm() })
}

// waitWhile returns when something does not hold any more, or when the lane stops.
func (l *Lane) waitWhile(ctx context.Context, holds func() bool) {
	if !holds() {
		return
	}
	tick := time.NewTicker(calmAgain)
	defer tick.Stop()
	for holds() {
		select {
		case <-ctx.Done():
			return
		case <-l.stopping:
			return
		case <-tick.C:
		}
	}
}

// crowdPatience is how many times the patience a key is waited for that is one of many.
const crowdPatience = 4

// patienceWith is how long a key may wait before it gets its own queue. Lane.mu is held.
func (l *Lane) patienceWith(q *merchantQueue) time.Duration {
	switch {
	case l.late(): // what has been sent waits for the ledger, and keeps its slot
		return math.MaxInt64
	case q.waiting.len < crowdShare && q.crowds > 0 && !l.crowd.calm():
		return crowdPatience * l.cfg.Patience
	}
	return l.cfg.Patience
}
