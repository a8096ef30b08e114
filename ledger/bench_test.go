package ledger_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
	"notifyd/notification"
)

const benchRows = 20_000

// BenchmarkRecordNew writes 20,000 new notifications of 1 KiB with one attempt each: the fast path. It runs on a server
// that syncs every commit.
func BenchmarkRecordNew(b *testing.B) {
	benchmarkRecord(b, func(l *ledger.Postgres, round int) []ledger.Record {
		list, records := benchRecords(round)
		reserve(b, l, list)
		return records
	})
}

// BenchmarkRecordRetry writes the second attempt of rows that are there: the upsert.
func BenchmarkRecordRetry(b *testing.B) {
	benchmarkRecord(b, func(l *ledger.Postgres, round int) []ledger.Record {
		list, records := benchRecords(round)
		reserve(b, l, list)
		for i, r := range records {
			n := ledgertest.Tried(r.Notification, r.Notification.AcceptedAt, r.Notification.AcceptedAt.Add(time.Hour))
			n.SettledAt, n.SettledBy = time.Time{}, ""
			records[i].Notification = n
		}
		mustRecord(b, l, records)
		for i, r := range records {
			n := ledgertest.Delivered(r.Notification, r.Notification.AcceptedAt.Add(time.Minute))
			records[i] = ledger.Record{Notification: n, Attempts: []notification.Attempt{ledgertest.BareAttempt(n, 2)}}
		}
		return records
	})
}

// BenchmarkReserve reserves 20,000 ids from 64 callers, one by one.
func BenchmarkReserve(b *testing.B) {
	l := benchServer(b)
	round := 0
	for b.Loop() {
		b.StopTimer()
		list, _ := benchRecords(round)
		round++
		b.StartTimer()
		before := cpu(b)
		each(list, func(n *notification.Notification) {
			if _, err := l.Reserve(b.Context(), []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}}); err != nil {
				b.Error(err)
			}
		})
		report(b, before)
	}
}

// BenchmarkClaim claims 20,000 rows from 64 callers, one by one.
func BenchmarkClaim(b *testing.B) {
	l := benchServer(b)
	round := 0
	for b.Loop() {
		b.StopTimer()
		list, records := benchRecords(round)
		round++
		for i, n := range list {
			n.State = notification.StateRetrying
			records[i].Notification = n
		}
		reserve(b, l, list)
		mustRecord(b, l, records)
		b.StartTimer()
		before := cpu(b)
		each(list, func(n *notification.Notification) {
			c := ledger.Claim{ID: n.ID, AcceptedAt: n.AcceptedAt, Attempts: n.Attempts, Until: time.Now().Add(time.Minute)}
			if v, _, err := l.Claim(b.Context(), c); err != nil || v != ledger.ClaimGranted {
				b.Error(v, err)
			}
		})
		report(b, before)
	}
}

// BenchmarkFew writes what a call waits for, a few at a time as they come together in the sync lane: what a transaction
// costs beside its rows. Nothing lingers.
func BenchmarkFew(b *testing.B) {
	for _, few := range []int{1, 5, 20} {
		reservations := make([]ledger.Reservation, few)
		b.Run(fmt.Sprintf("reserve %d", few), func(b *testing.B) {
			benchmarkFew(b, few, func(l *ledger.Postgres, _ []ledger.Record, list []*notification.Notification) {
				for i, n := range list {
					reservations[i] = ledger.Reservation{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}
				}
				if _, err := l.Reserve(b.Context(), reservations); err != nil {
					b.Fatal(err)
				}
			})
		})
		b.Run(fmt.Sprintf("record %d", few), func(b *testing.B) {
			benchmarkFew(b, few, func(l *ledger.Postgres, records []ledger.Record, _ []*notification.Notification) {
				mustRecord(b, l, records)
			})
		})
	}
}

