package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"notifyd/ledger"
	"notifyd/notification"
)

func (f *fixture) same(what string, got, want any) {
	f.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		f.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func reserveRace(f *fixture) {
	n := Plain(1, Start)
	var fresh atomic.Int64
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			ask := []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt.Add(time.Duration(i) * time.Second)}}
			reserved, err := f.Reserve(f.Context(), ask)
			if err != nil {
				f.Error(err)
				return
			}
			if reserved[0].Fresh {
				fresh.Add(1)
			}
		})
	}
	all.Wait()
	if fresh.Load() != 1 {
		f.Fatalf("%d of 100 callers were fresh", fresh.Load())
	}
}

func reserveAnswers(f *fixture) {
	a, b := Plain(1, Start), Plain(2, Start.Add(time.Second+999*time.Nanosecond))
	ask := func(n *notification.Notification, digest byte) ledger.Reservation {
		return ledger.Reservation{ID: n.ID, Digest: [32]byte{digest}, AcceptedAt: n.AcceptedAt}
	}
	first, err := f.Reserve(f.Context(), []ledger.Reservation{ask(a, 1), ask(b, 2), ask(a, 3)})
	f.must(err)
	f.same("first", first, []ledger.Reserved{
		{Fresh: true, Digest: [32]byte{1}, AcceptedAt: a.AcceptedAt},
		{Fresh: true, Digest: [32]byte{2}, AcceptedAt: b.AcceptedAt},
		{Digest: [32]byte{1}, AcceptedAt: a.AcceptedAt},
	})
	c := Plain(3, Start)
	second, err := f.Reserve(f.Context(), []ledger.Reservation{ask(b, 9), ask(c, 4), ask(a, 9)})
	f.must(err)
	f.same("second", second, []ledger.Reserved{
		{Digest: [32]byte{2}, AcceptedAt: b.AcceptedAt},
		{Fresh: true, Digest: [32]byte{4}, AcceptedAt: c.AcceptedAt},
		{Digest: [32]byte{1}, AcceptedAt: a.AcceptedAt},
	})
}

// reserveOverMidnight: accepted in the last moment of a day, submitted again in the next one: one row, in the first's
// partition, whichever copy makes it and whatever day that one says.
func reserveOverMidnight(f *fixture) {
	midnight := Start.Truncate(24 * time.Hour).Add(24 * time.Hour)
	f.clock.advance(midnight.Add(-100 * time.Millisecond).Sub(Start))
	for i, claims := range []bool{true, false} {
		first := Plain(i, midnight.Add(-100*time.Millisecond))
		f.reserve(first)
		f.clock.advance(200 * time.Millisecond)
		again := Plain(i, midnight.Add(100*time.Millisecond))
		reserved, err := f.Reserve(f.Context(), []ledger.Reservation{{ID: again.ID, Digest: again.Digest, AcceptedAt: again.AcceptedAt}})
		f.must(err)
		f.same("submitted again", reserved, []ledger.Reserved{{Digest: first.Digest, AcceptedAt: first.AcceptedAt}})

		until := midnight.Add(time.Minute)
		if claims {
			f.verdict("the second copy", claimBy("run", again, until), ledger.ClaimGranted)
			f.verdict("the first copy", claimBy("run", first, until), ledger.ClaimBusy)
		}
		tried := Tried(again, midnight.Add(time.Second), midnight.Add(time.Hour))
		f.record(ledger.Record{Notification: tried, New: true, Unreserved: true, Attempts: []notification.Attempt{BareAttempt(again, 1)}})
		f.verdict("the first copy, after an attempt of the second", claimBy("run", first, until), ledger.ClaimStale)
		f.same("accepted", f.find(first.ID).AcceptedAt, first.AcceptedAt)
		f.clock.advance(-200 * time.Millisecond)
	}
	list, _, err := f.List(f.Context(), ledger.Filter{}, 10, ledger.Cursor{})
	f.must(err)
	f.same("rows", len(list), 2)
}

