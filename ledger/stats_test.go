package ledger_test

import (
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

// While Postgres is away the ledger falls behind, and its numbers say by how much.
func TestStatsWhilePostgresIsAway(t *testing.T) {
	server := ownServer(t)
	l := openLedger(t, ledger.Config{URL: server.URL()})
	list, records := newRecords(20, ledgertest.Start)
	reserve(t, l, list)
	mustRecord(t, l, records[:10])
	s := l.Stats()
	if s.Rows != 10 || s.Batches == 0 || s.Records != 0 || s.Bytes != 0 || !s.Oldest.IsZero() || s.BytesLimit != ledger.DefaultQueueBytes {
		t.Errorf("at rest: %+v", s)
	}
	server.stop(t)
	began := time.Now()
	recorded := make(chan error, 10)
	for _, r := range records[10:] {
		l.Record(t.Context(), r, func(err error) { recorded <- err })
	}
	for end := began.Add(10 * time.Second); ; {
		if s = l.Stats(); s.Failures > 1 && time.Since(s.Oldest) > 100*time.Millisecond {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("away: %+v", s)
		}
	}
	if s.Records != 10 || s.Bytes == 0 || s.Oldest.Before(began) || s.Rows != 10 {
		t.Errorf("away: %+v", s)
	}
	if err := server.start(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := <-recorded; err != nil {
			t.Error(err)
		}
	}
	if s = l.Stats(); s.Records != 0 || s.Rows != 20 {
		t.Errorf("back: %+v", s)
	}
}
