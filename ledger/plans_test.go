package ledger_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/internal/search/fill"
	"notifyd/ledger"
	"notifyd/notification"
)

// mostRead bounds the rows that a statement may look at to answer with a page of 50, and mostPages the pages of 8 KiB:
// of the million, or of the ten thousand that stand for something else than a usual delivery.
const (
	mostRead  = 20_000
	mostPages = 8_000
)

// TestPlans looks at how Postgres reads a million notifications over ten days: through indexes, and never a large part of one.
func TestPlans(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a ledger with a million notifications")
	}
	const rows = 1_000_000
	url := shared.database(t)
	plan := fill.Plan{URL: url, Rows: rows, Days: 10, Until: time.Now().UTC().Truncate(time.Second)}
	began := time.Now()
	if err := plan.Partitions(t.Context(), testKeys); err != nil {
		t.Fatal(err)
	}
	if err := plan.Fill(t.Context(), 0, rows, 2); err != nil {
		t.Fatal(err)
	}
	l := openLedger(t, ledger.Config{URL: url})
	admin := connect(t, url+"&random_page_cost=1.1&jit=off&enable_seqscan=off&timezone=UTC")
	for _, table := range []string{"notifications", "reservations"} { // as autovacuum does
		if _, err := admin.Exec(t.Context(), "vacuum analyze "+table); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("filled and vacuumed in %s", time.Since(began).Round(time.Second))

	for name, f := range searches(t, l, plan) {
		for _, number := range []int{rows, rows / 2} { // the first page, and one in the middle
			after := ledger.Cursor{}
			if number < rows {
				after.AcceptedAt = plan.At(number)
			}
			sql, args := ledger.ListQuery(f, nil, 51, after)
			readsLittle(t, fmt.Sprintf("list by %s before number %d", name, number), analyzed(t, admin, sql, args...), mostRead)
		}
	}

	now := time.Now()
	horizon := now.Add(10 * time.Minute)
	ids, accepted, until, by, gone := [][16]byte{}, []time.Time{}, []time.Time{}, []string{}, []string{"ended"}
	for _, n := range newest(t, l, ledger.Filter{States: []notification.State{notification.StateRetrying}}, 100) {
		ids, accepted, until, by = append(ids, n.ID), append(accepted, n.AcceptedAt), append(until, horizon), append(by, "run")
	}
	byName, byNameArgs := ledger.ListQuery(ledger.Filter{RequestID: "request"}, ledger.Named(accepted, ids), 51, ledger.Cursor{})
	for name, c := range map[string]struct {
		sql  string
		args []any
		most int
	}{
		"list by id":       {byName, byNameArgs, mostRead},
		"sources":          {ledger.SourcesStatement, nil, mostRead},
		"small batch":      {ledger.BatchStatement, []any{"batch-77", ""}, mostRead},
		"no such batch":    {ledger.BatchStatement, []any{"none", ""}, mostRead},
		"batch of 100,000": {ledger.BatchStatement, []any{"payday-0", ""}, 110_000},
		"one source's":     {ledger.BatchStatement, []any{"payday-0", "source-00"}, 110_000},
		"feed":             {ledger.FeedStatement, []any{horizon, 100}, mostRead},
		"rescue":           {ledger.RescueStatement, []any{now, now, horizon, 100, gone}, mostRead},
		"take due":         {ledger.TakeDueStatement, []any{now, now.Add(-30 * time.Second), horizon, 100, gone}, mostRead},
		"recall":           {ledger.RecallStatement, []any{now, now, true, true, true, now, 1000, gone}, 2 * mostRead},
		"recall retries":   {ledger.RecallStatement, []any{now, now, false, false, true, now, 1000, gone}, 2 * mostRead},
		"claim lock":       {ledger.ClaimLockStatement, []any{ids}, mostRead},
		"claim":            {ledger.ClaimStatement, []any{accepted, ids, until, by}, mostRead},
		"find many":        {ledger.FindManyStatement, []any{accepted, ids}, mostRead},
		"proof":            {ledger.ProofStatement, []any{now.Add(-24 * time.Hour), now, now.Add(-24 * time.Hour), [16]byte{}, 100}, mostRead},
	} {
		readsLittle(t, name, analyzed(t, admin, c.sql, c.args...), c.most)
		noSeqScan(t, name+", prepared", explainGeneric(t, admin, c.sql))
	}
}