func recordRoundTrip(f *fixture) {
	full, plain := Full(1, Start), Plain(2, Start.Add(-26*time.Hour))
	withBody := BareAttempt(plain, 1)
	withoutBody := BareAttempt(plain, 2)
	withoutBody.Request.Body = nil
	emptyAnswer := BareAttempt(plain, 3)
	emptyAnswer.Response = &notification.Response{Status: 204}
	fullAttempt := FullAttempt(1, Start)
	f.reserve(full, plain)
	f.record(ledger.Record{Notification: full, New: true, Attempts: []notification.Attempt{fullAttempt}},
		ledger.Record{Notification: plain, Attempts: []notification.Attempt{withBody, withoutBody, emptyAnswer}})

	got, attempts, err := f.Find(f.Context(), full.ID)
	f.must(err)
	f.same("full", got, full)
	f.same("full's attempts", attempts, []notification.Attempt{fullAttempt})
	got, attempts, err = f.Find(f.Context(), plain.ID)
	f.must(err)
	f.same("plain", got, plain)
	f.same("plain's attempts", attempts, []notification.Attempt{withBody, withoutBody, emptyAnswer})
}

// recordMonotone writes the same four snapshots in every order, one by one and all at once, and some of them twice.
func recordMonotone(f *fixture) {
	for i, order := range permutations(4) {
		for _, together := range []bool{false, true} {
			n := Plain(2*i+map[bool]int{true: 1}[together], Start)
			first := Tried(n, Start.Add(time.Second), Start.Add(time.Minute))
			deferred := With(first, func(p *notification.Progress) {
				p.State, p.Reason, p.UpdatedAt = notification.StateHeld, notification.ReasonBreakerOpen, Start.Add(2*time.Second)
			})
			newest := With(n, func(p *notification.Progress) { p.Generation, p.UpdatedAt = 1, Start.Add(time.Millisecond) })
			snapshots := []*notification.Notification{n, first, deferred, newest}
			f.reserve(n)
			var records []ledger.Record
			for _, at := range append(order, order[0]) {
				records = append(records, ledger.Record{Notification: snapshots[at], New: at == 0})
			}
			if together {
				f.record(records...)
			} else {
				for _, r := range records {
					f.record(r)
				}
			}
			f.same(fmt.Sprint(order, together), f.find(n.ID), newest)
		}
	}
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, shorter := range permutations(n - 1) {
		for at := range n {
			p := append([]int{}, shorter[:at]...)
			all = append(all, append(append(p, n-1), shorter[at:]...))
		}
	}
	return all
}

func recordFinal(f *fixture) {
	n := f.accept(Plain(1, Start))
	dead := With(n, func(p *notification.Progress) {
		p.Attempts = 3
		p.Settle(notification.StateDead, notification.ReasonScheduleExhausted, notification.SettledBySchedule, Start.Add(time.Second))
	})
	f.record(ledger.Record{Notification: dead})
	f.record(ledger.Record{Notification: Delivered(dead, Start.Add(time.Minute))}) // the same generation: too late
	f.same("dead", f.find(n.ID), dead)

	// Together: an acknowledgement that an older generation brings home settles an open one, and what comes after it is an
	// attempt and nothing more.
	other := Plain(2, Start)
	other.Generation = 1
	f.accept(other)
	late := Delivered(With(other, func(p *notification.Progress) { p.Generation = 0 }), Start.Add(time.Second))
	otherDead := With(other, func(p *notification.Progress) {
		p.Attempts = 2
		p.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, Start.Add(time.Second))
	})
	f.record(ledger.Record{Notification: late}, ledger.Record{Notification: otherDead})
	told := With(otherDead, func(p *notification.Progress) {
		p.State, p.Reason, p.SettledBy = notification.StateDelivered, late.Reason, late.SettledBy
	})
	f.same("an older generation's delivery", f.find(other.ID), told)

	again := With(dead, func(p *notification.Progress) {
		p.Generation++
		p.State, p.Reason, p.SettledAt, p.SettledBy = notification.StateRetrying, notification.ReasonResend, time.Time{}, ""
	})
	f.record(ledger.Record{Notification: again})
	f.record(ledger.Record{Notification: dead})
	f.same("a new generation", f.find(n.ID), again)
}

