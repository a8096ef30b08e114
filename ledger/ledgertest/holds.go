package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

// claimBy is a run's claim of a notification, which becomes the row where there is none.
func claimBy(run string, n *notification.Notification, until time.Time) ledger.Claim {
	c := claimOf(n, until)
	c.By, c.Notification = run, n
	return c
}

// holdBy is a snapshot that a run writes with what it has in hand; until zero: in hand no more.
func holdBy(run string, n *notification.Notification, until time.Time) ledger.Record {
	return ledger.Record{Notification: n, Hold: &ledger.Hold{By: run, Until: until}}
}

func (f *fixture) verdict(what string, c ledger.Claim, want ledger.ClaimVerdict) {
	f.Helper()
	v, _, err := f.Claim(f.Context(), c)
	f.must(err)
	if v != want {
		f.Fatalf("%s: verdict %d, want %d", what, v, want)
	}
}

func claimInserts(f *fixture) {
	until := Start.Add(time.Minute)
	reserved, unreserved := Full(1, Start), Plain(2, Start)
	reserved.Resting = false
	f.reserve(reserved)
	for i, n := range []*notification.Notification{reserved, unreserved} {
		f.verdict("without anything to make a row of", claimOf(n, until), ledger.ClaimNoRow)
		v, at, err := f.Claim(f.Context(), claimBy("a", n, until))
		f.must(err)
		if v != ledger.ClaimGranted || !at.Equal(until) {
			f.Fatalf("without a row: verdict %d until %s", v, at)
		}
		f.same("the row", f.find(n.ID), n)
		f.verdict("another run", claimBy("b", n, until), ledger.ClaimBusy)
		f.verdict("the same run: perhaps it never heard", claimBy("a", n, until), ledger.ClaimBusy)
		again, err := f.Reserve(f.Context(), []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: Start.Add(time.Hour)}})
		f.must(err)
		f.same(fmt.Sprintf("reservation %d", i), again, []ledger.Reserved{{Digest: n.Digest, AcceptedAt: n.AcceptedAt}})
	}

	// Accepted here on another day than elsewhere: the first acceptance counts.
	first := Plain(3, Start)
	f.reserve(first)
	second := *first
	second.AcceptedAt = Start.Add(30 * time.Hour)
	f.verdict("accepted twice", claimBy("a", &second, until), ledger.ClaimGranted)
	f.same("accepted twice", f.find(first.ID).AcceptedAt, first.AcceptedAt)

	// A claimer that knows of more or less than what it brings gets no row.
	behind := claimBy("a", Plain(4, Start), until)
	behind.Attempts = 1
	f.verdict("behind", behind, ledger.ClaimBehind)
	if _, _, err := f.Find(f.Context(), behind.ID); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("behind: %v", err)
	}

	f.clock.advance(2 * time.Minute)
	f.verdict("after the lapse", claimBy("b", unreserved, Start.Add(time.Hour)), ledger.ClaimGrantedAfterLapse)
	f.record(ledger.Record{Notification: Delivered(unreserved, Start), Attempts: []notification.Attempt{BareAttempt(unreserved, 1)}})
	f.verdict("delivered", claimBy("a", unreserved, Start.Add(time.Hour)), ledger.ClaimStale)
}

func claimOtherContent(f *fixture) {
	n := Plain(1, Start)
	f.reserve(n)
	other := *n
	other.Digest[0]++
	f.verdict("other content", claimBy("a", &other, Start.Add(time.Minute)), ledger.ClaimStale)
	kept, err := f.Quarantine(f.Context(), 0, 10)
	f.must(err)
	if len(kept) != 1 || kept[0].ID != n.ID || kept[0].Reason == "" || kept[0].Record.Notification.Digest != other.Digest {
		f.Fatalf("in quarantine: %v", kept)
	}
	f.verdict("the content that was accepted", claimBy("a", n, Start.Add(time.Minute)), ledger.ClaimGranted)

	unstorable := *Plain(2, Start)
	unstorable.AcceptedAt = time.Time{}
	f.verdict("what no row can be made of", claimBy("a", &unstorable, Start.Add(time.Minute)), ledger.ClaimNoRow)
}

