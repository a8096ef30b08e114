package dispatcher

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"notifyd/merchant"
	"notifyd/notification"
)

// guard is one isolation key's breaker and limiter.
//
// The library counts, and lets one probe through. When that probe is due is the guard's to say, because the merchant
// (Retry-After), other nodes and failed probes have a part in it: the library's own time in the open state is next to none.
type guard struct {
	cfg             *GateConfig
	key, merchantID string

	mu       sync.Mutex
	breaker  *gobreaker.TwoStepCircuitBreaker[struct{}]
	epoch    uint64                // of the breaker: what was allowed in an earlier one says nothing of this one
	inARow   uint32                // failures since the last success, however long ago
	failures []notification.Reason // the last few
	opening  opening               // zero: closed
	probing  time.Time             // since when a probe of this node is on its way; zero: none
	putOff   time.Time             // the merchant asked to be left alone until then
	waiting  int                   // attempts whose outcome is not known yet
	usedAt   time.Time             // when it was asked last
	limits   merchant.Limits       // of the limiter
	limiter  *rate.Limiter         // nil: unlimited

	// What other nodes should know has changed so often, and they were told of so many changes.
	changes, told uint64

	// What the library asks and says while it is told of an outcome.
	trips      bool             // open, whatever the counts are
	heldClosed bool             // an operator forces it closed
	cause      breakerCause     // why it opens
	turned     *gobreaker.State // what it has become
}

// opening is how a breaker came to be open.
type opening struct {
	At      time.Time `json:"at"`
	ProbeAt time.Time `json:"probe_at"`
	// Times is how often it has opened since it was closed last: more than one when probes have failed.
	Times int          `json:"times"`
	Cause breakerCause `json:"cause"`
}

// breakerCause is why a breaker opened.
type breakerCause string

const (
	causeInARow breakerCause = "consecutive_failures"
	causeRate   breakerCause = "failure_rate"
)

// keptFailures is how many reasons a guard remembers, for the line that says that it has opened.
const keptFailures = 5

// longestPutOff bounds what a merchant may ask for with Retry-After, as far as its breaker is concerned.
const longestPutOff = 10 * time.Minute

// windowParts is how many steps the window of the failure rate moves in.
const windowParts = 6

// errNotCounted is told to a breaker about attempts that say nothing of the merchant; errToldOpen opens it.
var (
	errNotCounted = errors.New("not the merchant's fault")
	errToldOpen   = errors.New("another node has opened it")
)

func newGuard(cfg *GateConfig, key, merchantID string) *guard {
	k := &guard{cfg: cfg, key: key, merchantID: merchantID}
	k.close()
	return k
}

// close makes a new breaker, which has seen nothing. Guard.mu is held.
func (k *guard) close() {
	k.epoch++
	k.opening, k.probing, k.putOff, k.inARow, k.failures = opening{}, time.Time{}, time.Time{}, 0, nil
	k.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: k.key, MaxRequests: 1, Timeout: 1, Interval: k.cfg.FailureWindow, BucketPeriod: k.cfg.FailureWindow / windowParts,
		ReadyToTrip: k.readyToTrip, IsExcluded: isNotCounted,
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if to != gobreaker.StateHalfOpen {
				k.turned = &to
			}
		},
	})
}

// forceClosed ends an opening, and lets a probe that is on its way decide nothing. Guard.mu is held.
func (k *guard) forceClosed() {
	if k.isOpen() {
		k.close()
		k.changes++
	}
}

// obey ends an opening because an operator forces it closed. It says whether there is news for other nodes.
func (k *guard) obey() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forceClosed()
	return k.changes != k.told
}

func isNotCounted(err error) bool { return errors.Is(err, errNotCounted) }

// readyToTrip is asked by the library after each failure of a closed breaker. Guard.mu is held.
func (k *guard) readyToTrip(c gobreaker.Counts) bool {
	ended := c.TotalFailures + c.TotalSuccesses
	switch {
	case k.trips:
		return true
	case k.heldClosed:
		return false
	case k.inARow >= k.cfg.ConsecutiveFailures:
		k.cause = causeInARow
		return true
	case ended >= k.cfg.LeastAttempts && float64(c.TotalFailures) >= k.cfg.FailureRate*float64(ended):
		k.cause = causeRate
		return true
	}
	return false
}

