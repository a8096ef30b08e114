package sync

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"notifyd/internal/bubble"
	"notifyd/notification"
	"notifyd/notification/hand"
)

var errDown = errors.New("does not answer")

// world is a lane between a scripted dispatcher and a fake net, and what happened in order. It lives in a bubble.
type world struct {
	*Lane
	table *hand.Table

	mu      sync.Mutex
	log     []string
	deliver func(ctx context.Context, w notification.Work) notification.Verdict // nil: acknowledged at once
	record  func() error                                                        // nil: durable at once
	failNet error
	onNet   func(work notification.Work)
	spread  []notification.Work
}

func (w *world) add(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
}

func (w *world) seen() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

func (w *world) Deliver(ctx context.Context, work notification.Work, _ func(), settled func(error)) notification.Verdict {
	w.add("send")
	var v notification.Verdict
	if w.deliver != nil {
		v = w.deliver(ctx, work)
	} else {
		v = ends(work, notification.StateDelivered)
	}
	if v.Deferred {
		return v
	}
	if w.record == nil {
		w.add("record")
		settled(nil)
		return v
	}
	go func() {
		err := w.record()
		w.add("record")
		settled(err)
	}()
	return v
}

func (w *world) Spread(_ context.Context, work notification.Work) (func(context.Context), error) {
	if w.onNet != nil {
		w.onNet(work)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, "net")
	w.spread = append(w.spread, work)
	return func(context.Context) { w.add("net away") }, w.failNet
}

func ends(work notification.Work, state notification.State) notification.Verdict {
	after := *work.Notification
	after.State, after.Attempts = state, after.Attempts+1
	return notification.Verdict{After: &after, Attempts: []notification.Attempt{{Number: after.Attempts}}}
}

func deferred(work notification.Work) notification.Verdict {
	return notification.Verdict{After: work.Notification, Deferred: true, Reason: notification.ReasonRateLimited}
}

func inBubble(t *testing.T, run func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := &world{table: hand.NewTable()}
		lane, err := New(Config{PerKey: 2, Total: 3, Deadline: 5 * time.Second, Margin: 100 * time.Millisecond}, w, w, w.table)
		if err != nil {
			t.Fatal(err)
		}
		w.Lane = lane
		run(t, w)
		if err := w.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if w.total != 0 || len(w.waiting) != 0 {
			t.Errorf("%d places were not given back: %v", w.total, w.waiting)
		}
		if w.table.Len() != 0 {
			t.Errorf("%d stay in hand", w.table.Len())
		}
	})
}

func work(name string, persist notification.Persist) notification.Work {
	n := &notification.Notification{Source: "pay", RequestID: name, Route: notification.Route{IsolationKey: "k", Persist: persist}}
	n.ID = n.DeriveID()
	return notification.Work{Notification: n}
}

func (w *world) ask(ctx context.Context, t *testing.T, work notification.Work) (Answer, error) {
	t.Helper()
	place, err := w.Enter("k")
	if err != nil {
		t.Fatal(err)
	}
	return w.Ask(ctx, place, work, time.Now().Add(30*time.Second))
}

func pass(d time.Duration) { <-time.NewTimer(d).C }

// Where the net stands among the steps, for each way to be durable: taken away when what followed is durable, not before.
func TestStepsInOrder(t *testing.T) {
	for _, c := range []struct {
		persist notification.Persist
		state   notification.State
		want    []string
	}{
		{notification.PersistStream, notification.StateDelivered, []string{"net", "send", "record", "net away"}},
		{notification.PersistStream, notification.StateDead, []string{"net", "send", "record", "net away"}},
		{notification.PersistStream, notification.StateRetrying, []string{"net", "send", "record", "net away"}},
		{notification.PersistAfter, notification.StateDelivered, []string{"send", "record"}},
		{notification.PersistAfter, notification.StateRetrying, []string{"send", "record"}},
		{notification.PersistLedger, notification.StateRetrying, []string{"net", "send", "record", "net away"}},
	} {
		t.Run(c.persist.String()+"/"+c.state.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.deliver = func(_ context.Context, work notification.Work) notification.Verdict { return ends(work, c.state) }
				answer, err := w.ask(t.Context(), t, work("a", c.persist))
				if err != nil || answer.TimedOut || answer.Verdict.After.State != c.state {
					t.Errorf("%+v, %v", answer, err)
				}
				if got := w.seen(); !slices.Equal(got, c.want) {
					t.Errorf("steps %q, want %q", got, c.want)
				}
			})
		})
	}
}

