package outage_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/outage"
)

// lagging takes records and never writes them.
type lagging struct{ outage.Postgres }

func (lagging) Record(context.Context, ledger.Record, func(error)) {}

// A Postgres that is there and lags is waited for: spilling everything would cost the most when there is least to spend.
// What only a row can stand for fails soon.
func TestARecordWaitsForAPostgresThatLags(t *testing.T) {
	queues := startQueues(t)
	conn := connect(t, queues.cfg.Listen)
	cfg := outage.DefaultConfig()
	cfg.SlowAfter, cfg.SpillAfter = 100*time.Millisecond, 2*time.Second
	there := func(context.Context) error { return nil }
	never := func(error) bool { return false }
	away := outage.NewWatch("postgres", there, zap.NewNop(), outage.WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: ledger.ErrAway, IsAway: never})
	nats := outage.NewWatch("nats", there, zap.NewNop(), outage.WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: outage.ErrQueuesAway, IsAway: never})
	l, err := outage.NewLedger(t.Context(), cfg, outage.Parts{Postgres: lagging{}, Conn: conn, Away: away, Queues: nats, Dir: t.TempDir(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()

	began := time.Now()
	alone, record := make(chan error, 1), make(chan time.Duration, 1)
	l.Record(ctx, ledger.Record{Notification: &notification.Notification{ID: newID()}}, func(err error) {
		if err != nil {
			t.Error(err)
		}
		record <- time.Since(began)
	})
	l.Write(ledger.Record{Notification: &notification.Notification{ID: newID()}}, func(err error) { alone <- err })
	if err := await(t, alone); !errors.Is(err, ledger.ErrAway) {
		t.Errorf("what is Postgres' alone: %v", err)
	}
	if s := l.Stats(); s.Spilled != 0 {
		t.Errorf("spilled after %s", time.Since(began))
	}
	if took := <-record; took < cfg.SpillAfter-cfg.SlowAfter {
		t.Errorf("spilled after %s", took)
	}
	scenario.Within(t, 5*time.Second, "it is counted", func() bool { return l.Stats().Spilled == 1 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