// isOpen reports whether the breaker is open or half-open. Guard.mu is held.
func (k *guard) isOpen() bool { return !k.opening.At.IsZero() }

// besideProbe is how long to wait while another's probe is on its way: it may take as long as an attempt does, or end soon.
const besideProbe = time.Second

// openUntil is when the breaker may let something through, if it does not now.
func (k *guard) openUntil(now time.Time) (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.probing.IsZero() {
		return later(k.opening.ProbeAt, now.Add(besideProbe)), true
	}
	return k.opening.ProbeAt, now.Before(k.opening.ProbeAt)
}

// ticket is one attempt that a breaker has allowed, and waits to hear of.
type ticket struct {
	heard func(error)
	epoch uint64
	probe bool
	news  bool // for other nodes
}

// allow lets an attempt through, or says until when it does not. Forced closed, it always does.
func (k *guard) allow(now time.Time, heldClosed bool) (t ticket, until time.Time, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if heldClosed {
		k.forceClosed()
	}
	if now.Before(k.opening.ProbeAt) {
		return ticket{}, k.opening.ProbeAt, false
	}
	heard, err := k.breaker.Allow()
	if err != nil { // one probe at a time
		return ticket{}, now.Add(besideProbe), false
	}
	k.waiting++
	return ticket{heard: heard, epoch: k.epoch, probe: k.isOpen(), news: k.changes != k.told}, time.Time{}, true
}

// withdraw says that the attempt was not made.
func (k *guard) withdraw(t ticket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting--
	if t.epoch == k.epoch {
		t.heard(errNotCounted)
	}
}

// probes notes that the probe is on its way, which other nodes should know.
func (k *guard) probes(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probing = now
	k.changes++
}

// learned is what an attempt has made of a breaker.
type learned struct {
	opened, closed bool
	opening        opening               // that has begun or ended
	reasons        []notification.Reason // of the last failures
	news           bool                  // for other nodes
}

// learn takes an attempt's outcome in. random is in [0, 1).
func (k *guard) learn(t ticket, a *notification.Attempt, now time.Time, heldClosed bool, random float64) (l learned) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { l.news = k.changes != k.told }()
	k.waiting--
	verdict := breakerError(a)
	if a.RetryAfter > 0 && (a.Reason == notification.ReasonTooManyRequests || a.Reason == notification.ReasonHTTPUnavailable) {
		k.putOff = later(k.putOff, now.Add(min(a.RetryAfter, longestPutOff)))
		if k.isOpen() && k.probing.IsZero() {
			k.opening.ProbeAt = later(k.opening.ProbeAt, k.putOff)
			k.changes++
		}
	}
	if heldClosed {
		k.forceClosed()
	}
	if t.epoch != k.epoch {
		return learned{}
	}
	k.count(a.Reason, verdict)
	k.heldClosed, k.turned = heldClosed, nil
	t.heard(verdict)
	if t.probe {
		k.probing = time.Time{}
		k.changes++
	}
	switch {
	case k.turned == nil:
		return learned{}
	case *k.turned == gobreaker.StateOpen:
		k.opens(now, random)
		return learned{opened: true, opening: k.opening, reasons: k.failures}
	}
	was := k.opening
	k.close()
	k.changes++
	return learned{closed: true, opening: was}
}

// count counts what the library forgets with its window. Guard.mu is held.
func (k *guard) count(reason notification.Reason, verdict error) {
	switch {
	case verdict == nil:
		k.inARow, k.putOff = 0, time.Time{}
	case !isNotCounted(verdict):
		k.inARow++
		if len(k.failures) == keptFailures {
			k.failures = k.failures[1:]
		}
		k.failures = append(k.failures, reason)
	}
}

