package main

import (
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRoundStep(t *testing.T) {
	for most, want := range map[float64]float64{0: 1, 1: 0.2, 5: 1, 9: 2, 12: 2, 60: 10, 99: 20, 327: 100, 12_000: 2000} {
		if got := roundStep(most); got != want {
			t.Errorf("up to %g: %g, want %g", most, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.25: "0.25", 3: "3", 42.37: "42.4", 327.4: "327", 12_345: "12.3k", 10_000_000: "10M"} {
		if got := number(v); got != want {
			t.Errorf("%g: %q, want %q", v, got, want)
		}
	}
}

const kept = `{"kind":"bench",
 "cases":[{"case":"batch","shape":{"merchants":100},"floor_us":70,"engine_us":200,"postgres_us":50,"sink_us":60,"load_us":15,"all_us":325},
  {"case":"batch","varied":"rows","shape":{"rows":0},"all_us":300},{"case":"batch","varied":"rows","shape":{"rows":1000000},"all_us":310}],
 "latency":[{"lane":"sync","rate":100,"to_answer":{"n":5,"p50":2,"p99":9}}],
 "scenarios":[{"scenario":"a<b","without":{"seconds":[{"p99":1},{"p99":2}]},"with":{"seconds":[{"p99":0}]},"mass":[3,4],"mass_bin_ms":250}]}`

func TestDraw(t *testing.T) {
	pictures, err := draw([]byte(kept))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a<b", "a<b-due", "batch-rows", "cases", "latency"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(pictures))); diff != "" {
		t.Error(diff)
	}
	for name, svg := range pictures {
		if err := wellFormed(svg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s has a place that is no number", name)
		}
	}
	for part, in := range map[string]string{">325<": "cases", ">sync 100/s to answer<": "latency", ">1M<": "batch-rows", "a&lt;b": "a<b"} {
		if !strings.Contains(pictures[in], part) {
			t.Errorf("%s does not say %s", in, part)
		}
	}
	for _, raw := range []string{`{`, `{}`, `{"kind":"search"}`} {
		if _, err := draw([]byte(raw)); err == nil {
			t.Errorf("%s was drawn", raw)
		}
	}
}

func wellFormed(svg string) error {
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