// searches are filters of every kind, with values that are common, rare, or not there at all.
func searches(t *testing.T, l *ledger.Postgres, plan fill.Plan) map[string]ledger.Filter {
	t.Helper()
	some := newest(t, l, ledger.Filter{To: plan.At(plan.Rows / 3)}, 1)[0]
	if some.ID != some.DeriveID() {
		t.Fatalf("package fill makes the id %s where DeriveID makes %s", some.ID, some.DeriveID())
	}
	from, to := plan.At(plan.Rows/2-plan.Rows/20), plan.At(plan.Rows/2)
	const large, small = "merchant-0000", "merchant-1999"
	type states = []notification.State
	dead := states{notification.StateDead}
	cases := map[string]ledger.Filter{
		"nothing":                      {},
		"large merchant":               {MerchantID: large},
		"small merchant":               {MerchantID: small},
		"no such merchant":             {MerchantID: "none"},
		"merchant and time":            {MerchantID: large, From: from, To: to},
		"order":                        {OrderID: some.OrderID},
		"no such order":                {OrderID: "none"},
		"scene":                        {Scene: some.Scene},
		"rare scene":                   {Scene: fill.RareScene},
		"no such scene":                {Scene: "none"},
		"source":                       {Source: some.Source},
		"rare source":                  {Source: fill.RareSource},
		"no such source":               {Source: "none"},
		"large batch":                  {BatchID: "payday-0"},
		"small batch":                  {BatchID: "batch-77"},
		"no such batch":                {BatchID: "none"},
		"reason":                       {Reason: notification.ReasonScheduleExhausted},
		"usual reason":                 {Reason: notification.ReasonAcknowledged},
		"late acknowledgement":         {Reason: notification.ReasonLateAcknowledgement},
		"rare reason":                  {Reason: fill.RareReason},
		"reason that nothing has":      {Reason: notification.ReasonDNSFailure},
		"waiting":                      {States: states{notification.StateAccepted, notification.StateRetrying, notification.StateHeld}},
		"undelivered finally":          {States: states{notification.StateDead, notification.StateCanceled, notification.StateExpired}},
		"all states":                   {States: states{1, 2, 3, 4, 5, 6, 7}},
		"time":                         {From: from, To: to},
		"time without anything":        {From: plan.Until.Add(time.Hour)},
		"merchant's dead":              {MerchantID: large, States: dead},
		"small merchant's dead":        {MerchantID: small, States: dead},
		"dead where nothing fails":     {MerchantID: fill.Unfailing, States: dead},
		"waiting where nothing fails":  {MerchantID: fill.Unfailing, States: states{notification.StateAccepted, notification.StateRetrying, notification.StateHeld}},
		"reason where nothing fails":   {MerchantID: fill.Unfailing, Reason: notification.ReasonHTTPServerError},
		"merchant, reason and time":    {MerchantID: large, Reason: notification.ReasonGone, From: from, To: to},
		"merchant and rare reason":     {MerchantID: large, Reason: fill.RareReason},
		"merchant and scene":           {MerchantID: large, Scene: some.Scene},
		"merchant and rare scene":      {MerchantID: large, Scene: fill.RareScene},
		"merchant and source":          {MerchantID: large, Source: some.Source},
		"merchant and no such source":  {MerchantID: large, Source: "none"},
		"merchant and order":           {MerchantID: some.MerchantID, OrderID: some.OrderID},
		"source and reason":            {Source: some.Source, Reason: notification.ReasonGone},
		"rare source and reason":       {Source: fill.RareSource, Reason: notification.ReasonGone},
		"source and rare reason":       {Source: some.Source, Reason: fill.RareReason},
		"source's dead":                {Source: some.Source, States: dead},
		"rare source's dead":           {Source: fill.RareSource, States: dead},
		"source and scene":             {Source: some.Source, Scene: some.Scene},
		"source and rare scene":        {Source: some.Source, Scene: fill.RareScene},
		"scene and rare reason":        {Scene: some.Scene, Reason: fill.RareReason},
		"dead with a reason":           {States: dead, Reason: notification.ReasonGone},
		"dead with a reason of others": {States: dead, Reason: notification.ReasonHTTPServerError},
		"large batch's dead":           {BatchID: "payday-0", States: dead},
		"large batch's accepted":       {BatchID: "payday-0", States: states{notification.StateAccepted}},
		"small batch's dead":           {BatchID: "batch-77", States: dead},
		"large batch, rare source":     {BatchID: "payday-0", Source: fill.RareSource},
		"everything": {
			MerchantID: some.MerchantID, OrderID: some.OrderID, Scene: some.Scene, BatchID: some.BatchID, Source: some.Source, RequestID: some.RequestID,
			States: states{some.State}, Reason: some.Reason, From: some.AcceptedAt.Add(-time.Hour), To: some.AcceptedAt.Add(time.Hour),
		},
	}
	for s := notification.StateAccepted; s <= notification.StateExpired; s++ {
		cases[s.String()] = ledger.Filter{States: states{s}}
		cases["merchant's "+s.String()] = ledger.Filter{MerchantID: some.MerchantID, States: states{s}}
		cases["source's "+s.String()] = ledger.Filter{Source: some.Source, States: states{s}}
	}
	return cases
}

