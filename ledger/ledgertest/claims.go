package ledgertest

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

func claimVerdicts(f *fixture) {
	n := Plain(1, Start)
	until := Start.Add(time.Minute)
	expect := func(what string, c ledger.Claim, want ledger.ClaimVerdict, wantUntil time.Time) {
		f.Helper()
		v, at, err := f.Claim(f.Context(), c)
		f.must(err)
		if v != want || !at.Equal(wantUntil) {
			f.Fatalf("%s: verdict %d until %s, want %d until %s", what, v, at, want, wantUntil)
		}
	}
	expect("nothing", claimOf(n, until), ledger.ClaimNoRow, time.Time{})
	f.reserve(n)
	expect("reserved", claimOf(n, until), ledger.ClaimNoRow, time.Time{})
	n = Tried(n, Start, Start.Add(time.Second))
	f.record(ledger.Record{Notification: n, New: true})

	older, newer := claimOf(n, until), claimOf(n, until)
	older.Attempts--
	newer.Attempts++
	expect("older", older, ledger.ClaimStale, time.Time{})
	expect("newer", newer, ledger.ClaimBehind, time.Time{})
	newer.Attempts, newer.Generation = 0, 1
	expect("newer generation", newer, ledger.ClaimBehind, time.Time{})

	expect("first", claimOf(n, until), ledger.ClaimGranted, until)
	expect("second", claimOf(n, until.Add(time.Hour)), ledger.ClaimBusy, until)
	f.clock.advance(2 * time.Minute)
	until = until.Add(10 * time.Minute)
	expect("after the lapse", claimOf(n, until), ledger.ClaimGrantedAfterLapse, until)
	expect("busy again", claimOf(n, until), ledger.ClaimBusy, until)

	delivered := Delivered(n, Start.Add(3*time.Minute))
	f.record(ledger.Record{Notification: delivered})
	expect("its older generation", claimOf(n, until), ledger.ClaimStale, time.Time{})
	expect("delivered", claimOf(delivered, until), ledger.ClaimStale, time.Time{})
	allowed := claimOf(delivered, until)
	allowed.AllowFinal = true
	resumed := allowed
	resumed.OnlyLapsed = true
	expect("delivered, its resend on record", resumed, ledger.ClaimStale, time.Time{})
	expect("delivered, resent", allowed, ledger.ClaimGranted, until)
	expect("delivered, its resend under way", resumed, ledger.ClaimBusy, until)
	f.clock.advance(20 * time.Minute)
	resumed.Until = until.Add(time.Hour)
	expect("delivered, its resend lapsed", resumed, ledger.ClaimGrantedAfterLapse, resumed.Until)

	dead := f.accept(With(Plain(2, Start), func(p *notification.Progress) {
		p.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, Start)
	}))
	allowed = claimOf(dead, until)
	allowed.AllowFinal = true
	expect("dead", allowed, ledger.ClaimStale, time.Time{})
}

// claimEndedByRecord: an outcome ends a claim; a repeated or an older record, or one that only says where it waits, does not.
func claimEndedByRecord(f *fixture) {
	n := f.accept(Tried(Plain(1, Start), Start, Start.Add(time.Second)))
	until := Start.Add(time.Minute)
	if v, _ := f.claim(n, until); v != ledger.ClaimGranted {
		f.Fatalf("first claim: %d", v)
	}
	f.record(ledger.Record{Notification: n})
	f.record(ledger.Record{Notification: Plain(1, Start)})
	if v, _ := f.claim(n, until); v != ledger.ClaimBusy {
		f.Fatalf("after a repeated record: %d", v)
	}
	deferred := With(n, func(p *notification.Progress) {
		p.State, p.Reason, p.UpdatedAt = notification.StateHeld, notification.ReasonBreakerOpen, Start.Add(time.Second)
	})
	f.record(ledger.Record{Notification: deferred})
	if v, _ := f.claim(n, until); v != ledger.ClaimBusy {
		f.Fatalf("after a deferral: %d", v)
	}
	tried := Tried(deferred, Start.Add(2*time.Second), Start.Add(time.Minute))
	f.record(ledger.Record{Notification: tried})
	if v, _ := f.claim(tried, until); v != ledger.ClaimGranted {
		f.Fatalf("after an outcome: %d", v)
	}
}

func claimRace(f *fixture) {
	n := f.accept(Plain(1, Start))
	var granted, busy atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			switch v, _ := f.claim(n, Start.Add(time.Minute)); v {
			case ledger.ClaimGranted:
				granted.Add(1)
			case ledger.ClaimBusy:
				busy.Add(1)
			case ledger.ClaimGrantedAfterLapse, ledger.ClaimStale, ledger.ClaimNoRow, ledger.ClaimBehind:
			}
		})
	}
	all.Wait()
	f.same("granted and busy", []int64{granted.Load(), busy.Load()}, []int64{1, 49})
}

