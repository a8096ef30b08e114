package retry

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

var epoch = time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)

// failed is a counted attempt without an answer.
func failed(number int, at time.Time, took time.Duration) notification.Attempt {
	return notification.Attempt{
		Number: number, Generation: 1, Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonResponseTimeout,
		Counted: true, StartedAt: at, Took: took,
	}
}

// walk fails every attempt on a fake clock and gives the start of each, until there is none.
func walk(t *testing.T, s Schedule, took time.Duration, random func() float64) []time.Time {
	t.Helper()
	p := notification.Progress{State: notification.StateAccepted, Generation: 1}
	var starts []time.Time
	for at := epoch; ; at = p.NextAt {
		if len(starts) > s.Sends() {
			t.Fatalf("%s does not end after %d sends", s.Name, s.Sends())
		}
		starts = append(starts, at)
		end := at.Add(took)
		p = Decide(p, failed(len(starts), at, took), s, end, random())
		if p.State.Final() {
			if p.State != notification.StateDead || p.Reason != notification.ReasonScheduleExhausted || p.SettledBy != notification.SettledBySchedule || !p.NextAt.IsZero() {
				t.Fatalf("%s ended as %+v", s.Name, p)
			}
			return starts
		}
		if p.State != notification.StateRetrying || p.NextAt.Before(end) {
			t.Fatalf("%s: attempt %d ended %v, progress %+v", s.Name, len(starts), end, p)
		}
	}
}

// S1.10: the times of every built-in within its jitter, whatever chance does and however slow the attempts are.
func TestBuiltinsOnAFakeClock(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	dice := map[string]func() float64{
		"none": func() float64 { return 0 }, "most": func() float64 { return 0.999999 }, "any": chance.Float64,
	}
	for _, name := range Names() {
		for luck, random := range dice {
			for _, took := range []time.Duration{0, 40 * time.Millisecond, 15 * time.Second} {
				t.Run(name+"/"+luck+"/"+took.String(), func(t *testing.T) {
					s := builtin[name]
					starts := walk(t, s, took, random)
					if len(starts) != s.Sends() {
						t.Fatalf("%d sends, want %d: the jitter has cost one", len(starts), s.Sends())
					}
					for i, gap := range s.Gaps {
						wait := starts[i+1].Sub(starts[i].Add(took))
						most := gap + time.Duration(s.Jitter*float64(gap)) + time.Microsecond
						if wait < gap || wait > most {
							t.Errorf("gap %d was %v, want %v to %v", i, wait, gap, most)
						}
					}
					if last := starts[len(starts)-1]; last.After(epoch.Add(s.Window)) {
						t.Errorf("last send %v after the window of %v", last.Sub(epoch), s.Window)
					}
				})
			}
		}
	}
}

// S3.11: after a mass failure the next attempts are spread over the whole jitter.
func TestJitterSpreadsAMassFailure(t *testing.T) {
	const many, slots = 10_000, 10
	chance := rand.New(rand.NewPCG(3, 4))
	s := Default()
	var histogram [slots]int
	for range many {
		p := Decide(notification.Progress{Step: 7}, failed(8, epoch, 0), s, epoch, chance.Float64())
		extra := p.NextAt.Sub(epoch) - s.Gaps[7]
		histogram[int(float64(extra)/(s.Jitter*float64(s.Gaps[7]))*slots)]++
	}
	if low, high := slices.Min(histogram[:]), slices.Max(histogram[:]); low < many/slots*8/10 || high > many/slots*12/10 {
		t.Errorf("not flat: %v", histogram)
	}
}

func TestDecideSettles(t *testing.T) {
	end := epoch.Add(time.Second)
	tests := []struct {
		name    string
		attempt notification.Attempt
		state   notification.State
		reason  notification.Reason
		by      string
	}{
		{
			"delivered",
			notification.Attempt{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged, Counted: true},
			notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement,
		},
		{
			"delivered late",
			notification.Attempt{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonLateAcknowledgement, LateAt: end, Counted: true},
			notification.StateDelivered, notification.ReasonLateAcknowledgement, notification.SettledByLateAcknowledgement,
		},
		{
			"rejected",
			notification.Attempt{Outcome: notification.OutcomeRejected, Reason: notification.ReasonGone, Counted: true},
			notification.StateDead, notification.ReasonGone, notification.SettledByMerchant,
		},
		{
			"out of gaps",
			notification.Attempt{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPServerError, Counted: true},
			notification.StateDead, notification.ReasonScheduleExhausted, notification.SettledBySchedule,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := notification.Progress{
				State: notification.StateRetrying, Generation: 3, Attempts: 6, Step: 3, NextAt: epoch, WindowFrom: epoch.Add(-time.Minute),
				Resting: true, DeferredFor: time.Second, DeferredSince: epoch.Add(-2 * time.Second),
			}
			a := test.attempt
			a.Number, a.StartedAt, a.Took = 7, epoch, time.Second
			have := Decide(before, a, builtin["1-5-15"], end, 0.5)
			want := notification.Progress{
				State: test.state, Reason: test.reason, Generation: 3, Attempts: 7, Step: 4, WindowFrom: epoch.Add(-time.Minute),
				DeferredFor: 3 * time.Second, SettledAt: end, SettledBy: test.by, UpdatedAt: end,
			}
			if have != want {
				t.Errorf("have %+v\nwant %+v", have, want)
			}
		})
	}
}