// What the net brings back is the notification, at the time that was named; the one in hand stays as it is.
func TestNetBringsItBack(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		until := time.Now().Add(30 * time.Second)
		asked := work("a", notification.PersistStream)
		if _, err := w.ask(t.Context(), t, asked); err != nil {
			t.Fatal(err)
		}
		if len(w.spread) != 1 || !w.spread[0].NextAt.Equal(until) || !asked.NextAt.IsZero() {
			t.Errorf("net %+v, asked %+v", w.spread, asked.Notification)
		}
	})
}

// The answer waits until the outcome is durable: what the caller is told does not change by a crash.
func TestAnswerWaitsForTheRecord(t *testing.T) {
	for _, persist := range []notification.Persist{notification.PersistAfter, notification.PersistStream, notification.PersistLedger} {
		t.Run(persist.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.record = func() error { pass(time.Second); return nil }
				began := time.Now()
				if answer, err := w.ask(t.Context(), t, work("a", persist)); err != nil || answer.TimedOut || time.Since(began) != time.Second {
					t.Errorf("answered after %s with %+v, %v", time.Since(began), answer, err)
				}
			})
		})
	}
}

// An outcome that could not be made durable is not told: the net brings the notification back, and the caller knows.
func TestLostOutcomeIsNotTold(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.record = func() error { return errDown }
		answer, err := w.ask(t.Context(), t, work("a", notification.PersistStream))
		if err != nil || !answer.TimedOut || answer.Verdict.Reason != notification.ReasonAwaitingAnswer {
			t.Errorf("%+v, %v", answer, err)
		}
		if _, err := w.ask(t.Context(), t, work("b", notification.PersistAfter)); err == nil {
			t.Error("with nothing else that keeps it, it is accepted")
		}
	})
}

// A net is not taken away for an outcome that could not be made durable.
func TestNetStaysWhenTheOutcomeIsLost(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.record = func() error { return errDown }
		if _, err := w.ask(t.Context(), t, work("a", notification.PersistStream)); err != nil {
			t.Fatal(err)
		}
		if got := w.seen(); slices.Contains(got, "net away") {
			t.Errorf("steps %q", got)
		}
	})
}

// Neither the caller's deadline nor its cancellation reaches the attempt; the answer comes in time, and is durable.
func TestTheCallersTimeIsUp(t *testing.T) {
	for name, c := range map[string]struct {
		caller func(context.Context) (context.Context, context.CancelFunc)
		waits  time.Duration
	}{
		"no deadline": {context.WithCancel, 5 * time.Second},
		"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 2*time.Second)
		}, 1900 * time.Millisecond},
		"over already": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 50*time.Millisecond)
		}, 0},
		"goes away": {func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}, time.Second},
	} {
		for _, persist := range []notification.Persist{notification.PersistStream, notification.PersistAfter} {
			t.Run(name+"/"+persist.String(), func(t *testing.T) {
				inBubble(t, func(t *testing.T, w *world) {
					ctx, cancel := c.caller(t.Context())
					defer cancel()
					var cut error
					w.deliver = func(ctx context.Context, work notification.Work) notification.Verdict {
						pass(8 * time.Second)
						cut = ctx.Err()
						return ends(work, notification.StateDelivered)
					}
					began := time.Now()
					answer, err := w.ask(ctx, t, work("a", persist))
					if err != nil || !answer.TimedOut || answer.Verdict.Reason != notification.ReasonAwaitingAnswer || time.Since(began) != c.waits {
						t.Errorf("after %s: %+v, %v; want after %s", time.Since(began), answer, err, c.waits)
					}
					if len(w.spread) != 1 {
						t.Errorf("%d nets when the caller was answered", len(w.spread))
					}
					cancel()
					w.Wait(t.Context())
					if got := w.seen(); cut != nil || got[len(got)-1] != "net away" || !slices.Contains(got, "record") {
						t.Errorf("the attempt ended with %v, steps %q", cut, got)
					}
				})
			})
		}
	}
}

