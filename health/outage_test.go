package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/health"
	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/embedded/postgres"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/hand"
)

// outage is a real NATS, a real Postgres and a monitor between them; alarms go over a socket.
type outage struct {
	*testing.T
	dir    string
	nats   atomic.Pointer[natsserver.Server]
	js     atomic.Pointer[jetstream.JetStream]
	closes func()
	pg     *postgres.Server
	ledger *ledger.Postgres
	lane   *async.Lane

	mu   sync.Mutex
	told []string
}

func (o *outage) must(err error) {
	o.Helper()
	if err != nil {
		o.Fatal(err)
	}
}

func (o *outage) startNATS() {
	o.Helper()
	server, err := natsserver.Start(o.Context(), natsserver.Config{Dir: filepath.Join(o.dir, "nats"), Log: zap.NewNop()})
	o.must(err)
	conn, err := server.Connect()
	o.must(err)
	js, err := jetstream.New(conn)
	o.must(err)
	o.closes = conn.Close
	o.nats.Store(server)
	o.js.Store(&js)
}

func (o *outage) stopNATS() {
	o.Helper()
	o.closes()
	o.must(o.nats.Load().Stop(context.WithoutCancel(o.Context())))
}

func (o *outage) startPostgres() {
	o.Helper()
	var err error
	o.pg, err = postgres.Start(o.Context(), postgres.Config{
		Dir: filepath.Join(o.dir, "pg"), Log: zap.NewNop(), Settings: map[string]string{"fsync": "off", "full_page_writes": "off"},
	})
	o.must(err)
}

func (o *outage) events() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.told...)
}

func (o *outage) wait(limit time.Duration, want ...string) {
	o.Helper()
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if cmp.Equal(want, o.events()) {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			o.Fatalf("webhooks within %s (-want +got):\n%s", limit, cmp.Diff(want, o.events()))
		}
	}
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "health-test-") //nolint:usetesting // short: it is part of the socket's path, and Postgres' own account must get through
	if err != nil {
		t.Fatal(err)
	}
	o := &outage{T: t, dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o.must(os.Chmod(dir, 0o711))
	o.startNATS()
	t.Cleanup(func() { o.stopNATS() })
	o.startPostgres()
	t.Cleanup(func() { _ = o.pg.Stop(context.WithoutCancel(t.Context())) })
	text, err := ledger.GenerateMasterKey()
	o.must(err)
	keys, err := ledger.NewCipher(text)
	o.must(err)
	o.ledger, err = ledger.Open(t.Context(), ledger.Config{URL: o.pg.URL(), Keys: keys})
	o.must(err)
	o.run(o.ledger.Run, o.ledger.Close)
	o.lane, err = async.New(t.Context(), async.DefaultConfig(), async.Parts{JetStream: *o.js.Load(), Hand: hand.NewTable(), Log: zap.NewNop()})
	o.must(err)
	return o
}

// run runs a part until the test ends.
func (o *outage) run(part func(context.Context) error, after func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(o.Context()))
	ended := make(chan error, 1)
	go func() { ended <- part(ctx) }()
	o.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			o.Error(err)
		}
		after()
	})
}

// monitor watches; its alarms come to o.told.
func (o *outage) monitor(tally *health.Tally) *health.Monitor {
	pager := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct {
			Type string
			Data struct{ Name, Subject string }
		}
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &m); err != nil {
			o.Error(err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.told = append(o.told, m.Type+" "+m.Data.Name+" "+m.Data.Subject)
	}))
	o.Cleanup(pager.Close)
	cfg := health.DefaultConfig()
	cfg.DegradedAfter, cfg.MerchantFailingFor, cfg.MerchantFailingAttempts = time.Second, time.Second, 2
	cfg.Webhook.URL = pager.URL
	m, err := health.New(cfg, health.Parts{
		Node: "n1", Log: zap.NewNop(), Now: now, Tally: tally, Store: o.ledger, Intake: true,
		NATS: func(ctx context.Context) error {
			if err := o.nats.Load().Check(); err != nil {
				return err
			}
			_, err := (*o.js.Load()).AccountInfo(ctx)
			return err
		},
		Postgres: o.ledger.Ping, Ledger: o.ledger.Stats, Overdue: o.ledger.Overdue, Backlog: o.lane.Backlog,
	})
	o.must(err)
	o.run(m.Run, func() {})
	return m
}

func now() time.Time { return time.Now().UTC() }

// Postgres and NATS go away and come back: the node says so, raises alarms, tells the pager, and stores what it could not store meanwhile.
func TestOutagesAreToldAndCleared(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Postgres and NATS")
	}
	t.Parallel()
	o := newOutage(t)
	cfg := health.DefaultConfig()
	cfg.MerchantFailingFor, cfg.MerchantFailingAttempts = time.Second, 2
	tally := health.NewTally(cfg, now)
	m := o.monitor(tally)
	well := func(want bool) {
		t.Helper()
		end := time.Now().Add(10 * time.Second)
		all := func() bool {
			return !slices.ContainsFunc(m.Ready().Dependencies[:2], func(d health.Dependency) bool { return d.State != health.StateOK })
		}
		for all() != want || !m.Ready().Ready { // one of the two is enough
			if time.Now().After(end) {
				t.Fatalf("report: %+v, want both well: %v", m.Ready(), want)
			}
			<-time.NewTimer(10 * time.Millisecond).C
		}
	}
	well(true)

	o.must(o.pg.Stop(t.Context()))
	well(false)
	o.wait(10*time.Second, "alarm.raised postgres_degraded ")
	n := &notification.Notification{MerchantID: "m-1"}
	for range 2 {
		tally.Attempted(n, &notification.Attempt{Kind: notification.KindSend, Outcome: notification.OutcomeRetryable, Reason: notification.ReasonConnectRefused})
	}
	o.wait(10*time.Second, "alarm.raised postgres_degraded ", "alarm.raised merchant_failing m-1")
	if _, unstored := m.Unsent(); unstored != 2 {
		t.Errorf("%d alarms wait to be stored, want 2", unstored)
	}
	o.startPostgres()
	well(true)
	o.wait(20*time.Second, "alarm.raised postgres_degraded ", "alarm.raised merchant_failing m-1", "alarm.cleared postgres_degraded ")

	o.stopNATS()
	well(false)
	o.wait(10*time.Second, "alarm.raised postgres_degraded ", "alarm.raised merchant_failing m-1", "alarm.cleared postgres_degraded ", "alarm.raised nats_degraded ")
	o.startNATS()
	well(true)
	o.wait(20*time.Second, "alarm.raised postgres_degraded ", "alarm.raised merchant_failing m-1", "alarm.cleared postgres_degraded ", "alarm.raised nats_degraded ", "alarm.cleared nats_degraded ")

	var stored []ledger.Alarm
	for end := time.Now().Add(30 * time.Second); ; {
		var err error
		stored, err = o.ledger.RecentAlarms(t.Context(), 10)
		o.must(err)
		if _, unstored := m.Unsent(); unstored == 0 && len(stored) == 3 && !stored[0].ClearedAt.IsZero() {
			break
		}
		if time.Now().After(end) {
			o.must(errors.New("alarms are not stored"))
		}
		<-time.NewTimer(20 * time.Millisecond).C
	}
	for i, want := range []health.Name{health.NATSDegraded, health.MerchantFailing, health.PostgresDegraded} {
		if a := stored[i]; a.Name != string(want) || a.ClearedAt.IsZero() != (want == health.MerchantFailing) {
			t.Errorf("stored %d: %+v, want %s", i, a, want)
		}
	}
}