func TestDecideKeepsWhatIsFinal(t *testing.T) {
	for _, state := range notification.States() {
		if !state.Final() {
			continue
		}
		for outcome := notification.OutcomeDelivered; outcome <= notification.OutcomeUnconfirmed; outcome++ {
			before := notification.Progress{
				State: state, Reason: notification.ReasonAcknowledged, Attempts: 2, Step: 2, WindowFrom: epoch,
				SettledAt: epoch, SettledBy: notification.SettledByAcknowledgement, UpdatedAt: epoch,
			}
			want := before
			want.Attempts, want.UpdatedAt = 3, epoch.Add(time.Hour)
			a := failed(3, epoch, time.Second)
			a.Outcome = outcome
			if have := Decide(before, a, Default(), epoch.Add(time.Hour), 0); have != want {
				t.Errorf("%v after %v: have %+v\nwant %+v", state, outcome, have, want)
			}
		}
	}
}

func TestDecideRetries(t *testing.T) {
	list := Schedule{Gaps: []time.Duration{time.Minute, 2 * time.Hour, 3 * time.Hour}, Window: 4 * time.Hour, LeastAttempts: 2}
	sure := list
	sure.LeastAttempts = 4
	tests := []struct {
		name       string
		schedule   Schedule
		step       int
		startedAt  time.Duration // after the first attempt's start
		deferred   time.Duration
		retryAfter time.Duration
		wait       time.Duration // after the attempt's end; negative: never
	}{
		{"the gap counts from the end", list, 0, 0, 0, 0, time.Minute},
		{"the second gap", list, 1, time.Hour, 0, 0, 2 * time.Hour},
		{"Retry-After below the gap", list, 0, 0, 0, time.Second, time.Minute},
		{"Retry-After above the gap", list, 0, 0, 0, 5 * time.Minute, 5 * time.Minute},
		{"Retry-After above its bound", list, 0, 0, 0, 48 * time.Hour, time.Hour},
		{"a gap above Retry-After's bound", list, 1, 0, 0, 48 * time.Hour, 2 * time.Hour},
		{"a negative Retry-After", list, 0, 0, 0, -time.Hour, time.Minute},
		{"Retry-After reaches to the window's end", list, 0, 4*time.Hour - 30*time.Minute - 10*time.Second, 0, time.Hour, 30 * time.Minute},
		{"just within the window", list, 2, time.Hour - 10*time.Second, 0, 0, 3 * time.Hour},
		{"just past the window", list, 2, time.Hour - 9*time.Second, 0, 0, -1},
		{"deferred time does not count", list, 2, 2 * time.Hour, 2 * time.Hour, 0, 3 * time.Hour},
		{"least attempts reach past the window", sure, 2, 9 * time.Hour, 0, 0, 3 * time.Hour},
		{"least attempts made", list, 1, 9 * time.Hour, 0, 0, -1},
		{"no gap left", sure, 3, 0, 0, 0, -1},
		{"no window", Schedule{Gaps: list.Gaps}, 2, 1000 * time.Hour, 0, 0, 3 * time.Hour},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			const took = 10 * time.Second
			a := failed(test.step+1, epoch.Add(test.startedAt), took)
			a.RetryAfter = test.retryAfter
			end := a.StartedAt.Add(took)
			p := notification.Progress{State: notification.StateRetrying, Step: test.step, Attempts: test.step, WindowFrom: epoch, DeferredFor: test.deferred}
			p = Decide(p, a, test.schedule, end, 0)
			switch {
			case test.wait < 0 && p.State != notification.StateDead:
				t.Errorf("due %v after its end, want never", p.NextAt.Sub(end))
			case test.wait >= 0 && (p.State != notification.StateRetrying || p.Reason != a.Reason || !p.NextAt.Equal(end.Add(test.wait))):
				t.Errorf("%v %v, due %v after its end, want %v", p.State, p.Reason, p.NextAt.Sub(end), test.wait)
			}
		})
	}
}

// P7: an attempt that failed by our own fault uses up neither a step nor the window.
func TestDecideDefersOurOwnFaults(t *testing.T) {
	s := Schedule{Gaps: []time.Duration{time.Minute}, Window: 2 * time.Minute}
	p := notification.Progress{State: notification.StateAccepted}
	at := epoch
	var waits []time.Duration
	for number := 1; number <= 200; number++ {
		a := failed(number, at, time.Second)
		a.Counted, a.Outcome, a.Reason = false, notification.OutcomeRetryable, notification.ReasonLocalPorts
		end := at.Add(time.Second)
		p = Decide(p, a, s, end, 0)
		if p.State != notification.StateRetrying || p.Step != 0 || p.Attempts != number {
			t.Fatalf("after %d: %+v", number, p)
		}
		waits = append(waits, p.NextAt.Sub(end))
		at = p.NextAt
	}
	if want := []time.Duration{5 * time.Second, 6 * time.Second, 13 * time.Second}; !slices.Equal(waits[:3], want) || slices.Max(waits) != time.Minute {
		t.Errorf("waits %v", waits[:8])
	}
	p = Decide(p, failed(201, at, time.Second), s, at.Add(time.Second), 0)
	if p.State != notification.StateRetrying || p.Step != 1 || p.NextAt.Sub(at) != time.Minute+time.Second {
		t.Errorf("the window was used up: %+v", p)
	}
	spread := Decide(notification.Progress{}, notification.Attempt{Outcome: notification.OutcomeRetryable, StartedAt: epoch}, s, epoch, 0.9)
	if wait := spread.NextAt.Sub(epoch); wait != 7250*time.Millisecond {
		t.Errorf("deferred for %v, want 5 s and 2.25 s of jitter", wait)
	}
}

