package ledgertest

import (
	"sync"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

// far is beyond what the engine schedules itself.
const far = 2 * ledger.DefaultWindow

func feedOnce(f *fixture) {
	const count = 200
	var all []*notification.Notification
	var records []ledger.Record
	for i := range count {
		n := Tried(Plain(i, Start), Start, Start.Add(far+time.Duration(i)*time.Second))
		all = append(all, n)
		records = append(records, ledger.Record{Notification: n, New: true})
	}
	f.reserve(all...)
	f.record(records...)
	var mu sync.Mutex
	fed := map[notification.ID]int{}
	var feeders sync.WaitGroup
	for range 2 {
		feeders.Go(func() {
			for {
				list, err := f.Feed(f.Context(), Start.Add(2*far), 7)
				if err != nil {
					f.Error(err)
					return
				}
				if len(list) == 0 {
					return
				}
				mu.Lock()
				for _, n := range list {
					fed[n.ID]++
				}
				mu.Unlock()
			}
		})
	}
	feeders.Wait()
	// A feeder may end while the other still holds the last ones; together they have all.
	f.same("fed", len(fed), count)
	for id, times := range fed {
		if times != 1 {
			f.Fatalf("%s was fed %d times", id, times)
		}
	}
}

func feedChoice(f *fixture) {
	at := Start.Add(far)
	due := f.accept(Tried(Plain(1, Start), Start, at))
	later := Tried(Plain(2, Start), Start, Start.Add(3*far))
	f.accept(later)
	f.accept(Tried(Plain(3, Start), Start, Start.Add(time.Minute))) // the engine schedules it itself
	f.accept(Plain(4, Start))                                       // nothing due
	f.accept(With(Tried(Plain(5, Start), Start, at), func(p *notification.Progress) { p.Resting = true }))
	f.accept(Delivered(Plain(6, Start), Start))
	fed, err := f.Feed(f.Context(), at, 10)
	f.must(err)
	f.same("fed", fed, []*notification.Notification{due})
	fed, err = f.Feed(f.Context(), at, 10)
	f.must(err)
	f.same("fed again", len(fed), 0)
	// A new due time is fed anew.
	again := Tried(due, Start.Add(time.Second), at.Add(time.Second))
	f.record(ledger.Record{Notification: again})
	fed, err = f.Feed(f.Context(), at.Add(time.Second), 10)
	f.must(err)
	f.same("fed anew", fed, []*notification.Notification{again})
}

func rescue(f *fixture) {
	overdue := f.accept(Tried(Plain(1, Start), Start, Start.Add(time.Second)))
	claimed := f.accept(Tried(Plain(2, Start), Start, Start.Add(time.Second)))
	lapsed := f.accept(Tried(Plain(3, Start), Start, Start.Add(2*time.Second)))
	f.accept(Tried(Plain(4, Start), Start, Start.Add(time.Hour)))
	f.accept(With(Tried(Plain(5, Start), Start, Start.Add(time.Second)), func(p *notification.Progress) { p.Resting = true }))
	f.accept(Delivered(Plain(6, Start), Start))
	f.claim(claimed, Start.Add(time.Hour))
	f.claim(lapsed, Start.Add(time.Minute))
	f.clock.advance(5 * time.Minute)
	now := f.clock.now()

	found, err := f.Rescue(f.Context(), now.Add(-2*time.Minute), now, 10)
	f.must(err)
	byID := map[notification.ID]*notification.Notification{}
	for _, n := range found {
		byID[n.ID] = n
	}
	want := map[notification.ID]*notification.Notification{}
	for _, n := range []*notification.Notification{overdue, lapsed} {
		want[n.ID] = With(n, func(p *notification.Progress) {
			p.Generation, p.Reason, p.NextAt, p.UpdatedAt = 1, notification.ReasonSweep, now.Add(ledger.ResendLease), now
		})
	}
	f.same("rescued", byID, want)
	f.same("rescued, found", f.find(overdue.ID), want[overdue.ID])
	found, err = f.Rescue(f.Context(), now.Add(-2*time.Minute), now, 10)
	f.must(err)
	f.same("rescued again", len(found), 0)

	// What was in somebody's hands when it was forgotten is told apart.
	if v, _ := f.claim(overdue, now.Add(time.Minute)); v != ledger.ClaimStale {
		f.Errorf("the old generation: %d", v)
	}
	if v, _ := f.claim(want[overdue.ID], now.Add(time.Minute)); v != ledger.ClaimGranted {
		f.Errorf("overdue: %d", v)
	}
	if v, _ := f.claim(want[lapsed.ID], now.Add(time.Minute)); v != ledger.ClaimGrantedAfterLapse {
		f.Errorf("lapsed: %d", v)
	}
}
