package ledger_test

import (
	"errors"
	"strings"
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

// A resend that is under way when its day is dropped keeps the day, with its attempts and reservations.
func TestResendKeepsItsDay(t *testing.T) {
	url := shared.database(t)
	long := ledgertest.Start.AddDate(0, 0, -20)
	l := openLedger(t, ledger.Config{URL: url, Retention: 10 * 24 * time.Hour, Now: func() time.Time { return long }})
	n := ledgertest.Plain(1, long)
	n.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, long)
	reserve(t, l, []*notification.Notification{n})
	mustRecord(t, l, []ledger.Record{{Notification: n, New: true, Attempts: []notification.Attempt{ledgertest.BareAttempt(n, 1)}}})

	admin := connect(t, url)
	resend, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// As Resend does, but held before its commit: what is dropped looks finished until then.
	if _, err := resend.Exec(t.Context(), `update notifications set state = 2, generation = generation + 1 where accepted_at = $1`, n.AcceptedAt); err != nil {
		t.Fatal(err)
	}
	dropped := make(chan error, 1)
	go func() { dropped <- l.MaintainPartitions(t.Context(), ledgertest.Start) }()
	watch := connect(t, url)
	for waiting := false; !waiting; {
		err := watch.QueryRow(t.Context(), `select exists (select from pg_locks where not granted and mode = 'AccessExclusiveLock'
			and database = (select oid from pg_database where datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := resend.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The lock may have been given up by now on a slow machine: then the next hour's try sees the resend.
	if err := <-dropped; err != nil && !strings.Contains(err.Error(), "lock timeout") {
		t.Fatal(err)
	}
	if err := l.MaintainPartitions(t.Context(), ledgertest.Start); err != nil {
		t.Fatal(err)
	}
	if found, attempts, err := l.Find(t.Context(), n.ID); err != nil || len(attempts) != 1 || found.State != notification.StateRetrying {
		t.Fatalf("%d attempts, %v", len(attempts), err)
	}
}

// A resend that comes while its day is being dropped waits, and is then told that there is nothing left to resend.
func TestResendAfterTheDrop(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	n := ledgertest.Delivered(ledgertest.Plain(1, ledgertest.Start), ledgertest.Start)
	reserve(t, l, []*notification.Notification{n})
	mustRecord(t, l, []ledger.Record{{Notification: n, New: true}})
	drop, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	day := "notifications_p" + n.AcceptedAt.Format("20060102")
	if _, err := drop.Exec(t.Context(), `lock table only notifications, only attempts, only `+day+` in access exclusive mode; drop table `+day, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	resent := make(chan error, 1)
	go func() {
		_, err := l.Resend(t.Context(), n.ID, "alice", ledgertest.Start)
		resent <- err
	}()
	select {
	case err := <-resent:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := drop.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-resent; !errors.Is(err, ledger.ErrReservedOnly) {
		t.Fatalf("resend of a dropped one: %v", err)
	}
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
	if twice := count(t, connect(t, url), `select count(*) - count(distinct version_id) from goose_db_version`); twice != 0 {
		t.Fatalf("%d migrations were made more than once", twice)
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
