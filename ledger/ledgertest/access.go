package ledgertest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/access"
	"notifyd/ledger"
	"notifyd/notification"
)

func sampleRule(merchantID string) *access.Rule {
	s := access.Subject{Kind: access.KindMerchant, ID: merchantID, Scene: "payout"}
	return &access.Rule{
		ID: access.RuleID(s, access.EffectBlock), Subject: s, Effect: access.EffectBlock, Mode: access.ModeHold, Reason: "欠费", ExpiresAt: Start.Add(time.Hour),
		CreatedAt: Start, CreatedBy: "alice", UpdatedBy: "bob",
	}
}

func accessRules(f *fixture) {
	ctx := f.Context()
	none, wrong := int64(0), int64(4711)
	want := sampleRule("m")
	first, err := f.PutAccessRule(ctx, want, &none)
	f.must(err)
	want.Version, want.UpdatedAt = first.Version, f.clock.now()
	f.same("put", first, want)
	found, err := f.AccessRulesSince(ctx, 0)
	f.must(err)
	f.same("since 0", found, []*access.Rule{want})
	for _, stale := range []*int64{&none, &wrong} {
		if _, err := f.PutAccessRule(ctx, sampleRule("m"), stale); !errors.Is(err, ledger.ErrConflict) {
			f.Fatalf("put over another version: %v", err)
		}
	}
	f.clock.advance(time.Minute)
	ended := sampleRule("m")
	ended.Removed, ended.Reason, ended.UpdatedBy = true, "paid", "carol"
	second, err := f.PutAccessRule(ctx, ended, &first.Version)
	f.must(err)
	f.clock.advance(time.Minute)
	other, err := f.PutAccessRule(ctx, sampleRule("n"), nil)
	f.must(err)
	found, err = f.AccessRulesSince(ctx, first.Version)
	f.must(err)
	f.same("removed ones are learned", found, []*access.Rule{second, other})

	// What is kept of a change is what was set: neither version nor time.
	was, now := *first, *second
	was.Version, was.UpdatedAt, now.Version, now.UpdatedAt = 0, time.Time{}, 0, time.Time{}
	changes, err := f.AccessChanges(ctx, "merchant/m/payout/block", 0, 10)
	f.must(err)
	if len(changes) != 2 {
		f.Fatalf("%d changes of one rule, want 2: refused ones leave none", len(changes))
	}
	f.same("newest first", changes, []access.Change{
		{Number: changes[0].Number, At: second.UpdatedAt, Before: &was, After: &now},
		{Number: changes[1].Number, At: first.UpdatedAt, After: &was},
	})
	var numbers []int64
	for before := int64(0); ; before = numbers[len(numbers)-1] {
		page, err := f.AccessChanges(ctx, "", before, 1)
		f.must(err)
		if len(page) == 0 {
			break
		}
		numbers = append(numbers, page[0].Number)
	}
	if len(numbers) != 3 || numbers[0] <= numbers[1] || numbers[1] != changes[0].Number || numbers[2] != changes[1].Number {
		f.Errorf("all changes, page by page: %v", numbers)
	}
}

// accessRace changes one version from many sides: one wins, and one change is kept.
func accessRace(f *fixture) {
	before, err := f.PutAccessRule(f.Context(), sampleRule("m"), nil)
	f.must(err)
	var won atomic.Int32
	var changing sync.WaitGroup
	for range 20 {
		changing.Go(func() {
			switch _, err := f.PutAccessRule(f.Context(), sampleRule("m"), &before.Version); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrConflict):
				f.Error(err)
			}
		})
	}
	changing.Wait()
	changes, err := f.AccessChanges(f.Context(), "", 0, 100)
	f.must(err)
	f.same("winners", won.Load(), int32(1))
	f.same("changes", len(changes), 2)
}

// held is a notification that the lists hold, due for another look in an hour.
func held(number int, merchantID, sourceID, scene string, reason notification.Reason) *notification.Notification {
	n := Plain(number, Start.Add(time.Duration(number)*time.Second))
	n.MerchantID, n.Source, n.Scene = merchantID, sourceID, scene
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	n.Defer(reason, n.AcceptedAt)
	n.NextAt = n.AcceptedAt.Add(time.Hour)
	return n
}

func whose(merchantID, sourceID, scene string) ledger.Barred {
	return ledger.Barred{MerchantID: merchantID, Source: sourceID, Scene: scene}
}

func barredBy(f *fixture, pageSize int) (all []ledger.Barred) {
	f.Helper()
	for after := (ledger.Barred{}); ; after = all[len(all)-1] {
		page, err := f.Barred(f.Context(), after, pageSize)
		f.must(err)
		if all = append(all, page...); len(page) < pageSize {
			return all
		}
	}
}

func barred(f *fixture) {
	const blocked, notAllowed = notification.ReasonBlocked, notification.ReasonNotAllowed
	f.accept(held(1, "m-1", "pay", "scan", blocked))
	f.accept(held(2, "m-1", "pay", "scan", blocked))
	f.accept(held(3, "m-1", "pay", "payout", notAllowed))
	f.accept(held(4, "m-1", "bank", "scan", blocked))
	f.accept(held(5, "m-2", "pay", "scan", blocked))
	f.accept(held(6, "m-3", "pay", "scan", notification.ReasonMerchantPaused))
	canceled := held(7, "m-4", "pay", "scan", blocked)
	canceled.Settle(notification.StateCanceled, blocked, notification.SettledByOperator, canceled.AcceptedAt)
	f.accept(canceled)
	f.accept(Plain(8, Start))
	want := []ledger.Barred{whose("m-1", "bank", "scan"), whose("m-1", "pay", "payout"), whose("m-1", "pay", "scan"), whose("m-2", "pay", "scan")}
	for _, size := range []int{1, 2, 3, 4, 100} {
		f.same(fmt.Sprintf("pages of %d", size), barredBy(f, size), want)
	}
}

