package main_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"notifyd/internal/chaos"
	"notifyd/internal/scenario"
)

// chaosBinaries are built when the first test needs them.
var chaosBinaries = sync.OnceValues(func() (chaos.Config, error) {
	cfg := chaos.Config{Servers: 1, Nodes: 2, Rate: 60, Bound: 5 * time.Minute} // a row that a cut-off call left behind is due three minutes later
	dir := filepath.Join(filepath.Dir(engineBinary.Path()), "chaos")
	err := os.Mkdir(dir, 0o755)
	if err != nil {
		return cfg, err
	}
	if cfg.NATS, err = scenario.BuildNATS(context.Background(), dir); err != nil {
		return cfg, err
	}
	cfg.Engine, err = scenario.Build(context.Background(), dir, false, "faults") // the scenarios have the race detector
	return cfg, err
})

func chaosConfig(t *testing.T) chaos.Config {
	t.Helper()
	cfg, err := chaosBinaries()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Seed = uint64(time.Now().UnixNano())
	return cfg
}

// nothingLost ends a run and holds it to P1 to P4 and P12.
func nothingLost(t *testing.T, r *chaos.Run) {
	t.Helper()
	report := r.Finish()
	t.Logf("seed %d\n%s", r.Seed, report)
	if len(report.Violations) > 0 {
		t.Errorf("%d violations", len(report.Violations))
	}
}

// kill -9 at random moments: of a node that has everything inside, and of two that share what they stand on.
func TestChaosKills(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*chaos.Config){
		"everything inside": func(c *chaos.Config) { c.NATS, c.Nodes = nil, 1 },
		"two nodes":         func(*chaos.Config) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := chaosConfig(t)
			change(&cfg)
			r := chaos.Begin(t, cfg)
			r.KillAtRandom(3, 2*time.Second)
			nothingLost(t, r)
		})
	}
}

// Each write's two sides, killed there and failed there, on one of two nodes: each run cleans up after the one before. What is written only during an outage has
// its crash rows with the outages.
func TestChaosCrashPoints(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"kill", "fail"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := chaos.Begin(t, chaosConfig(t))
			for _, p := range chaos.Points(what) {
				if !p.NeedsPostgresAway() && !r.CrashAt(r.Nodes[0], p, 30*time.Second) {
					t.Errorf("%s is not reached", p)
				}
			}
			r.Recover(r.Nodes[0])
			nothingLost(t, r)
		})
	}
}

// The proof catches what is really lost.
func TestChaosLoss(t *testing.T) {
	t.Parallel()
	chaos.Lose(t, chaosConfig(t))
}
