// Command bench measures the engine beside a bare keep-alive net/http client: floor and pipeline take turns in one run,
// against the same sink in a process of its own, so that a noisy machine is noisy for both. Its figure is CPU time, of
// every process, per notification that is delivered and in the ledger; wall rates are printed too. With --latency it
// offers fixed rates instead, and says how long merchants and callers wait.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"notifyd/internal/bench/rig"
)

// settings of one run.
type settings struct {
	rounds   int
	perSlice int
	callers  int
	batch    int
	cases    string
	args     string
	profiles string
	binary   string
	shape    shape
	vary     variations
	json     string

	latency bool
	rates   string
	lanes   string
	forEach time.Duration
	slices  int
}

// shape is what the cost of a notification may depend on.
type shape struct {
	Merchants int `json:"merchants"`
	Bytes     int `json:"bytes"`
	Rows      int `json:"rows"`   // in the ledger before
	Queues    int `json:"queues"` // own queues that rest
	Nodes     int `json:"nodes"`  // 0: one process with its own NATS and Postgres
}

// results of a run, as --json keeps them.
type results struct {
	Kind    string       `json:"kind"` // bench
	Facts   rig.Facts    `json:"facts"`
	Cases   []caseRow    `json:"cases,omitempty"`
	Latency []latencyRow `json:"latency,omitempty"`
}

func main() {
	rig.Child()
	var s settings
	var matrix bool
	flag.IntVar(&s.rounds, "rounds", 5, "turns of floor and pipeline")
	flag.IntVar(&s.perSlice, "n", 20000, "requests or notifications in one turn")
	flag.IntVar(&s.shape.Merchants, "merchants", 100, "merchants that share the load")
	flag.IntVar(&s.shape.Bytes, "bytes", 1024, "size of a payload")
	flag.IntVar(&s.shape.Rows, "rows", 0, "notifications in the ledger before")
	flag.IntVar(&s.shape.Queues, "queues", 0, "own queues that rest: paused merchants with ten notifications each")
	flag.IntVar(&s.shape.Nodes, "nodes", 0, "nodes that share one NATS and one Postgres; 0: one process with its own")
	flag.Var(&s.vary, "vary", "measure each case with several values of merchants, bytes, rows, queues or nodes: merchants=10,100; may be repeated")
	flag.BoolVar(&matrix, "matrix", false, "the batch case with 10 to 10,000 merchants, and with 256 bytes to 16 KiB")
	flag.IntVar(&s.batch, "batch", 100, "notifications in one SubmitBatch")
	flag.IntVar(&s.callers, "callers", 32, "callers of the unary cases; a batch case has 4")
	flag.StringVar(&s.cases, "cases", "batch,unary,sync", "what to measure, separated by commas, or all: "+caseNames())
	flag.StringVar(&s.args, "args", "", "further arguments of the engine, separated by spaces")
	flag.StringVar(&s.binary, "binary", "", "the engine, built already; empty: build it")
	flag.StringVar(&s.profiles, "profiles", "", "a folder for the engine's profiles: CPU while it is measured, then who waits for whom, and allocations since its start")
	flag.StringVar(&s.json, "json", "", "a file for the results")
	flag.BoolVar(&s.latency, "latency", false, "measure latency at fixed offered rates instead")
	flag.StringVar(&s.rates, "rates", "100,1000,5000", "with --latency: notifications a second; from 5,000 on in batches of 10")
	flag.StringVar(&s.lanes, "lanes", "async,sync", "with --latency: the sync lane is not measured from 5,000 a second on")
	flag.DurationVar(&s.forEach, "for", 20*time.Second, "with --latency: how long each rate is offered")
	flag.IntVar(&s.slices, "slices", 4, "with --latency: turns of the bare client and the sync lane")
	flag.Parse()
	if matrix {
		s.cases = "batch"
		for _, v := range []string{"merchants=10,100,1000,10000", "bytes=256,1024,16384"} {
			if err := s.vary.Set(v); err != nil {
				panic(err) // a constant
			}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	out := &results{Kind: "bench", Facts: rig.NewFacts()}
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
	if s.latency {
		err = measureLatency(ctx, s, dir, out)
	} else {
		err = measureCases(ctx, s, dir, out)
	}
	out.Facts.Finish()
	fmt.Println(out.Facts.Footer())
	if err != nil {
		return err
	}
	return rig.WriteJSON(s.json, out)
}
