package health

import (
	"context"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/ledger"
)

const (
	probeEvery   = time.Second
	probeBound   = 2 * time.Second
	overdueEvery = 15 * time.Second
	// overdueAfter is how late a due notification is before it counts as overdue: coming due takes some tenths of a second.
	overdueAfter = 30 * time.Second
	// staleAfter is how old a sample may be: a probe that hangs although its time is up must not look like a good answer.
	staleAfter = probeEvery + probeBound + 2*time.Second
)

// Sample is what was last learned by asking; parts that did not answer keep what was known before.
type Sample struct {
	NATS, Postgres Answer // the zero Answer: not part of this node, or not asked yet

	Backlog   async.Backlog
	BacklogAt time.Time // zero: not known
	// Untaken is how many messages of the backlog nobody takes: none while any node takes some.
	Untaken uint64

	Overdue   ledger.Overdue
	OverdueAt time.Time // zero: not known
}

// probes ask the dependencies, each in a loop of its own, so that none waits for another.
type probes struct {
	parts Parts

	mu     sync.Mutex
	sample Sample
}

// run asks until ctx ends.
func (p *probes) run(ctx context.Context) {
	var asking sync.WaitGroup
	if p.parts.NATS != nil {
		asking.Go(func() { every(ctx, probeEvery, func() { p.ask(ctx, "nats", p.parts.NATS, &p.sample.NATS) }) })
	}
	if p.parts.Postgres != nil {
		asking.Go(func() {
			every(ctx, probeEvery, func() { p.ask(ctx, "postgres", p.parts.Postgres, &p.sample.Postgres) })
		})
	}
	if p.parts.Backlog != nil {
		asking.Go(func() { every(ctx, probeEvery, func() { p.askBacklog(ctx) }) })
	}
	if p.parts.Overdue != nil {
		asking.Go(func() { every(ctx, overdueEvery, func() { p.askOverdue(ctx) }) })
	}
	asking.Wait()
}

// every calls f at once and then again and again until ctx ends.
func every(ctx context.Context, span time.Duration, f func()) {
	tick := time.NewTicker(span)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ask notes whether a dependency answers, and logs when that changes.
func (p *probes) ask(ctx context.Context, name string, check func(context.Context) error, into *Answer) {
	bounded, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	err := check(bounded)
	if ctx.Err() != nil {
		return
	}
	now := p.parts.Now()
	p.mu.Lock()
	before := *into
	*into = Answer{At: now, Cause: causeOf(err)}
	p.mu.Unlock()
	switch {
	case err != nil && before.Cause == "":
		p.parts.Log.Warn("a dependency does not answer", zap.String("dependency", name), zap.Error(err))
	case err == nil && before.Cause != "":
		p.parts.Log.Info("a dependency answers again", zap.String("dependency", name))
	}
}

// longestCause bounds what is repeated of an error.
const longestCause = 300

// causeOf is an error in one line.
func causeOf(err error) string {
	if err == nil {
		return ""
	}
	words := strings.Join(strings.Fields(err.Error()), " ")
	if len(words) > longestCause {
		words = strings.ToValidUTF8(words[:longestCause], "") + "…"
	}
	return words
}

func (p *probes) askBacklog(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	b, err := p.parts.Backlog(bounded)
	if err != nil { // NATS' own probe tells
		return
	}
	now := p.parts.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	stands := !p.sample.BacklogAt.IsZero() && p.sample.Backlog.Taken == b.Taken
	p.sample.Backlog, p.sample.BacklogAt, p.sample.Untaken = b, now, 0
	if stands {
		p.sample.Untaken = b.Untaken
	}
}

func (p *probes) askOverdue(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	o, err := p.parts.Overdue(bounded, p.parts.Now().Add(-overdueAfter))
	if err != nil { // Postgres' own probe tells
		return
	}
	now := p.parts.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sample.Overdue, p.sample.OverdueAt = o, now
}

// last is what is known now. A probe that has not come back in time counts as no answer.
func (p *probes) last() Sample {
	now := p.parts.Now()
	p.mu.Lock()
	s := p.sample
	p.mu.Unlock()
	for _, a := range []*Answer{&s.NATS, &s.Postgres} {
		if !a.At.IsZero() && now.Sub(a.At) > staleAfter {
			*a = Answer{At: now, Cause: "the last check has not come back"}
		}
	}
	if now.Sub(s.BacklogAt) > staleAfter {
		s.Untaken = 0
	}
	return s
}
