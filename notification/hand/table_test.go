package hand

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"notifyd/internal/bubble"
	"notifyd/notification"
)

func work(name string) notification.Work {
	n := &notification.Notification{Source: "pay", RequestID: name, Progress: notification.Progress{State: notification.StateAccepted, Generation: 1}}
	n.ID = n.DeriveID()
	return notification.Work{Notification: n}
}

func ignore(error) {}

var errLost = errors.New("lost")

// Of two copies one is in hand at a time; settled is called once, with the first word.
func TestOneCopyInHand(t *testing.T) {
	table, w := NewTable(), work("a")
	calls, with := 0, error(nil)
	item, ok := table.Enter(w, time.Now(), func(err error) { calls++; with = err })
	if !ok || table.Len() != 1 {
		t.Fatal("not in hand")
	}
	if _, ok := table.Enter(w, time.Now(), ignore); ok {
		t.Error("a second copy is in hand")
	}
	table.Leave(item, errLost)
	table.Leave(item, nil)
	if calls != 1 || !errors.Is(with, errLost) || table.Len() != 0 {
		t.Errorf("settled %d times with %v, %d in hand", calls, with, table.Len())
	}
	again, ok := table.Enter(w, time.Now(), ignore)
	if !ok {
		t.Fatal("not in hand again")
	}
	table.Leave(item, nil) // a late word of the first leaves the second alone
	if _, ok := table.Find(w.ID); !ok {
		t.Error("the second has gone")
	}
	table.Leave(again, nil)
}

// Settled may take hold of the table: no lock is held.
func TestSettledMayEnter(t *testing.T) {
	table, w := NewTable(), work("a")
	var second *Item
	item, _ := table.Enter(w, time.Now(), func(error) { second, _ = table.Enter(w, time.Now(), ignore) })
	table.Leave(item, nil)
	if second == nil {
		t.Error("not in hand")
	}
}

// Of a cancel and an attempt, or a move, one wins; never both.
func TestTakeBackAgainstSend(t *testing.T) {
	for name, begin := range map[string]func(*Item) (notification.Work, bool){"send": (*Item).Send, "move": (*Item).Move} {
		t.Run(name, func(t *testing.T) {
			var sends, backs int
			for i := range 2000 {
				table, w := NewTable(), work(strconv.Itoa(i))
				item, _ := table.Enter(w, time.Now(), ignore)
				var sent, back bool
				var both sync.WaitGroup
				both.Go(func() { _, sent = begin(item) })
				both.Go(func() { _, back = table.TakeBack(w.ID) })
				both.Wait()
				if sent == back {
					t.Fatalf("round %d: sent %v, taken back %v", i, sent, back)
				}
				if sent {
					sends++
				} else {
					backs++
				}
			}
			t.Logf("%d sent, %d taken back", sends, backs)
		})
	}
}

// What may follow what.
func TestPhases(t *testing.T) {
	table, w := NewTable(), work("a")
	item, _ := table.Enter(w, time.Now(), ignore)
	if _, ok := item.Send(); !ok {
		t.Fatal("queued is not sent")
	}
	if _, ok := item.Send(); ok {
		t.Error("sent twice at once")
	}
	if _, ok := table.TakeBack(w.ID); ok {
		t.Error("taken back while it is sent")
	}
	if _, ok := item.Move(); ok {
		t.Error("moved while it is sent")
	}
	later := *w.Notification
	later.Reason = notification.ReasonRateLimited
	item.Requeue(&later)
	if held, _ := table.Find(w.ID); held.Notification.Reason != notification.ReasonRateLimited {
		t.Errorf("held %+v", held.Notification)
	}
	if _, ok := item.Move(); !ok {
		t.Error("queued again is not moved")
	}
	if _, ok := table.TakeBack(w.ID); ok {
		t.Error("taken back while it moves")
	}
	after := later
	after.Attempts = 1
	item.Sent(&after, []notification.Attempt{{Number: 1}})
	if held, ok := table.Find(w.ID); !ok || held.Notification.Attempts != 1 || len(held.Attempts) != 1 {
		t.Errorf("held %+v", held)
	}
	if _, ok := table.TakeBack(work("b").ID); ok {
		t.Error("taken back though it is not in hand")
	}
}