// What cannot be made durable is an error, before the merchant is asked or after the caller's time is up (P1).
func TestNoNetIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.failNet = errDown
		if _, err := w.ask(t.Context(), t, work("a", notification.PersistStream)); !errors.Is(err, errDown) {
			t.Errorf("stream: %v", err)
		}
		if got := w.seen(); slices.Contains(got, "send") {
			t.Errorf("stream: steps %q", got)
		}
		w.deliver = func(_ context.Context, work notification.Work) notification.Verdict {
			pass(8 * time.Second)
			return ends(work, notification.StateDelivered)
		}
		if _, err := w.ask(t.Context(), t, work("b", notification.PersistAfter)); !errors.Is(err, errDown) {
			t.Errorf("after: %v", err)
		}
	})
}

// A deferral is the caller's to place: out of hand, the net still spread.
func TestDeferredIsTheCallers(t *testing.T) {
	for _, persist := range []notification.Persist{notification.PersistStream, notification.PersistAfter} {
		t.Run(persist.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.deliver = func(_ context.Context, work notification.Work) notification.Verdict { return deferred(work) }
				asked := work("a", persist)
				answer, err := w.ask(t.Context(), t, asked)
				if err != nil || !answer.Verdict.Deferred || answer.Verdict.Reason != notification.ReasonRateLimited {
					t.Errorf("%+v, %v", answer, err)
				}
				if _, inHand := w.table.Find(asked.ID); inHand || slices.Contains(w.seen(), "net away") {
					t.Errorf("in hand %v, steps %q", inHand, w.seen())
				}
			})
		})
	}
}

// A second copy is not asked about beside the first.
func TestSecondCopyIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		asked := work("a", notification.PersistStream)
		item, _ := w.table.Enter(asked, time.Now(), func(error) {})
		if _, err := w.ask(t.Context(), t, asked); !errors.Is(err, ErrInHand) {
			t.Errorf("got %v, want %v", err, ErrInHand)
		}
		if got := w.seen(); len(got) != 0 {
			t.Errorf("steps %q", got)
		}
		w.table.Leave(item, nil)
	})
}

// A place is held while the attempt runs, longer than the caller waits; more are refused, for the key and for all.
func TestPlacesAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.deliver = func(_ context.Context, work notification.Work) notification.Verdict {
			pass(8 * time.Second)
			return ends(work, notification.StateDelivered)
		}
		var asking sync.WaitGroup
		for i := range 2 {
			asking.Go(func() { _, _ = w.ask(t.Context(), t, work(strconv.Itoa(i), notification.PersistStream)) })
		}
		asking.Wait()
		if _, err := w.Enter("k"); !errors.Is(err, ErrFull) {
			t.Errorf("third of one key: %v", err)
		}
		place, err := w.Enter("other")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Enter("another"); !errors.Is(err, ErrFull) {
			t.Errorf("fourth of all: %v", err)
		}
		place.Release()
		place.Release() // a second time changes nothing
		pass(4 * time.Second)
		synctest.Wait()
		if w.total != 0 {
			t.Errorf("%d places are taken", w.total)
		}
	})
}

// A cancel that takes the notification back while its net is being spread wins: the merchant is not asked (P12).
func TestTakenBackIsNotSent(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.onNet = func(work notification.Work) {
			item, ok := w.table.TakeBack(work.ID)
			if !ok {
				t.Error("not taken back")
				return
			}
			w.table.Leave(item, nil)
		}
		answer, err := w.ask(t.Context(), t, work("a", notification.PersistStream))
		if got := w.seen(); err != nil || answer.TimedOut || slices.Contains(got, "send") {
			t.Errorf("%+v, %v, steps %q", answer, err, got)
		}
	})
}

func TestConfigNamesTheKey(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"sync.per_key: 0: must be at least 1":                  func(c *Config) { c.PerKey = 0 },
		"sync.total: 1: must be at least per_key (64)":         func(c *Config) { c.Total = 1 },
		"sync.deadline: 1ms: must be at least 10ms":            func(c *Config) { c.Deadline = time.Millisecond },
		"sync.margin: 5s: must be less than the deadline (5s)": func(c *Config) { c.Margin = 5 * time.Second },
	} {
		c := DefaultConfig()
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
