package chaos_test

import (
	"flag"
	"testing"
	"time"

	"notifyd/internal/chaos"
)

var overload = flag.Duration("overload", 0, "three times what the engine can do, for so long")

// overloadBound is what the engine's memory may grow to, in MiB, NATS included: see docs/limits.md.
const overloadBound = 1024

// P10: three times the capacity, for minutes.
func TestOverload(t *testing.T) {
	if *overload == 0 {
		t.Skip("a long form: --overload 2m")
	}
	cfg := setUp(t)
	out := chaos.RunOverload(t, chaos.Overload{
		Engine: cfg.Engine, Seed: cfg.Seed, Times: 3, Measure: 20 * time.Second, For: *overload, Apart: true, Args: []string{"--set=async.stream_bytes=64MiB"},
	})
	t.Logf("seed %d: %s", cfg.Seed, out)
	for i, wrong := range out.Violations {
		if i == 20 {
			t.Fatalf("and %d more", len(out.Violations)-i)
		}
		t.Error(wrong)
	}
	if made := out.Accepted + out.Refused; out.Unanswered > made/100 { // calls that waited for a machine that had no time for its stores
		t.Errorf("%d of %d were answered with something else than acceptance or refusal", out.Unanswered, made)
	}
	if out.Refused == 0 {
		t.Error("nothing was refused")
	}
	if out.Most > overloadBound {
		t.Errorf("%d MiB, want at most %d", out.Most, overloadBound)
	}
	if out.Share() < 0.8 {
		t.Errorf("goodput is %.0f %% of the capacity", 100*out.Share())
	}
}
