package ledger_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
)

func partitions(t *testing.T, url, table string) map[string]bool {
	t.Helper()
	rows, err := connect(t, url).Query(t.Context(), `select right(inhrelid::regclass::text, 8) from pg_inherits where inhparent = $1::text::regclass`, table)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	days := map[string]bool{}
	for _, name := range names {
		days[name] = true
	}
	return days
}

func TestPartitionsComeAndGo(t *testing.T) {
	url := shared.database(t)
	day := func(back int) time.Time { return ledgertest.Start.AddDate(0, 0, -back) }
	longAgo := func() time.Time { return day(20) } // Run's own maintenance finds nothing to drop
	l := openLedger(t, ledger.Config{URL: url, Retention: 10 * 24 * time.Hour, Now: longAgo})
	name := func(back int) string { return day(back).Format("20060102") }
	finished := ledgertest.Delivered(ledgertest.Plain(1, day(20)), day(20))
	open := ledgertest.Plain(2, day(15))
	resting := ledgertest.With(ledgertest.Plain(3, day(14)), func(p *notification.Progress) { p.Resting = true })
	young := ledgertest.Delivered(ledgertest.Plain(4, day(9)), day(9))
	all := []*notification.Notification{finished, open, resting, young}
	reserve(t, l, all)
	for _, n := range all {
		mustRecord(t, l, []ledger.Record{{Notification: n, New: true, Attempts: []notification.Attempt{ledgertest.BareAttempt(n, 1)}}})
	}
	reserve(t, l, []*notification.Notification{ledgertest.Plain(5, day(18))}) // has never got a row

	check := func(want map[int]bool) {
		t.Helper()
		for _, table := range []string{"notifications", "attempts"} {
			there := partitions(t, url, table)
			for back, kept := range want {
				if there[name(back)] != kept {
					t.Errorf("%s of %d days ago: there %t, want %t", table, back, there[name(back)], kept)
				}
			}
		}
	}
	check(map[int]bool{20: true, 15: true, 14: true, 9: true})
	if err := l.MaintainPartitions(t.Context(), ledgertest.Start.AddDate(0, 0, 1)); err != nil {
		t.Fatal(err)
	}
	check(map[int]bool{20: false, 15: true, 14: true, 9: true, -3: true, -4: true})
	for _, n := range []*notification.Notification{finished, ledgertest.Plain(5, day(18))} {
		if _, _, err := l.Find(t.Context(), n.ID); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("a dropped one is found: %v", err)
		}
	}
	for _, n := range []*notification.Notification{open, resting, young} {
		if _, attempts, err := l.Find(t.Context(), n.ID); err != nil || len(attempts) != 1 {
			t.Errorf("a kept one: %d attempts, %v", len(attempts), err)
		}
	}

	// Finished at last: it goes.
	mustRecord(t, l, []ledger.Record{{Notification: ledgertest.Delivered(open, ledgertest.Start)}})
	if err := l.MaintainPartitions(t.Context(), ledgertest.Start); err != nil {
		t.Fatal(err)
	}
	check(map[int]bool{15: false, 14: true})

	// A late one for a dropped day makes the day anew, also when another node dropped it.
	reserve(t, l, all[:1])
	mustRecord(t, l, []ledger.Record{{Notification: finished, New: true}})
	check(map[int]bool{20: true})
	if _, err := connect(t, url).Exec(t.Context(), `drop table notifications_p`+name(20)+`, attempts_p`+name(20)); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, l, []ledger.Record{{Notification: finished, New: true, Attempts: []notification.Attempt{ledgertest.BareAttempt(finished, 1)}}})
	check(map[int]bool{20: true})
}

// Nodes that start at once: each of them ends up with a working ledger.
func TestNodesMigrateAtOnce(t *testing.T) {
	url := shared.database(t)
	var nodes sync.WaitGroup
	for i := range 3 {
		nodes.Go(func() {
			l, err := ledger.Open(t.Context(), ledger.Config{URL: url, Keys: testKeys})
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Close()
			n := ledgertest.Plain(i, ledgertest.Start)
			if _, err := l.Reserve(t.Context(), []ledger.Reservation{{ID: n.ID, AcceptedAt: n.AcceptedAt}}); err != nil {
				t.Error(err)
			}
			if err := l.MaintainPartitions(t.Context(), ledgertest.Start); err != nil {
				t.Error(err)
			}
		})
	}
	nodes.Wait()
	var versions int
	err := connect(t, url).QueryRow(t.Context(), `select count(*) from goose_db_version where version_id > 0`).Scan(&versions)
	if err != nil || versions != 1 {
		t.Fatalf("migrated %d times, %v", versions, err)
	}
}

// A node starts while Postgres is away and catches up by itself.
func TestLateStart(t *testing.T) {
	s := ownServer(t)
	s.stop(t)
	if _, err := ledger.Open(t.Context(), ledger.Config{URL: s.URL(), Keys: testKeys}); err == nil {
		t.Fatal("opened without Postgres")
	}
	l := openLedger(t, ledger.Config{URL: s.URL(), LateStart: true})
	done := make(chan error, 1)
	l.Record(t.Context(), ledger.Record{Notification: ledgertest.Plain(1, ledgertest.Start), New: true, Unreserved: true}, func(err error) { done <- err })
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
