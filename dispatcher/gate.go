package dispatcher

import (
	"context"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"notifyd/access"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
)

// GateConfig sets the breakers.
type GateConfig struct {
	// ConsecutiveFailures is how many failures in a row open a breaker: network faults, timeouts, 5xx and 429.
	ConsecutiveFailures uint32 `yaml:"consecutive_failures"`
	// FailureRate is the share of failures among the attempts of FailureWindow that opens a breaker, if they are
	// LeastAttempts or more.
	FailureRate   float64       `yaml:"failure_rate"`
	FailureWindow time.Duration `yaml:"failure_window"`
	LeastAttempts uint32        `yaml:"least_attempts"`
	// OpenFor is how long an open breaker waits before it asks the merchant again. After each probe that fails it waits
	// twice as long, up to OpenAtMost; 0: twelve times OpenFor.
	OpenFor    time.Duration `yaml:"open_for"`
	OpenAtMost time.Duration `yaml:"open_at_most"`
	// ClaimFor is how long a claimed attempt may stay without an outcome before somebody else may make it.
	ClaimFor time.Duration `yaml:"claim_for"`
}

// DefaultGateConfig is used where the operator sets nothing.
func DefaultGateConfig() GateConfig {
	return GateConfig{
		ConsecutiveFailures: 5, FailureRate: 0.6, FailureWindow: 30 * time.Second, LeastAttempts: 20, OpenFor: 10 * time.Second, ClaimFor: 45 * time.Second,
	}
}

// Validate names the first key that has a value nobody can work with.
func (c GateConfig) Validate() error {
	switch {
	case c.ConsecutiveFailures < 1:
		return fmt.Errorf("gate.consecutive_failures: %d: must be at least 1", c.ConsecutiveFailures)
	case !(c.FailureRate > 0 && c.FailureRate <= 1): // also what is no number
		return fmt.Errorf("gate.failure_rate: %g: must be more than 0 and at most 1", c.FailureRate)
	case c.FailureWindow < time.Second || c.FailureWindow > 10*time.Minute:
		return fmt.Errorf("gate.failure_window: %s: must be 1s to 10m", c.FailureWindow)
	case c.LeastAttempts < 1:
		return fmt.Errorf("gate.least_attempts: %d: must be at least 1", c.LeastAttempts)
	case c.OpenFor < 100*time.Millisecond:
		return fmt.Errorf("gate.open_for: %s: must be at least 100ms", c.OpenFor)
	case c.OpenAtMost != 0 && c.OpenAtMost < c.OpenFor:
		return fmt.Errorf("gate.open_at_most: %s: must be at least open_for (%s), or 0", c.OpenAtMost, c.OpenFor)
	case c.ClaimFor < time.Second:
		return fmt.Errorf("gate.claim_for: %s: must be at least 1s", c.ClaimFor)
	}
	return nil
}

// maxTimes is after how many openings in a row the wait grows no more.
const maxTimes = 32

// openFor is how long the n-th opening in a row lasts.
func (c GateConfig) openFor(n int) time.Duration {
	most := c.OpenAtMost
	if most == 0 {
		most = 12 * c.OpenFor
	}
	wait := c.OpenFor
	for range min(n, maxTimes) - 1 {
		if wait = 2 * wait; wait >= most {
			return most
		}
	}
	return wait
}

// Claimer grants an attempt that somebody else could be making too.
type Claimer interface {
	Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error)
}

// Gate is asked before every attempt: may it happen now? Canceled, expired, older generation: never; merchant paused,
// breaker open, over rate: not now.
type Gate struct {
	cfg        GateConfig
	run        string
	claims     Claimer
	lists      *access.Registry
	board      Board                     // nil: this node is alone
	opened     func(isolationKey string) // told of each opening
	wake       func(merchantID string)   // told that what waits for a merchant may go on
	probeBound time.Duration             // the longest that a probe may take
	log        *zap.Logger
	now        func() time.Time
	random     func() float64 // in [0, 1)

	forcing sync.Mutex // taken by whoever replaces forced
	forced  atomic.Pointer[overrides]

	mu     sync.Mutex
	keys   map[string]*guard // by isolation key
	untold map[*guard]struct{}
	news   chan struct{} // something is untold
}

// NewGate returns a gate with closed breakers, which claims for a run.
func NewGate(cfg GateConfig, run string, claims Claimer) (*Gate, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Gate{
		cfg: cfg, run: run, claims: claims, lists: access.Nobody(), opened: func(string) {}, wake: func(string) {}, probeBound: 30 * time.Second, log: zap.NewNop(),
		now: func() time.Time { return time.Now().UTC() }, random: mathrand.Float64,
		keys: map[string]*guard{}, untold: map[*guard]struct{}{}, news: make(chan struct{}, 1),
	}, nil
}

// permission is the gate's answer.
type permission struct {
	kind        permissionKind
	reason      notification.Reason
	until       time.Time // of a deferral; zero: nobody knows
	interrupted bool      // an earlier attempt left no outcome: it goes on record before this one
	recordOnly  bool      // of barred: canceled, not held
	learn       func(*notification.Attempt)
}