func cancel(f *fixture) {
	n := f.accept(Tried(Plain(1, Start), Start, Start.Add(time.Hour)))
	now := Start.Add(time.Second)
	if err := second(f.Cancel(f.Context(), Plain(9, Start).ID, "alice", now)); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("cancel nothing: %v", err)
	}
	f.claim(n, Start.Add(time.Minute))
	if err := second(f.Cancel(f.Context(), n.ID, "alice", now)); !errors.Is(err, ledger.ErrInFlight) {
		f.Fatalf("cancel in flight: %v", err)
	}
	now = Start.Add(2 * time.Minute)
	got, err := f.Cancel(f.Context(), n.ID, "alice", now)
	f.must(err)
	want := With(n, func(p *notification.Progress) {
		p.Generation++
		p.Settle(notification.StateCanceled, notification.ReasonCanceled, notification.SettledByOperator, now)
	})
	f.same("canceled", got, want)
	f.same("canceled, found", f.find(n.ID), want)
	if err := second(f.Cancel(f.Context(), n.ID, "alice", now)); !errors.Is(err, ledger.ErrFinal) {
		f.Fatalf("cancel twice: %v", err)
	}
	f.record(ledger.Record{Notification: Tried(n, now, now)}) // what was in hand when it was canceled
	f.same("canceled, still", f.find(n.ID), want)
	if v, _ := f.claim(n, now.Add(time.Minute)); v != ledger.ClaimStale {
		f.Fatalf("claim of a canceled one: %d", v)
	}
}

func resend(f *fixture) {
	dead := f.accept(With(Plain(1, Start), func(p *notification.Progress) {
		p.Attempts, p.Step, p.WindowFrom, p.DeferredFor = 12, 11, Start, time.Minute
		p.Settle(notification.StateDead, notification.ReasonScheduleExhausted, notification.SettledBySchedule, Start)
	}))
	delivered := f.accept(Delivered(Plain(2, Start), Start))
	now := Start.Add(time.Second)
	if err := second(f.Resend(f.Context(), Plain(9, Start).ID, "alice", now)); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("resend nothing: %v", err)
	}
	got, err := f.Resend(f.Context(), dead.ID, "alice", now)
	f.must(err)
	want := With(dead, func(p *notification.Progress) {
		*p = notification.Progress{
			State: notification.StateRetrying, Reason: notification.ReasonResend, Generation: 1, Attempts: 12,
			NextAt: now.Add(ledger.ResendLease), UpdatedAt: now,
		}
	})
	f.same("dead", got, want)
	f.same("dead, found", f.find(dead.ID), want)

	got, err = f.Resend(f.Context(), delivered.ID, "alice", now)
	f.must(err)
	want = With(delivered, func(p *notification.Progress) { p.Generation, p.UpdatedAt = 1, now })
	f.same("delivered", got, want)

	// Nobody published the dead one's: fed already, so the backstop has it, and nothing else.
	fed, err := f.Feed(f.Context(), now.Add(time.Hour), 10)
	f.must(err)
	f.same("fed", len(fed), 0)
	found, err := f.Rescue(f.Context(), now.Add(time.Hour), now.Add(time.Hour), 10)
	f.must(err)
	if len(found) != 1 || found[0].ID != dead.ID || found[0].Generation != 2 {
		f.Fatalf("rescued %v", found)
	}

	f.claim(found[0], now.Add(time.Minute))
	if err := second(f.Resend(f.Context(), dead.ID, "alice", now)); !errors.Is(err, ledger.ErrInFlight) {
		f.Fatalf("resend in flight: %v", err)
	}
}

// operateRace: of a cancellation, a resend and a claim of the same generation exactly one happens first, and the others
// see it.
func operateRace(f *fixture) {
	for i := range 20 {
		n := f.accept(Plain(i, Start))
		var canceled, resent error
		var verdict ledger.ClaimVerdict
		var all sync.WaitGroup
		all.Go(func() { canceled = second(f.Cancel(f.Context(), n.ID, "alice", Start)) })
		all.Go(func() { resent = second(f.Resend(f.Context(), n.ID, "bob", Start)) })
		all.Go(func() { verdict, _ = f.claim(n, Start.Add(time.Minute)) })
		all.Wait()
		got := f.find(n.ID)
		switch verdict {
		case ledger.ClaimGranted:
			if !errors.Is(canceled, ledger.ErrInFlight) || !errors.Is(resent, ledger.ErrInFlight) || got.Generation != 0 {
				f.Fatalf("granted, yet canceled %v, resent %v, generation %d", canceled, resent, got.Generation)
			}
		case ledger.ClaimStale:
			// The resend always goes through then; the cancellation as well, before it or after it.
			if resent != nil || canceled != nil || got.Generation != 2 {
				f.Fatalf("stale, canceled %v, resent %v, generation %d", canceled, resent, got.Generation)
			}
		case ledger.ClaimGrantedAfterLapse, ledger.ClaimBusy, ledger.ClaimNoRow, ledger.ClaimBehind:
			f.Fatalf("verdict %d", verdict)
		}
	}
}
