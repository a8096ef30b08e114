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
	for end := time.Now().Add(time.Minute); !s.Oldest.IsZero() && time.Now().Before(end); s = l.Stats() { // the batch ends after its last record
	}
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

// A ledger that writes and does not keep up is behind; one that stands still is away, or will be (P10).
func TestBehind(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	list, records := newRecords(2, ledgertest.Start)
	reserve(t, l, list)
	mustRecord(t, l, records[:1])
	for end := time.Now().Add(time.Minute); l.Behind() > 0; { // the batch ends after its last record
		if time.Now().After(end) {
			t.Fatal("behind, and nothing waits")
		}
	}
	blocker, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), `lock table notifications in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	l.Record(t.Context(), records[1], func(err error) { written <- err })
	for end := time.Now().Add(time.Minute); l.Behind() < time.Second; {
		if time.Now().After(end) {
			t.Fatal("a record waits, and the ledger is not behind")
		}
	}
	for end := time.Now().Add(time.Minute); l.Behind() > 0; {
		if time.Now().After(end) {
			t.Fatal("nothing is written any more, and the ledger is behind still")
		}
	}
	if err := blocker.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}
