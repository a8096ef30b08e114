package async

import (
	"time"

	"golang.org/x/time/rate"

	"notifyd/notification"
)

// pace is what is known of how a key's merchant answers.
type pace struct {
	width      width
	took       time.Duration // the last attempt
	timedOut   bool          // it took longer than a while, and ended as too many do
	stillSince time.Time     // when an attempt ended last, or the first of those in flight began
}

func (p *pace) learn(a *notification.Attempt, used bool, while time.Duration, now time.Time) {
	p.took, p.stillSince = a.Took, now
	p.timedOut = a.Took > while && signOf(a.Reason) == tooMany
	p.width.learn(a, used, now)
}

// slow reports whether attempts take longer than a while: the last one did, or nothing has ended for as long.
func (p *pace) slow(inFlight int, while time.Duration, now time.Time) bool {
	return p.took > while || inFlight > 0 && now.Sub(p.stillSince) > while
}

// How many requests may hang before anybody else feels it. A request that hangs holds memory, a connection, and, if it
// came straight from a shard, a place in hand. So:
//   - a key begins with in_flight (8) slots, and has 0.5 s to empty its short queue: until it is known as slow it costs no
//     more than those slots and what arrives in the meantime. Its drain takes no place in hand;
//   - all slow keys together get slow_in_flight (2,048) attempts, in equal shares, but one each. 5 % of 10,000 merchants
//     that hang have four each;
//   - what has timed out is tried again in turn, slow_in_flight attempts in ten seconds over all keys;
//   - once attempts in flight fill half of in_hand (10,000), every key has one slot: the other half is left for what ends.
//
// So up to 10,000 requests, of 1,250 merchants that all begin to hang in the same second, or of 10,000 one by one, leave
// the others what they had. Merchants that answer are not slowed down by any of it.

// pacing is what all keys share. Lane.mu guards it.
type pacing struct {
	inFlight  int // slots taken, over all keys
	slowKeys  int
	slowShare int // what a slow key may have in flight
	// again are the turns of keys whose last attempt timed out. Many that hang time out in the same second: what each of
	// them would begin then, all together, is more than what the others offer.
	again    *rate.Limiter
	troubled map[string]remembered
	forgotAt time.Time
}

func newPacing(cfg Config) pacing {
	return pacing{slowShare: 1 << 20, again: rate.NewLimiter(rate.Limit(cfg.SlowInFlight)/againWithin, 1+cfg.SlowInFlight/againBurst), troubled: map[string]remembered{}}
}

const (
	// againWithin is in how many seconds as many attempts begin of keys that timed out as all slow keys may have in flight.
	againWithin = 10
	againBurst  = 64
)

// capOf is how many attempts a key may have in flight now. Lane.mu is held.
func (l *Lane) capOf(q *merchantQueue) int {
	n := q.pace.width.cap()
	if q.slow {
		n = min(n, l.slowShare)
	}
	if l.inFlight >= l.cfg.InHand/2 {
		return 1
	}
	return n
}

// slowAfter is how long an attempt may take before its key counts as slow.
func (l *Lane) slowAfter() time.Duration { return 2 * l.cfg.Patience }

// shareSlow finds out who is slow and what each of them may have. Lane.mu is held.
func (l *Lane) shareSlow(now time.Time) {
	slow := 0
	for _, q := range l.queues {
		if q.slow = q.pace.slow(q.inFlight, l.slowAfter(), now); q.slow {
			slow++
		}
	}
	l.slowKeys, l.slowShare = slow, max(1, l.cfg.SlowInFlight/max(1, slow))
	if now.Sub(l.forgotAt) > rememberFor/4 {
		l.forgotAt = now
		for key, of := range l.troubled {
			if now.Sub(of.at) > rememberFor {
				delete(l.troubled, key)
			}
		}
	}
}

// rememberFor is how long a key that has nothing in hand is known as slow, or as one that takes less than what is fair.
const rememberFor = time.Minute

type remembered struct {
	pace
	at time.Time
}

// remember keeps a key's pace beyond what it has in hand, where it is not what every key begins with. Lane.mu is held.
func (l *Lane) remember(q *merchantQueue, now time.Time) {
	if q.pace.width.cap() < q.pace.width.fair || q.pace.took > l.slowAfter() {
		l.troubled[q.key] = remembered{q.pace, now}
	}
}

// paceOf is a key's pace as it was when it had something in hand last, or what every key begins with. Lane.mu is held.
func (l *Lane) paceOf(key string) pace {
	if of, known := l.troubled[key]; known {
		delete(l.troubled, key)
		return of.pace
	}
	return pace{width: newWidth(l.cfg.InFlight, l.cfg.MaxInFlight)}
}

// InFlight is how many attempts of a key this node is making, and how many it may.
func (l *Lane) InFlight(isolationKey string) (n, limit int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.queues[isolationKey]; q != nil {
		return q.inFlight, l.capOf(q)
	}
	if of, known := l.troubled[isolationKey]; known {
		return 0, of.width.cap()
	}
	return 0, l.cfg.InFlight
}

// Limits are a merchant's own, as they are set now.
type Limits struct {
	InFlight  int     // attempts at once of one isolation key, at most; 0: Config.MaxInFlight
	PerSecond float64 // attempts of one isolation key, as the gate counts them; 0: unlimited
	OwnQueue  bool    // everything goes through the own queue
	Release   Release
}

// Release bounds how fast goes out what waited while its merchant was paused or blocked; the zero value does not.
type Release struct {
	PerSecond      float64   // of each isolation key
	AcceptedBefore time.Time // what came later is not bound; in the own queue it waits behind what is
}

func (r Release) bounds(w notification.Work) bool {
	return r.PerSecond > 0 && w.AcceptedAt.Before(r.AcceptedBefore)
}
