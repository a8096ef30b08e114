// Command bench measures the engine beside a bare keep-alive net/http client: floor and pipeline take turns in one run,
// against the same sink in a process of its own, so that a noisy machine is noisy for both. Its figure is CPU time, of
// every process, per notification that is delivered and in the ledger; wall rates are printed too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

// settings of one run.
type settings struct {
	rounds    int
	perSlice  int
	merchants int
	bytes     int
	batch     int
	callers   int
	cases     string
	args      string
	profiles  string
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "child" {
		if err := child(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var s settings
	flag.IntVar(&s.rounds, "rounds", 5, "turns of floor and pipeline")
	flag.IntVar(&s.perSlice, "n", 20000, "requests or notifications in one turn")
	flag.IntVar(&s.merchants, "merchants", 100, "merchants that share the load")
	flag.IntVar(&s.bytes, "bytes", 1024, "size of a payload")
	flag.IntVar(&s.batch, "batch", 100, "notifications in one SubmitBatch")
	flag.IntVar(&s.callers, "callers", 32, "callers of the unary cases; a batch case has 4")
	flag.StringVar(&s.cases, "cases", "batch,unary,sync", "what to measure: batch, unary, sync, batch-synced (every message synced to disk), batch-ledger (persist: ledger)")
	flag.StringVar(&s.args, "args", "", "further arguments of `notifyd dev`, separated by spaces")
	flag.StringVar(&s.profiles, "profiles", "", "a folder for the engine's profiles: CPU while it is measured, allocations since its start")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	began := time.Now()
	if err := measure(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	fmt.Printf("took %s\n", time.Since(began).Round(time.Second))
}
