package dispatcher

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/bubble"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/router"
	synclane "notifyd/sync"
)

var errDown = errors.New("does not answer")

// journal is what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) count(line string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, l := range j.lines {
		if l == line {
			n++
		}
	}
	return n
}

func (j *journal) index(line string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Index(j.lines, line)
}

// fakeLedger is the memory, which can be told to fail.
type fakeLedger struct {
	*ledger.Memory
	log                                          *journal
	failClaim, failRecord, failReserve, failFind error
	failMark, failMerchants, failLine            error
	turns                                        int
	elsewhere                                    bool
	claims, marks                                int
	marked                                       []notification.ID
	records                                      []ledger.Record
	mu                                           sync.Mutex
}

func (l *fakeLedger) Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error) {
	l.mu.Lock()
	l.claims++
	l.mu.Unlock()
	if l.failClaim != nil {
		return 0, time.Time{}, l.failClaim
	}
	return l.Memory.Claim(ctx, c)
}

func (l *fakeLedger) Record(ctx context.Context, r ledger.Record, recorded func(error)) {
	if l.failRecord != nil {
		recorded(l.failRecord)
		return
	}
	l.mu.Lock()
	l.records = append(l.records, r)
	l.mu.Unlock()
	l.Memory.Record(ctx, r, func(err error) {
		l.log.add("recorded")
		recorded(err)
	})
}

func (l *fakeLedger) Reserve(ctx context.Context, rs []ledger.Reservation) ([]ledger.Reserved, error) {
	if l.failReserve != nil {
		return nil, l.failReserve
	}
	reserved, err := l.Memory.Reserve(ctx, rs)
	for i := range reserved {
		reserved[i].Elsewhere = l.elsewhere
	}
	return reserved, err
}

func (l *fakeLedger) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	if l.failFind != nil {
		return nil, l.failFind
	}
	return l.Memory.FindMany(ctx, ids)
}

func (l *fakeLedger) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	if l.failMerchants != nil {
		return nil, l.failMerchants
	}
	return l.Memory.MerchantsSince(ctx, version)
}

func (l *fakeLedger) MarkAnswered(ctx context.Context, ids []notification.ID) error {
	if l.failMark != nil {
		return l.failMark
	}
	l.mu.Lock()
	l.marks++
	l.marked = append(l.marked, ids...)
	l.mu.Unlock()
	return l.Memory.MarkAnswered(ctx, ids)
}

// scripted is a merchant that answers as it is told; without a script it acknowledges.
type scripted struct {
	log    *journal
	mu     sync.Mutex
	answer func(w notification.Work) notification.Attempt
	sent   []notification.Work
}

func (s *scripted) Send(_ context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	s.mu.Lock()
	n := *w.Notification
	kept := w
	kept.Notification = &n
	s.sent = append(s.sent, kept)
	answer := s.answer
	s.mu.Unlock()
	s.log.add("sent")
	a := acknowledged()
	if answer != nil {
		a = answer(w)
	}
	a.Key, a.Number, a.Generation, a.Kind = newKey(), w.Attempts+1, w.Generation, notification.KindSend
	a.Trigger, a.Operator, a.SettingsVersion, a.StartedAt = w.Trigger, w.Operator, m.Version, time.Now().UTC().Truncate(time.Microsecond)
	return a
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

func (s *scripted) answers(a notification.Attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = func(notification.Work) notification.Attempt { return a }
}

func acknowledged() notification.Attempt {
	return notification.Attempt{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged, Counted: true}
}

func failed(reason notification.Reason) notification.Attempt {
	return notification.Attempt{Outcome: notification.OutcomeRetryable, Reason: reason, Counted: reason.Counts()}
}

// fakeDelay keeps what it was given.
type fakeDelay struct {
	log      *journal
	mu       sync.Mutex
	fail     error
	window   time.Duration
	within   []bool // what Within says first, whatever the window
	delayed  []notification.Work
	now      []notification.Work
	canceled []notification.ID
}

func (d *fakeDelay) Within(at, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.within) > 0 {
		said := d.within[0]
		d.within = d.within[1:]
		return said
	}
	return at.Sub(now) <= d.window
}