func TestDecideWithoutAStart(t *testing.T) {
	a := failed(1, time.Time{}, 0)
	p := Decide(notification.Progress{}, a, Default(), epoch, 0)
	if !p.WindowFrom.Equal(epoch) || !p.NextAt.Equal(epoch.Add(10*time.Second)) {
		t.Errorf("an interrupted attempt gave %+v", p)
	}
}

func TestNextIsInTheLedgersMicroseconds(t *testing.T) {
	local := time.FixedZone("", 8*3600)
	a := failed(1, epoch.Add(1).In(local), 0)
	p := Decide(notification.Progress{}, a, builtin["unionpay"], epoch, 0)
	if !p.NextAt.Equal(epoch.Add(time.Microsecond)) || p.NextAt.Location() != time.UTC {
		t.Errorf("due %v", p.NextAt)
	}
}

// TestRandomSchedulesEnd is the property behind P2: whatever the schedule and the attempts, there is an end, no
// attempt is due before the one before it has ended, and the least attempts are made.
func TestRandomSchedulesEnd(t *testing.T) {
	chance := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		own := merchant.Schedule{Window: time.Duration(chance.Int64N(int64(time.Hour)))}
		for range 1 + chance.IntN(20) {
			own.Gaps = append(own.Gaps, time.Duration(chance.Int64N(int64(20*time.Minute))))
		}
		own.LeastAttempts = chance.IntN(len(own.Gaps) + 2)
		jitter := chance.Float64()
		own.Jitter = &jitter
		s, err := Resolve(own, "")
		if err != nil {
			t.Fatal(err)
		}
		starts := walk(t, s, time.Duration(chance.Int64N(int64(time.Minute))), chance.Float64)
		if len(starts) < s.LeastAttempts {
			t.Fatalf("%+v made only %d", s, len(starts))
		}
		for i, at := range starts {
			if i >= s.LeastAttempts && s.Window > 0 && at.After(epoch.Add(s.Window+time.Microsecond)) {
				t.Fatalf("%+v: attempt %d at %v", s, i+1, at.Sub(epoch))
			}
		}
	}
}

func FuzzDecide(f *testing.F) {
	f.Add(uint8(1), uint8(4), true, false, 0, 1, int64(0), int64(time.Second), int64(0), int64(0), 0.5)
	f.Add(uint8(4), uint8(3), true, true, 5, 6, int64(time.Hour), int64(0), int64(time.Hour), int64(time.Minute), 0.0)
	f.Add(uint8(2), uint8(0), false, false, 99, 1, int64(-1), int64(-1), int64(-1), int64(-1), 0.99)
	f.Fuzz(func(t *testing.T, state, outcome uint8, counted, late bool, step, number int, age, took, retryAfter, deferred int64, random float64) {
		const year = int64(365 * 24 * time.Hour)
		if !(random >= 0 && random < 1) || max(age, took, retryAfter, deferred) > year || min(age, took, retryAfter, deferred) < -year {
			return
		}
		p := notification.Progress{
			State: notification.State(state), Step: step, WindowFrom: epoch.Add(-time.Duration(age)), DeferredFor: time.Duration(deferred),
		}
		a := notification.Attempt{
			Number: number, Outcome: notification.Outcome(outcome), Counted: counted, StartedAt: epoch, Took: time.Duration(took),
			RetryAfter: time.Duration(retryAfter),
		}
		if late {
			a.LateAt = epoch
		}
		end := epoch.Add(max(0, a.Took))
		for _, name := range Names() {
			have := Decide(p, a, builtin[name], end, random)
			if have != Decide(p, a, builtin[name], end, random) {
				t.Fatal("two answers to one question")
			}
			switch {
			case have.State.Final():
				if !have.NextAt.IsZero() {
					t.Fatalf("final and due: %+v", have)
				}
			case have.State != notification.StateRetrying:
				t.Fatalf("neither final nor retrying: %+v", have)
			case have.NextAt.Before(end):
				t.Fatalf("due %v before the end: %+v", end.Sub(have.NextAt), have)
			}
			if p.State.Final() && have.State != p.State {
				t.Fatalf("%v became %v", p.State, have.State)
			}
			if have.Attempts < p.Attempts || have.UpdatedAt != end {
				t.Fatalf("have %+v", have)
			}
		}
	})
}
