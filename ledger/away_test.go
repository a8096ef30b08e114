package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
	"notifyd/source"
)

// questions is everything that somebody waits for.
func questions(t *testing.T, l *ledger.Postgres) map[string]func() error {
	t.Helper()
	ctx, now := t.Context(), ledgertest.Start
	n := ledgertest.Plain(999, now)
	return map[string]func() error{
		"ping":    func() error { return l.Ping(ctx) },
		"reserve": func() error { _, err := l.Reserve(ctx, []ledger.Reservation{wanted()}); return err },
		"claim": func() error {
			_, _, err := l.Claim(ctx, ledger.Claim{ID: ledgertest.Key(), Until: now.Add(time.Minute)})
			return err
		},
		"find":            func() error { _, _, err := l.Find(ctx, n.ID); return err },
		"find many":       func() error { _, err := l.FindMany(ctx, []notification.ID{n.ID}); return err },
		"list":            func() error { _, _, err := l.List(ctx, ledger.Filter{}, 10, ledger.Cursor{}); return err },
		"batch":           func() error { _, err := l.Batch(ctx, "b", ""); return err },
		"cancel":          func() error { _, err := l.Cancel(ctx, n.ID, "alice", now); return err },
		"resend":          func() error { _, err := l.Resend(ctx, n.ID, "alice", now); return err },
		"mark answered":   func() error { return l.MarkAnswered(ctx, []notification.ID{n.ID}) },
		"overdue":         func() error { _, err := l.Overdue(ctx, now); return err },
		"merchants since": func() error { _, err := l.MerchantsSince(ctx, 0); return err },
		"put source":      func() error { _, err := l.PutSource(ctx, &source.Source{ID: "s"}, nil); return err },
		"put alarms": func() error {
			return l.PutAlarms(ctx, []ledger.Alarm{{Name: "a", Node: "n", RaisedAt: now, SeenAt: now}})
		},
		"open alarms":   func() error { _, err := l.OpenAlarms(ctx, "n"); return err },
		"quarantine":    func() error { _, err := l.Quarantine(ctx, 0, 10); return err },
		"save settings": func() error { return l.SaveSettings(ctx, t.TempDir()+"/settings") },
	}
}

// A Postgres that hangs is told from one that refuses, within the time; what is recorded meanwhile is written when it
// goes on.
func TestNothingHangsWithPostgres(t *testing.T) {
	const timeout = 300 * time.Millisecond
	s := ownServer(t)
	l := openLedger(t, ledger.Config{URL: s.URL(), ReserveTimeout: timeout, StatementTimeout: timeout, SearchTimeout: timeout, BatchTimeout: timeout})
	list, records := newRecords(50, ledgertest.Start)
	reserve(t, l, list)
	goOn := stopProcesses(t, s)
	written := make(chan error, len(records))
	for _, r := range records {
		l.Record(t.Context(), r, func(err error) { written <- err })
	}
	type answer struct {
		what string
		err  error
		took time.Duration
	}
	asked := questions(t, l)
	answers := make(chan answer, len(asked))
	for what, ask := range asked {
		go func() {
			began := time.Now()
			err := ask()
			answers <- answer{what, err, time.Since(began)}
		}()
	}
	const claims = 10 * time.Second
	for range asked {
		a := <-answers
		most := map[string]time.Duration{"claim": claims}[a.what] + 10*timeout
		if busy := errors.Is(a.err, ledger.ErrBusy); !ledger.Unavailable(a.err) && !busy || a.took > most {
			t.Errorf("%s: %v after %s", a.what, a.err, a.took)
		}
	}
	goOn()
	for range records {
		select {
		case err := <-written:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a record was not written")
		}
	}
	if found, attempts, err := l.Find(t.Context(), list[7].ID); err != nil || len(attempts) != 1 || found.State != notification.StateDelivered {
		t.Errorf("found %v with %d attempts, %v", found, len(attempts), err)
	}
}

