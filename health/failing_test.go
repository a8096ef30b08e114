package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestStreaks(t *testing.T) {
	const span, least = 10 * time.Minute, 3
	names := func(f *streaks, now time.Time) []string {
		named, _ := f.failing(now, span, least)
		var out []string
		for _, n := range named {
			out = append(out, fmt.Sprintf("%s %d", n.Merchant, n.Attempts))
		}
		return out
	}
	check := func(t *testing.T, got []string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("failing (-want +got):\n%s", diff)
		}
	}
	f := newStreaks()
	for i := range 5 {
		f.failed("often", start.Add(time.Duration(i)*time.Second), least)
	}
	f.failed("seldom", start.Add(time.Second), least)
	f.failed("well again", start.Add(time.Second), least)
	f.acknowledged("well again")
	f.acknowledged("never failed")
	check(t, names(f, start.Add(span-1)))
	check(t, names(f, start.Add(span)), "often 5")
	check(t, names(f, start.Add(2*span)), "often 5")
	f.failed("seldom", start.Add(2*span), least)
	check(t, names(f, start.Add(2*span)), "often 5")
	f.failed("seldom", start.Add(2*span), least)
	check(t, names(f, start.Add(2*span)), "often 5", "seldom 3")
	f.acknowledged("often")
	check(t, names(f, start.Add(2*span)), "seldom 3")
	f.failed("often", start.Add(2*span), least) // a new streak
	check(t, names(f, start.Add(2*span)), "seldom 3")
	f.adopt("of the last run", start, start.Add(2*span), least)
	check(t, names(f, start.Add(2*span)), "seldom 3", "of the last run 3")
	f.acknowledged("of the last run")
	check(t, names(f, start.Add(2*span+forgetAfter+1)))
	if len(f.by) != 0 || f.young.Len() != 0 || f.ripe.Len() != 0 || f.recent.Len() != 0 {
		t.Errorf("left behind: %d, %d, %d, %d", len(f.by), f.young.Len(), f.ripe.Len(), f.recent.Len())
	}
}

// However many merchants fail, the memory is bounded, and the alarms about single ones too.
func TestStreaksAreBounded(t *testing.T) {
	f := newStreaks()
	for i := range maxStreaks + 100 {
		f.failed(fmt.Sprintf("m-%d", i), start.Add(time.Duration(i)*time.Microsecond), 1)
	}
	if len(f.by) != maxStreaks || f.recent.Len() != maxStreaks || f.young.Len() != maxStreaks {
		t.Errorf("kept: %d, %d, %d", len(f.by), f.recent.Len(), f.young.Len())
	}
	named, more := f.failing(start.Add(time.Hour), time.Minute, 1)
	if len(named) != maxNamed || more != maxStreaks-maxNamed || named[0].Merchant != "m-100" {
		t.Errorf("%d named, %d more, first %+v", len(named), more, named[0])
	}
}

// BenchmarkStreaks: 10,000 merchants fail, and the evaluator looks after each hundredth attempt.
func BenchmarkStreaks(b *testing.B) {
	f := newStreaks()
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("m-%d", i)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		now := start.Add(time.Duration(i) * time.Millisecond)
		f.failed(names[i%len(names)], now, 10)
		if i%100 == 0 {
			f.failing(now, time.Second, 10)
		}
	}
}