func benchmarkFew(b *testing.B, few int, write func(*ledger.Postgres, []ledger.Record, []*notification.Notification)) {
	b.Helper()
	benched = ownServer(b)
	l := openLedger(b, ledger.Config{URL: benched.URL(), Linger: -1})
	list, records := benchRecords(0)
	at := 0
	next := func() int {
		from := at
		at = (at + few) % (benchRows - few) // a benchmark that outlasts them writes some again
		return from
	}
	for range 100 { // connections, plans and the day's tables
		i := next()
		write(l, records[i:i+few], list[i:i+few])
	}
	before, writes := cpu(b), 0
	for b.Loop() {
		i := next()
		write(l, records[i:i+few], list[i:i+few])
		writes++
	}
	after := cpu(b)
	b.ReportMetric(float64((after.own-before.own).Microseconds())/float64(writes), "client-µs/write")
	b.ReportMetric(float64((after.server-before.server).Microseconds())/float64(writes), "postgres-µs/write")
}

func benchServer(b *testing.B) *ledger.Postgres {
	b.Helper()
	benched = ownServer(b)
	return openLedger(b, ledger.Config{URL: benched.URL()})
}

var benched *server

func benchmarkRecord(b *testing.B, prepare func(*ledger.Postgres, int) []ledger.Record) {
	b.Helper()
	l := benchServer(b)
	round := 0
	for b.Loop() {
		b.StopTimer()
		records := prepare(l, round)
		round++
		b.StartTimer()
		before := cpu(b)
		mustRecord(b, l, records)
		report(b, before)
	}
}

func benchRecords(round int) ([]*notification.Notification, []ledger.Record) {
	list, records := make([]*notification.Notification, benchRows), make([]ledger.Record, benchRows)
	for i := range benchRows {
		n := ledgertest.Plain(round*benchRows+i, ledgertest.Start.Add(time.Duration(round*benchRows+i)*100*time.Microsecond))
		n.MerchantID = fmt.Sprintf("merchant-%d", i%1000)
		n.Body = []byte(strings.Repeat(n.ID.String(), 34)) // about 1 KiB
		list[i] = ledgertest.Delivered(n, n.AcceptedAt)
		a := ledgertest.FullAttempt(1, n.AcceptedAt)
		a.Request.Body, a.Response.Body = n.Body, []byte(`{"code":"SUCCESS"}`)
		records[i] = ledger.Record{Notification: list[i], New: true, Attempts: []notification.Attempt{a}}
	}
	return list, records
}

func each(list []*notification.Notification, do func(*notification.Notification)) {
	var callers sync.WaitGroup
	for c := range 64 {
		callers.Go(func() {
			for i := c; i < len(list); i += 64 {
				do(list[i])
			}
		})
	}
	callers.Wait()
}

type usage struct{ own, server, wall time.Duration }

func report(b *testing.B, before usage) {
	b.Helper()
	after := cpu(b)
	b.ReportMetric(benchRows/(after.wall-before.wall).Seconds(), "rows/s")
	b.ReportMetric(float64((after.own-before.own).Microseconds())/benchRows, "client-µs/row")
	b.ReportMetric(float64((after.server-before.server).Microseconds())/benchRows, "postgres-µs/row")
}

var began = time.Now()

// cpu is what this process and all of the benchmark's Postgres have used so far.
func cpu(b *testing.B) usage {
	b.Helper()
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	u := usage{own: time.Duration(own.Utime.Nano() + own.Stime.Nano()), wall: time.Since(began)}
	folders, _ := os.ReadDir("/proc")
	for _, f := range folders {
		if cwd, err := os.Readlink("/proc/" + f.Name() + "/cwd"); err != nil || cwd != filepath.Join(benched.dir, "pg", "data") {
			continue
		}
		stat, err := os.ReadFile("/proc/" + f.Name() + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, ticks := range fields[11:15] { // utime, stime and those of ended children
			t, _ := strconv.ParseInt(ticks, 10, 64)
			u.server += time.Duration(t) * (time.Second / 100)
		}
	}
	return u
}
