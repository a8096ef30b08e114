package health_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/health"
	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/retry"
)

// courier plays the dispatcher: it defers while it is told to, and otherwise delivers.
type courier struct {
	*ledger.Memory
	started atomic.Uint64
	mu      sync.Mutex
	reason  notification.Reason
}

func (c *courier) shut(reason notification.Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reason = reason
}

func (c *courier) Deliver(ctx context.Context, w notification.Work, _ func(), settled func(error)) notification.Verdict {
	c.mu.Lock()
	reason := c.reason
	c.mu.Unlock()
	if reason != "" {
		n := *w.Notification
		n.Defer(reason, now())
		return notification.Verdict{After: &n, Deferred: true, Reason: reason}
	}
	c.started.Add(1)
	after := *w.Notification
	after.Attempts++
	after.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, now())
	c.Record(ctx, ledger.Record{Notification: &after}, settled)
	return notification.Verdict{After: &after}
}

func (c *courier) PutBack(_ context.Context, _ *notification.Notification, putBack func(error)) {
	putBack(nil)
}

func (c *courier) Remember(ctx context.Context, n *notification.Notification, isNew bool, remembered func(error)) {
	c.Record(ctx, ledger.Record{Notification: n, New: isNew}, remembered)
}

func (c *courier) stats() dispatcher.Stats { return dispatcher.Stats{Started: c.started.Load()} }

// With a real NATS: what nobody takes is an alarm within ten seconds, and is over when somebody does; a paused merchant's
// backlog is none.
func TestNoDeliveriesOverRealQueues(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop(context.WithoutCancel(t.Context())) })
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	delay, err := retry.NewDelay(t.Context(), retry.DefaultConfig(), js)
	if err != nil {
		t.Fatal(err)
	}
	c := &courier{Memory: ledger.NewMemory(ledger.Config{})}
	t.Cleanup(c.Close)
	lane, err := async.New(t.Context(), async.DefaultConfig(), async.Parts{
		JetStream: js, Deliverer: c, Memory: c, Delayer: delay, Hand: hand.NewTable(), Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := health.New(health.DefaultConfig(), health.Parts{
		Node: "n1", Log: zap.NewNop(), Now: now, Tally: health.NewTally(health.DefaultConfig(), now), Store: c,
		Dispatcher: c.stats, Async: lane.Stats, Backlog: lane.Backlog,
	})
	if err != nil {
		t.Fatal(err)
	}
	start := func(part func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		ended := make(chan error, 1)
		go func() { ended <- part(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	start(m.Run)
	raised := func() bool { active, _ := m.Alarms(); return len(active) > 0 }
	submit := func(name string) {
		t.Helper()
		n := &notification.Notification{
			Source: "pay", RequestID: name, MerchantID: "m", Body: []byte(`{}`), AcceptedAt: now(),
			Route:    notification.Route{Lane: notification.LaneAsync, IsolationKey: "m", Persist: notification.PersistStream},
			Progress: notification.Progress{State: notification.StateAccepted, Generation: 1},
		}
		n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
		accepted := make(chan error, 1)
		lane.Accept(notification.Work{Notification: n, Trigger: notification.TriggerAuto}, func(err error) { accepted <- err })
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
	}

	submit("nobody takes it")
	scenario.Within(t, 10*time.Second+100*time.Millisecond, "the alarm", raised)
	start(func(ctx context.Context) error { return lane.Run(ctx, time.Second) })
	scenario.Within(t, 10*time.Second, "delivered, and the alarm is over", func() bool { return c.started.Load() == 1 && !raised() })

	c.shut(notification.ReasonMerchantPaused)
	submit("of a paused merchant")
	scenario.Within(t, 5*time.Second, "it rests", func() bool { return lane.Stats().OwnQueues == 1 })
	quiet := time.NewTimer(12 * time.Second)
	defer quiet.Stop()
	for waiting := true; waiting; {
		select {
		case <-quiet.C:
			waiting = false
		case <-time.NewTimer(50 * time.Millisecond).C:
			if raised() {
				active, _ := m.Alarms()
				t.Fatalf("raised for a paused merchant: %+v", active)
			}
		}
	}
	c.shut("")
	lane.Wake("m")
	scenario.Within(t, 5*time.Second, "delivered", func() bool { return c.started.Load() == 2 })
}

// BenchmarkBacklog is what each node asks of NATS once a second.
func BenchmarkBacklog(b *testing.B) {
	server, err := natsserver.Start(b.Context(), natsserver.Config{Dir: b.TempDir(), Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = server.Stop(context.Background()) }()
	conn, err := server.Connect()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := retry.NewDelay(b.Context(), retry.DefaultConfig(), js); err != nil {
		b.Fatal(err)
	}
	c := &courier{Memory: ledger.NewMemory(ledger.Config{})}
	lane, err := async.New(b.Context(), async.DefaultConfig(), async.Parts{
		JetStream: js, Deliverer: c, Memory: c, Hand: hand.NewTable(), Log: zap.NewNop(),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- lane.Run(ctx, time.Second) }()
	defer func() { stop(); <-ended }()
	for b.Loop() {
		if _, err := lane.Backlog(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
