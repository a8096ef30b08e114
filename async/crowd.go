package async

import (
	"context"
	"sync/atomic"
	"time"
)

// crowd tells an engine that has too much to do from a merchant that is slow. Of a slow merchant much waits for a slot, of
// the others nothing: it gets its own queue. When many wait a little, no merchant is to blame, and own queues would cost the
// most when there is least to spend: nothing is taken then until fewer wait (P10).
type crowd struct {
	waiting  atomic.Int64 // over all keys, each counted up to crowdShare
	attempts atomic.Int64 // ever
	most     atomic.Int64 // as many may wait: about what is sent in half of the patience

	// Of measure.
	at   time.Time
	seen int64
}

const (
	// crowdShare bounds what one key adds to the crowd.
	crowdShare = 32
	// fewestWaiting may wait however slow the engine is.
	fewestWaiting = 2 * crowdShare
	// calmAgain is the time between two looks whether fewer wait.
	calmAgain = 10 * time.Millisecond
)

// came notes that a key has one more waiting: so many now.
func (c *crowd) came(now int) {
	if now <= crowdShare {
		c.waiting.Add(1)
	}
}

// went notes that a key has some fewer waiting: so many now.
func (c *crowd) went(now, fewer int) {
	c.waiting.Add(int64(min(now, crowdShare) - min(now+fewer, crowdShare)))
}

// measure looks how many attempts are made, smoothed over about a second. It is for one goroutine.
func (c *crowd) measure(now time.Time, patience time.Duration) {
	attempts := c.attempts.Load()
	if took := now.Sub(c.at); !c.at.IsZero() && took > 0 {
		most := int64(float64(attempts-c.seen) * float64(patience/2) / float64(took))
		c.most.Store((7*c.most.Load() + most) / 8)
	}
	c.at, c.seen = now, attempts
}

func (c *crowd) calm() bool { return c.waiting.Load() < max(fewestWaiting, c.most.Load()) }

// untilCalm waits while the engine has too much to do.
func (l *Lane) untilCalm(ctx context.Context) {
	if l.crowd.calm() {
		return
	}
	tick := time.NewTicker(calmAgain)
	defer tick.Stop()
	for !l.crowd.calm() {
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
	if len(q.waiting) < crowdShare && !l.crowd.calm() {
		return crowdPatience * l.cfg.Patience
	}
	return l.cfg.Patience
}
