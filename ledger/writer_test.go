package ledger_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
)

func reserve(tb testing.TB, l *ledger.Postgres, list []*notification.Notification) {
	tb.Helper()
	for len(list) > 0 {
		part := list[:min(1000, len(list))]
		list = list[len(part):]
		var wanted []ledger.Reservation
		for _, n := range part {
			wanted = append(wanted, ledger.Reservation{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt})
		}
		if _, err := l.Reserve(tb.Context(), wanted); err != nil {
			tb.Fatal(err)
		}
	}
}

// recordAll submits records in order and waits for all.
func recordAll(tb testing.TB, l *ledger.Postgres, records []ledger.Record) []error {
	tb.Helper()
	errs := make([]error, len(records))
	var all sync.WaitGroup
	all.Add(len(records))
	for i, r := range records {
		l.Record(tb.Context(), r, func(err error) {
			errs[i] = err
			all.Done()
		})
	}
	all.Wait()
	return errs
}

func mustRecord(tb testing.TB, l *ledger.Postgres, records []ledger.Record) {
	tb.Helper()
	if err := errors.Join(recordAll(tb, l, records)...); err != nil {
		tb.Fatal(err)
	}
}

// newRecords are fresh notifications with one attempt each.
func newRecords(count int, at time.Time) ([]*notification.Notification, []ledger.Record) {
	list := make([]*notification.Notification, count)
	records := make([]ledger.Record, count)
	for i := range count {
		n := ledgertest.Plain(i, at)
		n = ledgertest.Delivered(n, at.Add(time.Second))
		list[i] = n
		records[i] = ledger.Record{Notification: n, New: true, Attempts: []notification.Attempt{ledgertest.BareAttempt(n, 1)}}
	}
	return list, records
}

