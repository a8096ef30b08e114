package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"notifyd/internal/bench/rig"
)

const (
	ordinary   = "ok" // the class of merchants of whom nothing is special
	openCalls  = 256
	batchSize  = 10
	stragglers = 30 * time.Second // how long what was accepted may take after the run's end
	waitBound  = 30 * time.Minute
	calibrate  = 20_000 // notifications that the capacity is measured with
)

// world is the engine, the merchants and the load of one scenario.
type world struct {
	engine *rig.Engine
	sink   *rig.Sink
	load   *rig.Load
	bytes  int
	rate   float64
}

// row is what a scenario showed. Latencies are in ms.
type row struct {
	Scenario  string             `json:"scenario"`
	Rate      float64            `json:"rate"` // offered in all, without the fault
	Without   side               `json:"without"`
	With      side               `json:"with"`
	Delivered float64            `json:"delivered_ratio"`
	P99       float64            `json:"p99_ratio"`
	First     float64            `json:"first_second_p99_ratio"` // to the median second without the fault
	P99Goal   float64            `json:"p99_goal"`
	Met       bool               `json:"met"`
	Figures   map[string]float64 `json:"figures,omitempty"`
	Lateness  *rig.Spread        `json:"lateness,omitempty"`
	Mass      []int              `json:"mass,omitempty"`
	MassBinMS int                `json:"mass_bin_ms,omitempty"`

	with  rig.SinkAnswer
	notes []string
}

// side is what the healthy merchants had in one of the two runs.
type side struct {
	Offered   int          `json:"offered"` // accepted for them
	Delivered float64      `json:"delivered_per_second"`
	Missing   int          `json:"missing"` // not asked half a minute after the run
	ToMerch   rig.Spread   `json:"to_merchant"`
	ToAnswer  rig.Spread   `json:"to_answer"`
	Refused   int          `json:"refused"` // of all
	Seconds   []rig.Second `json:"seconds"`
	MostMiB   int          `json:"engine_most_mib"`
	MostOpen  int          `json:"most_open"` // requests that bad merchants had open at once
}

func measure(ctx context.Context, s settings, sc scenario, dir string, out *results) (r row, err error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &world{bytes: s.bytes}
	defer w.stop(ctx, cancel)
	if err := w.start(ctx, s, sc, dir); err != nil {
		return r, err
	}
	out.Facts.Postgres = w.engine.PostgresVersion
	if w.rate = cmp.Or(sc.rate, s.rate); w.rate == 0 {
		if out.Capacity == 0 {
			if out.Capacity, err = w.capacity(ctx, sc.ok); err != nil {
				return r, fmt.Errorf("measure the capacity: %w", err)
			}
			w.say("capacity: %.0f/s in batches of %d", out.Capacity, batchSize)
		}
		w.rate = out.Capacity / 2
	}
	if sc.others != nil {
		if err := w.engine.Register(ctx, sc.others(w)...); err != nil {
			return r, err
		}
	}
	if r.Without, _, err = w.side(ctx, s, sc, false); err != nil {
		return r, fmt.Errorf("without the fault: %w", err)
	}
	if r.With, r.with, err = w.side(ctx, s, sc, true); err != nil {
		return r, fmt.Errorf("with the fault: %w", err)
	}
	r.Rate = w.rate
	r.judge(sc)
	if sc.finish != nil {
		err = sc.finish(ctx, w, &r)
	}
	return r, err
}

func (w *world) start(ctx context.Context, s settings, sc scenario, dir string) (err error) {
	if w.sink, err = rig.StartSink(ctx, rig.SinkConfig{Record: true}); err != nil {
		return err
	}
	if w.engine, err = rig.StartEngine(ctx, rig.EngineConfig{Binary: s.binary, Dir: dir, LogAt: "error", Further: strings.Fields(s.args)}); err != nil {
		return err
	}
	if w.load, err = rig.StartLoad(ctx, rig.LoadConfig{Intakes: w.engine.Intakes}); err != nil {
		return err
	}
	return w.engine.Register(ctx, rig.Merchants{Class: ordinary, Count: sc.ok, Base: w.sink.URL})
}

func (w *world) stop(ctx context.Context, cancel context.CancelFunc) {
	cancel()
	w.engine.Stop(ctx)
	if w.load != nil {
		w.load.Wait()
	}
	if w.sink != nil {
		w.sink.Wait()
	}
}

// capacity is how many a second go through, into the ledger, when callers wait for their answers.
func (w *world) capacity(ctx context.Context, merchants int) (float64, error) {
	target := rig.Target{Class: ordinary, Count: merchants, Share: 1}
	if err := w.delivered(ctx, "cold", calibrate/4, target); err != nil {
		return 0, err
	}
	began := time.Now()
	err := w.delivered(ctx, "capacity", calibrate, target)
	return calibrate / time.Since(began).Seconds(), err
}