// opens begins an opening, or the next one after a probe that failed, which lasts twice as long. The random part keeps
// keys and nodes from probing at the same instant. Guard.mu is held.
func (k *guard) opens(now time.Time, random float64) {
	if !k.isOpen() {
		k.epoch++ // what is in flight began before it
		k.opening = opening{At: now, Cause: k.cause}
	}
	k.opening.Times++
	k.opening.ProbeAt = later(now.Add(spread(k.cfg.openFor(k.opening.Times), random)), k.putOff)
	k.changes++
}

// spread adds up to a tenth to a wait.
func spread(wait time.Duration, random float64) time.Duration {
	return wait + time.Duration(random*float64(wait)/10)
}

// hear takes in what another node says of the key: open until a time, or closed. It says whether anything has become
// possible that was not. What this node has still to say itself comes later and stands.
func (k *guard) hear(o opening, closed bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.changes != k.told:
		return false
	case closed && k.isOpen():
		k.close()
		return true
	case closed:
		return false
	case !k.isOpen():
		k.trips = true
		if heard, err := k.breaker.Allow(); err == nil {
			heard(errToldOpen)
		}
		k.trips = false
		k.epoch++
	}
	o.ProbeAt = later(o.ProbeAt, k.putOff)
	sooner := o.ProbeAt.Before(k.opening.ProbeAt)
	k.opening = o
	return sooner
}

// word is what other nodes should know now, and which change it is; false: they do.
func (k *guard) word(probeBound time.Duration) (o opening, change uint64, news bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o = k.opening
	if !k.probing.IsZero() {
		o.ProbeAt = k.probing.Add(probeBound)
	}
	return o, k.changes, k.changes != k.told
}

// wasTold notes that other nodes know of a change.
func (k *guard) wasTold(change uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = change
}

// idle reports whether nothing would be lost with the guard: nobody has asked it for a while and nothing is in flight, so
// that its window is empty and its limiter full.
func (k *guard) idle(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	full := k.limiter == nil || k.limiter.TokensAt(now) >= float64(k.limiter.Burst())
	return full && k.waiting == 0 && k.changes == k.told && now.Sub(later(k.usedAt, k.opening.ProbeAt)) > idleFor
}

// use notes that the key is in use, with the limits as they are set now.
func (k *guard) use(limits merchant.Limits, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.usedAt = now
	if limits == k.limits {
		return
	}
	k.limits, k.limiter = limits, nil
	if limits.RatePerSecond > 0 {
		burst := limits.Burst
		if burst == 0 {
			burst = max(1, int(limits.RatePerSecond))
		}
		k.limiter = rate.NewLimiter(rate.Limit(limits.RatePerSecond), burst)
	}
}

// takeToken takes one token, which may be given back unused, or says how long there is none.
func (k *guard) takeToken(now time.Time) (wait time.Duration, giveBack func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.limiter == nil {
		return 0, func() {}
	}
	r := k.limiter.ReserveN(now, 1)
	giveBack = func() { r.CancelAt(now) }
	if wait = r.DelayFrom(now); wait > 0 {
		giveBack()
	}
	return wait, giveBack
}

// breakerError turns an attempt into what a breaker counts (P7): network faults, timeouts, 5xx and 429 are failures;
// 4xx and wrong answers are not, because one poison order must not hold back its siblings; our own faults say nothing.
func breakerError(a *notification.Attempt) error {
	switch a.Reason { //nolint:exhaustive // a list of what is not a failure; everything else is
	case notification.ReasonHTTPClientError, notification.ReasonWrongAnswer, notification.ReasonRedirect, notification.ReasonHTTPUnexpected,
		notification.ReasonGone, notification.ReasonAbortMessage, notification.ReasonAcknowledged, notification.ReasonLateAcknowledgement:
		return nil
	case notification.ReasonBadNotifyURL, notification.ReasonEncodeFailure, notification.ReasonBlockedAddress:
		return errNotCounted
	}
	if a.Reason.OurFault() {
		return errNotCounted
	}
	return fmt.Errorf("attempt: %s", a.Reason)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