func newest(t *testing.T, l *ledger.Postgres, f ledger.Filter, count int) []*notification.Notification {
	t.Helper()
	page, _, err := l.List(t.Context(), f, count, ledger.Cursor{})
	if err != nil || len(page) != count {
		t.Fatalf("%d found: %v", len(page), err)
	}
	return page
}

// planNode is a part of what explain says.
type planNode struct {
	Type      string     `json:"Node Type"`
	Table     string     `json:"Relation Name"`
	Rows      float64    `json:"Actual Rows"`
	Loops     float64    `json:"Actual Loops"`
	Filtered  float64    `json:"Rows Removed by Filter"`
	Joined    float64    `json:"Rows Removed by Join Filter"`
	Rechecked float64    `json:"Rows Removed by Index Recheck"`
	Hit       int        `json:"Shared Hit Blocks"`
	Read      int        `json:"Shared Read Blocks"`
	Plans     []planNode `json:"Plans"`
	text      string
}

// scanned is how many rows all scans below looked at, and whether one of them reads a table as it lies.
func (n planNode) scanned() (rows int, sequential bool) {
	if n.Table != "" && n.Type != "ModifyTable" && n.Type != "LockRows" {
		rows, sequential = int(n.Loops*(n.Rows+n.Filtered+n.Rechecked)), n.Type == "Seq Scan"
	}
	for _, child := range n.Plans {
		r, s := child.scanned()
		rows, sequential = rows+r, sequential || s
	}
	return rows, sequential
}

func readsLittle(t *testing.T, what string, plan planNode, most int) {
	t.Helper()
	rows, sequential := plan.scanned()
	if pages := plan.Hit + plan.Read; sequential || rows > most || pages > most/10+mostPages {
		t.Errorf("%s reads %d rows and %d pages, sequentially: %t\n%s", what, rows, pages, sequential, plan.text)
	}
}

// analyzed runs a statement, undoes what it did, and says what it read.
func analyzed(t *testing.T, conn *pgx.Conn, sql string, args ...any) planNode {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}()
	var text string
	err = tx.QueryRow(t.Context(), "explain (analyze, buffers, timing off, format json) "+sql, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		t.Fatal(err)
	}
	plans[0].Plan.text = text
	return plans[0].Plan
}

func noSeqScan(t *testing.T, what, plan string) {
	t.Helper()
	for line := range strings.Lines(plan) {
		if strings.Contains(line, "Seq Scan on") {
			t.Errorf("%s reads everything:\n%s", what, plan)
			return
		}
	}
}

// explainGeneric is the plan that a prepared statement has for any values.
func explainGeneric(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	description, err := conn.Prepare(t.Context(), "generic", sql)
	if err != nil {
		t.Fatal(err)
	}
	values := strings.TrimSuffix(strings.Repeat("null, ", len(description.ParamOIDs)), ", ")
	if values != "" {
		values = "(" + values + ")"
	}
	if err := conn.Deallocate(t.Context(), "generic"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"set plan_cache_mode = force_generic_plan", "prepare generic as " + sql} {
		if _, err := conn.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := conn.Query(t.Context(), "explain execute generic"+values, pgx.QueryExecModeSimpleProtocol)
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
