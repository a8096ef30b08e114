package health

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/internal/bubble"
	"notifyd/ledger"
	"notifyd/notification"
)

var errRefused = errors.New("connection\nrefused")

// dependency answers, fails or hangs, as it is told.
type dependency struct {
	mu    sync.Mutex
	err   error
	hangs bool // for good, whatever its context says
}

func (d *dependency) set(err error, hangs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.hangs = err, hangs
}

func (d *dependency) check(context.Context) error {
	d.mu.Lock()
	err, hangs := d.err, d.hangs
	d.mu.Unlock()
	for hangs {
		<-time.NewTimer(time.Second).C
		d.mu.Lock()
		hangs = d.hangs
		d.mu.Unlock()
	}
	return err
}

// flaky is a store that can be told to fail.
type flaky struct {
	*ledger.Memory
	dependency
}

func (f *flaky) PutAlarms(ctx context.Context, alarms []ledger.Alarm) error {
	if err := f.check(ctx); err != nil {
		return err
	}
	return f.Memory.PutAlarms(ctx, alarms)
}

func (f *flaky) OpenAlarms(ctx context.Context, node string) ([]ledger.Alarm, error) {
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	return f.Memory.OpenAlarms(ctx, node)
}

// ward is a monitor with everything around it, inside a bubble.
type ward struct {
	*Monitor
	nats, postgres dependency
	store          *flaky
	mu             sync.Mutex
	async          async.Stats
	started        uint64
	ledger         ledger.Stats
	logged         *observer.ObservedLogs
	stop           func()
}

func clock() time.Time { return time.Now().UTC() }

func newWard(t *testing.T, store *flaky) *ward {
	t.Helper()
	core, logged := observer.New(zap.DebugLevel)
	w := &ward{store: store, logged: logged, async: async.Stats{InHandLimit: 10}, ledger: ledger.Stats{BytesLimit: 100}}
	var err error
	w.Monitor, err = New(DefaultConfig(), Parts{
		Node: "n1", Log: zap.New(core), Now: clock, Tally: NewTally(DefaultConfig(), clock), Store: store, Intake: true,
		NATS: w.nats.check, Postgres: w.postgres.check,
		Dispatcher: func() dispatcher.Stats {
			w.mu.Lock()
			defer w.mu.Unlock()
			return dispatcher.Stats{Started: w.started}
		},
		Async: func() async.Stats {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.async
		},
		Ledger: func() ledger.Stats {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.ledger
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := w.Ready(); r.Ready || r.Dependencies[0].Words != wordsUnasked {
		t.Errorf("before anything was asked: %+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *ward) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func pass(span time.Duration) {
	<-time.NewTimer(span).C
	synctest.Wait()
}

func (w *ward) active(t *testing.T, want ...string) {
	t.Helper()
	active, _ := w.Alarms()
	var got []string
	for _, a := range active {
		got = append(got, a.Name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("active: %v, want %v", got, want)
	}
}

func inBubble(t *testing.T, run func(t *testing.T, w *ward)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := newWard(t, &flaky{Memory: ledger.NewMemory(ledger.Config{Now: clock})})
		run(t, w)
		w.stop()
		w.store.Close()
	})
}

// Postgres is down: the alarm is logged at once, and stored when Postgres is back.
func TestAlarmIsStoredLater(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		pass(5 * time.Second)
		w.active(t)
		w.postgres.set(errRefused, false)
		w.store.set(errRefused, false)
		pass(10 * time.Second)
		w.active(t, "postgres_degraded")
		if lines := w.logged.FilterMessage("alarm is raised").All(); len(lines) != 1 || lines[0].Level != zap.ErrorLevel {
			t.Errorf("logged: %v", lines)
		}
		if _, unstored := w.Unsent(); unstored != 1 {
			t.Errorf("%d alarms wait to be stored, want 1", unstored)
		}
		w.postgres.set(nil, false)
		w.store.set(nil, false)
		pass(time.Minute)
		w.active(t)
		stored, err := w.store.RecentAlarms(t.Context(), 10)
		if err != nil || len(stored) != 1 || stored[0].ClearedAt.IsZero() || stored[0].Detail != "postgres does not answer: connection refused" {
			t.Errorf("stored: %+v, %v", stored, err)
		}
		if w.Counts()[PostgresDegraded] != (Count{Raised: 1}) || w.logged.FilterMessage("alarm is cleared").Len() != 1 {
			t.Errorf("counts: %v", w.Counts())
		}
		if w.logged.FilterMessage("a dependency does not answer").Len() != 1 {
			t.Error("an outage is to be logged once")
		}
	})
}

// A restart goes on with what is open, keeps what is still true, and clears the rest.
func TestRestartGoesOn(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		w.nats.set(errRefused, false)
		w.postgres.set(errRefused, false)
		failing := &notification.Notification{MerchantID: "m-1"}
		fail := func(n int) {
			for range n {
				w.parts.Tally.Attempted(failing, &notification.Attempt{Kind: notification.KindSend, Outcome: notification.OutcomeRetryable, Reason: notification.ReasonConnectRefused})
			}
		}
		fail(10)
		pass(11 * time.Minute)
		w.active(t, "merchant_failing", "nats_degraded", "postgres_degraded")
		w.stop()
		before, err := w.store.OpenAlarms(t.Context(), "n1")
		if err != nil || len(before) != 3 {
			t.Fatalf("left open: %+v, %v", before, err)
		}

		again := newWard(t, w.store)
		again.nats.set(errRefused, false)
		pass(time.Minute)
		again.active(t, "merchant_failing", "nats_degraded")
		after, err := again.store.OpenAlarms(t.Context(), "n1")
		if err != nil || len(after) != 2 || !after[0].RaisedAt.Equal(before[0].RaisedAt) || !after[0].SeenAt.After(before[0].SeenAt) {
			t.Errorf("open after the restart: %+v, %v", after, err)
		}
		again.parts.Tally.Attempted(ended(time.Second))
		n, a := ended(time.Second)
		n.MerchantID = "m-1"
		again.parts.Tally.Attempted(n, a)
		pass(2 * time.Second)
		again.active(t, "nats_degraded")
		if all, _ := again.store.RecentAlarms(t.Context(), 10); len(all) != 3 {
			t.Errorf("stored: %+v", all)
		}
		again.stop()
	})
}