// claimInsertRace: of many claimers of the same ids without rows one has each.
func claimInsertRace(f *fixture) {
	const ids, claimers = 5, 30
	var granted, busy atomic.Int64
	var all sync.WaitGroup
	for run := range claimers {
		for i := range ids {
			all.Go(func() {
				v, _, err := f.Claim(f.Context(), claimBy(fmt.Sprint("run-", run), Plain(i, Start.Add(time.Duration(run)*time.Second)), Start.Add(time.Hour)))
				switch {
				case err != nil:
					f.Error(err)
				case v == ledger.ClaimGranted:
					granted.Add(1)
				case v == ledger.ClaimBusy:
					busy.Add(1)
				}
			})
		}
	}
	all.Wait()
	f.same("granted and busy", []int64{granted.Load(), busy.Load()}, []int64{ids, ids * (claimers - 1)})
}

// claimGone: what a run had when it ended is free at once.
func claimGone(f *fixture) {
	until := Start.Add(time.Hour)
	due := Tried(Plain(1, Start), Start, Start.Add(time.Second))
	claimed := f.accept(due)
	f.verdict("first", claimBy("a", claimed, until), ledger.ClaimGranted)
	held := f.accept(Tried(Plain(2, Start), Start, Start.Add(time.Second)))
	f.record(holdBy("a", held, until))
	for _, n := range []*notification.Notification{claimed, held} {
		f.verdict("a runs", claimBy("b", n, until), ledger.ClaimBusy)
		if err := second(f.Cancel(f.Context(), n.ID, "alice", Start)); !errors.Is(err, ledger.ErrInFlight) {
			f.Fatalf("cancel what a has: %v", err)
		}
	}
	f.clock.advance(10 * time.Minute)
	now := f.clock.now()
	overdue := func() int {
		f.Helper()
		o, err := f.Overdue(f.Context(), now)
		f.must(err)
		return o.Notifications
	}
	f.same("overdue while a runs", overdue(), 0)
	f.gone.add("a")
	f.same("overdue when a has ended", overdue(), 2)
	rescued, err := f.Rescue(f.Context(), now, now, 10)
	f.must(err)
	f.same("rescued", len(rescued), 2)
	for _, n := range rescued {
		f.verdict("a has ended", claimBy("b", n, now.Add(time.Hour)), ledger.ClaimGrantedAfterLapse)
		f.verdict("b runs", claimBy("c", n, now.Add(time.Hour)), ledger.ClaimBusy)
	}

	other := f.accept(Tried(Plain(3, Start), Start, now.Add(time.Hour)))
	f.record(holdBy("a", other, now.Add(time.Hour)))
	_, err = f.Resend(f.Context(), other.ID, "alice", now)
	f.must(err)
}