func TestCopyMeetsRowsThatAreThere(t *testing.T) {
	l := openLedger(t, ledger.Config{URL: shared.database(t)})
	list, records := newRecords(500, ledgertest.Start)
	reserve(t, l, list)
	mustRecord(t, l, records[100:101])
	mustRecord(t, l, records) // one of them, its attempt included, was written before
	mustRecord(t, l, records) // a whole batch whose first answer was lost
	for _, i := range []int{0, 100, 499} {
		n, attempts, err := l.Find(t.Context(), list[i].ID)
		if err != nil || len(attempts) != 1 {
			t.Fatalf("%d attempts, %v", len(attempts), err)
		}
		if diff := cmp.Diff(list[i], n, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestPoisonGoesToQuarantineAlone(t *testing.T) {
	l := openLedger(t, ledger.Config{URL: shared.database(t), Writers: 1})
	list, records := newRecords(300, ledgertest.Start)
	poison := map[int]func(*notification.Notification){
		7:   func(n *notification.Notification) { n.Labels = nil; n.OrderStatus = "a\x00b" },
		8:   func(n *notification.Notification) { n.OrderID = "\xff\xfe" },
		150: func(n *notification.Notification) { n.OrderID = incompressible(9000) }, // too long for its index
		151: func(n *notification.Notification) { n.Attempts = 1 << 40 },
		299: func(n *notification.Notification) { n.AcceptedAt = time.Time{} },
	}
	reserve(t, l, list)
	for i, change := range poison {
		n := *list[i]
		change(&n)
		records[i].Notification = &n
	}
	for i, err := range recordAll(t, l, records) {
		var quarantined *ledger.QuarantinedError
		switch {
		case poison[i] == nil && err != nil:
			t.Errorf("neighbour %d: %v", i, err)
		case poison[i] != nil && (!errors.As(err, &quarantined) || quarantined.ID != list[i].ID):
			t.Errorf("poison %d: %v", i, err)
		case poison[i] == nil:
			if _, attempts, err := l.Find(t.Context(), list[i].ID); err != nil || len(attempts) != 1 {
				t.Errorf("neighbour %d: %d attempts, %v", i, len(attempts), err)
			}
		}
	}
	kept, err := l.Quarantine(t.Context(), 0, 100)
	if err != nil || len(kept) != len(poison) {
		t.Fatalf("%d in quarantine, %v", len(kept), err)
	}
	for _, q := range kept {
		found := false
		for i := range poison {
			found = found || cmp.Equal(records[i], q.Record, cmpopts.EquateEmpty())
		}
		if !found || q.Reason == "" {
			t.Errorf("quarantine changed a record: %+v", q)
		}
	}
}

// incompressible text, so that Postgres cannot squeeze it into an index.
func incompressible(size int) string {
	var out strings.Builder
	for out.Len() < size {
		out.WriteString(ledgertest.Key().String())
	}
	return out.String()
}

func TestWhatMerchantsAnswerIsStoredVisibly(t *testing.T) {
	l := openLedger(t, ledger.Config{URL: shared.database(t)})
	n := ledgertest.Plain(1, ledgertest.Start)
	reserve(t, l, []*notification.Notification{n})
	a := ledgertest.BareAttempt(n, 1)
	a.Detail, a.Request.URL, a.RemoteAddr, a.TLS = "reset\x00by", "https://x/\xff", "\x00", "é\xe9"
	a.KeyIDs = []string{"\x00"}
	a.Response = &notification.Response{Status: 200, Headers: []notification.Header{{Name: "x\xff", Value: "\x00支付"}}, Body: []byte{0, 0xff}}
	mustRecord(t, l, []ledger.Record{{Notification: n, New: true, Attempts: []notification.Attempt{a}}})
	_, attempts, err := l.Find(t.Context(), n.ID)
	if err != nil {
		t.Fatal(err)
	}
	want := a
	want.Detail, want.Request.URL, want.RemoteAddr, want.TLS = `reset\x00by`, `https://x/\xff`, `\x00`, `é\xe9`
	want.KeyIDs = []string{`\x00`}
	want.Response = &notification.Response{Status: 200, Headers: []notification.Header{{Name: `x\xff`, Value: `\x00支付`}}, Body: []byte{0, 0xff}}
	if diff := cmp.Diff([]notification.Attempt{want}, attempts, cmpopts.EquateEmpty()); diff != "" {
		t.Fatal(diff)
	}
}

// What is new and what follows it are written in one transaction, also by a session that has not upserted before.
func TestANewRowAndItsNextSnapshotInOneBatch(t *testing.T) {
	seen, logs := observer.New(zap.WarnLevel)
	l := openLedger(t, ledger.Config{URL: shared.database(t), Writers: 1, Linger: 200 * time.Millisecond, Log: zap.New(seen)})
	list, records := newRecords(1, ledgertest.Start)
	reserve(t, l, list)
	accepted := *ledgertest.Plain(0, ledgertest.Start)
	mustRecord(t, l, []ledger.Record{{Notification: &accepted, New: true, Patient: true}, records[0]})
	n, attempts, err := l.Find(t.Context(), list[0].ID)
	if err != nil || n.State != notification.StateDelivered || len(attempts) != 1 || logs.Len() > 0 {
		t.Errorf("%v, %d attempts, %v; logged %v", n, len(attempts), err, logs.All())
	}
}

// A killed Postgres comes back: nothing that was submitted is lost, doubled or told to have failed.
func TestWritersSurviveARestart(t *testing.T) {
	s := ownServer(t)
	l := openLedger(t, ledger.Config{URL: s.URL(), BatchRows: 50, Linger: -1})
	const count = 4000
	list, records := newRecords(count, ledgertest.Start)
	reserve(t, l, list)
	var told, failed atomic.Int64
	some, all := make(chan struct{}), make(chan struct{})
	go func() {
		for _, r := range records {
			l.Record(t.Context(), r, func(err error) {
				if err != nil {
					t.Error(err)
					failed.Add(1)
				}
				switch told.Add(1) {
				case count / 10:
					close(some)
				case count:
					close(all)
				}
			})
		}
	}()
	waitFor(t, "the first records", some)
	s.crash(t)
	if told.Load() == count {
		t.Skip("all were written before Postgres was killed")
	}
	waitFor(t, "all records", all)
	var rows, attempts int
	admin := connect(t, s.URL())
	if err := admin.QueryRow(t.Context(), `select (select count(*) from notifications), (select count(*) from attempts)`).Scan(&rows, &attempts); err != nil {
		t.Fatal(err)
	}
	if s.Restarts() == 0 {
		t.Error("Postgres was not killed")
	}
	if rows != count || attempts != count || failed.Load() != 0 {
		t.Fatalf("%d rows, %d attempts, %d failed, want %d, %[4]d, 0", rows, attempts, failed.Load(), count)
	}
	if _, err := l.Reserve(t.Context(), []ledger.Reservation{{ID: ledgertest.Key(), AcceptedAt: ledgertest.Start}}); err != nil {
		t.Fatalf("the first reservation after a restart: %v", err)
	}
}

func TestRunDrainsWhatWasSubmitted(t *testing.T) {
	l, err := ledger.Open(t.Context(), ledger.Config{URL: shared.database(t), Keys: testKeys})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	list, records := newRecords(1000, ledgertest.Start)
	reserve(t, l, list)
	var all sync.WaitGroup
	all.Add(len(records))
	for _, r := range records { // nobody writes yet
		l.Record(t.Context(), r, func(err error) {
			if err != nil {
				t.Error(err)
			}
			all.Done()
		})
	}
	if l.Queued() != len(records) {
		t.Fatalf("%d are queued", l.Queued())
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if err := l.Run(ended); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	found, err := l.FindMany(t.Context(), []notification.ID{list[0].ID, list[999].ID})
	if err != nil || len(found) != 2 {
		t.Fatalf("found %d, %v", len(found), err)
	}
	if errs := recordAll(t, l, records[:1]); !errors.Is(errs[0], ledger.ErrClosed) {
		t.Fatalf("recorded after the end: %v", errs[0])
	}
}

// While Postgres is away records wait; the end of the drain tells their owners, who keep them elsewhere.
func TestDrainEndsWithoutPostgres(t *testing.T) {
	s := ownServer(t)
	l, err := ledger.Open(t.Context(), ledger.Config{URL: s.URL(), Keys: testKeys, Drain: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.stop(t)
	_, records := newRecords(10, ledgertest.Start)
	ctx, stop := context.WithCancel(t.Context())
	var errs [10]error
	var all sync.WaitGroup
	all.Add(len(records))
	for i, r := range records {
		l.Record(ctx, r, func(err error) { errs[i] = err; all.Done() })
	}
	stop()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for _, err := range errs {
		if !errors.Is(err, ledger.ErrClosed) {
			t.Fatalf("want ErrClosed, got %v", err)
		}
	}
}

func TestRecordBlocksWhileTheQueueIsFull(t *testing.T) {
	l, err := ledger.Open(t.Context(), ledger.Config{URL: shared.database(t), Keys: testKeys, QueueBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	n := ledgertest.Plain(1, ledgertest.Start)
	n.Body = make([]byte, 2<<20) // more than the whole queue: it goes alone
	ctx, stop := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	l.Record(ctx, ledger.Record{Notification: n, New: true}, func(err error) { first <- err })
	go l.Record(ctx, ledger.Record{Notification: n, New: true}, func(err error) { second <- err })
	select {
	case err := <-second:
		t.Fatalf("it did not block: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	stop()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	l.Close() // nobody ever ran it
	if err := <-first; !errors.Is(err, ledger.ErrClosed) {
		t.Fatal(err)
	}
}
