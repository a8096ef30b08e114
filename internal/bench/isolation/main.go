// Command isolation measures what one bad merchant does to the others: each scenario offers the same rate to the same
// merchants twice, without and with the fault, and compares what the healthy ones had.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"notifyd/internal/bench/rig"
)

// settings of one run.
type settings struct {
	scenarios       string
	rate            float64
	forEach         time.Duration
	warmUp          time.Duration
	hang            time.Duration
	channelsFor     time.Duration
	channelsWithout time.Duration
	merchants       int
	bytes           int
	waiting         int
	retries         int
	dueRate         float64
	args            string
	binary          string
	json            string
}

// results of a run, as --json keeps them.
type results struct {
	Kind      string    `json:"kind"` // isolation
	Facts     rig.Facts `json:"facts"`
	Capacity  float64   `json:"capacity_per_second"` // 0: the rate was given
	Scenarios []row     `json:"scenarios"`
}

func main() {
	rig.Child()
	var s settings
	flag.StringVar(&s.scenarios, "scenarios", "none,hang5,hang50,flood,back,poison,retries,channels", "what to measure, separated by commas")
	flag.Float64Var(&s.rate, "rate", 0, "offered notifications a second; 0: half of the capacity, which is measured first")
	flag.DurationVar(&s.forEach, "for", 30*time.Second, "how long the rate is offered, once without and once with the fault: below half a minute only one of them may meet the kernel writing back what it holds")
	flag.DurationVar(&s.warmUp, "warm", 16*time.Second, "how long the rate is offered before each of them, without the fault")
	flag.DurationVar(&s.hang, "hang", 10*time.Second, "how long a hanging merchant does before it answers; an attempt's timeout is 10s")
	flag.DurationVar(&s.channelsFor, "channels-for", time.Minute, "the same for channels, which has a rate of its own")
	flag.DurationVar(&s.channelsWithout, "channels-without", 0, "how long channels is run without its fault; 0: as long as with it")
	flag.IntVar(&s.merchants, "merchants", 10_000, "merchants, the bad ones included")
	flag.IntVar(&s.bytes, "bytes", 1024, "size of a payload")
	flag.IntVar(&s.waiting, "waiting", 100_000, "back: notifications that wait for the merchant")
	flag.IntVar(&s.retries, "retries", 50_000, "retries: how many wait")
	flag.Float64Var(&s.dueRate, "due-rate", 0, "retries: how many a second fail, and so come due a second; 0: the offered rate")
	flag.StringVar(&s.args, "args", "", "further arguments of `notifyd dev`, separated by spaces")
	flag.StringVar(&s.binary, "binary", "", "the engine, built already; empty: build it")
	flag.StringVar(&s.json, "json", "", "a file for the results")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "isolation:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	out := &results{Kind: "isolation", Facts: rig.NewFacts()}
	dir, err := rig.TempDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if s.binary == "" {
		if s.binary, err = rig.Build(ctx, dir); err != nil {
			return err
		}
	}
	fmt.Println(out.Facts.String())
	fmt.Printf("%s without and %s with the fault; ms from the instant of submission until the merchant has the request, healthy merchants only\n\n", s.forEach, s.forEach)
	all := scenarios(s)
	for name := range strings.SplitSeq(s.scenarios, ",") {
		sc, ok := all[name]
		if !ok {
			return fmt.Errorf("--scenarios %q: must be some of %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		r, err := measure(ctx, s, sc, filepath.Join(dir, name), out)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", name, err)
		}
		r.Scenario = name
		out.Scenarios = append(out.Scenarios, r)
		r.print()
	}
	out.Facts.Finish()
	fmt.Println(out.Facts.Footer())
	return rig.WriteJSON(s.json, out)
}
