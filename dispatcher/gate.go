package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
)

// GateConfig sets the breakers.
type GateConfig struct {
	// ConsecutiveFailures is how many failures in a row open a breaker: network faults, timeouts, 5xx and 429.
	ConsecutiveFailures uint32 `yaml:"consecutive_failures"`
	// OpenFor is how long an open breaker waits before it asks the merchant again.
	OpenFor time.Duration `yaml:"open_for"`
	// ClaimFor is how long a claimed attempt may stay without an outcome before somebody else may make it.
	ClaimFor time.Duration `yaml:"claim_for"`
}

// DefaultGateConfig is used where the operator sets nothing.
func DefaultGateConfig() GateConfig {
	return GateConfig{ConsecutiveFailures: 5, OpenFor: 10 * time.Second, ClaimFor: 45 * time.Second}
}

// Validate names the first key that has a value nobody can work with.
func (c GateConfig) Validate() error {
	switch {
	case c.ConsecutiveFailures < 1:
		return fmt.Errorf("gate.consecutive_failures: %d: must be at least 1", c.ConsecutiveFailures)
	case c.OpenFor < 100*time.Millisecond:
		return fmt.Errorf("gate.open_for: %s: must be at least 100ms", c.OpenFor)
	case c.ClaimFor < time.Second:
		return fmt.Errorf("gate.claim_for: %s: must be at least 1s", c.ClaimFor)
	}
	return nil
}

// Claimer grants an attempt that somebody else could be making too.
type Claimer interface {
	Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error)
}

// Gate is asked before every attempt: may it happen now? Canceled, expired, older generation: never; merchant paused,
// breaker open, over rate: not now.
type Gate struct {
	cfg    GateConfig
	run    string
	claims Claimer
	opened func(isolationKey string) // told under the breaker's lock

	mu   sync.Mutex
	keys map[string]*guard // by isolation key
}

// NewGate returns a gate with closed breakers, which claims for a run.
func NewGate(cfg GateConfig, run string, claims Claimer) (*Gate, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Gate{cfg: cfg, run: run, claims: claims, opened: func(string) {}, keys: map[string]*guard{}}, nil
}

// guard is one isolation key's breaker and limiter.
type guard struct {
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]

	mu        sync.Mutex
	openUntil time.Time
	limits    merchant.Limits
	limiter   *rate.Limiter
}

// permission is the gate's answer.
type permission struct {
	kind        permissionKind
	reason      notification.Reason
	until       time.Time // of a deferral; zero: nobody knows
	interrupted bool      // an earlier attempt left no outcome: it goes on record before this one
	learn       func(*notification.Attempt)
}

type permissionKind uint8

const (
	granted permissionKind = iota + 1
	deferred
	settled // final without an attempt: expired, or its merchant is gone
	void    // another copy goes on; this one is dropped
)

// errNotCounted is told to a breaker about attempts that say nothing of the merchant.
var errNotCounted = errors.New("not the merchant's fault")

// Ask decides about one attempt of w by m at now. Without a merchant it is deferred, or ended when it is known that there
// is none.
func (g *Gate) Ask(ctx context.Context, w notification.Work, m *merchant.Merchant, known bool, now time.Time) (permission, error) {
	switch {
	case expired(w, now):
		return g.end(ctx, w, notification.ReasonExpired, now)
	case m == nil && known:
		return g.end(ctx, w, notification.ReasonMerchantMissing, now)
	}
	if p, stop := g.peek(w, m); stop {
		return p, nil
	}
	key := g.guard(w.Route.IsolationKey, m.Limits)
	learn := key.allow()
	if learn == nil {
		return permission{kind: deferred, reason: notification.ReasonBreakerOpen, until: later(key.waitUntil(), now.Add(50*time.Millisecond))}, nil
	}
	wait, giveBack := key.takeToken(now)
	if wait > 0 {
		learn(errNotCounted)
		return permission{kind: deferred, reason: notification.ReasonRateLimited, until: now.Add(wait)}, nil
	}
	p, err := g.claim(ctx, w, now)
	if err != nil || p.kind != granted {
		giveBack()
		learn(errNotCounted)
		return p, err
	}
	p.learn = func(a *notification.Attempt) { learn(breakerError(a)) }
	return p, nil
}

// end settles a work without another attempt, if no other copy of it goes on.
func (g *Gate) end(ctx context.Context, w notification.Work, reason notification.Reason, now time.Time) (permission, error) {
	p, err := g.claim(ctx, w, now)
	if err == nil && p.kind == granted {
		p.kind, p.reason = settled, reason
	}
	return p, err
}