func recordDelivered(f *fixture) {
	n := f.accept(Plain(1, Start))
	delivered := Delivered(n, Start.Add(time.Second))
	f.record(ledger.Record{Notification: delivered})
	for _, late := range []*notification.Notification{
		n,
		Tried(n, Start.Add(time.Minute), Start.Add(time.Hour)),
		With(delivered, func(p *notification.Progress) {
			p.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, Start.Add(time.Hour))
		}),
	} {
		f.record(ledger.Record{Notification: late})
		f.same("delivered", f.find(n.ID), delivered)
	}

	// A resend of it that fails counts, and nothing more.
	resent, err := f.Resend(f.Context(), n.ID, "alice", Start.Add(2*time.Hour))
	f.must(err)
	failed := Tried(resent, Start.Add(3*time.Hour), Start.Add(4*time.Hour))
	f.record(ledger.Record{Notification: failed, Attempts: []notification.Attempt{BareAttempt(failed, 2)}})
	got, attempts, err := f.Find(f.Context(), n.ID)
	f.must(err)
	f.same("after a failed resend", got, With(delivered, func(p *notification.Progress) {
		p.Generation, p.Attempts, p.Step, p.UpdatedAt = 1, 2, 1, Start.Add(3*time.Hour)
	}))
	f.same("attempts", len(attempts), 1)
	if fed, err := f.Feed(f.Context(), Start.Add(24*time.Hour), 10); err != nil || len(fed) != 0 {
		f.Fatalf("fed %d of a delivered one, %v", len(fed), err)
	}
	if found, err := f.Rescue(f.Context(), Start.Add(24*time.Hour), Start.Add(24*time.Hour), 10); err != nil || len(found) != 0 {
		f.Fatalf("rescued %d of a delivered one, %v", len(found), err)
	}
}

func recordAttempts(f *fixture) {
	n := f.accept(Plain(1, Start))
	a, b, c := BareAttempt(n, 1), BareAttempt(n, 2), BareAttempt(n, 2) // b and c: two nodes tried at once
	c.StartedAt = c.StartedAt.Add(time.Second)
	tried := Tried(n, Start.Add(time.Second), Start.Add(time.Minute))
	f.record(ledger.Record{Notification: tried, Attempts: []notification.Attempt{b}})
	f.record(ledger.Record{Notification: tried, Attempts: []notification.Attempt{a, b}})
	f.record(ledger.Record{Notification: n, Attempts: []notification.Attempt{c, a}}) // an older snapshot; its attempt still counts
	got, attempts, err := f.Find(f.Context(), n.ID)
	f.must(err)
	f.same("notification", got, tried)
	f.same("attempts", attempts, []notification.Attempt{a, b, c})
}

func recordUnreserved(f *fixture) {
	n := Plain(1, Start)
	f.record(ledger.Record{Notification: n, New: true, Unreserved: true, Attempts: []notification.Attempt{BareAttempt(n, 1)}})
	f.same("unreserved", f.find(n.ID), n)
	reserved, err := f.Reserve(f.Context(), []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: Start.Add(time.Hour)}})
	f.must(err)
	f.same("reservation", reserved, []ledger.Reserved{{Digest: n.Digest, AcceptedAt: n.AcceptedAt}})

	// Another node accepted the same on another day: there is still one notification, under the first acceptance.
	elsewhere := *n
	elsewhere.AcceptedAt = Start.Add(25 * time.Hour)
	delivered := Delivered(&elsewhere, Start.Add(time.Minute))
	f.record(ledger.Record{Notification: delivered, New: true, Unreserved: true, Attempts: []notification.Attempt{BareAttempt(n, 2)}})
	got, attempts, err := f.Find(f.Context(), n.ID)
	f.must(err)
	want := *delivered
	want.AcceptedAt = n.AcceptedAt
	f.same("accepted twice", got, &want)
	f.same("attempts", len(attempts), 2)
	list, _, err := f.List(f.Context(), ledger.Filter{}, 10, ledger.Cursor{})
	f.must(err)
	f.same("rows", len(list), 1)

	// Other content under the same id: refused, its neighbours are not.
	other := *n
	other.Digest[0]++
	fine := Plain(2, Start)
	errs := f.tryRecord(ledger.Record{Notification: &other, New: true, Unreserved: true}, ledger.Record{Notification: fine, New: true, Unreserved: true})
	var quarantined *ledger.QuarantinedError
	if !errors.As(errs[0], &quarantined) || quarantined.ID != n.ID || errs[1] != nil {
		f.Fatalf("other content: %v", errs)
	}
	f.same("neighbour", f.find(fine.ID), fine)
}
