package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/internal/bench/rig"
)

// The test's own binary plays sink, load and bare client.
func TestMain(m *testing.M) {
	rig.Child()
	os.Exit(m.Run())
}

func TestVariations(t *testing.T) {
	var v variations
	for _, text := range []string{"merchants=10,100", "rows= 0, 5"} {
		if err := v.Set(text); err != nil {
			t.Fatal(err)
		}
	}
	from := shape{Merchants: 7, Bytes: 256}
	want := []variant{
		{"merchants", shape{Merchants: 10, Bytes: 256}},
		{"merchants", shape{Merchants: 100, Bytes: 256}},
		{"rows", from},
		{"rows", shape{Merchants: 7, Bytes: 256, Rows: 5}},
	}
	if diff := cmp.Diff(want, v.shapes(from), cmp.AllowUnexported(variant{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]variant{{shape: from}}, variations{}.shapes(from), cmp.AllowUnexported(variant{})); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"", "merchants", "colour=1", "rows=many", "rows=-1", "rows="} {
		if err := v.Set(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestSummary(t *testing.T) {
	turn := func(floor, engine time.Duration) round {
		return round{floorWall: time.Second, pipeWall: 2 * time.Second, floor: floor, engine: engine, postgres: 10 * time.Millisecond, sink: 10 * time.Millisecond, load: 10 * time.Millisecond}
	}
	got := summary([]round{turn(50*time.Millisecond, 70*time.Millisecond), turn(60*time.Millisecond, 90*time.Millisecond), turn(10*time.Millisecond, 170*time.Millisecond)}, 1000)
	want := caseRow{FloorRate: 1000, PipeRate: 500, Floor: 50, Engine: 90, Postgres: 10, Sink: 10, Load: 10, All: 120, Ratio: 0.5, Worst: 0.05}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		row  latencyRow
		want string
	}{
		{latencyRow{Lane: "async", Rate: 100, ToMerchant: rig.Spread{P50: 2, P99: 8}}, "goal to merchant: p50 2, p99 8: met"},
		{latencyRow{Lane: "async", Rate: 1000, ToMerchant: rig.Spread{P50: 2, P99: 26}}, "goal to merchant: p50 5, p99 25: missed"},
		{latencyRow{Lane: "async", Rate: 5000}, ""},
		{latencyRow{Lane: "sync", Rate: 100, AddsP50: 3.1}, "goal: the lane adds p50 3: missed"},
	} {
		if got := tt.row.verdict(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.row, got, tt.want)
		}
	}
}

// Every case runs, with next to nothing to do.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("starts engines")
	}
	dir, err := rig.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := rig.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	base := settings{rounds: 1, perSlice: 40, callers: 4, batch: 10, binary: binary, shape: shape{Merchants: 20, Bytes: 256}, rates: "50", lanes: "async,sync", forEach: 400 * time.Millisecond, slices: 2}
	for name, change := range map[string]func(*settings){
		"cases":   func(s *settings) { s.cases = "unary,sync,tls13,newconn,dead,batch-ledger" },
		"latency": func(s *settings) { s.latency, s.lanes = true, "sync" },
		"grow": func(s *settings) {
			s.cases, s.shape.Rows, s.shape.Queues, s.vary = "batch", 2000, 3, variations{{"nodes", []int{2}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := base
			s.json = filepath.Join(t.TempDir(), "results.json")
			change(&s)
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
			for _, c := range got.Cases {
				if c.PipeRate <= 0 || c.AnswerP50 <= 0 || c.MostMiB == 0 {
					t.Errorf("%s: nothing measured: %+v", c.Case, c)
				}
			}
			for _, l := range got.Latency {
				if l.ToMerchant.N != 20 || l.ToMerchant.P50 <= 0 || (l.Lane == "sync") != (l.Floor.N == 20) {
					t.Errorf("%s: nothing measured: %+v", l.Lane, l)
				}
			}
			if n := len(got.Cases) + len(got.Latency); n != map[string]int{"cases": 6, "latency": 1, "grow": 1}[name] {
				t.Errorf("%d results", n)
			}
			if got.Facts.Postgres == "" || got.Facts.Cores == 0 || got.Facts.Took == "" {
				t.Errorf("facts are missing: %+v", got.Facts)
			}
		})
	}
}
