package ledger_test

import (
	"database/sql"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // goose speaks database/sql
	"github.com/pressly/goose/v3"

	"notifyd/internal/search/fill"
	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

// Writing and searching go on while a node adds the new indexes to a filled ledger. What is written is the same in this
// version and the one before.
func TestIndexesAreBuiltBesideWriters(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a ledger")
	}
	url := shared.database(t)
	plan := fill.Plan{URL: url, Rows: 60_000, Days: 4, Until: ledgertest.Start}
	if err := plan.Partitions(t.Context(), testKeys); err != nil {
		t.Fatal(err)
	}
	if err := plan.Fill(t.Context(), 0, plan.Rows, 2); err != nil {
		t.Fatal(err)
	}
	migrateDownTo(t, url, 2)
	admin := connect(t, url)
	day := "_p" + ledgertest.Start.Format("20060102")
	if _, err := admin.Exec(t.Context(), `create index notifications_source`+day+` on notifications`+day+` (source)`); err != nil { // a try that died
		t.Fatal(err)
	}

	first, err := ledger.Open(t.Context(), ledger.Config{URL: url, Keys: testKeys}) // migrates, and builds nothing
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if missing := indexesMissing(t, admin); missing == 0 {
		t.Fatal("nothing is left to build: this test tests nothing")
	}
	l := openLedger(t, ledger.Config{URL: url}) // its Run builds
	// A day that is made meanwhile has them from the start.
	late := ledgertest.Plain(1, ledgertest.Start.AddDate(0, 0, -20))
	late.RequestID = "late"
	late.ID = late.DeriveID()
	mustRecord(t, l, []ledger.Record{{Notification: late, New: true, Unreserved: true}})
	written, longest := 0, time.Duration(0)
	deadline := time.Now().Add(time.Minute)
	for i := 0; indexesMissing(t, admin) > 0; i++ {
		if time.Now().After(deadline) {
			t.Fatalf("%d indexes are missing", indexesMissing(t, admin))
		}
		began := time.Now()
		n := ledgertest.Plain(i, ledgertest.Start.Add(time.Duration(i)*time.Millisecond))
		mustRecord(t, l, []ledger.Record{{Notification: n, New: true, Unreserved: true}})
		longest = max(longest, time.Since(began))
		written++
		if page, _, err := l.List(t.Context(), ledger.Filter{Source: fill.RareSource}, 50, ledger.Cursor{}); err != nil || len(page) != fill.Rare {
			t.Fatalf("a search meanwhile: %d, %v", len(page), err)
		}
	}
	t.Logf("%d written meanwhile, the slowest in %s", written, longest)
	if written == 0 || longest > 5*time.Second {
		t.Errorf("writers stood still: %d written, the slowest in %s", written, longest)
	}
	for supersededLeft(t, admin) > 0 {
		if err := l.BuildIndexes(t.Context()); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d superseded indexes are left: %v", supersededLeft(t, admin), err)
		}
	}
}

// Several nodes: one builds, the others leave it alone.
func TestIndexesAreBuiltOnce(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	migrateDownTo(t, url, 2)
	other, err := ledger.Open(t.Context(), ledger.Config{URL: url, Keys: testKeys})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan error, 4)
	for i := range 4 {
		node := []*ledger.Postgres{l, other}[i%2]
		go func() { done <- node.BuildIndexes(t.Context()) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := l.BuildIndexes(t.Context()); err != nil { // should the others have found one at work that was not through
		t.Error(err)
	}
	admin := connect(t, url)
	if missing, left := indexesMissing(t, admin), supersededLeft(t, admin); missing != 0 || left != 0 {
		t.Errorf("%d indexes are missing, %d superseded ones are left", missing, left)
	}
}

func migrateDownTo(t *testing.T, url string, version int64) {
	t.Helper()
	files, err := fs.Sub(ledger.Migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.DownTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}

// indexesMissing counts what the parents have and days do not, or not completely.
func indexesMissing(t *testing.T, admin *pgx.Conn) int {
	t.Helper()
	return count(t, admin, `select count(*) from pg_index i join pg_inherits days on days.inhparent = i.indrelid
		where i.indrelid = 'notifications'::regclass and not exists (
			select from pg_inherits built join pg_index b on b.indexrelid = built.inhrelid
			where built.inhparent = i.indexrelid and b.indrelid = days.inhrelid and b.indisvalid)`)
}

func supersededLeft(t *testing.T, admin *pgx.Conn) int {
	t.Helper()
	return count(t, admin, `select count(*) from pg_class where relname in ('notifications_merchant', 'notifications_undelivered', 'notifications_batch')`)
}

func count(t *testing.T, admin *pgx.Conn, query string) (n int) {
	t.Helper()
	if err := admin.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", query, err))
	}
	return n
}