// release gives turns to the oldest first, and goes on where it has left off, whoever is asked.
func release(f *fixture) {
	ctx, now := f.Context(), f.clock.now()
	const gap = 100 * time.Millisecond
	one, sibling := whose("m-1", "pay", "scan"), whose("m-1", "pay", "payout")
	var all []*notification.Notification
	for i := range 5 {
		all = append(all, f.accept(held(i, "m-1", "pay", "scan", notification.ReasonBlocked)))
	}
	tried := held(5, "m-1", "pay", "scan", notification.ReasonBlocked)
	tried.Attempts = 2
	f.accept(tried)
	f.accept(held(6, "m-1", "pay", "payout", notification.ReasonNotAllowed))
	another := f.accept(held(7, "m-2", "pay", "scan", notification.ReasonBlocked))

	from := now.Add(2 * time.Second)
	got, err := f.Release(ctx, one, gap, from, from.Add(3*gap))
	f.must(err)
	f.same("as many as there are turns", got, 3)
	got, err = f.Release(ctx, one, gap, from, from.Add(3*gap))
	f.must(err)
	f.same("no turn is left", got, 0)
	got, err = f.Release(ctx, one, gap, from, from.Add(time.Minute))
	f.must(err)
	f.same("the rest", got, 3)
	got, err = f.Release(ctx, sibling, gap, from, from.Add(time.Minute))
	f.must(err)
	f.same("a sibling", got, 1)
	got, err = f.Release(ctx, whose("m-3", "pay", "scan"), gap, from, from.Add(time.Minute))
	f.must(err)
	f.same("nobody", got, 0)
	f.same("still held", barredBy(f, 10), []ledger.Barred{whose("m-2", "pay", "scan")})

	for i, n := range all {
		want := *n
		want.State, want.Reason, want.NextAt, want.UpdatedAt = notification.StateAccepted, notification.ReasonReleased, from.Add(time.Duration(i)*gap), now
		f.same(fmt.Sprint("released ", i), f.find(n.ID).Progress, want.Progress)
	}
	f.same("one that was tried", f.find(tried.ID).State, notification.StateRetrying)
	f.same("in another scene", f.find(held(6, "m-1", "pay", "payout", notification.ReasonNotAllowed).ID).NextAt, from.Add(6*gap))
	f.same("another's", f.find(another.ID).State, notification.StateHeld)

	// They are anybody's to feed, once.
	fed, err := f.Feed(ctx, from.Add(time.Minute), 100)
	f.must(err)
	f.same("fed", len(fed), 7)
	// Turns that are over are not made up for.
	f.clock.advance(time.Hour)
	from = f.clock.now()
	last := f.accept(held(8, "m-1", "pay", "scan", notification.ReasonBlocked))
	_, err = f.Release(ctx, one, gap, from, from.Add(time.Minute))
	f.must(err)
	f.same("an hour later", f.find(last.ID).NextAt, from)
	got, err = f.Release(ctx, whose("m-2", "pay", "scan"), 0, from, from.Add(time.Minute))
	f.must(err)
	f.same("no gap is no turn", got, 0)
}

// releaseClaimed leaves alone what somebody has claimed.
func releaseClaimed(f *fixture) {
	n := f.accept(held(1, "m-1", "pay", "scan", notification.ReasonBlocked))
	now := f.clock.now()
	if v, _ := f.claim(n, now.Add(time.Minute)); v != ledger.ClaimGranted {
		f.Fatalf("verdict %d", v)
	}
	blocked := whose("m-1", "pay", "scan")
	got, err := f.Release(f.Context(), blocked, time.Second, now, now.Add(time.Minute))
	f.must(err)
	f.same("claimed", got, 0)
	f.clock.advance(2 * time.Minute)
	now = f.clock.now()
	got, err = f.Release(f.Context(), blocked, time.Second, now, now.Add(time.Minute))
	f.must(err)
	f.same("the claim has lapsed", got, 1)
}

// releaseRace lets four nodes release at once: each turn is given once.
func releaseRace(f *fixture) {
	const count, gap = 200, 10 * time.Millisecond
	var all []*notification.Notification
	var records []ledger.Record
	for i := range count {
		n := held(i, "m-1", "pay", "scan", notification.ReasonBlocked)
		all, records = append(all, n), append(records, ledger.Record{Notification: n, New: true})
	}
	f.reserve(all...)
	f.record(records...)
	from := f.clock.now()
	var releasing sync.WaitGroup
	var released atomic.Int64
	for range 4 {
		releasing.Go(func() {
			for step := range 8 {
				got, err := f.Release(f.Context(), whose("m-1", "pay", "scan"), gap, from, from.Add(time.Duration(step+1)*25*gap))
				if err != nil {
					f.Error(err)
					return
				}
				released.Add(int64(got))
			}
		})
	}
	releasing.Wait()
	f.same("released", released.Load(), int64(count))
	turns := map[time.Time]bool{}
	for _, n := range all {
		at := f.find(n.ID).NextAt
		if turns[at] || at.Before(from) || !at.Before(from.Add(count*gap)) {
			f.Fatalf("%s is a turn that is given twice, or none", at.Sub(from))
		}
		turns[at] = true
	}
}
