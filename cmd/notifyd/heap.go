package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// roomyHeap is how large the heap gets before it is collected, in bytes, however little in it is live: Go would collect
	// an engine with 20 MB of live memory at 40 MB, several times a second under load, which was a tenth of its work.
	roomyHeap = 64 << 20
	// Go's own, and the most that a small heap gets. They are in percent of what is live.
	leastGrowth, mostGrowth = 100, 300
	// A heap that grows in between may pass roomyHeap for as long.
	heapEvery = 500 * time.Millisecond
)

// growth is by how much the heap may grow beyond what is live before it is collected, in percent.
func growth(live uint64) int {
	if live == 0 {
		return mostGrowth
	}
	return int(min(max(100*roomyHeap/live, 100+leastGrowth), 100+mostGrowth)) - 100
}

// keepHeapRoomy sets the collector's pace by what is live, unless the operator has set it (GOGC, GOMEMLIMIT).
func keepHeapRoomy(ctx context.Context) error {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(heapEvery)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for set := leastGrowth; ; {
		metrics.Read(live)
		// Each change stops everything for a moment: a small one is not worth it.
		if want := growth(live[0].Value.Uint64()); want > set+set/8 || want < set {
			debug.SetGCPercent(want)
			set = want
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