// Settle waits for what has been sent, and for nothing else.
func TestSettleWaits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		table, w := NewTable(), work("a")
		if !table.Settle(t.Context(), w.ID) {
			t.Error("not in hand is settled")
		}
		item, _ := table.Enter(w, time.Now(), ignore)
		if table.Settle(t.Context(), w.ID) {
			t.Error("queued is not settled")
		}
		item.Send()
		if table.Settle(t.Context(), w.ID) {
			t.Error("being sent is not settled")
		}
		item.Sent(nil, nil)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if table.Settle(short, w.ID) {
			t.Error("settled before it was durable")
		}
		var waiting sync.WaitGroup
		var settled atomic.Int32
		for range 3 {
			waiting.Go(func() {
				if table.Settle(t.Context(), w.ID) {
					settled.Add(1)
				}
			})
		}
		synctest.Wait()
		if settled.Load() != 0 {
			t.Error("settled before it was durable")
		}
		table.Leave(item, nil)
		waiting.Wait()
		if settled.Load() != 3 {
			t.Errorf("%d of 3 were told", settled.Load())
		}
	})
}

// Leave and Settle at once: nobody waits for ever.
func TestSettleAgainstLeave(t *testing.T) {
	table := NewTable()
	for i := range 2000 {
		w := work(strconv.Itoa(i))
		item, _ := table.Enter(w, time.Now(), ignore)
		item.Send()
		item.Sent(nil, nil)
		var both sync.WaitGroup
		both.Go(func() { table.Leave(item, nil) })
		both.Go(func() {
			if !table.Settle(t.Context(), w.ID) {
				t.Error("not settled")
			}
		})
		both.Wait()
	}
}

// What stays in hand is shown once, and put off every refresh; what is claimed, sent or gone is not.
func TestUnseenShowsOnceAndRefreshes(t *testing.T) {
	const seen, refresh = 700 * time.Millisecond, time.Minute
	start := time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)
	table := NewTable()
	unseen := func(after time.Duration) map[notification.ID]notification.Work {
		now := start.Add(after)
		out := map[notification.ID]notification.Work{}
		for _, w := range table.Unseen(now.Add(-seen), now.Add(-refresh), now) {
			out[w.ID] = w
		}
		return out
	}
	enter := func(w notification.Work, at time.Duration) *Item {
		item, _ := table.Enter(w, start.Add(at), ignore)
		return item
	}
	queuedOne, sendingOne, rowed, claimed, sentOne, goneOne, late := work("queued"), work("sending"), work("rowed"), work("claimed"), work("sent"), work("gone"), work("late")
	rowed.HasRow, claimed.Claim = true, true
	enter(queuedOne, 0)
	enter(sendingOne, 0).Send()
	enter(rowed, 0)
	enter(claimed, 0)
	enter(sentOne, 0).Move()
	enter(goneOne, 0)
	table.TakeBack(goneOne.ID)
	enter(late, 500*time.Millisecond)

	if got := unseen(seen - time.Millisecond); len(got) != 0 {
		t.Fatalf("too early: %v", got)
	}
	got := unseen(seen)
	if len(got) != 2 || got[queuedOne.ID].Reason != notification.ReasonQueued || got[sendingOne.ID].Reason != notification.ReasonInFlight {
		t.Fatalf("first look: %+v", got)
	}
	if got[queuedOne.ID].HasRow || !table.HasRow(queuedOne.ID) || table.HasRow(late.ID) || table.HasRow(work("none").ID) {
		t.Error("who has a row is wrong")
	}
	if queuedOne.Reason != "" {
		t.Error("the notification in hand was changed")
	}
	if got := unseen(seen + 600*time.Millisecond); len(got) != 1 || got[late.ID].Notification == nil {
		t.Fatalf("second look: %+v", got)
	}
	if got := unseen(refresh); len(got) != 0 {
		t.Fatalf("before the refresh: %+v", got)
	}
	if got := unseen(refresh + time.Millisecond); len(got) != 1 || !got[rowed.ID].HasRow {
		t.Fatalf("one that came with a row: %+v", got)
	}
	if got := unseen(refresh + 2*time.Second); len(got) != 3 || !got[queuedOne.ID].HasRow {
		t.Fatalf("refresh: %+v", got)
	}
	if got := unseen(refresh + 3*time.Second); len(got) != 0 {
		t.Fatalf("after the refresh: %+v", got)
	}
}
