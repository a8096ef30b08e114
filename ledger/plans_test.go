package ledger_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
)

// TestPlans looks at how Postgres reads 20,000 notifications over three days: never all of them.
func TestPlans(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	const count = 20_000
	list := make([]*notification.Notification, count)
	records := make([]ledger.Record, count)
	for i := range count {
		n := ledgertest.Plain(i, ledgertest.Start.Add(-time.Duration(i)*10*time.Second))
		n.MerchantID = fmt.Sprintf("m-%d", i%97)
		n.Body = make([]byte, 512)
		if i%50 == 0 {
			n.BatchID = fmt.Sprintf("batch-%d", i/500)
		}
		switch {
		case i%200 == 0:
			n.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, n.AcceptedAt)
		case i%100 == 1: // due far away
			n = ledgertest.Tried(n, n.AcceptedAt, ledgertest.Start.Add(time.Duration(i)*time.Second+24*time.Hour))
		case i%100 == 2: // overdue
			n = ledgertest.Tried(n, n.AcceptedAt, n.AcceptedAt.Add(time.Duration(i)*time.Second))
		default:
			n = ledgertest.Delivered(n, n.AcceptedAt)
		}
		list[i], records[i] = n, ledger.Record{Notification: n, New: true}
	}
	reserve(t, l, list)
	mustRecord(t, l, records)
	admin := connect(t, url+"&random_page_cost=1.1&jit=off")
	// Only what has rows, as autovacuum does: an analyzed empty day looks cheapest when read whole.
	tables := []string{"reservations"}
	for back := range 3 {
		tables = append(tables, "notifications_p"+ledgertest.Start.AddDate(0, 0, -back).Format("20060102"))
	}
	if _, err := admin.Exec(t.Context(), "analyze "+strings.Join(tables, ", ")); err != nil {
		t.Fatal(err)
	}

	cursor := ledger.Cursor{AcceptedAt: list[100].AcceptedAt, ID: list[100].ID}
	type states = []notification.State
	for name, f := range map[string]ledger.Filter{
		"all":                {},
		"merchant":           {MerchantID: "m-5"},
		"order":              {OrderID: "order-777"},
		"scene":              {Scene: "withhold"},
		"batch":              {BatchID: "batch-3"},
		"source":             {Source: "pay"},
		"reason":             {Reason: notification.ReasonGone},
		"dead":               {States: states{notification.StateDead}},
		"undelivered":        {States: states{notification.StateDead, notification.StateExpired, notification.StateRetrying}},
		"delivered":          {States: states{notification.StateDelivered}},
		"dead with a reason": {States: states{notification.StateDead}, Reason: notification.ReasonGone},
		"merchant's dead":    {MerchantID: "m-5", States: states{notification.StateDead}},
		"time":               {From: ledgertest.Start.Add(-time.Hour), To: ledgertest.Start.Add(-time.Minute)},
		"everything": {
			MerchantID: "m-5", OrderID: "order-777", Scene: "withhold", BatchID: "b", Source: "pay", States: states{notification.StateDead},
			Reason: notification.ReasonGone, From: ledgertest.Start.Add(-time.Hour), To: ledgertest.Start,
		},
	} {
		for _, after := range []ledger.Cursor{{}, cursor} {
			sql, args := ledger.ListQuery(f, 51, after)
			noSeqScan(t, fmt.Sprintf("list by %s after %v", name, after), explain(t, admin, sql, args...))
		}
	}

	horizon := ledgertest.Start.Add(48 * time.Hour)
	ids, accepted, until := [][16]byte{}, []time.Time{}, []time.Time{}
	for i := range 100 {
		ids, accepted, until = append(ids, list[i*37].ID), append(accepted, list[i*37].AcceptedAt), append(until, horizon)
	}
	for name, c := range map[string]struct {
		sql  string
		args []any
	}{
		"feed":       {ledger.FeedStatement, []any{horizon, 100}},
		"rescue":     {ledger.RescueStatement, []any{horizon, horizon, horizon, 100}},
		"claim lock": {ledger.ClaimLockStatement, []any{ids}},
		"claim":      {ledger.ClaimStatement, []any{accepted, ids, until}},
		"find many":  {ledger.FindManyStatement, []any{accepted, ids}},
		"proof":      {ledger.ProofStatement, []any{ledgertest.Start.Add(-24 * time.Hour), ledgertest.Start, ledgertest.Start.Add(-24 * time.Hour), [16]byte{}, 100}},
	} {
		noSeqScan(t, name, explain(t, admin, c.sql, c.args...))
		noSeqScan(t, name+", prepared", explainGeneric(t, admin, c.sql))
	}
}

var seqScan = regexp.MustCompile(`Seq Scan on (notifications|reservations)`)

func noSeqScan(t *testing.T, what, plan string) {
	t.Helper()
	if seqScan.MatchString(plan) {
		t.Errorf("%s reads everything:\n%s", what, plan)
	}
}

func explain(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	rows, err := conn.Query(t.Context(), "explain "+sql, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return plan(t, rows)
}

// explainGeneric is the plan that a prepared statement has for any values.
func explainGeneric(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	description, err := conn.Prepare(t.Context(), "generic", sql)
	if err != nil {
		t.Fatal(err)
	}
	values := strings.TrimSuffix(strings.Repeat("null, ", len(description.ParamOIDs)), ", ")
	if err := conn.Deallocate(t.Context(), "generic"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"set plan_cache_mode = force_generic_plan", "prepare generic as " + sql} {
		if _, err := conn.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := conn.Query(t.Context(), "explain execute generic("+values+")", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	text := plan(t, rows)
	if _, err := conn.Exec(t.Context(), "deallocate generic; reset plan_cache_mode", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	return text
}

func plan(t *testing.T, rows pgx.Rows) string {
	t.Helper()
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}
