package outage_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"notifyd/internal/bubble"
	"notifyd/outage"
)

var (
	errAway   = errors.New("it is away")
	errBroken = errors.New("connection refused")
)

// dependency answers probes as it is told.
type dependency struct {
	broken atomic.Bool
	slow   atomic.Bool
}

func (d *dependency) probe(ctx context.Context) error {
	if d.slow.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if d.broken.Load() {
		return errBroken
	}
	return nil
}

func (d *dependency) watch(log *zap.Logger) *outage.Watch {
	return outage.NewWatch("it", d.probe, log, outage.WatchOptions{
		Every: 250 * time.Millisecond, Slow: time.Second, Err: errAway,
		IsAway: func(err error) bool { return errors.Is(err, errBroken) },
	})
}

// running runs a watch to the end of a bubble.
func running(t *testing.T, w *outage.Watch) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
}

func pass(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestWatch(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		core, lines := observer.New(zap.InfoLevel)
		var d dependency
		w := d.watch(zap.New(core))
		running(t, w)
		pass(time.Minute)
		bounded, cancel := w.Within(t.Context())
		defer cancel()
		unbounded, done := w.Within(t.Context())
		done()
		if w.Away() || bounded.Err() != nil || w.Err() != nil || lines.Len() != 0 {
			t.Fatalf("away %v, %v, %d lines", w.Away(), bounded.Err(), lines.Len())
		}

		d.slow.Store(true)
		pass(1300 * time.Millisecond)
		if !w.Away() || !errors.Is(w.Err(), errAway) || !errors.Is(context.Cause(bounded), errAway) || errors.Is(context.Cause(unbounded), errAway) {
			t.Errorf("slow: away %v, cause %v", w.Away(), context.Cause(bounded))
		}
		select {
		case <-w.Left():
		default:
			t.Error("nobody is told that it left")
		}
		if ctx, cancel := w.Within(t.Context()); !errors.Is(context.Cause(ctx), errAway) {
			t.Error("something begins while it is away")
		} else {
			cancel()
		}

		pass(10 * time.Second)
		d.slow.Store(false)
		returned := w.Returned()
		pass(2 * time.Second) // a slow probe may be under way
		if w.Away() {
			t.Error("it is not back")
		}
		select {
		case <-returned:
		default:
			t.Error("nobody is told that it is back")
		}
		if lines.Len() != 2 || lines.All()[1].ContextMap()["away_for"].(time.Duration) < 10*time.Second {
			t.Errorf("logged %v", lines.All())
		}
	})
}

// One good probe is not enough, and one that comes and goes must be good for longer each time.
func TestWatchDoesNotFlap(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var d dependency
		w := d.watch(zap.NewNop())
		pass(time.Minute)
		for _, want := range []int{2, 4, 8, 16, 32, 40, 40} {
			if !w.Failed(errBroken) || !w.Away() {
				t.Fatal("a failure does not count")
			}
			if w.Failed(errors.New("no such row")) || w.Failed(nil) {
				t.Error("anything counts")
			}
			probes := 0
			for w.Away() {
				w.Look(t.Context())
				probes++
			}
			if probes != want {
				t.Errorf("back after %d probes, want %d", probes, want)
			}
		}
		pass(time.Minute)
		w.Failed(errBroken)
		if w.Look(t.Context()) || !w.Look(t.Context()) {
			t.Error("after a quiet time two good probes are not what it takes")
		}
		d.broken.Store(true)
		if w.Look(t.Context()) {
			t.Error("a failed probe does not count")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		d.broken.Store(false)
		d.slow.Store(true)
		before, _ := w.Since()
		w.Look(ended)
		if after, _ := w.Since(); after != before {
			t.Error("the end of the engine counts")
		}
	})
}
