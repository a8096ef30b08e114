package rig

import (
	"math"
	"slices"
	"time"
)

// Quantile is the smallest sample that is at least as large as a share q of all of them; 0 of none.
func Quantile[N int | int64 | float64](samples []N, q float64) N {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[rank(len(sorted), q)]
}

func rank(n int, q float64) int { return max(0, min(n-1, int(math.Ceil(q*float64(n)))-1)) }

// Spread is what a distribution of latencies is summed up by, in milliseconds.
type Spread struct {
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// SpreadOf sums up latencies in nanoseconds: every sample counts, nothing is put into buckets.
func SpreadOf(nanoseconds []int64) Spread {
	if len(nanoseconds) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(nanoseconds))
	at := func(q float64) float64 { return Milliseconds(time.Duration(sorted[rank(len(sorted), q)])) }
	return Spread{N: len(sorted), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: at(1)}
}

// Milliseconds is a duration as a number of them.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Latencies are how long each took from when it was to be submitted until its merchant had it.
func (a *Arrivals) Latencies() []int64 {
	if a == nil {
		return nil
	}
	all := make([]int64, len(a.At))
	for i := range all {
		all[i] = a.Arrived[i] - a.At[i]
	}
	return all
}

// Second is what one second of a run saw.
type Second struct {
	Arrived int     `json:"arrived"` // that arrived in it
	P50     float64 `json:"p50"`     // of what was to be submitted in it, in milliseconds
	P99     float64 `json:"p99"`
}

// Seconds splits a run that began at an instant.
func (a *Arrivals) Seconds(began time.Time, n int) []Second {
	seconds, latencies := make([]Second, n), make([][]int64, n)
	if a == nil {
		return seconds
	}
	of := func(at int64) int { return int(time.Duration(at-began.UnixNano()) / time.Second) }
	for i, at := range a.At {
		if s := of(a.Arrived[i]); s >= 0 && s < n {
			seconds[s].Arrived++
		}
		if s := of(at); at >= began.UnixNano() && s < n {
			latencies[s] = append(latencies[s], a.Arrived[i]-at)
		}
	}
	for i, l := range latencies {
		spread := SpreadOf(l)
		seconds[i].P50, seconds[i].P99 = spread.P50, spread.P99
	}
	return seconds
}

// Append adds what was seen in another slice of a run.
func (a *Arrivals) Append(more *Arrivals) {
	if more != nil {
		a.At, a.Arrived = append(a.At, more.At...), append(a.Arrived, more.Arrived...)
	}
}