// delivered submits as many, and waits until all of them are in the ledger.
func (w *world) delivered(ctx context.Context, source string, n int, t rig.Target) error {
	order := rig.LoadOrder{Source: source, Scene: "payout", Size: w.bytes, Batch: batchSize, Callers: 16, N: n, Targets: []rig.Target{t}, Patient: true}
	if _, err := w.load.Order(order); err != nil {
		return err
	}
	return w.until(ctx, "all of it is delivered", func() (bool, error) {
		have, err := w.count(ctx, `state = 4 and source = '`+source+`'`)
		return have >= n, err
	})
}

// quiet waits until the merchants are asked nothing any more: what one run left must not burden the next.
func (w *world) quiet(ctx context.Context) error {
	const still = 500 * time.Millisecond
	last, since := int64(-1), time.Now()
	return w.until(ctx, "the merchants are asked nothing any more", func() (bool, error) {
		a, err := w.sink.Order(rig.SinkOrder{})
		if a.Requests != last {
			last, since = a.Requests, time.Now()
		}
		return time.Since(since) > still, err
	})
}

// submit submits as many as quickly as they are taken.
func (w *world) submit(source string, n int, t rig.Target) error {
	_, err := w.load.Order(rig.LoadOrder{Source: source, Scene: "payout", Size: w.bytes, Batch: min(n, 10*batchSize), Callers: 4, N: n, Targets: []rig.Target{t}, Patient: true})
	return err
}

// offer submits at a rate, whether or not answers come; what there is no room for is submitted again.
func (w *world) offer(source string, p rig.Phase, t rig.Target) error {
	_, err := w.load.Order(rig.LoadOrder{Source: source, Scene: "payout", Size: w.bytes, Batch: batchSize, Callers: openCalls, Phases: []rig.Phase{p}, Targets: []rig.Target{t}, Patient: true})
	return err
}

// side offers the rate once.
func (w *world) side(ctx context.Context, s settings, sc scenario, fault bool) (one side, seen rig.SinkAnswer, err error) {
	name := "without"
	if fault {
		name = "with"
	}
	order := rig.LoadOrder{Source: "warm-" + name, Scene: "payout", Size: w.bytes, Batch: batchSize, Callers: openCalls, Targets: sc.targets(w, false)}
	if sc.batch > 0 {
		order.Batch = sc.batch
	}
	order.Phases = []rig.Phase{{Rate: w.rate, For: s.forEach}}
	if sc.phases != nil {
		order.Phases = sc.phases(w, fault)
	}
	measured := order.Phases
	order.Phases = []rig.Phase{{Rate: measured[0].Rate, For: s.warmUp}}
	behave := maps.Clone(sc.behave)
	if behave == nil {
		behave = map[string]rig.Behaviour{}
	}
	if err := w.quiet(ctx); err != nil {
		return one, seen, err
	}
	if _, err := w.sink.Order(rig.SinkOrder{Behave: behave}); err != nil {
		return one, seen, err
	}
	if _, err := w.load.Order(order); err != nil {
		return one, seen, err
	}
	if err := w.quiet(ctx); err != nil {
		return one, seen, err
	}
	if fault && sc.prepare != nil {
		if err := sc.prepare(ctx, w); err != nil {
			return one, seen, fmt.Errorf("prepare: %w", err)
		}
	}
	if fault {
		maps.Copy(behave, sc.faulty)
	}
	if _, err := w.sink.Order(rig.SinkOrder{Behave: behave, Forget: true}); err != nil {
		return one, seen, err
	}
	order.Source, order.Phases, order.Targets = name, measured, sc.targets(w, fault)
	memory := w.engine.WatchMemory()
	answer, err := w.load.Order(order)
	if err != nil {
		return one, seen, err
	}
	healthy := sc.healthy
	if healthy == "" {
		healthy = ordinary
	}
	seen, err = w.collect(ctx, healthy, answer.Accepted[healthy])
	one.MostMiB, _ = memory.End()
	one.sum(answer, seen, healthy, measured)
	return one, seen, err
}

// collect waits until the healthy merchants were asked about all that was accepted for them, or ought to have been.
func (w *world) collect(ctx context.Context, healthy string, n int) (all rig.SinkAnswer, err error) {
	all.Seen, all.MostOpen = map[string]*rig.Arrivals{}, map[string]int{}
	deadline := time.Now().Add(stragglers)
	err = w.until(ctx, "the healthy merchants were asked", func() (bool, error) {
		a, err := w.sink.Order(rig.SinkOrder{Take: true})
		for class, seen := range a.Seen {
			if all.Seen[class] == nil {
				all.Seen[class] = &rig.Arrivals{}
			}
			all.Seen[class].Append(seen)
		}
		for class, open := range a.MostOpen {
			all.MostOpen[class] = max(all.MostOpen[class], open)
		}
		return len(all.Seen[healthy].Latencies()) >= n || time.Now().After(deadline), err
	})
	return all, err
}

