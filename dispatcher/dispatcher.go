// Package dispatcher is the way of a notification: submitted, checked, routed, made durable, attempted, remembered.
// It conducts the other packages, which do not know each other; submit.go is the way in, deliver.go the way out.
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"notifyd/access"
	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/internal/crew"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/router"
	"notifyd/source"
	synclane "notifyd/sync"
)

// Ledger is what the dispatcher asks of the memory.
type Ledger interface {
	Claimer
	Reserver
	Finder
	Changer
	Lines
	// Record makes a snapshot and its new attempts durable; recorded is called once. It bounds itself how long it waits for room.
	Record(ctx context.Context, r ledger.Record, recorded func(error))
}

// Reserver keeps which ids were accepted.
type Reserver interface {
	Reserve(ctx context.Context, rs []ledger.Reservation) ([]ledger.Reserved, error)
	// MarkAnswered notes of ids without a row that their callers were told of the acceptance.
	MarkAnswered(ctx context.Context, ids []notification.ID) error
	// Quarantine is a page of the records that the ledger refused, after a number.
	Quarantine(ctx context.Context, after int64, limit int) ([]ledger.Quarantined, error)
	Reservations(ctx context.Context, from, to time.Time, after ledger.ProofCursor, limit int) ([]ledger.ProofRow, ledger.ProofCursor, error)
}

// Finder reads notifications.
type Finder interface {
	Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error)
	FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error)
	List(ctx context.Context, f ledger.Filter, limit int, after ledger.Cursor) ([]*notification.Notification, ledger.Cursor, error)
	Batch(ctx context.Context, batchID, sourceID string) (*ledger.BatchProgress, error)
}

// Changer makes older due items void.
type Changer interface {
	Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
	Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
}

// Merchants keeps merchants' settings.
type Merchants interface {
	PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error)
	ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error)
	MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error)
}

// Sources keeps the sources' settings and keys.
type Sources interface {
	PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error)
	ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error)
	SourcesSince(ctx context.Context, version int64) ([]*source.Source, error)
}

// Sender makes one request to a merchant. Whatever happens stands in the attempt.
type Sender interface {
	Send(ctx context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt
}

// URLs decides about notify URLs.
type URLs interface {
	// CheckURL refuses a notify URL that the policy, or the guard against private addresses, does not allow.
	CheckURL(raw string, policy merchant.URLPolicy, defaultURL string) error
}

// Delay keeps what is due later.
type Delay interface {
	Within(at, now time.Time) bool
	// Latest is the instant, or the end of the window when it lies behind it.
	Latest(at, now time.Time) time.Time
	DelayThen(w notification.Work, delayed func(error))
	Now(ctx context.Context, w notification.Work) error
	Cancel(ctx context.Context, w notification.Work) error
}

// AsyncLane takes what nobody waits for.
type AsyncLane interface {
	Accept(w notification.Work, accepted func(error))
	Wake(merchantID string)
	// Full reports whether the queues take nothing more right now.
	Full() bool
}

// SyncLane asks while the caller waits.
type SyncLane interface {
	Enter(isolationKey string) (*synclane.Place, error)
	Ask(ctx context.Context, place *synclane.Place, w notification.Work, durableUntil time.Time) (synclane.Answer, error)
}

// Places knows what waits in NATS, for the proof.
type Places interface {
	// Waiting calls found for every notification that rests in a stream, with the place's name.
	Waiting(ctx context.Context, found func(id notification.ID, place string)) error
}

// Config of the dispatcher.
type Config struct {
	Gate GateConfig `yaml:"gate"`
	// AttemptBound is the longest that one attempt may take, timeout and grace included: when to look for one that
	// has left no outcome.
	AttemptBound time.Duration `yaml:"attempt_bound"`
	// SeenAfter is how long a notification may be in hand before the ledger shows it.
	SeenAfter time.Duration `yaml:"seen_after"`
	// TraceAfter is how long after its acceptance a notification has left a trace that another node sees, if it is alive.
	TraceAfter time.Duration `yaml:"trace_after"`
	// IntakeBytes bounds what is being accepted at once: bodies and 4 KiB for each notification. More is refused.
	IntakeBytes int64 `yaml:"intake_bytes"`
	// Total and Grace are what an attempt may take where the merchant sets nothing: egress' own settings.
	Total, Grace time.Duration `yaml:"-"`
}

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{
		Gate: DefaultGateConfig(), AttemptBound: 30 * time.Second, SeenAfter: 700 * time.Millisecond, TraceAfter: 5 * time.Second,
		IntakeBytes: 128 << 20, Total: 10 * time.Second, Grace: 5 * time.Second,
	}
}

