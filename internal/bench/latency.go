package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"notifyd/internal/bench/rig"
)

const (
	// batchesFrom is the rate from which on callers submit in batches, of batchesOf.
	batchesFrom, batchesOf = 5000, 10
	// latencyCallers is how many calls may be open at once.
	latencyCallers = 256
	warmUp         = 2 * time.Second
)

// latencyRow is what one fixed rate did. Latencies are in ms, counted from the instant at which the call was to be made.
type latencyRow struct {
	Lane       string     `json:"lane"`
	Rate       int        `json:"rate"`
	Batch      int        `json:"batch"`
	Shape      shape      `json:"shape"`
	ToMerchant rig.Spread `json:"to_merchant"`
	ToAnswer   rig.Spread `json:"to_answer"`
	Floor      rig.Spread `json:"floor"`            // the bare request at the same rate, in turns; sync lane only
	AddsP50    float64    `json:"adds_p50"`         // the sync lane's answer less the bare request
	AddsP99    float64    `json:"adds_p99"`         //
	LateP99    float64    `json:"generator_late"`   // how late the generator itself was
	Refused    int        `json:"refused"`          //
	MostMiB    int        `json:"engine_most_mib"`  //
	MedianMiB  int        `json:"engine_mib"`       //
	EngineCPU  float64    `json:"engine_cpu_share"` // of one core
}

func measureLatency(ctx context.Context, s settings, dir string, out *results) error {
	rates, err := numbers(s.rates)
	if err != nil {
		return fmt.Errorf("--rates: %w", err)
	}
	fmt.Printf("open loop, %s each, %d merchants, %d bytes; ms from the instant at which a call was to be made\n\n", s.forEach, s.shape.Merchants, s.shape.Bytes)
	fmt.Printf("%-6s %6s %5s | %-11s %8s %8s %8s %8s %8s | %8s | %s\n", "lane", "rate", "batch", "until", "p50", "p90", "p99", "p99.9", "max", "n", "notes")
	for lane := range strings.SplitSeq(s.lanes, ",") {
		k, ok := map[string]kind{"async": {unary: true}, "sync": {unary: true, scene: "scan"}}[lane]
		if !ok {
			return fmt.Errorf("--lanes %q: must be async or sync", lane)
		}
		k.sink.Record = true
		l := &latencies{settings: s, lane: lane, rates: rates, out: out}
		if err := l.measure(ctx, k, filepath.Join(dir, lane)); err != nil {
			return fmt.Errorf("latency, %s: %w", lane, err)
		}
	}
	return nil
}

// latencies of one lane.
type latencies struct {
	settings
	lane  string
	rates []int
	out   *results
}

// measure measures all rates with one engine.
func (l *latencies) measure(ctx context.Context, k kind, dir string) error {
	b, stop, err := start(ctx, l.settings, k, l.shape, dir)
	defer stop()
	if err != nil {
		return err
	}
	l.out.Facts.Postgres = b.engine.PostgresVersion
	for _, rate := range l.rates {
		if l.lane == "sync" && rate >= batchesFrom {
			continue
		}
		b.batch = 1
		if rate >= batchesFrom {
			b.batch = batchesOf
		}
		if _, err := b.slice(ctx, l.lane, rate, warmUp, "warm"); err != nil {
			return err
		}
		row := latencyRow{Lane: l.lane, Rate: rate, Batch: b.batch, Shape: l.shape}
		var sum slice
		memory := b.engine.WatchMemory()
		for i := range l.slices {
			one, err := b.slice(ctx, l.lane, rate, l.forEach/time.Duration(l.slices), fmt.Sprintf("s%d", i))
			if err != nil {
				return err
			}
			sum.add(one)
		}
		row.EngineCPU = sum.cpu.Seconds() / sum.wall.Seconds()
		row.MostMiB, row.MedianMiB = memory.End()
		row.sum(sum)
		l.out.Latency = append(l.out.Latency, row)
		row.print()
	}
	return nil
}

// slice is what some seconds of an open loop saw, in nanoseconds.
type slice struct {
	toMerchant, toAnswer, floor, late []int64
	refused                           int
	cpu, wall                         time.Duration // the engine's, without the bare client's turns
}