// Peek says why an attempt would not be made right now, without taking anything; empty when it would.
func (g *Gate) Peek(w notification.Work, m *merchant.Merchant, now time.Time) notification.Reason {
	if expired(w, now) {
		return notification.ReasonExpired
	}
	p, _ := g.peek(w, m)
	return p.reason
}

// peek looks at what can be known without taking a token or a claim.
func (g *Gate) peek(w notification.Work, m *merchant.Merchant) (permission, bool) {
	if m == nil {
		return permission{kind: deferred, reason: notification.ReasonMerchantMissing}, true
	}
	if m.Paused {
		return permission{kind: deferred, reason: notification.ReasonMerchantPaused}, true
	}
	g.mu.Lock()
	key := g.keys[w.Route.IsolationKey]
	g.mu.Unlock()
	if key != nil && key.breaker.State() == gobreaker.StateOpen {
		return permission{kind: deferred, reason: notification.ReasonBreakerOpen, until: key.waitUntil()}, true
	}
	return permission{}, false
}

func expired(w notification.Work, now time.Time) bool {
	return !w.ExpiresAt.IsZero() && !now.Before(w.ExpiresAt)
}

// claim asks the ledger for this attempt (P12), when another copy of the work may exist.
func (g *Gate) claim(ctx context.Context, w notification.Work, now time.Time) (permission, error) {
	if !w.Claim {
		return permission{kind: granted, interrupted: w.Interrupted}, nil
	}
	row := w.Notification
	if !w.HasRow { // should the claim have to make it: due one day, even if all else is lost
		made := *w.Notification
		made.NextAt = now.Add(backstop)
		row = &made
	}
	verdict, until, err := g.claims.Claim(ctx, ledger.Claim{
		ID: w.ID, AcceptedAt: w.AcceptedAt, Generation: w.Generation, Attempts: w.Attempts,
		By: g.run, Until: now.Add(g.cfg.ClaimFor), AllowFinal: w.Trigger == notification.TriggerResend, OnlyLapsed: w.OnlyLapsed, Notification: row,
	})
	if err != nil {
		return permission{}, fmt.Errorf("claim attempt: %w", err)
	}
	switch verdict {
	case ledger.ClaimGranted, ledger.ClaimNoRow:
		return permission{kind: granted, interrupted: w.Interrupted}, nil
	case ledger.ClaimGrantedAfterLapse:
		return permission{kind: granted, interrupted: true}, nil
	case ledger.ClaimStale:
		return permission{kind: void, reason: notification.ReasonStaleGeneration}, nil
	case ledger.ClaimBusy:
		return permission{kind: deferred, reason: notification.ReasonInFlight, until: until}, nil
	case ledger.ClaimBehind:
		return permission{kind: deferred, reason: notification.ReasonInFlight, until: now.Add(time.Second)}, nil
	}
	return permission{}, fmt.Errorf("claim attempt: verdict %d is not one of its words", verdict)
}

// guard finds or makes a key's guard, with the limits as they are set now.
func (g *Gate) guard(key string, limits merchant.Limits) *guard {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.keys[key]
	if k == nil {
		k = &guard{}
		k.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Name: key, MaxRequests: 1, Timeout: g.cfg.OpenFor,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= g.cfg.ConsecutiveFailures },
			IsExcluded:  func(err error) bool { return errors.Is(err, errNotCounted) },
			OnStateChange: func(_ string, _, to gobreaker.State) {
				if to == gobreaker.StateOpen {
					k.mu.Lock()
					k.openUntil = time.Now().Add(g.cfg.OpenFor)
					k.mu.Unlock()
					g.opened(key)
				}
			},
		})
		g.keys[key] = k
	}
	k.setLimits(limits)
	return k
}

// openBreakers counts the keys whose breaker lets nothing through.
func (g *Gate) openBreakers() int {
	g.mu.Lock()
	keys := slices.Collect(maps.Values(g.keys))
	g.mu.Unlock()
	open := 0
	for _, k := range keys {
		if k.breaker.State() == gobreaker.StateOpen {
			open++
		}
	}
	return open
}

// allow asks the breaker; nil: not now. Otherwise the breaker waits for what becomes of it.
func (k *guard) allow() func(error) {
	learn, err := k.breaker.Allow()
	if err != nil {
		return nil
	}
	return learn
}

func (k *guard) setLimits(limits merchant.Limits) {
	k.mu.Lock()
	defer k.mu.Unlock()
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

func (k *guard) waitUntil() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.openUntil
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