// Validate names the first key that has a value nobody can work with.
func (c Config) Validate() error {
	switch {
	case c.AttemptBound < time.Second:
		return fmt.Errorf("dispatcher.attempt_bound: %s: must be at least 1s", c.AttemptBound)
	case c.SeenAfter < 10*time.Millisecond:
		return fmt.Errorf("dispatcher.seen_after: %s: must be at least 10ms", c.SeenAfter)
	case c.TraceAfter < c.SeenAfter:
		return fmt.Errorf("dispatcher.trace_after: %s: must be at least seen_after (%s)", c.TraceAfter, c.SeenAfter)
	case c.IntakeBytes < 1<<20:
		return fmt.Errorf("dispatcher.intake_bytes: %d: must be at least 1 MiB", c.IntakeBytes)
	}
	return c.Gate.Validate()
}

// Parts are what the dispatcher conducts.
type Parts struct {
	Run         string // this process, among all that share the ledger
	Ledger      Ledger
	Store       Merchants
	Merchants   *merchant.Registry
	Sources     *source.Registry // nil: nobody is registered
	SourceStore Sources          // nil: there is none to learn from
	Access      *access.Registry // nil: nobody is blocked
	AccessStore AccessRules      // nil: there is none to learn from
	Keys        *keys.Ring       // nil: there are none
	KeyStore    KeyStore         // nil: there is none to learn from
	Contracts   *contract.Book   // nil: one of its own
	Router      *router.Router
	Sender      Sender
	URLs        URLs
	Delay       Delay
	Hand        *hand.Table
	Places      Places
	Observer    Observer
	Board       Board // nil: this node is alone
	Log         *zap.Logger
	Now         func() time.Time // UTC, microseconds
}

// Dispatcher is one node's.
type Dispatcher struct {
	cfg         Config
	run         string
	room        *semaphore.Weighted // bytes that may be accepted at once
	pace        pace
	ledger      Ledger
	store       Merchants
	merchants   *merchant.Registry
	sources     *source.Registry
	sourceStore Sources
	access      *access.Registry
	accessStore AccessRules
	keys        *keys.Ring
	keyStore    KeyStore
	contracts   *contract.Book
	rates       rates
	router      atomic.Pointer[router.Router]
	sender      Sender
	urls        URLs
	delay       Delay
	hand        *hand.Table
	places      Places
	observer    Observer
	log         *zap.Logger
	now         func() time.Time
	gate        *Gate
	owed        owed
	lookups     *rate.Limiter // of merchants that the snapshot does not have
	learned     atomic.Int64  // when the ledger said last which merchants changed, Unix nanoseconds
	outage      *rate.Limiter // of log lines about calls that cannot be answered
	unlogged    atomic.Int64  // such calls since the last line
	crew        crew.Crew     // submissions under way
	slowEnds    slowEnds
	wire        wire
	lines       lines
	streams     streams

	// The lanes ask the dispatcher for attempts, so they are made after it; see Connect.
	async AsyncLane
	sync  SyncLane
}

// New returns a dispatcher without lanes.
func New(cfg Config, p Parts) (*Dispatcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	gate, err := NewGate(cfg.Gate, p.Run, p.Ledger)
	if err != nil {
		return nil, err
	}
	gate.opened, gate.board, gate.probeBound, gate.log, gate.now = p.Observer.BreakerOpened, p.Board, cfg.AttemptBound, p.Log, p.Now
	if p.Access != nil {
		gate.lists = p.Access
	}
	if p.Sources == nil {
		p.Sources = source.NewRegistry()
	}
	if p.Keys == nil {
		p.Keys = keys.NewRing()
	}
	if p.Contracts == nil {
		p.Contracts = contract.NewBook(p.Keys, sign.NewPool(0))
	}
	d := &Dispatcher{
		cfg: cfg, run: p.Run, room: semaphore.NewWeighted(cfg.IntakeBytes), ledger: p.Ledger, store: p.Store, merchants: p.Merchants, sources: p.Sources, sourceStore: p.SourceStore, sender: p.Sender, urls: p.URLs,
		delay: p.Delay, hand: p.Hand, places: p.Places, observer: p.Observer, log: p.Log, now: p.Now, gate: gate,
		access: gate.lists, accessStore: p.AccessStore, keys: p.Keys, keyStore: p.KeyStore, contracts: p.Contracts, slowEnds: newSlowEnds(), lookups: rate.NewLimiter(50, 50), outage: rate.NewLimiter(2, 20),
	}
	gate.wake = d.wakeMerchant
	d.lines = d.makeLines()
	d.router.Store(p.Router)
	return d, nil
}

// Connect gives the dispatcher its lanes, before anything is submitted.
func (d *Dispatcher) Connect(async AsyncLane, sync SyncLane) { d.async, d.sync = async, sync }

// SetRouter replaces the rules: what is submitted from now on is routed by them.
func (d *Dispatcher) SetRouter(r *router.Router) { d.router.Store(r) }

