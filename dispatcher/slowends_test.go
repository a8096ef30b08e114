package dispatcher

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"notifyd/internal/bubble"
	"notifyd/notification"
)

// What ends with the timeout goes on a few at a time; what was quick does not wait for it.
func TestSlowEndsTakeTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := slowEnds(make(chan struct{}, 2))
		var mu sync.Mutex
		at, ended := 0, 0
		for range 20 {
			go func() {
				defer s.enter(&notification.Attempt{Took: 10 * time.Second})()
				mu.Lock()
				at++
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				at, ended = at-1, ended+1
				mu.Unlock()
			}()
		}
		for second := range 10 {
			synctest.Wait()
			mu.Lock()
			if at != 2 || ended != 2*second {
				t.Errorf("after %d s %d are at it and %d have ended, want 2 and %d", second, at, ended, 2*second)
			}
			mu.Unlock()
			s.enter(&notification.Attempt{Took: 20 * time.Millisecond})()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if ended != 20 {
			t.Errorf("%d of 20 have ended", ended)
		}
	})
}

// Deliver keeps to the turns: it looks after a slow attempt when one is free, and after a quick one at once.
func TestDeliverTakesTurnsForSlowAttempts(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.slowEnds = make(slowEnds, 1)
		w.slowEnds <- struct{}{} // somebody has the only turn
		slow := failed(notification.ReasonResponseTimeout)
		slow.Took = 10 * time.Second
		work, recorded := w.accepted(t, "slow"), make(chan struct{})
		w.sends.answers(slow)
		go func() {
			defer close(recorded)
			w.Deliver(t.Context(), work, nil, func(error) {})
		}()
		synctest.Wait()
		if w.sends.count() != 1 || w.log.index("recorded") >= 0 {
			t.Fatalf("without a turn: %q", w.log.lines)
		}
		w.sends.answers(acknowledged())
		if v, err := w.deliver(t, w.accepted(t, "quick")); err != nil || v.After.State != notification.StateDelivered {
			t.Fatalf("a quick one beside it: %+v, %v", v.After, err)
		}
		<-w.slowEnds
		<-recorded
		if n, attempts := w.row(t, work.ID); n.State != notification.StateRetrying || len(attempts) != 1 {
			t.Errorf("with its turn: %+v with %d attempts", n.Progress, len(attempts))
		}
	})
}
