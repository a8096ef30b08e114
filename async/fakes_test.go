package async

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/embedded/natsserver"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// staysFor checks that something holds for a while.
func staysFor(t *testing.T, span time.Duration, what string, holds func() bool) {
	t.Helper()
	end := time.NewTimer(span)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if !holds() {
			t.Fatalf("does not stay: %s", what)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}

// sent is one request that the fake dispatcher made.
type sent struct {
	name        string
	interrupted bool
	claimed     bool
	second      bool
}

// engine plays the dispatcher over an in-memory ledger: it claims, sends and records as the real one does.
type engine struct {
	*ledger.Memory

	mu       sync.Mutex
	gate     func(w notification.Work) (notification.Reason, time.Time) // "": open
	sending  func(w notification.Work)                                  // called without the lock, before the attempt ends
	withhold func(w notification.Work) bool                             // the outcome never becomes durable
	sent     []sent
	delayed  []notification.Work
	putBack  []*notification.Notification
	failFind error
}

func (e *engine) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	e.mu.Lock()
	err := e.failFind
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return e.Memory.FindMany(ctx, ids)
}

func (e *engine) Remember(ctx context.Context, n *notification.Notification, isNew bool, remembered func(error)) {
	e.Record(ctx, ledger.Record{Notification: n, New: isNew}, remembered)
}

func (e *engine) PutBack(ctx context.Context, n *notification.Notification, putBack func(error)) {
	e.mu.Lock()
	e.putBack = append(e.putBack, n)
	e.mu.Unlock()
	e.Record(ctx, ledger.Record{Notification: n, Unfed: true, Hold: &ledger.Hold{By: "run-1"}}, putBack)
}

func (e *engine) Ensure(context.Context) (map[string]time.Time, error) {
	return map[string]time.Time{}, nil
}

func (e *engine) Delay(_ context.Context, w notification.Work) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.delayed = append(e.delayed, w)
	return nil
}

func (e *engine) shut(reason notification.Reason) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gate = func(notification.Work) (notification.Reason, time.Time) { return reason, time.Time{} }
	if reason == "" {
		e.gate = nil
	}
}

func (e *engine) Deliver(ctx context.Context, w notification.Work, begin func(), settled func(error)) notification.Verdict {
	deferral := func(reason notification.Reason, until time.Time) notification.Verdict {
		n := *w.Notification
		n.Defer(reason, now())
		return notification.Verdict{After: &n, Deferred: true, Reason: reason, Until: until}
	}
	e.mu.Lock()
	gate, sending, withhold := e.gate, e.sending, e.withhold
	e.mu.Unlock()
	if gate != nil {
		if reason, until := gate(w); reason != "" {
			return deferral(reason, until)
		}
	}
	if w.Claim {
		verdict, until, err := e.Claim(ctx, ledger.Claim{ID: w.ID, AcceptedAt: w.AcceptedAt, Generation: w.Generation, Attempts: w.Attempts, Until: now().Add(time.Minute), Notification: w.Notification})
		switch {
		case err != nil:
			return deferral(notification.ReasonInternal, now().Add(10*time.Millisecond))
		case verdict == ledger.ClaimStale:
			settled(nil)
			return notification.Verdict{Reason: notification.ReasonStaleGeneration}
		case verdict == ledger.ClaimBusy:
			return deferral(notification.ReasonInFlight, until)
		case verdict == ledger.ClaimBehind:
			return deferral(notification.ReasonInFlight, now().Add(10*time.Millisecond))
		case verdict == ledger.ClaimGrantedAfterLapse:
			w.Interrupted = true
		}
	}
	if begin != nil {
		begin()
	}
	e.mu.Lock()
	e.sent = append(e.sent, sent{w.RequestID, w.Interrupted, w.Claim, w.SecondCopy})
	e.mu.Unlock()
	began := now()
	if sending != nil {
		sending(w)
	}
	after := *w.Notification
	after.Attempts++
	after.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, now())
	attempt := notification.Attempt{Number: after.Attempts, Generation: after.Generation, Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged, StartedAt: began, Took: time.Since(began)}
	copy(attempt.Key[:], w.RequestID+"-attempt")
	if withhold == nil || !withhold(w) {
		e.Record(ctx, ledger.Record{Notification: &after, Attempts: []notification.Attempt{attempt}, New: !w.HasRow}, settled)
	}
	return notification.Verdict{After: &after, Attempts: []notification.Attempt{attempt}}
}

