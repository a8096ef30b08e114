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
