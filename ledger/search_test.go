package ledger_test

import (
	"errors"
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

// A search that cannot be answered in time is ended by Postgres, and its connection serves the next one.
func TestSearchIsEnded(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url, SearchTimeout: 50 * time.Millisecond})
	n := ledgertest.Plain(1, ledgertest.Start)
	n.BatchID = "payday"
	mustRecord(t, l, []ledger.Record{{Notification: n, New: true, Unreserved: true}})

	blocker, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), `lock table notifications in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	for range 20 { // more than there are connections
		if _, _, err := l.List(t.Context(), ledger.Filter{MerchantID: "m-1"}, 10, ledger.Cursor{}); !errors.Is(err, ledger.ErrTooLong) {
			t.Fatalf("list: %v", err)
		}
	}
	if _, err := l.Batch(t.Context(), "payday", ""); !errors.Is(err, ledger.ErrTooLong) {
		t.Fatalf("batch: %v", err)
	}
	if err := blocker.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if page, _, err := l.List(t.Context(), ledger.Filter{MerchantID: "m-1"}, 10, ledger.Cursor{}); err != nil || len(page) != 1 {
		t.Fatalf("afterwards: %d, %v", len(page), err)
	}
}
