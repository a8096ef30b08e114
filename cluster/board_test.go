package cluster

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/scenario"
)

// reader is a node that reads the board.
type reader struct {
	*Board
	stop func()

	mu   sync.Mutex
	sees map[string]string
}

func newReader(t *testing.T, s *server) *reader {
	t.Helper()
	cfg := DefaultBoardConfig()
	cfg.Bucket, cfg.Look = "notifyd_test", 100*time.Millisecond
	b, err := NewBoard(s.js(), cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{Board: b, sees: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		_ = b.Run(ctx, func(key string, value []byte) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if value == nil {
				delete(r.sees, key)
			} else {
				r.sees[key] = string(value)
			}
		})
	})
	r.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(r.stop)
	return r
}

func (r *reader) put(t *testing.T, key, value string, ttl time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := r.Put(ctx, key, []byte(value), ttl); err != nil {
		t.Fatal(err)
	}
}

func (r *reader) until(t *testing.T, want map[string]string) {
	t.Helper()
	scenario.Within(t, 15*time.Second, "the board is as wanted", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return maps.Equal(r.sees, want)
	})
}

func learned(t *testing.T, r *reader) {
	t.Helper()
	select {
	case <-r.Learned():
	case <-time.After(10 * time.Second):
		t.Fatal("the board was not learned")
	}
}

type board = map[string]string

// Whatever one node puts the others see, in order, and it outlives the node; an entry that ends is gone everywhere.
func TestBoardIsSeenByAll(t *testing.T) {
	s := newServer(t).start()
	a, b := newReader(t, s), newReader(t, s)
	learned(t, a)
	learned(t, b)
	a.put(t, "open.1", "x", 0)
	a.put(t, "open.1", "y", 0)
	a.put(t, "open.2", "short", time.Millisecond)
	b.until(t, board{"open.1": "y", "open.2": "short"})
	b.until(t, board{"open.1": "y"})
	a.stop()

	again := newReader(t, s)
	learned(t, again)
	again.until(t, board{"open.1": "y"})
	if err := again.Delete(t.Context(), "open.1"); err != nil {
		t.Fatal(err)
	}
	b.until(t, board{})
	again.put(t, "open.1", "z", 0)
	b.until(t, board{"open.1": "z"})
}

// NATS away, at the start too: what is known stays known, nothing can be put, and all is caught up afterwards.
func TestBoardCatchesUp(t *testing.T) {
	s := newServer(t)
	a, b := newReader(t, s), newReader(t, s)
	select {
	case <-a.Learned():
		t.Fatal("learned without NATS")
	case <-time.After(300 * time.Millisecond):
	}
	s.start()
	learned(t, a)
	learned(t, b)
	a.put(t, "k", "1", 0)
	a.put(t, "gone", "1", 0)
	b.until(t, board{"k": "1", "gone": "1"})
	s.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := a.Put(ctx, "k", []byte("2"), 0); err == nil {
		t.Fatal("put without NATS")
	}
	b.until(t, board{"k": "1", "gone": "1"})
	s.start()
	c := newReader(t, s)
	learned(t, c)
	c.put(t, "k", "3", 0)
	if err := c.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*reader{a, b} {
		r.until(t, board{"k": "3"})
	}
}

// A bucket that is lost is made again, with what the nodes know and for as long as it had left.
func TestBoardIsMadeAgain(t *testing.T) {
	s := newServer(t).start()
	a, b := newReader(t, s), newReader(t, s)
	learned(t, a)
	learned(t, b)
	a.put(t, "forced", "x", 0)
	a.put(t, "short", "x", 4*time.Second)
	b.until(t, board{"forced": "x", "short": "x"})
	if err := a.js.DeleteKeyValue(t.Context(), "notifyd_test"); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "the bucket has what there was", func() bool {
		kv, err := a.js.KeyValue(t.Context(), "notifyd_test")
		if err != nil {
			return false
		}
		e, err := kv.Get(t.Context(), "forced")
		return err == nil && string(e.Value()[8:]) == "x"
	})
	late := newReader(t, s)
	learned(t, late)
	late.until(t, board{"forced": "x"})
	b.until(t, board{"forced": "x"})
	a.put(t, "forced", "y", 0)
	b.until(t, board{"forced": "y"})
}

func TestBoardConfigNamesTheFault(t *testing.T) {
	for want, spoil := range map[string]func(*BoardConfig){
		"board: bucket is empty":                    func(c *BoardConfig) { c.Bucket = "" },
		"board: replicas is 6, must be 1 to 5":      func(c *BoardConfig) { c.Replicas = 6 },
		"board: look is 1ms, must be at least 10ms": func(c *BoardConfig) { c.Look = time.Millisecond },
	} {
		cfg := DefaultBoardConfig()
		cfg.Bucket = "b"
		spoil(&cfg)
		if _, err := NewBoard(nil, cfg, zap.NewNop()); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