// FindMany returns what the ledger knows of ids.
func (d *Dispatcher) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	return d.ledger.FindMany(ctx, ids)
}

// Remember makes durable that a notification goes to rest: from now on whoever finds it may take it.
func (d *Dispatcher) Remember(ctx context.Context, n *notification.Notification, isNew bool, remembered func(error)) {
	d.record(ctx, ledger.Record{Notification: n, New: isNew, Unreserved: isNew, Hold: &ledger.Hold{By: d.run}}, func(err error) {
		if isQuarantined(err) {
			err = nil // the queue that it goes to keeps it
		}
		remembered(err)
	})
}

// PutBack gives a notification back to the ledger, which knows best when it is due: the queues do not have it.
func (d *Dispatcher) PutBack(ctx context.Context, n *notification.Notification, putBack func(error)) {
	d.record(ctx, ledger.Record{Notification: n, Unfed: true, Hold: &ledger.Hold{By: d.run}}, putBack)
}

// Run keeps the snapshots of merchants, sources, rules of access and keys fresh and shows the ledger what stays in hand, until ctx ends.
func (d *Dispatcher) Run(ctx context.Context) error {
	show, learn := time.NewTicker(d.cfg.SeenAfter/3), time.NewTicker(time.Second)
	defer show.Stop()
	defer learn.Stop()
	stale := false // the settings
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastMark)
			defer cancel()
			d.markOwed(last, d.now())
			return nil
		case <-show.C:
			d.show(ctx)
			d.markOwed(ctx, d.now().Add(-markAfter))
		case <-learn.C:
			err := errors.Join(d.LearnMerchants(ctx), d.LearnSources(ctx), d.LearnAccess(ctx), d.LearnKeys(ctx))
			switch {
			case ctx.Err() != nil:
			case err != nil && !stale:
				d.log.Warn("changes of settings cannot be read; what is known of merchants, sources, keys and who is blocked serves meanwhile", zap.Error(err))
			case err == nil && stale:
				d.log.Info("settings are up to date again")
			}
			stale = err != nil
		}
	}
}

// A row of something in hand says that it is due backstop later, and that this process has it for heldFor. Both are put off
// every refresh while it stays in hand: if this process and its queues are lost, the sweep finds it. Nobody else sends
// what a dead process had until heldFor is over, unless its run is known to have ended.
const (
	backstop = 3 * time.Minute
	heldFor  = 45 * time.Second
	refresh  = 15 * time.Second
)

// show writes a row for whatever has been in hand for a while, so that GetNotification and ops see it (P2).
func (d *Dispatcher) show(ctx context.Context) {
	now := d.now()
	for _, w := range d.hand.Unseen(now.Add(-d.cfg.SeenAfter), now.Add(-refresh), now) {
		n := *w.Notification
		if n.State.Final() {
			continue
		}
		n.UpdatedAt, n.NextAt = now, now.Add(backstop)
		d.record(ctx, ledger.Record{Notification: &n, New: !w.HasRow, Unreserved: w.Unreserved, Hold: d.holdNow(), Patient: true}, func(error) {}) // a failure shows in the ledger's own log; the outcome is recorded anyway
	}
}

// Adopt takes over settings of an earlier time, because the ledger does not answer. What it says later is newer.
func (d *Dispatcher) Adopt(s ledger.Settings) {
	d.merchants.Learn(s.Merchants...)
	d.sources.Learn(s.Sources...)
	d.access.Learn(s.Access...)
	d.keys.Learn(s.Keys...)
}

// holdNow says that this process has a notification in hand.
func (d *Dispatcher) holdNow() *ledger.Hold {
	return &ledger.Hold{By: d.run, Until: d.now().Add(heldFor)}
}

// LearnMerchants takes over what has changed since the snapshot.
func (d *Dispatcher) LearnMerchants(ctx context.Context) error {
	changed, err := d.store.MerchantsSince(ctx, d.merchants.Version())
	if err != nil {
		return err
	}
	d.merchants.Learn(changed...)
	d.learned.Store(d.now().UnixNano())
	for _, m := range changed {
		if d.async != nil { // the first look is before the lanes are there
			d.async.Wake(m.ID) // another node may have resumed it
		}
	}
	return nil
}

// LearnSources takes over what has changed since the snapshot: a revoked key ends with it. Only what comes this way goes
// into the snapshot: a change made here would hide older ones, made elsewhere and not learned yet, behind its version.
func (d *Dispatcher) LearnSources(ctx context.Context) error {
	if d.sourceStore == nil {
		return nil
	}
	changed, err := d.sourceStore.SourcesSince(ctx, d.sources.Version())
	if err != nil {
		return err
	}
	d.sources.Learn(changed...)
	return nil
}
