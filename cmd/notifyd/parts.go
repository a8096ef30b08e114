package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// parts are the running parts of the engine. They stop in the reverse order of their start, each after the one that
// uses it: first nothing more is taken, then what is in hand is finished, then what keeps it is closed.
type parts struct {
	started []*part
	failed  chan error

	stopping sync.Once
	stopErr  error
	now      atomic.Pointer[string] // the part that is stopping
}

type part struct {
	name string
	stop func() error
}

func newParts() *parts { return &parts{failed: make(chan error, 1)} }

// opened notes something that only has to be closed.
func (p *parts) opened(name string, closePart func() error) {
	p.started = append(p.started, &part{name: name, stop: closePart})
}

// run starts a part that works until its context ends. If it ends before that, failed says so.
func (p *parts) run(ctx context.Context, name string, work func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() {
		err := work(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			select {
			case p.failed <- fmt.Errorf("%s: %w", name, err):
			default: // the first failure is the cause
			}
		}
		done <- err
	}()
	p.opened(name, func() error {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
}

// stop stops everything that was started.
func (p *parts) stop() error {
	p.stopping.Do(func() {
		for _, one := range slices.Backward(p.started) {
			p.now.Store(&one.name)
			if err := one.stop(); err != nil {
				p.stopErr = errors.Join(p.stopErr, fmt.Errorf("stop %s: %w", one.name, err))
			}
		}
	})
	return p.stopErr
}

// slowStop is after how long a part that stops is named in the log.
const slowStop = 5 * time.Second

// stopWithin stops everything, but waits no longer than a bound: what hangs then ends with the process, and the next
// start takes it for a crash. It names what takes long.
func (p *parts) stopWithin(bound time.Duration, log *zap.Logger) error {
	stopped := make(chan error, 1)
	go func() { stopped <- p.stop() }()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	look := time.NewTicker(slowStop)
	defer look.Stop()
	for {
		select {
		case err := <-stopped:
			return err
		case <-look.C:
			log.Info("still stopping", zap.Stringp("part", p.now.Load()))
		case <-deadline.C:
			return fmt.Errorf("stop: %s has not ended within %s; the process ends without it", *p.now.Load(), bound)
		}
	}
}

// cleanSoFar reports, while the parts stop, whether all of them have stopped without an error.
func (p *parts) cleanSoFar() bool { return p.stopErr == nil }