// A writer that waits for long goes on as soon as somebody hears that Postgres answers, and the refusal of all writes is
// no refusal of what is written.
func TestWritersWaitForAReadOnlyPostgres(t *testing.T) {
	s := ownServer(t)
	l := openLedger(t, ledger.Config{URL: s.URL()})
	admin := connect(t, s.URL())
	readOnly := func(on string) {
		t.Helper()
		for _, statement := range []string{
			`alter database notifyd set default_transaction_read_only = ` + on,
			`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'notifyd'`,
		} {
			if _, err := admin.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
	}
	list, records := newRecords(3, ledgertest.Start)
	reserve(t, l, list)
	readOnly("on")
	poll(t, "a refusal", func() bool {
		_, err := l.Reserve(t.Context(), []ledger.Reservation{wanted()})
		pg, ok := errors.AsType[*pgconn.PgError](err)
		return ok && pg.Code == "25006" && ledger.Unavailable(err)
	})
	written := make(chan error, len(records))
	for _, r := range records {
		l.Record(t.Context(), r, func(err error) { written <- err })
	}
	poll(t, "writers that wait", func() bool { return l.Stats().Failures >= 6 }) // by now for more than half a second each time
	readOnly("off")
	for range records {
		poll(t, "an answer", func() bool { return l.Ping(t.Context()) == nil })
		select {
		case err := <-written:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a record was not written")
		}
	}
}

func TestUnavailable(t *testing.T) {
	pg := func(code string) error { return fmt.Errorf("find: %w", &pgconn.PgError{Code: code}) }
	_, refused := ledger.Open(t.Context(), ledger.Config{URL: "host=127.0.0.1 port=1 user=x", Keys: testKeys})
	_, unknown := ledger.Open(t.Context(), ledger.Config{URL: shared.URL() + "&dbname=nothing_here", Keys: testKeys})
	for name, c := range map[string]struct {
		err               error
		unavailable, away bool
	}{
		"nothing":                   {nil, false, false},
		"refused":                   {refused, true, true},
		"no such database":          {unknown, true, false},
		"a wrong password":          {fmt.Errorf("open: %w", errors.Join(&pgconn.ConnectError{}, &pgconn.PgError{Code: "28P01"})), true, false},
		"deadline":                  {fmt.Errorf("reserve: %w", context.DeadlineExceeded), true, true},
		"the caller left":           {fmt.Errorf("reserve: %w", context.Canceled), false, false},
		"cut off":                   {fmt.Errorf("find: %w", io.ErrUnexpectedEOF), true, true},
		"reset":                     {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, true, true},
		"closed":                    {pgconn.ErrConnClosed, true, true},
		"away":                      {fmt.Errorf("x: %w", ledger.ErrAway), true, true},
		"too many connections":      {pg("53300"), true, true},
		"disk full":                 {pg("53100"), true, true},
		"read only":                 {pg("25006"), true, true},
		"shutting down":             {pg("57P01"), true, true},
		"starting":                  {pg("57P03"), true, true},
		"connection failure":        {pg("08006"), true, true},
		"a lock":                    {pg("55P03"), true, true},
		"data":                      {pg("22021"), false, false},
		"a unique key":              {pg("23505"), false, false},
		"a missing table":           {pg("42P01"), false, false},
		"not found":                 {ledger.ErrNotFound, false, false},
		"final":                     {ledger.ErrFinal, false, false},
		"a search that is too wide": {fmt.Errorf("%w: %w", ledger.ErrTooLong, context.DeadlineExceeded), false, false},
		"too many searches":         {ledger.ErrBusy, false, false},
		"quarantined":               {&ledger.QuarantinedError{Err: pg("53100")}, false, false},
	} {
		if got, away := ledger.Unavailable(c.err), ledger.Away(c.err); got != c.unavailable || away != c.away {
			t.Errorf("%s (%v): unavailable %t, away %t", name, c.err, got, away)
		}
	}
}

// A node that started without Postgres says so until it has caught up, and does not work on a database of another key.
func TestLateStartWithAnotherMasterKey(t *testing.T) {
	s := ownServer(t)
	first, err := ledger.Open(t.Context(), ledger.Config{URL: s.URL(), Keys: testKeys})
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	s.stop(t)
	text, err := ledger.GenerateMasterKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ledger.NewCipher(text)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{URL: s.URL(), Keys: keys, LateStart: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	unavailable := func(when string) {
		t.Helper()
		for what, ask := range questions(t, l) {
			if err := ask(); !ledger.Unavailable(err) {
				t.Errorf("%s %s: %v", what, when, err)
			}
		}
	}
	unavailable("without Postgres")
	written := make(chan error, 1)
	l.Record(t.Context(), ledger.Record{Notification: ledgertest.Plain(1, ledgertest.Start), New: true, Unreserved: true}, func(err error) { written <- err })
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	unavailable("before it is prepared")
	if err := l.Run(t.Context()); !errors.Is(err, ledger.ErrOtherMasterKey) {
		t.Fatalf("run: %v", err)
	}
	unavailable("afterwards")
	l.Close()
	if err := <-written; !errors.Is(err, ledger.ErrClosed) {
		t.Errorf("what was recorded: %v", err)
	}
}

// What one record of a batch waits for keeps the others back for a little while only.
func TestOneLockedRowHoldsUpItsOwnRecord(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url, Writers: 1, BatchTimeout: 200 * time.Millisecond, Linger: 50 * time.Millisecond})
	list := make([]*notification.Notification, 16)
	var fresh, records []ledger.Record
	for i := range list {
		list[i] = ledgertest.Plain(i, ledgertest.Start)
		fresh = append(fresh, ledger.Record{Notification: list[i], New: true})
		records = append(records, ledger.Record{Notification: ledgertest.Delivered(list[i], ledgertest.Start)})
	}
	reserve(t, l, list)
	mustRecord(t, l, fresh)
	locked := len(list) - 1 // behind it in the lane nothing goes on
	blocker, err := connect(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), `select from notifications where id = $1 for update`, [16]byte(list[locked].ID)); err != nil {
		t.Fatal(err)
	}
	others, last := make(chan error, len(list)), make(chan error, 1)
	for i, r := range records {
		to := others
		if i == locked {
			to = last
		}
		l.Record(t.Context(), r, func(err error) { to <- err })
	}
	for range locked {
		select {
		case err := <-others:
			if err != nil {
				t.Error(err)
			}
		case err := <-last:
			t.Fatalf("the locked one was written: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal("the others wait")
		}
	}
	if err := blocker.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-last; err != nil {
		t.Error(err)
	}
}