func (s *slice) add(o slice) {
	s.toMerchant, s.toAnswer = append(s.toMerchant, o.toMerchant...), append(s.toAnswer, o.toAnswer...)
	s.floor, s.late, s.refused = append(s.floor, o.floor...), append(s.late, o.late...), s.refused+o.refused
	s.cpu, s.wall = s.cpu+o.cpu, s.wall+o.wall
}

// slice offers a rate for a while: to the bare client first if the lane is sync, then to the engine.
func (b *bench) slice(ctx context.Context, lane string, rate int, length time.Duration, name string) (one slice, err error) {
	phases := []rig.Phase{{Rate: float64(rate), For: length}}
	if lane == "sync" {
		floor, err := b.floor.Order(rig.FloorOrder{Callers: 64, Phases: phases})
		if err != nil {
			return one, err
		}
		one.floor = floor.Latencies
	}
	if _, err := b.sink.Order(rig.SinkOrder{Forget: true}); err != nil {
		return one, err
	}
	order := b.order(fmt.Sprintf("%s-%d-%s", lane, rate, name))
	order.Phases, order.Callers = phases, latencyCallers
	began, cpu := time.Now(), b.engine.CPU()
	answer, err := b.load.Order(order)
	if err != nil {
		return one, err
	}
	one.cpu, one.wall = b.engine.CPU()-cpu, time.Since(began)
	one.toAnswer, one.late = answer.Latencies, answer.Late
	for _, n := range answer.Refused {
		one.refused += n
	}
	seen := &rig.Arrivals{}
	err = rig.Until(ctx, 50*time.Millisecond, "the merchants were asked", func() (bool, error) {
		a, err := b.sink.Order(rig.SinkOrder{Take: true})
		seen.Append(a.Seen["bench"])
		return len(seen.At) >= answer.Accepted["bench"], err
	})
	one.toMerchant = seen.Latencies()
	return one, err
}

func (r *latencyRow) sum(s slice) {
	r.ToMerchant, r.ToAnswer, r.Floor = rig.SpreadOf(s.toMerchant), rig.SpreadOf(s.toAnswer), rig.SpreadOf(s.floor)
	r.LateP99, r.Refused = rig.SpreadOf(s.late).P99, s.refused
	if len(s.floor) > 0 {
		r.AddsP50, r.AddsP99 = r.ToAnswer.P50-r.Floor.P50, r.ToAnswer.P99-r.Floor.P99
	}
}

func (r *latencyRow) print() {
	line := func(until string, s rig.Spread, notes string) {
		fmt.Printf("%-6s %6d %5d | %-11s %8.2f %8.2f %8.2f %8.2f %8.2f | %8d | %s\n", r.Lane, r.Rate, r.Batch, until, s.P50, s.P90, s.P99, s.P999, s.Max, s.N, notes)
	}
	line("merchant", r.ToMerchant, fmt.Sprintf("engine %d MiB (most %d), %.2f cores; generator late p99 %.2f; refused %d", r.MedianMiB, r.MostMiB, r.EngineCPU, r.LateP99, r.Refused))
	line("answer", r.ToAnswer, r.verdict())
	if r.Floor.N > 0 {
		line("bare answer", r.Floor, fmt.Sprintf("the lane adds p50 %.2f, p99 %.2f", r.AddsP50, r.AddsP99))
	}
}

// goal is what is asked of submit to merchant at a rate, in ms.
type goal struct {
	rate     int
	p50, p99 float64
}

// verdict compares with the goals.
func (r *latencyRow) verdict() string {
	if r.Lane == "sync" {
		return "goal: the lane adds p50 3: " + met(r.AddsP50 <= 3)
	}
	goals := []goal{{100, 2, 8}, {1000, 5, 25}}
	i := slices.IndexFunc(goals, func(g goal) bool { return g.rate == r.Rate })
	if i < 0 {
		return ""
	}
	g := goals[i]
	return fmt.Sprintf("goal to merchant: p50 %g, p99 %g: %s", g.p50, g.p99, met(r.ToMerchant.P50 <= g.p50 && r.ToMerchant.P99 <= g.p99))
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}
