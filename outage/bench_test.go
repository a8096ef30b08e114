package outage_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/outage"
)

// quickPostgres has every record at once.
type quickPostgres struct{ outage.Postgres }

func (quickPostgres) Record(_ context.Context, _ ledger.Record, recorded func(error)) { recorded(nil) }

// What the ledger adds to a record while nothing is away.
func BenchmarkRecord(b *testing.B) {
	cfg := outage.DefaultConfig()
	there := func(context.Context) error { return nil }
	away := func(error) bool { return false }
	pg := outage.NewWatch("postgres", there, zap.NewNop(), outage.WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: ledger.ErrAway, IsAway: away})
	queues := outage.NewWatch("nats", there, zap.NewNop(), outage.WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: outage.ErrQueuesAway, IsAway: away})
	queues.Failed(nil)
	conn, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	l, err := outage.NewLedger(b.Context(), cfg, outage.Parts{Postgres: quickPostgres{}, Conn: conn, Away: pg, Queues: queues, Dir: b.TempDir(), Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	r := ledger.Record{Notification: &notification.Notification{ID: newID()}}
	recorded := func(error) {}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Record(bg, r, recorded)
		}
	})
}
