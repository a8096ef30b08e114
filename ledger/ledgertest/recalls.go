package ledgertest

import (
	"sync"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

// unfed: what the delay queue did not get is fed, however near it is due.
func unfed(f *fixture) {
	at := Start.Add(time.Minute)
	fed := func(what string, want ...*notification.Notification) {
		f.Helper()
		got, err := f.Feed(f.Context(), at, 10)
		f.must(err)
		f.same(what, got, want)
	}
	n := Tried(Plain(1, Start), Start, at)
	f.reserve(n)
	f.record(ledger.Record{Notification: n, New: true, Unfed: true})
	fed("written as new", n)
	fed("once", []*notification.Notification{}...)
	f.record(ledger.Record{Notification: n, Unfed: true})
	fed("the same progress again", n)

	scheduled := f.accept(Tried(Plain(2, Start), Start, at))
	fed("the engine schedules it")
	f.record(ledger.Record{Notification: scheduled, Unfed: true})
	fed("it could not", scheduled)

	f.record(ledger.Record{Notification: f.accept(Plain(3, Start)), Unfed: true})
	f.record(ledger.Record{Notification: Delivered(scheduled, Start), Unfed: true})
	fed("nothing is due")
}

func takeDue(f *fixture) {
	const lease = time.Minute
	now := Start.Add(10 * time.Minute)
	f.clock.advance(10 * time.Minute)
	number := 0
	row := func(next time.Time, change func(*ledger.Record)) *notification.Notification {
		number++
		n := Tried(Plain(number, Start), Start, next)
		r := ledger.Record{Notification: n, New: true}
		change(&r)
		f.reserve(n)
		f.record(r)
		return n
	}
	asFed := func(*ledger.Record) {}
	asUnfed := func(r *ledger.Record) { r.Unfed = true }
	with := func(change func(*notification.Progress)) func(*ledger.Record) {
		return func(r *ledger.Record) { r.Unfed, r.Notification = true, With(r.Notification, change) }
	}
	fedBefore := now.Add(-30 * time.Second)
	due := row(now, asUnfed)
	overdue := row(fedBefore, asFed)
	ended := row(now.Add(-time.Second), asUnfed)
	row(now.Add(time.Microsecond), asUnfed)      // not due yet
	row(fedBefore.Add(time.Microsecond), asFed)  // the delay queue may bring it back
	claimed := row(now.Add(-time.Hour), asUnfed) // somebody is sending it
	held := row(now.Add(-time.Hour), asUnfed)    // somebody has it in hand
	row(now.Add(-time.Hour), with(func(p *notification.Progress) { p.Resting = true }))
	row(now.Add(-time.Hour), with(func(p *notification.Progress) {
		p.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, Start)
	}))
	f.verdict("claim", claimBy("a", claimed, now.Add(time.Hour)), ledger.ClaimGranted)
	f.record(holdBy("a", held, now.Add(time.Hour)), ledger.Record{Notification: held, Unfed: true})
	f.verdict("claim of a run that ends", claimBy("gone", ended, now.Add(time.Hour)), ledger.ClaimGranted)
	f.gone.add("gone")

	take := func(at time.Time, want ...*notification.Notification) {
		f.Helper()
		taken, err := f.TakeDue(f.Context(), at, at.Add(-30*time.Second), lease, 10)
		f.must(err)
		expected := map[notification.ID]*notification.Notification{}
		for _, n := range want {
			expected[n.ID] = With(n, func(p *notification.Progress) { p.NextAt = at.Add(lease) })
		}
		f.same("taken", byID(taken), expected)
	}
	take(now, due, overdue, ended)
	take(now)
	// Whoever took it has died with it: it is due again, as something that was fed.
	now = now.Add(lease + 30*time.Second)
	f.clock.advance(lease + 30*time.Second)
	f.verdict("its outcome", claimBy("b", due, now), ledger.ClaimGranted)
	f.record(ledger.Record{Notification: Delivered(due, now)})
	taken, err := f.TakeDue(f.Context(), now, now.Add(-30*time.Second), lease, 1)
	f.must(err)
	f.same("at most", len(taken), 1)
	f.verdict("the same generation", claimBy("b", overdue, now.Add(time.Minute)), ledger.ClaimGranted)
}

func byID(list []*notification.Notification) map[notification.ID]*notification.Notification {
	out := map[notification.ID]*notification.Notification{}
	for _, n := range list {
		out[n.ID] = n
	}
	return out
}

