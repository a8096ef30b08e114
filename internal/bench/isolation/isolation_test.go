package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/internal/bench/rig"
)

// The test's own binary plays sink and load.
func TestMain(m *testing.M) {
	rig.Child()
	os.Exit(m.Run())
}

func TestJudge(t *testing.T) {
	with := func(delivered, p99 float64, missing int) side {
		return side{Delivered: delivered, ToMerch: rig.Spread{P99: p99}, Missing: missing}
	}
	for _, tt := range []struct {
		name string
		with side
		sc   scenario
		met  bool
	}{
		{"same", with(100, 10, 0), scenario{}, true},
		{"at the goals", with(95, 15, 0), scenario{}, true},
		{"fewer", with(94, 10, 0), scenario{}, false},
		{"later", with(100, 15.1, 0), scenario{}, false},
		{"later than a goal of its own", with(100, 13, 0), scenario{p99: 1.2}, false},
		{"one missing", with(100, 10, 1), scenario{}, false},
	} {
		r := row{Without: with(100, 10, 0), With: tt.with}
		if r.judge(tt.sc); r.Met != tt.met {
			t.Errorf("%s: met is %t", tt.name, r.Met)
		}
	}
	calm := []rig.Second{{P99: 30}, {P99: 10}, {P99: 8}}
	for first, met := range map[float64]bool{15: true, 16: false} { // the median second without the fault had 10
		r := row{Without: with(100, 10, 0), With: with(100, 10, 0)}
		r.Without.Seconds, r.With.Seconds = calm, []rig.Second{{P99: first}, {P99: 1}}
		if r.judge(scenario{}); r.Met != met {
			t.Errorf("with a p99 of %g in the first second: met is %t", first, r.Met)
		}
	}
}

func TestLateness(t *testing.T) {
	second := int64(time.Second)
	a := &rig.Arrivals{At: []int64{0, second, 2 * second}, Arrived: []int64{10*second + 1e6, 11*second + 3e6, 11*second + 999e6}}
	r := row{}
	r.lateness(a, 9*time.Second+500*time.Millisecond)
	if r.Lateness.N != 3 || r.Lateness.P50 != 501 || r.Figures["retries: sent in the busiest second"] != 2 {
		t.Errorf("%+v %v", r.Lateness, r.Figures)
	}
	if got := r.Figures["retries: earliest, ms after due"]; got != 499 {
		t.Errorf("earliest %g", got)
	}
}

func TestSpreadOfMass(t *testing.T) {
	r := row{}
	r.spreadOfMass(&rig.Arrivals{Arrived: []int64{0, 1e6, 260e6, 510e6}})
	if diff := cmp.Diff([]int{2, 1, 1}, r.Mass); diff != "" {
		t.Error(diff)
	}
}

func TestChannelPhases(t *testing.T) {
	for _, tt := range []struct {
		s     settings
		fault bool
		want  time.Duration
	}{
		{settings{channelsFor: 25 * time.Second}, false, 25 * time.Second},
		{settings{channelsFor: 25 * time.Second, channelsWithout: 12 * time.Second}, true, 25 * time.Second},
		{settings{channelsFor: 25 * time.Second, channelsWithout: 12 * time.Second}, false, 12 * time.Second},
	} {
		var length time.Duration
		phases := channels(tt.s).phases(nil, tt.fault)
		for _, p := range phases {
			length += p.For
		}
		if length != tt.want || !slices.ContainsFunc(phases, func(p rig.Phase) bool { return p.Rate == channelBurst && p.For == channelBurstOf }) {
			t.Errorf("%v and fault %v: %v", tt.s, tt.fault, phases)
		}
	}
}

// A fault of the merchants and one of an order run, with next to nothing to do; whether its goals are met says nothing here.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("starts engines")
	}
	dir, err := rig.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := settings{scenarios: "hang5,poison", rate: 100, forEach: time.Second, warmUp: 100 * time.Millisecond, hang: time.Second, merchants: 20, bytes: 256, json: filepath.Join(dir, "results.json")}
	if s.binary, err = rig.Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(s.json)
	if err != nil {
		t.Fatal(err)
	}
	var got results
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Scenarios) != 2 {
		t.Fatalf("%d scenarios", len(got.Scenarios))
	}
	for _, r := range got.Scenarios {
		for _, one := range []side{r.Without, r.With} {
			if one.Offered == 0 || one.Missing > 0 || len(one.Seconds) != 1 {
				t.Errorf("%s: %+v", r.Scenario, one)
			}
		}
	}
	if n := got.Scenarios[0].With.MostOpen; n == 0 {
		t.Error("nobody hung")
	}
	if n := got.Scenarios[1].Figures["poison: attempts of the one order"]; n < 2 {
		t.Errorf("the poison order had %g attempts", n)
	}
}
