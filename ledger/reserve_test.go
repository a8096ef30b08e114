package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

func wanted() ledger.Reservation {
	return ledger.Reservation{ID: ledgertest.Key(), AcceptedAt: ledgertest.Start}
}

// A payment service hears of a Postgres that hangs in time, also one that has to wait for a commit that hangs; and when
// Postgres goes on, so does everything, by itself.
func TestReserveGivesUp(t *testing.T) {
	const timeout = 300 * time.Millisecond
	for name, hang := range map[string]func(t *testing.T, s *server) (goOn func()){
		"a lock": func(t *testing.T, s *server) func() {
			blocker, err := connect(t, s.URL()).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := blocker.Exec(t.Context(), `lock table reservations in access exclusive mode`); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := blocker.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		},
		"stopped": stopProcesses,
	} {
		t.Run(name, func(t *testing.T) {
			s := ownServer(t)
			l := openLedger(t, ledger.Config{URL: s.URL(), ReserveTimeout: timeout})
			goOn := hang(t, s)
			first := wanted()
			type answer struct {
				err  error
				took time.Duration
			}
			answers := make(chan answer, 20)
			for i := range cap(answers) {
				r := wanted()
				if i == 0 {
					r = first
				}
				go func() {
					began := time.Now()
					_, err := l.Reserve(t.Context(), []ledger.Reservation{r})
					answers <- answer{err, time.Since(began)}
				}()
			}
			for range cap(answers) {
				if a := <-answers; !errors.Is(a.err, context.DeadlineExceeded) || a.took > 5*timeout {
					t.Errorf("%v after %s", a.err, a.took)
				}
			}
			goOn()
			// Whether the first one took effect is not known: whoever submits it again learns which.
			var reserved []ledger.Reserved
			again := func() (err error) {
				reserved, err = l.Reserve(t.Context(), []ledger.Reservation{first})
				return err
			}
			poll(t, "a reservation afterwards", func() bool { return again() == nil })
			poll(t, "the same once more", func() bool { return again() == nil })
			if reserved[0].Fresh {
				t.Error("reserved twice")
			}
		})
	}
}

// stopProcesses stops Postgres in its tracks: the postmaster, and every session, each of which is a process.
func stopProcesses(t *testing.T, s *server) (goOn func()) {
	t.Helper()
	admin := connect(t, s.URL())
	pids := []int{s.PID()}
	if err := syscall.Kill(s.PID(), syscall.SIGSTOP); err != nil { // no session is added to those that are listed
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(s.PID(), syscall.SIGCONT) })
	rows, err := admin.Query(t.Context(), `select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if err := rows.Err(); err != nil || len(pids) < 2 {
		t.Fatalf("sessions %v, %v", pids[1:], err)
	}
	signal := func(sig syscall.Signal) error {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				return fmt.Errorf("signal %d: %w", pid, err)
			}
		}
		return nil
	}
	goOn = func() {
		if err := signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { _ = signal(syscall.SIGCONT) })
	if err := signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return goOn
}

// What callers have given up before its commit began is not reserved for nobody.
func TestReserveForNobody(t *testing.T) {
	l := openLedger(t, ledger.Config{URL: shared.database(t)})
	gone, leave := context.WithCancel(t.Context())
	leave()
	abandoned, other := wanted(), wanted()
	if _, err := l.Reserve(gone, []ledger.Reservation{abandoned}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, r := range []ledger.Reservation{other, abandoned} { // commits are made one after the other
		if reserved, err := l.Reserve(t.Context(), []ledger.Reservation{r}); err != nil || !reserved[0].Fresh {
			t.Errorf("%v, %v", reserved, err)
		}
	}
}
