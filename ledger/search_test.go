package ledger_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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

// However slow searches are, they leave connections to those whom payments wait for (P10). Whoever gets no turn is told.
func TestSearchesLeaveConnections(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url, MaxConns: 8, SearchTimeout: 2 * time.Second})
	blocker, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), `lock table notifications in access exclusive mode`); err != nil {
		t.Fatal(err)
	}
	const searches = 20
	var all sync.WaitGroup
	var errs [searches]error
	for i := range searches {
		all.Go(func() {
			if i%2 == 0 {
				_, _, errs[i] = l.List(t.Context(), ledger.Filter{MerchantID: "m-1"}, 10, ledger.Cursor{})
			} else {
				_, errs[i] = l.Batch(t.Context(), "payday", "")
			}
		})
	}
	watcher := connect(t, url)
	poll(t, "searches under way", func() bool { return waitingForLocks(t, watcher) >= 2 })
	for range 10 {
		began := time.Now()
		if _, err := l.Reserve(t.Context(), []ledger.Reservation{{ID: ledgertest.Key(), AcceptedAt: ledgertest.Start}}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a reservation took %s", took)
		}
	}
	if waiting := waitingForLocks(t, watcher); waiting > 2 {
		t.Errorf("%d searches are under way, want at most a quarter of 8", waiting)
	}
	all.Wait()
	ended, refused := 0, 0
	for _, err := range errs {
		switch {
		case errors.Is(err, ledger.ErrTooLong):
			ended++
		case errors.Is(err, ledger.ErrBusy):
			refused++
		default:
			t.Errorf("neither too long nor busy: %v", err)
		}
	}
	if ended < 2 || refused == 0 {
		t.Errorf("%d searches were ended, %d got no turn", ended, refused)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, _, err := l.List(gone, ledger.Filter{}, 10, ledger.Cursor{}); !errors.Is(err, context.Canceled) {
		t.Errorf("of a caller that is gone: %v", err)
	}
}

// waitingForLocks counts the sessions of this database that wait for a lock on a table.
func waitingForLocks(t *testing.T, watcher *pgx.Conn) int {
	t.Helper()
	var waiting int
	err := watcher.QueryRow(t.Context(), `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`).Scan(&waiting)
	if err != nil {
		t.Fatal(err)
	}
	return waiting
}

func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