// A check that never comes back is no answer, and holds up neither the report nor the other alarms.
func TestHangingCheckIsNoAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		pass(5 * time.Second)
		w.nats.set(nil, true)
		pass(15 * time.Second)
		w.active(t, "nats_degraded")
		if r := w.Ready(); !r.Ready || r.Dependencies[1].State != StateDegraded {
			t.Errorf("report: %+v", r)
		}
		w.postgres.set(errRefused, false)
		pass(6 * time.Second)
		w.active(t, "nats_degraded", "postgres_degraded")
		if r := w.Ready(); r.Ready {
			t.Errorf("report: %+v", r)
		}
		w.nats.set(nil, false)
		w.postgres.set(nil, false)
		pass(20 * time.Second)
		w.active(t)
	})
}

// Within ten seconds of a standstill somebody is told.
func TestStandstillIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		pass(5 * time.Second)
		w.set(func() { w.async.Stalled = 1 })
		pass(10 * time.Second)
		w.active(t, "no_deliveries")
		w.set(func() { w.started++ })
		pass(time.Second)
		w.set(func() { w.async.Stalled = 0 })
		pass(10 * time.Second)
		w.active(t)
		w.Drain()
		w.set(func() { w.async.Stalled = 1 })
		pass(time.Minute)
		w.active(t)
	})
}

func TestConfigureWhileRunning(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		w.set(func() { w.ledger.Oldest = clock() })
		pass(5 * time.Second)
		w.active(t)
		cfg := DefaultConfig()
		cfg.LedgerLag = time.Second
		if err := w.Configure(cfg); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		w.active(t, "ledger_lagging")
		bad := cfg
		bad.LedgerLag, bad.DeadLetters = 0, 0
		bad.Webhook = WebhookConfig{URL: "ftp://token@pager", Secret: "hush"}
		err := w.Configure(bad)
		for _, key := range []string{"alarms.ledger_lag", "alarms.dead_letters", "alarms.webhook.url"} {
			if err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("error does not name %s: %v", key, err)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "token") || strings.Contains(err.Error(), "hush")) {
			t.Errorf("error shows a secret: %v", err)
		}
	})
}

