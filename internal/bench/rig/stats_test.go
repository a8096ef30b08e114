package rig

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = i + 1
	}
	for _, tt := range []struct {
		samples []int
		q       float64
		want    int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 1, 7},
		{[]int{3, 1, 2}, 0.5, 2},
		{[]int{1, 2}, 0.5, 1},
		{hundred, 0, 1},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 0.999, 100},
		{hundred, 1, 100},
	} {
		if got := Quantile(tt.samples, tt.q); got != tt.want {
			t.Errorf("quantile %g of %v: %d, want %d", tt.q, tt.samples, got, tt.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the samples were sorted in place")
	}
}

func TestSpreadOf(t *testing.T) {
	var all []int64
	for i := range 1000 {
		all = append(all, int64(time.Duration(i+1)*time.Millisecond))
	}
	if diff := cmp.Diff(Spread{N: 1000, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000}, SpreadOf(all)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Spread{}, SpreadOf(nil)); diff != "" {
		t.Error(diff)
	}
}

func TestSeconds(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	at := func(ms int) int64 { return began.Add(time.Duration(ms) * time.Millisecond).UnixNano() }
	a := &Arrivals{
		At:      []int64{at(-100), at(0), at(900), at(1500), at(2500)},
		Arrived: []int64{at(50), at(10), at(1100), at(1503), at(9999)},
	}
	// What was to be submitted before the run counts where it arrived; what arrives after it has its latency counted.
	want := []Second{{Arrived: 2, P50: 10, P99: 200}, {Arrived: 2, P50: 3, P99: 3}, {P50: 7499, P99: 7499}}
	if diff := cmp.Diff(want, a.Seconds(began, 3)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(make([]Second, 2), (*Arrivals)(nil).Seconds(began, 2)); diff != "" {
		t.Error(diff)
	}
}

func TestSlots(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	var got []time.Duration
	for i, s := range slots(began, 10, []Phase{{Rate: 100, For: 250 * time.Millisecond}, {Rate: 20, For: time.Second}}) {
		if s.Number != i {
			t.Errorf("slot %d has number %d", i, s.Number)
		}
		got = append(got, s.At.Sub(began))
	}
	ms := time.Millisecond
	if want := []time.Duration{0, 100 * ms, 200 * ms, 300 * ms, 800 * ms}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A call that is slow makes those behind it late, and they say so: latency counts from when a call was to be made.
func TestOpenLoopHidesNoWaiting(t *testing.T) {
	const slow = 150 * time.Millisecond
	p, err := openLoop(1, 1, []Phase{{Rate: 100, For: 100 * time.Millisecond}}, func(s Slot) error {
		if s.Number == 0 {
			time.Sleep(slow)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Latencies) != 10 {
		t.Fatalf("%d calls", len(p.Latencies))
	}
	for i, l := range p.Latencies {
		if least := slow - time.Duration(i)*10*time.Millisecond; time.Duration(l) < least {
			t.Errorf("call %d: %s, at least %s have gone by", i, time.Duration(l), least)
		}
	}
}

func TestPayload(t *testing.T) {
	at := time.Unix(1_800_000_000, 123)
	for _, size := range []int{0, 256, 16384} {
		got := payload(size, "order-7", at, true)
		if size > 100 && len(got) != size {
			t.Errorf("%d bytes, want %d", len(got), size)
		}
		want := payloadHead{order: "order-7", at: at.UnixNano(), marked: true}
		if diff := cmp.Diff(want, readPayload(got), cmp.AllowUnexported(payloadHead{})); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff(payloadHead{}, readPayload([]byte(`{"other":1}`)), cmp.AllowUnexported(payloadHead{})); diff != "" {
		t.Error(diff)
	}
}

// Every run with the same targets offers the same merchants the same.
func TestTargets(t *testing.T) {
	l := &loader{LoadOrder: LoadOrder{Targets: []Target{{Class: "ok", Count: 90, Share: 0.95}, {Class: "bad", Count: 5, Share: 0.05}}}, shares: 1}
	n := map[string]int{}
	for i := range 10_000 {
		target, merchant := l.target(i)
		if again, same := l.target(i); again != target || same != merchant {
			t.Fatalf("notification %d changes its merchant", i)
		}
		if merchant < 0 || merchant >= target.Count {
			t.Fatalf("%s has no merchant %d", target.Class, merchant)
		}
		n[target.Class]++
	}
	if n["bad"] < 400 || n["bad"] > 600 {
		t.Errorf("%d of 10000 to a share of 0.05", n["bad"])
	}
}
