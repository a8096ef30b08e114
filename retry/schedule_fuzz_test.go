package retry

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

// FuzzSchedule holds any schedule that is accepted to its word, whatever the attempts are like: nothing is due before the
// attempt before it has ended, no gap is cut short, jitter and Retry-After are bounded, neither budget nor window is
// exceeded, and there is an end.
func FuzzSchedule(f *testing.F) {
	seconds := func(gaps ...uint32) []byte {
		var out []byte
		for _, gap := range gaps {
			out = binary.BigEndian.AppendUint32(out, gap)
		}
		return out
	}
	f.Add(seconds(10, 10, 20), "", 0.1, int64(time.Hour), 3, []byte{0, 1, 2, 3}, 0.5)
	f.Add(seconds(0), "", 1.0, int64(time.Second), 2, []byte{0x10, 0x20, 0x30, 0x40, 0x0f}, 0.999)
	f.Add(seconds(10, 10, 20, 30), "", 0.1, int64(25*time.Second), 1, []byte{0, 0x81, 0}, 0.5) // the window ends it
	f.Add(seconds(), "adyen", 0.0, int64(0), 0, []byte{0xff, 0x80}, 0.0)
	f.Add(seconds(1<<21, 5), "", 0.3, int64(MaxWindow), 1, []byte{}, 0.1)
	f.Add(seconds(1), "hourly", -1.0, int64(-1), -1, []byte{}, 0.1)
	f.Fuzz(func(t *testing.T, gaps []byte, name string, jitter float64, window int64, least int, attempts []byte, random float64) {
		if !(random >= 0 && random < 1) {
			t.Skip()
		}
		own := merchant.Schedule{Name: name, Jitter: &jitter, Window: time.Duration(window), LeastAttempts: least}
		for ; len(gaps) >= 4; gaps = gaps[4:] {
			own.Gaps = append(own.Gaps, time.Duration(int32(binary.BigEndian.Uint32(gaps)))*time.Second)
		}
		s, err := Resolve(own, "")
		if err != nil {
			if fault, ok := errors.AsType[*ScheduleError](err); !ok || fault.Field == "" || fault.Value == "" || fault.Must == "" || !same(s, Default()) {
				t.Fatalf("%v came with %+v", err, s)
			}
			return
		}
		if s.LeastAttempts < 1 || s.LeastAttempts > s.Sends() {
			t.Fatalf("%+v", s)
		}
		checkWalk(t, s, attempts, random)
	})
}

// checkWalk makes failing attempts until there is an end. Each byte says what one is like: how long it took, what the
// merchant asks to wait, whether it counts, and whether it was deferred before.
func checkWalk(t *testing.T, s Schedule, script []byte, random float64) {
	t.Helper()
	p := notification.Progress{State: notification.StateAccepted, Generation: 1}
	now, counted := epoch, 0
	for number := 1; ; number++ {
		kind := byte(0)
		if number <= len(script) {
			kind = script[number-1]
		}
		if kind&0x80 != 0 && p.DeferredSince.IsZero() { // an open breaker, say
			p.DeferredSince = now
			now = now.Add(time.Duration(kind) * time.Minute)
		}
		a := failed(number, now, time.Duration(kind&0x0f)*time.Second)
		a.Counted = kind&0x10 == 0
		a.RetryAfter = time.Duration(int8(kind)) * time.Minute
		if a.Counted {
			counted++
		}
		before, end := p, now.Add(a.Took)
		p = Decide(p, a, s, end, random)
		if counted > s.Sends() {
			t.Fatalf("%+v made %d counted attempts", s, counted)
		}
		if p.State.Final() {
			if !a.Counted || p.State != notification.StateDead || !p.NextAt.IsZero() || counted < s.LeastAttempts {
				t.Fatalf("%+v ended after %d as %+v", s, counted, p)
			}
			return
		}
		if p.State != notification.StateRetrying || p.NextAt.Before(end) || p.Step != counted {
			t.Fatalf("%+v: after %+v\n%+v", s, a, p)
		}
		if a.Counted {
			checkGap(t, s, a, end, p)
		} else if p.NextAt.Sub(end) > maxDeferral+maxDeferral/2+time.Microsecond || p.Step != before.Step {
			t.Fatalf("a fault of ours: %+v", p)
		}
		now = p.NextAt
	}
}

func checkGap(t *testing.T, s Schedule, a notification.Attempt, end time.Time, p notification.Progress) {
	t.Helper()
	gap, wait := s.Gaps[p.Step-1], p.NextAt.Sub(end)
	most := max(gap, min(a.RetryAfter, MaxRetryAfter))
	most += time.Duration(float64(most)*s.Jitter) + time.Microsecond
	if wait < gap || wait > most {
		t.Fatalf("%+v: gap %d was %v, want %v to %v", s, p.Step, wait, gap, most)
	}
	until := p.WindowFrom.Add(s.Window).Add(p.DeferredFor + time.Microsecond)
	if s.Window > 0 && p.Step >= s.LeastAttempts && p.NextAt.After(until) {
		t.Fatalf("%+v: due %v after the window", s, p.NextAt.Sub(until))
	}
}
