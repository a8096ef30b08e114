package main

import (
	"context"
	"math"
	"runtime/debug"
	"testing"
)

func TestASmallHeapMayGrow(t *testing.T) {
	const MiB = 1 << 20
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 300}, {1, 300}, {16 * MiB, 300}, {20 * MiB, 220}, {25 * MiB, 156}, {32 * MiB, 100}, {200 * MiB, 100}, {math.MaxUint64, 100},
	} {
		if got := growth(c.live); got != c.want {
			t.Errorf("with %d MiB live it grows by %d %%, want %d", c.live/MiB, got, c.want)
		}
	}
}

func TestTheOperatorsPaceStays(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	for _, set := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Setenv("GOGC", "")
		t.Setenv("GOMEMLIMIT", "")
		t.Setenv(set, "77")
		before := debug.SetGCPercent(77)
		if err := keepHeapRoomy(ended); err != nil {
			t.Error(err)
		}
		if got := debug.SetGCPercent(before); got != 77 {
			t.Errorf("%s is set, and 77 %% became %d", set, got)
		}
	}
}