func (d *fakeDelay) DelayThen(w notification.Work, delayed func(error)) {
	d.mu.Lock()
	fail := d.fail
	if fail == nil {
		d.delayed = append(d.delayed, w)
	}
	d.mu.Unlock()
	d.log.add("delayed")
	delayed(fail)
}

func (d *fakeDelay) Latest(at, now time.Time) time.Time {
	if end := now.Add(d.window); at.After(end) {
		return end
	}
	return at
}

func (d *fakeDelay) Delay(_ context.Context, w notification.Work) error {
	result := make(chan error, 1)
	d.DelayThen(w, func(err error) { result <- err })
	return <-result
}

func (d *fakeDelay) Spread(ctx context.Context, w notification.Work) (func(context.Context), error) {
	return func(ctx context.Context) { _ = d.Cancel(ctx, w) }, d.Delay(ctx, w)
}

func (d *fakeDelay) Now(_ context.Context, w notification.Work) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = append(d.now, w)
	return d.fail
}

func (d *fakeDelay) Cancel(_ context.Context, w notification.Work) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.canceled = append(d.canceled, w.ID)
	return d.fail
}

func (d *fakeDelay) held() []notification.Work {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.delayed)
}

// fakeAsync takes everything, unless it is told to fail.
type fakeAsync struct {
	log   *journal
	mu    sync.Mutex
	fail  error
	full  bool
	works []notification.Work
}

func (a *fakeAsync) Full() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.full
}

func (a *fakeAsync) Accept(w notification.Work, accepted func(error)) {
	a.mu.Lock()
	fail := a.fail
	if fail == nil {
		n := *w.Notification
		w.Notification = &n
		a.works = append(a.works, w)
	}
	a.mu.Unlock()
	a.log.add("published")
	accepted(fail)
}

func (a *fakeAsync) Wake(string) {}

func (a *fakeAsync) accepted() []notification.Work {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.works)
}

// fakePlaces names what rests in streams.
type fakePlaces map[notification.ID]string

func (p fakePlaces) Waiting(_ context.Context, found func(notification.ID, string)) error {
	for id, place := range p {
		found(id, place)
	}
	return nil
}

type anyURL struct{}

func (anyURL) CheckURL(string, merchant.URLPolicy, string) error { return nil }

// told keeps what the observer is told, as words.
type told struct {
	mu      sync.Mutex
	events  []string
	answers []Answer
}

func (o *told) add(event string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, event)
}

func (o *told) Answered(a Answer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers = append(o.answers, a)
}

func (o *told) Attempted(_ *notification.Notification, a *notification.Attempt) {
	o.add("attempted " + string(a.Reason))
}

func (o *told) Deferred(_ *notification.Notification, reason notification.Reason) {
	o.add("deferred " + string(reason))
}
func (o *told) Settled(n *notification.Notification) { o.add("settled " + n.State.String()) }
func (o *told) BreakerOpened(key string)             { o.add("opened " + key) }

// world is a dispatcher with fakes around it. It is used inside a synctest bubble: its clock is the bubble's.
type world struct {
	*Dispatcher
	log    *journal
	memory *fakeLedger
	sends  *scripted
	later  *fakeDelay
	shards *fakeAsync
	where  fakePlaces
	lane   *synclane.Lane
	told   *told
}

func clock() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func pass(d time.Duration) { <-time.NewTimer(d).C }