type permissionKind uint8

const (
	granted permissionKind = iota + 1
	deferred
	settled // final without an attempt: expired, or its merchant is gone
	void    // another copy goes on; this one is dropped
	barred  // the lists keep it from being sent: held, or canceled
)

// Ask decides about one attempt of w by m at now. Without a merchant it is deferred, or ended when it is known that there
// is none.
func (g *Gate) Ask(ctx context.Context, w notification.Work, m *merchant.Merchant, known bool, now time.Time) (permission, error) {
	switch {
	case expired(w, now):
		return g.end(ctx, w, notification.ReasonExpired, now)
	case m == nil && known:
		return g.end(ctx, w, notification.ReasonMerchantMissing, now)
	}
	if p, stop, err := g.bar(ctx, w, now); stop {
		return p, err
	}
	if p, stop := g.peek(w, m, now); stop {
		return p, nil
	}
	key := g.guard(w.Route.IsolationKey, w.MerchantID, &m.Limits, now)
	t, until, ok := key.allow(now, g.forced.Load().of(key.key, key.merchantID, now).closed())
	if !ok {
		return permission{kind: deferred, reason: notification.ReasonBreakerOpen, until: until}, nil
	}
	wait, giveBack := key.takeToken(now)
	if wait > 0 {
		key.withdraw(t)
		return permission{kind: deferred, reason: notification.ReasonRateLimited, until: now.Add(wait)}, nil
	}
	p, err := g.claim(ctx, w, now)
	if err != nil || p.kind != granted {
		giveBack()
		key.withdraw(t)
		return p, err
	}
	if t.probe {
		key.probes(now)
	}
	if t.probe || t.news {
		g.tell(key)
	}
	p.learn = func(a *notification.Attempt) { g.learn(key, t, a) }
	return p, nil
}

// learn tells a breaker what has become of an attempt.
func (g *Gate) learn(key *guard, t ticket, a *notification.Attempt) {
	now := g.now()
	l := key.learn(t, a, now, g.forced.Load().of(key.key, key.merchantID, now).closed(), g.random())
	if l.news {
		g.tell(key)
	}
	switch {
	case l.opened:
		g.opened(key.key)
		line := g.log.Warn
		if l.opening.Times > 1 {
			line = g.log.Debug // a probe has failed: one line an opening is enough
		}
		line("breaker opens", zap.String("isolation_key", key.key), zap.String("cause", string(l.opening.Cause)), zap.Any("reasons", l.reasons),
			zap.Int("openings", l.opening.Times), zap.Time("probe_at", l.opening.ProbeAt))
	case l.closed:
		g.log.Info("breaker closes", zap.String("isolation_key", key.key), zap.Duration("was_open", now.Sub(l.opening.At)), zap.Int("openings", l.opening.Times))
	}
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
	if reason := g.barring(w, now); reason != "" {
		return reason
	}
	p, _ := g.peek(w, m, now)
	return p.reason
}

// peek looks at what can be known without taking a token or a claim.
func (g *Gate) peek(w notification.Work, m *merchant.Merchant, now time.Time) (permission, bool) {
	if m == nil {
		return permission{kind: deferred, reason: notification.ReasonMerchantMissing}, true
	}
	if m.Paused {
		return permission{kind: deferred, reason: notification.ReasonMerchantPaused}, true
	}
	key := g.find(w.Route.IsolationKey)
	switch f := g.forced.Load().of(w.Route.IsolationKey, w.MerchantID, now); {
	case f.open():
		return permission{kind: deferred, reason: notification.ReasonBreakerForcedOpen, until: f.Until}, true
	case key == nil || f.closed():
		return permission{}, false
	}
	if until, open := key.openUntil(now); open {
		return permission{kind: deferred, reason: notification.ReasonBreakerOpen, until: until}, true
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
		By: g.run, Until: now.Add(g.cfg.ClaimFor), AllowFinal: w.Trigger == notification.TriggerResend, OnlyLapsed: w.OnlyLapsed, Unreserved: w.Unreserved, Notification: row,
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

// find returns a key's guard; nil: it has none.
func (g *Gate) find(key string) *guard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.keys[key]
}

// guard finds or makes a key's guard, with the limits as they are set now; nil: they are not known.
func (g *Gate) guard(key, merchantID string, limits *merchant.Limits, now time.Time) *guard {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.keys[key]
	if k == nil {
		k = newGuard(&g.cfg, key, merchantID)
		g.keys[key] = k
	}
	if limits == nil {
		limits = &k.limits
	}
	k.use(*limits, now)
	return k
}

// guards are all there are.
func (g *Gate) guards() []*guard {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.keys))
}

// openBreakers counts the keys whose breaker lets nothing through, not even a probe.
func (g *Gate) openBreakers() int {
	open, now := 0, g.now()
	for _, k := range g.guards() {
		if _, is := k.openUntil(now); is {
			open++
		}
	}
	return open
}
