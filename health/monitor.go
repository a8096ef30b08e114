package health

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/source"
)

// evaluateEvery is how often the facts are judged.
const evaluateEvery = time.Second

// recentAlarms is how many alarms /alarms remembers.
const recentAlarms = 100

// Parts are what a monitor watches. What is nil is not part of this node.
type Parts struct {
	Node  string // names this node in alarms; the same after a restart
	Log   *zap.Logger
	Now   func() time.Time
	Tally *Tally
	Store Store

	// NATS and Postgres answer nil when they are well. They must keep to their contexts.
	NATS     func(ctx context.Context) error
	Postgres func(ctx context.Context) error

	Intake     bool // takes submissions
	Dispatcher func() dispatcher.Stats
	Async      func() async.Stats
	Backlog    func(ctx context.Context) (async.Backlog, error)
	Ledger     func() ledger.Stats
	Overdue    func(ctx context.Context, before time.Time) (ledger.Overdue, error)
	Keys       Keys
	// Certificates are those of the engine's own keys that end soon.
	Certificates func(now time.Time) []keys.Expiring
}

// Store keeps alarms.
type Store interface {
	PutAlarms(ctx context.Context, alarms []ledger.Alarm) error
	OpenAlarms(ctx context.Context, node string) ([]ledger.Alarm, error)
}

// Keys knows the payment services' keys.
type Keys interface {
	Expiring(now time.Time, within time.Duration) []source.ExpiringKey
}

// Monitor watches one node.
type Monitor struct {
	parts    Parts
	probes   *probes
	keeper   *keeper
	webhook  *webhook
	draining atomic.Bool

	mu       sync.Mutex
	cfg      Config
	judge    *evaluator
	recent   []ledger.Alarm  // raised by this process, or open at its start; newest last
	raisedBy map[Name]uint64 // since the start
}

// New returns a monitor that does nothing until Run.
func New(cfg Config, parts Parts) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Monitor{
		parts: parts, probes: &probes{parts: parts}, keeper: newKeeper(parts.Store, parts.Log), webhook: newWebhook(parts.Log, parts.Now),
		cfg: cfg, judge: newEvaluator(parts.Node, cfg), raisedBy: map[Name]uint64{},
	}
	return m, m.webhook.configure(cfg.Webhook)
}

// Configure takes other bounds and another webhook while the monitor runs. After an error nothing has changed.
func (m *Monitor) Configure(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.webhook.configure(cfg.Webhook); err != nil {
		return err
	}
	m.cfg, m.judge.cfg = cfg, cfg
	m.parts.Tally.configure(cfg)
	return nil
}

// Drain says that the node is stopping: it is not ready any more, and standing still is no fault.
func (m *Monitor) Drain() { m.draining.Store(true) }

// Run samples, judges, stores and tells until ctx ends. Alarms that are raised then stay open for the next start.
func (m *Monitor) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.probes.run(ctx) })
	parts.Go(func() { m.webhook.run(ctx) })
	parts.Go(func() { m.keeper.run(ctx, m.parts.Node, m.adopt) })
	every(ctx, evaluateEvery, m.evaluate)
	parts.Wait()
	return nil
}

// evaluate judges what is known now.
func (m *Monitor) evaluate() {
	f := m.facts()
	m.mu.Lock()
	raised, cleared := m.judge.evaluate(f)
	for _, a := range raised {
		m.raisedBy[Name(a.Name)]++
		m.recent = append(m.recent, a)
	}
	m.recent = m.recent[max(0, len(m.recent)-recentAlarms):]
	for _, a := range cleared {
		m.noteCleared(a)
	}
	m.keeper.note(append(raised, cleared...)...)
	if m.keeper.seenIsOld(f.Now) {
		m.keeper.note(m.judge.active()...)
	}
	m.mu.Unlock()
	for _, a := range raised {
		m.log(a, "alarm is raised")
		m.webhook.tell(eventRaised, a)
	}
	for _, a := range cleared {
		m.log(a, "alarm is cleared")
		m.webhook.tell(eventCleared, a)
	}
}

