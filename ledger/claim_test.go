package ledger_test

import (
	"sync"
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
)

func claimBy(run string, n *notification.Notification, until time.Time) ledger.Claim {
	return ledger.Claim{ID: n.ID, AcceptedAt: n.AcceptedAt, Generation: n.Generation, Attempts: n.Attempts, By: run, Until: until, Notification: n}
}

// Two nodes that find no row claim at once: one of them wins each.
func TestTwoNodesMakeARowByClaim(t *testing.T) {
	url := shared.database(t)
	nodes := []*ledger.Postgres{openLedger(t, ledger.Config{URL: url}), openLedger(t, ledger.Config{URL: url})}
	const rounds = 200
	until := time.Now().Add(time.Hour)
	for round := range rounds {
		n := ledgertest.Plain(round, ledgertest.Start)
		if round%2 == 0 {
			reserve(t, nodes[0], []*notification.Notification{n})
		}
		verdicts := make([]ledger.ClaimVerdict, len(nodes))
		var all sync.WaitGroup
		for i, l := range nodes {
			all.Go(func() {
				var err error
				if verdicts[i], _, err = l.Claim(t.Context(), claimBy([]string{"a", "b"}[i], n, until)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if verdicts[0] > verdicts[1] {
			verdicts[0], verdicts[1] = verdicts[1], verdicts[0]
		}
		if verdicts[0] != ledger.ClaimGranted || verdicts[1] != ledger.ClaimBusy {
			t.Fatalf("round %d: %v", round, verdicts)
		}
	}
	if rows := count(t, connect(t, url), `select count(*) from notifications`); rows != rounds {
		t.Errorf("%d rows", rows)
	}
}

// What Postgres refuses to make a row of does its neighbours in the group commit no harm.
func TestPoisonClaimHarmsNobody(t *testing.T) {
	l := openLedger(t, ledger.Config{URL: shared.database(t)})
	until := time.Now().Add(time.Hour)
	var all sync.WaitGroup
	for i := range 40 {
		n := ledgertest.Plain(i, ledgertest.Start)
		want := ledger.ClaimGranted
		if i%10 == 3 {
			n.OrderStatus, want = "a\x00b", ledger.ClaimNoRow
		}
		all.Go(func() {
			if v, _, err := l.Claim(t.Context(), claimBy("a", n, until)); err != nil || v != want {
				t.Errorf("claim %d: verdict %d, %v", i, v, err)
			}
		})
	}
	all.Wait()
}

// A node of the version before writes claimed_until alone. Its claim is nobody's by name: it lapses by time only.
func TestClaimOfTheVersionBefore(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url, Gone: func() []string { return []string{"a"} }})
	admin := connect(t, url)
	n := ledgertest.Plain(1, ledgertest.Start)
	soon, later := time.Now().Add(time.Minute), time.Now().Add(time.Hour)
	verdict := func(what, run string, want ledger.ClaimVerdict) {
		t.Helper()
		if v, _, err := l.Claim(t.Context(), claimBy(run, n, soon)); err != nil || v != want {
			t.Fatalf("%s: verdict %d, %v, want %d", what, v, err, want)
		}
	}
	verdict("a claims, and ends", "a", ledger.ClaimGranted)
	if _, err := admin.Exec(t.Context(), `update notifications set claimed_until = $1`, later); err != nil {
		t.Fatal(err)
	}
	verdict("claimed after a's", "b", ledger.ClaimBusy)
	mustRecord(t, l, []ledger.Record{
		{Notification: n, Hold: &ledger.Hold{By: "a"}}, {Notification: n, Hold: &ledger.Hold{By: "a", Until: soon}},
	})
	verdict("after a's holds", "a", ledger.ClaimBusy)
	if _, err := admin.Exec(t.Context(), `update notifications set claimed_until = null`); err != nil {
		t.Fatal(err)
	}
	verdict("its outcome", "b", ledger.ClaimGranted)
	mustRecord(t, l, []ledger.Record{{Notification: ledgertest.Tried(n, time.Now(), soon), Hold: &ledger.Hold{By: "b", Until: later}}})
	if _, err := admin.Exec(t.Context(), `update notifications set claimed_until = $1`, later.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	n = ledgertest.Tried(n, time.Now(), soon)
	verdict("claimed over b's hold", "b", ledger.ClaimBusy)
}

// A claim changes no index.
func TestClaimsAreHOT(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	list := make([]*notification.Notification, 4) // few: their page has room for the new versions
	var records []ledger.Record
	for i := range list {
		list[i] = ledgertest.Plain(i, ledgertest.Start)
		records = append(records, ledger.Record{Notification: list[i], New: true})
	}
	reserve(t, l, list)
	mustRecord(t, l, records)
	for _, n := range list {
		if v, _, err := l.Claim(t.Context(), claimBy("a", n, time.Now().Add(time.Hour))); err != nil || v != ledger.ClaimGranted {
			t.Fatalf("verdict %d, %v", v, err)
		}
	}
	admin := connect(t, url)
	updates := func(column string) int {
		return count(t, admin, `select coalesce(sum(`+column+`), 0) from pg_stat_user_tables where relname like 'notifications_p%'`)
	}
	if _, err := admin.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'notifyd' and datname = current_database()`); err != nil { // a session counts at its end
		t.Fatal(err)
	}
	poll(t, "the numbers", func() bool { return updates("n_tup_upd") == len(list) })
	if hot := updates("n_tup_hot_upd"); hot != len(list) {
		t.Errorf("%d of %d claims were HOT", hot, len(list))
	}
}