// inBubble runs a test on a fake clock. Everything that goes on by itself has come to rest before it ends.
func inBubble(t *testing.T, cfg Config, run func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := &world{log: &journal{}, where: fakePlaces{}, told: &told{}}
		w.memory = &fakeLedger{Memory: ledger.NewMemory(ledger.Config{Now: clock}), log: w.log}
		w.sends = &scripted{log: w.log}
		w.later = &fakeDelay{log: w.log, window: 10 * time.Minute}
		w.shards = &fakeAsync{log: w.log}
		routes, err := router.New(router.Config{}, router.Known{})
		if err != nil {
			t.Fatal(err)
		}
		merchants, table := merchant.NewRegistry(), hand.NewTable()
		w.Dispatcher, err = New(cfg, Parts{
			Run: "run-1", Ledger: w.memory, Store: w.memory, Merchants: merchants, Router: routes, Sender: w.sends, URLs: anyURL{},
			Delay: w.later, Hand: table, Places: w.where, Observer: Observers{w.told}, Log: zap.NewNop(), Now: clock, AccessStore: w.memory,
		})
		if err != nil {
			t.Fatal(err)
		}
		w.gate.random = func() float64 { return 0 }
		w.lane, err = synclane.New(synclane.Config{PerKey: 2, Total: 4, Deadline: 5 * time.Second, Margin: 100 * time.Millisecond}, w.Dispatcher, w.later, table)
		if err != nil {
			t.Fatal(err)
		}
		w.Connect(w.shards, w.lane)
		w.merchant(&merchant.Merchant{ID: "m"})
		run(t, w)
		_ = w.lane.Wait(context.Background())
		w.memory.Close()
	})
}

var versions int64

func (w *world) merchant(m *merchant.Merchant) {
	versions++
	m.Version = versions
	if m.NotifyURL == "" {
		m.NotifyURL = "https://m.test/notify"
	}
	w.merchants.Learn(m)
}

// accepted is a notification as the lanes get it, reserved and without a row.
func (w *world) accepted(t *testing.T, name string) notification.Work {
	t.Helper()
	n := &notification.Notification{
		Source: "pay", RequestID: name, MerchantID: "m", Scene: "payout", OrderID: name, NotifyURL: "https://m.test/notify", Body: []byte(`{"a":1}`),
		AcceptedAt: clock(), Origin: "submit",
		Progress: notification.Progress{State: notification.StateAccepted, Reason: notification.ReasonQueued, Generation: 1, UpdatedAt: clock()},
	}
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	n.Route = w.router.Load().Route(n, w.merchants.Get("m"), clock())
	if _, err := w.memory.Reserve(t.Context(), []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}}); err != nil {
		t.Fatal(err)
	}
	return notification.Work{Notification: n, Trigger: notification.TriggerAuto}
}

// due is a notification with a row, as it comes from the delay.
func (w *world) due(t *testing.T, name string, change func(*notification.Notification)) notification.Work {
	t.Helper()
	work := w.accepted(t, name)
	if change != nil {
		change(work.Notification)
	}
	w.put(t, work.Notification)
	work.HasRow, work.Claim = true, true
	return work
}

func (w *world) put(t *testing.T, n *notification.Notification) {
	t.Helper()
	c := *n
	done := make(chan error, 1)
	w.memory.Memory.Record(t.Context(), ledger.Record{Notification: &c, New: true}, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// deliver makes one attempt, waits until all has come to rest, and says what settled was called with: once, or never for a deferral.
func (w *world) deliver(t *testing.T, work notification.Work) (notification.Verdict, error) {
	t.Helper()
	var mu sync.Mutex
	calls, last := 0, error(nil)
	verdict := w.Deliver(t.Context(), work, nil, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		last = err
	})
	synctest.Wait()
	mu.Lock()
	defer mu.Unlock()
	if verdict.Deferred && calls != 0 {
		t.Errorf("deferred, and settled was called %d times", calls)
	}
	if !verdict.Deferred && calls != 1 {
		t.Errorf("settled was called %d times, want once", calls)
	}
	return verdict, last
}

// again is a row's notification as its next due item brings it.
func (w *world) again(t *testing.T, work notification.Work) notification.Work {
	t.Helper()
	n, _ := w.row(t, work.ID)
	return notification.Work{Notification: n, Trigger: notification.TriggerAuto, Claim: true, HasRow: true}
}

func (w *world) row(t *testing.T, id notification.ID) (*notification.Notification, []notification.Attempt) {
	t.Helper()
	n, attempts, err := w.memory.Find(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return n, attempts
}