func (e *engine) all() []sent {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.sent)
}

func (e *engine) names() []string {
	var out []string
	for _, s := range e.all() {
		out = append(out, s.name)
	}
	return out
}

func (e *engine) count() int { return len(e.all()) }

// node is a NATS server with the engine around it; lanes come and go.
type node struct {
	*engine
	js    jetstream.JetStream
	table *hand.Table
	cfg   Config
	cap   int

	limiting sync.Mutex
	limits   Limits // beside cap
}

func (n *node) limitsOf(string) Limits {
	n.limiting.Lock()
	defer n.limiting.Unlock()
	limits := n.limits
	limits.InFlight = n.cap
	return limits
}

func (n *node) limit(limits Limits) {
	n.limiting.Lock()
	defer n.limiting.Unlock()
	n.limits = limits
}

func newNode(t *testing.T) *node {
	t.Helper()
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return around(t, js)
}

func around(t *testing.T, js jetstream.JetStream) *node {
	t.Helper()
	cfg := DefaultConfig()
	cfg.AckWait, cfg.StreamBytes = time.Second, 64<<20
	n := &node{engine: &engine{Memory: ledger.NewMemory(ledger.Config{Now: now})}, js: js, table: hand.NewTable(), cfg: cfg}
	for i := range envelope.RetryStreams {
		_, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{
			Name: envelope.RetryStream(i), Subjects: envelope.RetrySubjects(i), Retention: jetstream.WorkQueuePolicy, AllowMsgSchedules: true, AllowDirect: true,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// lane makes a lane that does not run yet.
func (n *node) lane(t *testing.T, crashed bool) *Lane {
	t.Helper()
	l, err := New(t.Context(), n.cfg, Parts{
		JetStream: n.js, Deliverer: n.engine, Memory: n.engine, Delayer: n.engine, Hand: n.table, Log: zap.NewNop(), Crashed: crashed,
		Limits: n.limitsOf,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// run runs a lane; stop ends it and returns when it has drained.
func run(t *testing.T, l *Lane, drain time.Duration) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, drain) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func (n *node) work(name, key string) notification.Work {
	c := &notification.Notification{
		Source: "pay", RequestID: name, MerchantID: key, OrderID: name, Body: []byte(`{}`), AcceptedAt: now(), Origin: "submit", NotifyURL: "https://m.test/",
		Route:    notification.Route{Lane: notification.LaneAsync, IsolationKey: key, Egress: "direct", Persist: notification.PersistStream},
		Progress: notification.Progress{State: notification.StateAccepted, Reason: notification.ReasonQueued, Generation: 1, UpdatedAt: now()},
	}
	c.ID, c.Digest = c.DeriveID(), c.ContentDigest()
	if _, err := n.Reserve(context.Background(), []ledger.Reservation{{ID: c.ID, Digest: c.Digest, AcceptedAt: c.AcceptedAt}}); err != nil {
		panic(err)
	}
	return notification.Work{Notification: c, Trigger: notification.TriggerAuto}
}

// accept gives works to the lane and waits until they are durable.
func accept(t *testing.T, l *Lane, works ...notification.Work) {
	t.Helper()
	errs := make(chan error, len(works))
	for _, w := range works {
		l.Accept(w, func(err error) { errs <- err })
	}
	var all error
	for range works {
		all = errors.Join(all, <-errs)
	}
	if all != nil {
		t.Fatal(all)
	}
}

// publish stores one envelope as it is.
func (n *node) publish(t *testing.T, subject string, works ...notification.Work) {
	t.Helper()
	data, err := envelope.Encode(works)
	if err != nil {
		t.Fatal(err)
	}
	n.publishRaw(t, subject, data)
}

func (n *node) publishRaw(t *testing.T, subject string, data []byte) {
	t.Helper()
	if _, err := n.js.Publish(t.Context(), subject, data); err != nil {
		t.Fatal(err)
	}
}

func (n *node) stored(t *testing.T, stream string) jetstream.StreamState {
	t.Helper()
	s, err := n.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State
}

func (n *node) empty(t *testing.T, stream string) bool {
	t.Helper()
	return n.stored(t, stream).Msgs == 0
}

func (n *node) row(t *testing.T, w notification.Work) (*notification.Notification, []notification.Attempt) {
	t.Helper()
	c, attempts, err := n.Find(t.Context(), w.ID)
	if err != nil {
		t.Fatal(err)
	}
	return c, attempts
}
