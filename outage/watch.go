package outage

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// WatchOptions say how a dependency is judged.
type WatchOptions struct {
	Every time.Duration // between two probes
	Slow  time.Duration // a probe that takes longer says that the dependency is away
	// Err is what others are told while it is away.
	Err error
	// IsAway says of an operation's error whether the dependency was away, and not the operation wrong.
	IsAway func(error) bool
}

// Watch knows whether one dependency is there. It is believed to be until a probe or an operation says otherwise.
type Watch struct {
	name  string
	probe func(context.Context) error
	log   *zap.Logger
	opts  WatchOptions
	away  atomic.Bool

	mu       sync.Mutex
	since    time.Time // of the present state
	good     int       // probes in a row that succeeded while away
	need     int       // of them, to count as back
	left     chan struct{}
	returned chan struct{}
	bounded  map[*context.CancelCauseFunc]struct{} // operations that end when it goes away
}

const (
	goodProbes = 2
	// A dependency that answers probes and fails at its work comes and goes: each time within flapping it must answer twice
	// as many probes as before, up to mostProbes, before it is asked to work again.
	flapping   = 10 * time.Second
	mostProbes = 40
)

// NewWatch returns a watch; Run makes it look.
func NewWatch(name string, probe func(context.Context) error, log *zap.Logger, opts WatchOptions) *Watch {
	w := &Watch{
		name: name, probe: probe, log: log, opts: opts, since: time.Now(), need: goodProbes / 2,
		left: make(chan struct{}), returned: make(chan struct{}), bounded: map[*context.CancelCauseFunc]struct{}{},
	}
	close(w.returned)
	return w
}

// Run probes until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	ticker := time.NewTicker(w.opts.Every)
	defer ticker.Stop()
	for {
		w.Look(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Look probes once, and reports whether the dependency is there.
func (w *Watch) Look(ctx context.Context) bool {
	bound, cancel := context.WithTimeout(ctx, w.opts.Slow)
	err := w.probe(bound)
	cancel()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.leave(err)
	default:
		w.answered()
	}
	return !w.Away()
}

// Away reports whether the dependency is away.
func (w *Watch) Away() bool { return w.away.Load() }

// Since is when it came into its present state.
func (w *Watch) Since() (away bool, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away.Load(), w.since
}

// Failed is told why an operation failed, and reports whether that was because the dependency is away: then everybody
// knows at once. An operation whose own caller has given up says nothing about the dependency: it is not to be told.
func (w *Watch) Failed(err error) bool {
	if err == nil || !w.opts.IsAway(err) {
		return false
	}
	w.leave(err)
	return true
}

// Err is nil while the dependency is there, and else says that it is away.
func (w *Watch) Err() error {
	if w.Away() {
		return w.opts.Err
	}
	return nil
}

// Within bounds an operation: its context ends when the dependency goes away, with Err as its cause.
func (w *Watch) Within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away.Load() {
		cancel(w.opts.Err)
		return ctx, func() {}
	}
	w.bounded[&cancel] = struct{}{}
	return ctx, func() {
		w.mu.Lock()
		delete(w.bounded, &cancel)
		w.mu.Unlock()
		cancel(context.Canceled)
	}
}

// Left is closed while the dependency is away. It stands for one outage: ask again after each.
func (w *Watch) Left() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left
}

// Returned is closed while the dependency is there. It stands for one presence: ask again after each.
func (w *Watch) Returned() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.returned
}

func (w *Watch) leave(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.good = 0
	if w.away.Load() {
		return
	}
	now := time.Now()
	if w.need = min(2*w.need, mostProbes); now.Sub(w.since) > flapping {
		w.need = goodProbes
	}
	w.away.Store(true)
	w.log.Warn(w.name+" is away; carrying on without it", zap.Error(err), zap.Duration("after", now.Sub(w.since).Round(time.Millisecond)))
	w.since, w.returned = now, make(chan struct{})
	close(w.left)
	for cancel := range w.bounded {
		(*cancel)(fmt.Errorf("%w: %w", w.opts.Err, err))
	}
	clear(w.bounded)
}

func (w *Watch) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.away.Load() {
		return
	}
	if w.good++; w.good < w.need {
		return
	}
	now := time.Now()
	w.away.Store(false)
	w.log.Info(w.name+" is back", zap.Duration("away_for", now.Sub(w.since).Round(time.Millisecond)))
	w.since, w.left = now, make(chan struct{})
	close(w.returned)
}