// noteCleared keeps the alarms of /alarms true. Monitor.mu is held.
func (m *Monitor) noteCleared(a ledger.Alarm) {
	for i := range m.recent {
		if r := &m.recent[i]; r.Name == a.Name && r.Subject == a.Subject && r.RaisedAt.Equal(a.RaisedAt) {
			*r = a
		}
	}
}

func (m *Monitor) log(a ledger.Alarm, what string) {
	fields := []zap.Field{zap.String("alarm", a.Name), zap.String("severity", a.Severity), zap.String("detail", a.Detail), zap.Time("raised_at", a.RaisedAt)}
	if a.Subject != "" {
		fields = append(fields, zap.String("subject", a.Subject))
	}
	switch {
	case !a.ClearedAt.IsZero():
		m.parts.Log.Info(what, fields...)
	case a.Severity == string(Critical):
		m.parts.Log.Error(what, fields...)
	default:
		m.parts.Log.Warn(what, fields...)
	}
}

// adopt goes on with what an earlier run of this node left open. What is not true any more is cleared by the next look.
func (m *Monitor) adopt(open []ledger.Alarm) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range open {
		if !m.judge.adopt(a) { // raised anew meanwhile, or not an alarm any more
			a.ClearedAt = a.SeenAt
			m.keeper.note(a)
			continue
		}
		if Name(a.Name) == MerchantFailing && a.Subject != "" {
			m.parts.Tally.adopt(a.Subject, a.RaisedAt, a.SeenAt)
		}
		m.recent = append(m.recent, a)
	}
	if len(open) > 0 {
		m.parts.Log.Info("alarms of the last run are looked at again", zap.Int("open", len(open)))
	}
}

// facts are what is known now.
func (m *Monitor) facts() Facts {
	f := Facts{Now: m.parts.Now(), Draining: m.draining.Load()}
	s := m.probes.last()
	f.NATS, f.Postgres = s.NATS, s.Postgres
	if m.parts.Dispatcher != nil {
		f.Started = m.parts.Dispatcher().Started
	}
	f.Sendable = s.Untaken // also on a node that sends nothing itself: that nobody takes it is seen from there too
	if m.parts.Async != nil {
		f.Sendable += uint64(m.parts.Async().Stalled) //nolint:gosec // a count
	}
	if m.parts.Ledger != nil {
		f.LedgerBehind, f.LedgerFull = lag(m.parts.Ledger(), f.Now)
	}
	m.parts.Tally.tell(&f)
	if m.parts.Keys != nil {
		m.mu.Lock()
		within := m.cfg.KeyExpiringWithin
		m.mu.Unlock()
		f.Expiring = m.parts.Keys.Expiring(f.Now, within)
	}
	if m.parts.Certificates != nil {
		f.Certificates = m.parts.Certificates(f.Now)
	}
	return f
}

func lag(s ledger.Stats, now time.Time) (behind time.Duration, full bool) {
	if !s.Oldest.IsZero() {
		behind = max(0, now.Sub(s.Oldest))
	}
	return behind, s.Bytes >= s.BytesLimit
}

// Sample is what was last learned by asking. It waits for nobody.
func (m *Monitor) Sample() Sample { return m.probes.last() }

// Alarms are those that are raised now, by name and subject, and the last ones raised, newest first.
func (m *Monitor) Alarms() (active, recent []ledger.Alarm) {
	m.mu.Lock()
	defer m.mu.Unlock()
	recent = make([]ledger.Alarm, 0, len(m.recent))
	for i := range m.recent {
		recent = append(recent, m.recent[len(m.recent)-1-i])
	}
	return m.judge.active(), recent
}

// Count is how often an alarm was raised, and by how many subjects it is raised now.
type Count struct {
	Active int
	Raised uint64
}

// Counts has an entry for each alarm.
func (m *Monitor) Counts() map[Name]Count {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[Name]Count, len(kinds))
	for name := range kinds {
		out[name] = Count{Raised: m.raisedBy[name]}
	}
	for key := range m.judge.open {
		c := out[key.name]
		c.Active++
		out[key.name] = c
	}
	return out
}

// Unsent is how many webhooks were given up, and how many alarms are not stored yet.
func (m *Monitor) Unsent() (webhooks uint64, unstored int) {
	return m.webhook.givenUp.Load(), m.keeper.waiting()
}