// takeDueOnce: two nodes share what is due.
func takeDueOnce(f *fixture) {
	const count = 200
	var all []*notification.Notification
	var records []ledger.Record
	for i := range count {
		n := Tried(Plain(i, Start), Start, Start.Add(-time.Duration(i)*time.Second))
		all = append(all, n)
		records = append(records, ledger.Record{Notification: n, New: true, Unfed: true})
	}
	f.reserve(all...)
	f.record(records...)
	var mu sync.Mutex
	taken := map[notification.ID]int{}
	var takers sync.WaitGroup
	for range 2 {
		takers.Go(func() {
			for {
				list, err := f.TakeDue(f.Context(), Start, Start.Add(-time.Hour), time.Hour, 7)
				if err != nil {
					f.Error(err)
				}
				if err != nil || len(list) == 0 {
					return
				}
				mu.Lock()
				for _, n := range list {
					taken[n.ID]++
				}
				mu.Unlock()
			}
		})
	}
	takers.Wait()
	f.same("taken", len(taken), count)
	for id, times := range taken {
		if times != 1 {
			f.Fatalf("%s was taken %d times", id, times)
		}
	}
}

func recall(f *fixture) {
	before, now := Start.Add(time.Minute), Start.Add(2*time.Minute)
	f.clock.advance(2 * time.Minute)
	number := 0
	row := func(change func(*notification.Notification)) *notification.Notification {
		number++
		n := Plain(number, Start)
		n.Route.Persist = notification.PersistLedger
		change(n)
		return f.accept(n)
	}
	retrying := func(n *notification.Notification) { *n = *Tried(n, Start, now.Add(time.Hour)) }
	soon := func(n *notification.Notification) { *n = *Tried(n, Start, now.Add(5*time.Minute)) }
	resting := func(n *notification.Notification) { n.Resting, n.Reason = true, notification.ReasonBreakerOpen }

	waits := row(func(*notification.Notification) {})
	waitsDue := row(func(n *notification.Notification) { n.NextAt = now.Add(3 * time.Minute) })
	orphan := row(func(n *notification.Notification) {
		n.Route.Persist, n.Reason = notification.PersistStream, notification.ReasonRateLimited
	})
	rests := row(resting)
	held := row(func(n *notification.Notification) { resting(n); n.State = notification.StateHeld })
	retries := row(soon)
	shown := row(func(n *notification.Notification) {
		n.Route.Persist, n.NextAt = notification.PersistStream, now.Add(3*time.Minute)
	})
	unfedFar := row(retrying) // Feed has it anyway
	row(func(n *notification.Notification) { resting(n); n.UpdatedAt = before })
	row(func(n *notification.Notification) { soon(n); n.UpdatedAt = before })
	row(func(n *notification.Notification) { n.UpdatedAt = before })
	for range 2 {
		row(func(n *notification.Notification) { *n = *Delivered(n, Start) })
	}
	row(func(n *notification.Notification) {
		n.Settle(notification.StateDead, notification.ReasonGone, notification.SettledByMerchant, Start)
	})
	inHand := row(resting)
	f.record(holdBy("a", inHand, now.Add(time.Hour)))
	claimed := row(soon)
	f.verdict("claim", claimBy("a", claimed, now.Add(time.Hour)), ledger.ClaimGranted)
	ended := row(resting)
	f.record(holdBy("gone", ended, now.Add(time.Hour)))
	f.gone.add("gone")

	atOnce := func(n *notification.Notification) *notification.Notification {
		return With(n, func(p *notification.Progress) { p.Resting, p.NextAt, p.UpdatedAt = false, now, now })
	}
	asPlanned := func(n *notification.Notification) *notification.Notification {
		return With(n, func(p *notification.Progress) { p.UpdatedAt = now })
	}
	check := func(what string, lost ledger.Lost, want ...*notification.Notification) {
		f.Helper()
		for _, again := range []bool{false, true} {
			count, err := f.Recall(f.Context(), lost, before, now)
			f.must(err)
			if again {
				want = nil
			}
			f.same(what+": recalled", count, len(want))
			fed, err := f.Feed(f.Context(), now.Add(time.Hour-time.Second), 100)
			f.must(err)
			f.same(what+": fed", byID(fed), byID(want))
		}
	}
	check("nothing", ledger.Lost{})
	check("merchants' own queues", ledger.Lost{Merchant: true}, atOnce(rests), atOnce(held), atOnce(ended))
	check("shards", ledger.Lost{Notify: true}, atOnce(waits), atOnce(waitsDue), atOnce(orphan))
	check("delays", ledger.Lost{Retry: true}, asPlanned(retries), asPlanned(shown))
	f.same("not fed yet", f.find(unfedFar.ID), unfedFar)
	f.same("in hand", f.find(inHand.ID), inHand)
	f.same("claimed", f.find(claimed.ID), claimed)
}