func (one *side) sum(answer rig.LoadAnswer, seen rig.SinkAnswer, healthy string, phases []rig.Phase) {
	var length time.Duration
	for _, p := range phases {
		length += p.For
	}
	arrivals := seen.Seen[healthy]
	one.Offered = answer.Accepted[healthy]
	one.ToMerch, one.ToAnswer = rig.SpreadOf(arrivals.Latencies()), rig.SpreadOf(answer.Latencies)
	one.Missing = max(0, one.Offered-one.ToMerch.N)
	one.Seconds = arrivals.Seconds(answer.Began, int(length/time.Second))
	for _, n := range answer.Refused {
		one.Refused += n
	}
	within := 0
	for _, s := range one.Seconds {
		within += s.Arrived
	}
	one.Delivered = float64(within) / max(1, float64(len(one.Seconds)))
	one.MostOpen = seen.MostOpen["bad"]
}

// judge compares the two runs.
func (r *row) judge(sc scenario) {
	r.P99Goal = mostP99
	if sc.p99 > 0 {
		r.P99Goal = sc.p99
	}
	r.Delivered, r.P99 = ratio(r.With.Delivered, r.Without.Delivered), ratio(r.With.ToMerch.P99, r.Without.ToMerch.P99)
	if len(r.With.Seconds) > 0 {
		var usual []float64
		for _, s := range r.Without.Seconds {
			usual = append(usual, s.P99)
		}
		r.First = ratio(r.With.Seconds[0].P99, rig.Quantile(usual, 0.5))
	}
	r.Met = r.Delivered >= leastDelivered && r.P99 <= r.P99Goal && r.First <= r.P99Goal && r.With.Missing == 0
}

func ratio(with, without float64) float64 {
	if without == 0 {
		return 0
	}
	return with / without
}

// figure adds a number of the scenario's own, and what it is to be held against.
func (r *row) figure(name string, value float64, against string, bound float64) {
	if r.Figures == nil {
		r.Figures = map[string]float64{}
	}
	r.Figures[name] = value
	note := fmt.Sprintf("%s: %.1f", name, value)
	if against != "" {
		r.Figures[name+", "+against] = bound
		note += fmt.Sprintf(" (%s %.1f)", against, bound)
	}
	r.notes = append(r.notes, note)
}

func (r *row) print() {
	fmt.Printf("%s at %.0f/s\n", r.Scenario, r.Rate)
	fmt.Printf("  %-8s %11s %9s %9s %9s %9s %9s %9s %8s %8s %5s %9s\n", "", "delivered/s", "p50", "p99", "p99.9", "max", "1st s p50", "1st s p99", "missing", "refused", "MiB", "bad open")
	for _, one := range []struct {
		name string
		side
	}{{"without", r.Without}, {"with", r.With}} {
		var first rig.Second
		if len(one.Seconds) > 0 {
			first = one.Seconds[0]
		}
		fmt.Printf("  %-8s %11.0f %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %8d %8d %5d %9d\n", one.name, one.Delivered, one.ToMerch.P50, one.ToMerch.P99, one.ToMerch.P999, one.ToMerch.Max,
			first.P50, first.P99, one.Missing, one.Refused, one.MostMiB, one.MostOpen)
	}
	verdict := "met"
	if !r.Met {
		verdict = "missed"
	}
	fmt.Printf("  delivered %.2f (goal %.2f), p99 %.2f, in the first second %.2f (goal %.1f): %s\n", r.Delivered, leastDelivered, r.P99, r.First, r.P99Goal, verdict)
	for _, n := range r.notes {
		fmt.Println("  " + n)
	}
	fmt.Println()
}

func (w *world) say(format string, args ...any) { fmt.Printf("# "+format+"\n", args...) }

func (w *world) until(ctx context.Context, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, waitBound)
	defer cancel()
	return rig.Until(ctx, 50*time.Millisecond, what, holds)
}

// countEvery is how often a ledger of a million rows is counted: more often would be a load of its own.
const countEvery = 5 * time.Second

// counted waits until there are as many notifications with a property.
func (w *world) counted(ctx context.Context, what, where string, wanted int) error {
	ctx, cancel := context.WithTimeout(ctx, waitBound)
	defer cancel()
	return rig.Until(ctx, countEvery, what, func() (bool, error) {
		n, err := w.count(ctx, where)
		return n >= wanted, err
	})
}

// count is how many notifications there are with a property.
func (w *world) count(ctx context.Context, where string) (n int, err error) {
	err = w.engine.DB.QueryRow(ctx, `select count(*) from notifications where `+where).Scan(&n)
	return n, err
}

// settled waits until the number of notifications of a source that rest has not changed for some seconds.
func (w *world) settled(ctx context.Context, source string) error {
	const still = 5 * time.Second
	last, since := -1, time.Now()
	return w.until(ctx, "what waits rests", func() (bool, error) {
		n, err := w.count(ctx, `resting and source = '`+source+`'`)
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > still, err
	})
}