func TestReadiness(t *testing.T) {
	states := func(r Report) string {
		var out []string
		for _, d := range r.Dependencies {
			out = append(out, d.Name+"="+string(d.State))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		name  string
		set   func(w *ward)
		ready bool
		want  string
	}{
		{"well", func(*ward) {}, true, "postgres=ok nats=ok async_lane=ok ledger_writer=ok intake=ok"},
		{"postgres away", func(w *ward) { w.postgres.set(errRefused, false) }, true, "postgres=degraded nats=ok async_lane=ok ledger_writer=ok intake=ok"},
		{"nats away", func(w *ward) { w.nats.set(errRefused, false) }, true, "postgres=ok nats=degraded async_lane=degraded ledger_writer=ok intake=ok"},
		{"both away", func(w *ward) { w.nats.set(errRefused, false); w.postgres.set(errRefused, false) }, false, "postgres=degraded nats=degraded async_lane=degraded ledger_writer=ok intake=down"},
		{"hands full", func(w *ward) { w.async.InHand = 10 }, true, "postgres=ok nats=ok async_lane=degraded ledger_writer=ok intake=ok"},
		{"standstill", func(w *ward) { w.async.Stalled = 1 }, true, "postgres=ok nats=ok async_lane=degraded ledger_writer=ok intake=ok"},
		{"ledger behind", func(w *ward) { w.ledger.Oldest = clock() }, true, "postgres=ok nats=ok async_lane=ok ledger_writer=degraded intake=ok"},
		{"ledger full", func(w *ward) { w.ledger.Bytes = 100 }, true, "postgres=ok nats=ok async_lane=ok ledger_writer=degraded intake=ok"},
		{"draining", func(w *ward) { w.Drain() }, false, "postgres=ok nats=ok async_lane=ok ledger_writer=ok intake=degraded"},
		{"other roles", func(w *ward) { w.parts.Async, w.parts.Intake = nil, false }, true, "postgres=ok nats=ok async_lane=absent ledger_writer=ok intake=absent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *ward) {
				synctest.Wait()
				w.set(func() { c.set(w) })
				pass(15 * time.Second)
				r := w.Ready()
				if r.Ready != c.ready || states(r) != c.want {
					t.Errorf("ready %v: %s, want %v: %s", r.Ready, states(r), c.ready, c.want)
				}
			})
		})
	}
}

func TestHandlers(t *testing.T) {
	inBubble(t, func(t *testing.T, w *ward) {
		mux := http.NewServeMux()
		w.Handle(mux)
		get := func(target, accept string) (int, string, string) {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
			req.Header.Set("Accept", accept)
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, req)
			return rec.Code, rec.Header().Get("Content-Type"), rec.Body.String()
		}
		pass(2 * time.Second)
		if code, _, body := get("/healthz", ""); code != http.StatusOK || body != "ok\n" {
			t.Errorf("/healthz: %d %q", code, body)
		}
		if code, _, body := get("/readyz", ""); code != http.StatusOK || !strings.HasPrefix(body, "ready\npostgres: ok\nnats: ok\n") {
			t.Errorf("/readyz: %d %q", code, body)
		}
		w.postgres.set(errRefused, false)
		pass(10 * time.Second)
		if code, _, body := get("/readyz", "text/plain"); code != http.StatusOK || !strings.Contains(body, "postgres: degraded: "+wordsPostgres+" (connection refused)\n") {
			t.Errorf("/readyz: %d %q", code, body)
		}
		w.nats.set(errRefused, false)
		pass(10 * time.Second)
		for _, ask := range [][2]string{{"/readyz?format=json", ""}, {"/readyz", "application/json"}} {
			code, kind, body := get(ask[0], ask[1])
			var r Report
			if err := json.Unmarshal([]byte(body), &r); err != nil || code != http.StatusServiceUnavailable || kind != "application/json" || r.Ready || r.Dependencies[0].Cause != "connection refused" {
				t.Errorf("%s: %d %s %q %v", ask[0], code, kind, body, err)
			}
		}
		_, _, body := get("/alarms", "")
		var alarms struct{ Active, Recent []alarmJSON }
		if err := json.Unmarshal([]byte(body), &alarms); err != nil || len(alarms.Active) != 2 || len(alarms.Recent) != 2 || alarms.Active[0].Do == "" || alarms.Active[0].ClearedAt != nil {
			t.Errorf("/alarms: %s %v", body, err)
		}
		w.Drain()
		if code, _, body := get("/readyz", ""); code != http.StatusServiceUnavailable || !strings.HasPrefix(body, "not ready: draining\n") {
			t.Errorf("/readyz: %d %q", code, body)
		}
	})
}
