package async

import (
	"math"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// strain tells an engine that has too little of the processor from one whose merchants, ledger or NATS are slow: how long
// goroutines that could run waited for it. Merchants that hang cost no processor, however many they are (P8).
type strain struct {
	at      time.Time
	before  []uint64
	sample  []metrics.Sample
	typical atomic.Int64 // how long one in two waited lately, in nanoseconds, smoothed
}

const (
	// strainEvery is the least time between two looks: a look costs microseconds, and needs some hundred goroutines to say much.
	strainEvery = 100 * time.Millisecond
	// strained is the wait from which on the processor is the limit: an engine that keeps up has some ten to hundred
	// microseconds.
	strained = time.Millisecond
)

func newStrain() *strain {
	return &strain{sample: []metrics.Sample{{Name: "/sched/latencies:seconds"}}}
}

// look brings it up to date. Lane.watch calls it, nobody else.
func (s *strain) look(now time.Time) {
	if now.Sub(s.at) < strainEvery {
		return
	}
	s.at = now
	metrics.Read(s.sample)
	if s.sample[0].Value.Kind() != metrics.KindFloat64Histogram { // a runtime that does not say it
		return
	}
	waits := s.sample[0].Value.Float64Histogram()
	if len(s.before) == len(waits.Counts) {
		s.typical.Store((s.typical.Load() + int64(median(waits, s.before))) / 2)
	}
	s.before = append(s.before[:0], waits.Counts...)
}

// median is the wait that half of what came since before did not exceed.
func median(waits *metrics.Float64Histogram, before []uint64) time.Duration {
	var all, seen uint64
	for i, count := range waits.Counts {
		all += count - before[i]
	}
	for i, count := range waits.Counts {
		seen += count - before[i]
		if 2*seen >= all && all > 0 {
			return time.Duration(math.Max(waits.Buckets[i], 0) * float64(time.Second))
		}
	}
	return 0
}

func (s *strain) high() bool { return time.Duration(s.typical.Load()) > strained }