// holds: who has it in hand keeps others away until it says that it has not, or its time is over; a claim is stronger.
func holds(f *fixture) {
	until := Start.Add(time.Hour)
	n := Plain(1, Start)
	f.reserve(n)
	asNew := holdBy("a", n, until)
	asNew.New = true
	f.record(asNew)
	f.verdict("another's, written as new", claimBy("b", n, until), ledger.ClaimBusy)
	f.record(holdBy("b", n, time.Time{}), holdBy("b", n, until), ledger.Record{Notification: n})
	f.verdict("b says that it has not what a has", claimBy("b", n, until), ledger.ClaimBusy)
	f.record(holdBy("a", n, time.Time{}))
	f.verdict("released", claimBy("b", n, until), ledger.ClaimGranted)

	// A claim is its run's too, but a hold neither prolongs nor ends it: the claimer may have sent.
	f.record(holdBy("b", n, until.Add(time.Hour)), holdBy("b", n, time.Time{}))
	f.verdict("b's claim, after its holds", claimBy("b", n, until), ledger.ClaimBusy)
	f.clock.advance(90 * time.Minute)
	f.record(holdBy("a", n, f.clock.now().Add(time.Hour)))
	f.verdict("b's lapsed claim, after another's hold", claimBy("a", n, f.clock.now().Add(time.Minute)), ledger.ClaimGrantedAfterLapse)

	// Its holder's claim is granted, also when the hold has lapsed meanwhile; anybody else's then learns of the lapse.
	now := f.clock.now()
	for i, claimer := range []string{"a", "b"} {
		held := f.accept(Plain(2+i, Start))
		f.record(holdBy("a", held, now.Add(time.Second)))
		f.record(holdBy("a", held, now.Add(time.Minute)))
		f.clock.advance(30 * time.Second)
		f.verdict("prolonged", claimBy("b", held, now.Add(time.Hour)), ledger.ClaimBusy)
		f.clock.advance(time.Hour)
		want := map[string]ledger.ClaimVerdict{"a": ledger.ClaimGranted, "b": ledger.ClaimGrantedAfterLapse}[claimer]
		f.verdict("a lapsed hold of a, claimed by "+claimer, claimBy(claimer, held, f.clock.now().Add(time.Hour)), want)
		now = f.clock.now()
	}
	held := f.accept(Plain(4, Start))
	f.record(holdBy("a", held, now.Add(time.Minute)))
	f.verdict("its holder", claimBy("a", held, now.Add(time.Minute)), ledger.ClaimGranted)
	f.verdict("its holder, once more", claimBy("a", held, now.Add(time.Minute)), ledger.ClaimBusy)

	// An outcome ends a claim; with a hold it becomes one. Another's live claim stays.
	tried := Tried(held, now, now.Add(time.Minute))
	f.record(holdBy("a", tried, now.Add(time.Minute)))
	f.verdict("held with the outcome", claimBy("b", tried, now.Add(time.Minute)), ledger.ClaimBusy)
	f.verdict("held with the outcome, its holder", claimBy("a", tried, now.Add(time.Minute)), ledger.ClaimGranted)
	again := Tried(tried, now, now.Add(time.Minute))
	f.record(holdBy("b", again, now.Add(time.Hour)))
	f.verdict("b's outcome and a's live claim", claimBy("b", again, now.Add(time.Minute)), ledger.ClaimBusy)
	f.record(ledger.Record{Notification: Tried(again, now, now.Add(time.Minute))})
	f.verdict("an outcome without a hold", claimBy("c", Tried(again, now, now), now.Add(time.Minute)), ledger.ClaimGranted)

	// It ended without an attempt: its claim has been in vain, and the next one hears of none.
	ended := f.accept(Plain(6, Start))
	f.verdict("before its end", claimBy("a", ended, now.Add(time.Minute)), ledger.ClaimGranted)
	expired := With(ended, func(p *notification.Progress) {
		p.Settle(notification.StateExpired, notification.ReasonExpired, notification.SettledByExpiry, now)
	})
	f.record(holdBy("a", expired, time.Time{}))
	resent, err := f.Resend(f.Context(), ended.ID, "alice", now)
	f.must(err)
	f.verdict("resent", claimBy("b", resent, now.Add(time.Minute)), ledger.ClaimGranted)

	// What comes with an older snapshot says nothing.
	moved := f.accept(Tried(Plain(5, Start), now, now.Add(time.Minute)))
	f.record(holdBy("a", moved, now.Add(time.Minute)))
	f.record(holdBy("a", Plain(5, Start), time.Time{}))
	f.verdict("an older release", claimBy("b", moved, now.Add(time.Minute)), ledger.ClaimBusy)
}

// holdRace: two runs that hold, release and claim at once never both have it.
func holdRace(f *fixture) {
	until := Start.Add(time.Hour)
	for i := range 40 {
		n := f.accept(Plain(i, Start))
		var granted atomic.Int64
		var all sync.WaitGroup
		for _, run := range []string{"a", "b"} {
			all.Go(func() { f.record(holdBy(run, n, until)) })
			all.Go(func() { f.record(holdBy(run, n, time.Time{})) })
			all.Go(func() {
				if v, _, err := f.Claim(f.Context(), claimBy(run, n, until)); err != nil {
					f.Error(err)
				} else if v == ledger.ClaimGranted {
					granted.Add(1)
				} else if v != ledger.ClaimBusy {
					f.Errorf("verdict %d", v)
				}
			})
		}
		all.Wait()
		if granted.Load() > 1 {
			f.Fatalf("round %d: %d have it", i, granted.Load())
		}
		for _, run := range []string{"a", "b"} { // whatever holds are left
			f.record(holdBy(run, n, time.Time{}))
		}
		want := ledger.ClaimGranted
		if granted.Load() == 1 {
			want = ledger.ClaimBusy
		}
		f.verdict("afterwards", claimBy("c", n, until), want)
	}
}
