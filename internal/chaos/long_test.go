package chaos_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"notifyd/internal/chaos"
	"notifyd/internal/scenario"
)

// The long forms: `make chaos ARGS="--kills 100"`, `make soak ARGS="--for 10m"`. Without their flags they are skipped.
var (
	kills    = flag.Int("kills", 0, "kill -9 so often at random moments, and at every named crash point")
	soak     = flag.Duration("for", 0, "steady load with a random fault every ~20 s, for so long")
	outages  = flag.Duration("outages", 0, "each outage once, for so long")
	seed     = flag.Uint64("seed", 0, "of what is submitted and of what is hurt; 0: another one each time")
	rate     = flag.Int("rate", 100, "notifications per second")
	nodes    = flag.Int("nodes", 2, "engines, on NATS and Postgres of their own")
	servers  = flag.Int("servers", 1, "of NATS: 1, or 3 that keep copies")
	binary   = flag.String("binary", "", "the engine, built with the tag faults; without it this tree's is built")
	race     = flag.Bool("with-race", false, "build the engine with the race detector")
	defaults = flag.Bool("default-times", false, "leave the engine's times as they are: what a dead node had comes back after minutes")
	only     = flag.String("only", "", "faults of a soak or of the outages whose name contains this")
	out      = flag.String("out", "", "a file to which a table in Markdown is appended")
)

// setUp builds what a run needs.
func setUp(t *testing.T) chaos.Config {
	t.Helper()
	dir := t.TempDir()
	var err error
	cfg := chaos.Config{Servers: *servers, Nodes: *nodes, Rate: *rate, Bound: 2 * time.Minute, Seed: *seed, Default: *defaults}
	if *defaults {
		cfg.Bound = 10 * time.Minute
	}
	if cfg.Seed == 0 {
		cfg.Seed = uint64(time.Now().UnixNano())
	}
	if cfg.NATS, err = scenario.BuildNATS(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if cfg.Engine = scenario.At(*binary); *binary == "" {
		if cfg.Engine, err = scenario.Build(t.Context(), dir, *race, "faults"); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

// conclude prints a report and holds the run to it.
func conclude(t *testing.T, name string, seed uint64, report chaos.Report) {
	t.Helper()
	t.Logf("%s, seed %d, GOMAXPROCS %d\n%s%s%s", name, seed, runtime.GOMAXPROCS(0), report, chaos.Head(), report.Row(name, seed))
	if len(report.Violations) > 0 {
		t.Errorf("%s: %d violations", name, len(report.Violations))
	}
	if *out == "" {
		return
	}
	info, statErr := os.Stat(*out)
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if statErr != nil || info.Size() == 0 {
		fmt.Fprint(file, chaos.Head())
	}
	fmt.Fprint(file, report.Row(name, seed))
}

// One node with everything inside, and nodes on servers of their own, are killed at random moments; each half the times.
func TestKills(t *testing.T) {
	if *kills == 0 {
		t.Skip("a long form: --kills 100")
	}
	cfg := setUp(t)
	t.Run("inside", func(t *testing.T) {
		cfg := cfg
		cfg.NATS, cfg.Nodes = nil, 1
		killed(t, "kill -9, NATS and Postgres inside", cfg, *kills/2)
	})
	t.Run("apart", func(t *testing.T) { killed(t, fmt.Sprintf("kill -9, %d nodes", cfg.Nodes), cfg, *kills-*kills/2) })
}

func killed(t *testing.T, name string, cfg chaos.Config, n int) {
	t.Helper()
	r := chaos.Begin(t, cfg)
	r.KillAtRandom(n, 3*time.Second)
	conclude(t, name, cfg.Seed, r.Finish())
}

// Each crash point once, killed and failed; a world for each kind, a row for each point.
func TestCrashPoints(t *testing.T) {
	if *kills == 0 {
		t.Skip("a long form: --kills 100")
	}
	cfg := setUp(t)
	for _, what := range []string{"kill", "fail"} {
		t.Run(what, func(t *testing.T) {
			r := chaos.Begin(t, cfg)
			var missed []string
			for i, p := range chaos.Points(what) {
				if !strings.Contains(p.String(), *only) {
					continue
				}
				p.Nth = 1 + r.Random.IntN(3)
				if !r.CrashAt(r.Nodes[i%len(r.Nodes)], p, 30*time.Second) {
					missed = append(missed, p.String())
				}
				t.Logf("%-30s normal after %s", p, r.Recover(r.Nodes[i%len(r.Nodes)]).Round(time.Millisecond))
			}
			conclude(t, "crash points, "+what, cfg.Seed, r.Finish())
			if len(missed) > 0 {
				t.Errorf("not reached: %v", missed)
			}
		})
	}
}

// faultsFor are the outages, and what several nodes and servers are hurt by.
func faultsFor(cfg chaos.Config) []chaos.Fault {
	all := chaos.Outages()
	if cfg.Nodes > 1 {
		all = append(all, chaos.Several()...)
	}
	if cfg.Servers > 1 {
		all = append(all, chaos.Clustered()...)
	}
	return all
}

// Each outage has a world of its own, so that its figures are its own.
func TestOutages(t *testing.T) {
	if *outages == 0 {
		t.Skip("a long form: --outages 60s")
	}
	cfg := setUp(t)
	full := chaos.DiskFull()
	for _, f := range append(faultsFor(cfg), full) {
		cfg := cfg
		if f.Name == full.Name {
			cfg.Servers, cfg.Disk = 1, 256<<20
		}
		if !strings.Contains(f.Name, *only) {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			r := chaos.Begin(t, cfg)
			r.Wait(3 * time.Second) // of an ordinary day
			r.Do(f, *outages)
			conclude(t, f.Name, cfg.Seed, r.Finish())
		})
	}
}

// One world, hurt in every way in turn.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("a long form: --for 10m")
	}
	cfg := setUp(t)
	r := chaos.Begin(t, cfg)
	all := append(chaos.Ends(), faultsFor(cfg)...)
	for end := time.Now().Add(*soak); time.Now().Before(end); {
		if f := all[r.Random.IntN(len(all))]; strings.Contains(f.Name, *only) {
			r.Do(f, 2*time.Second+time.Duration(r.Random.Int64N(int64(10*time.Second))))
			r.Wait(5*time.Second + time.Duration(r.Random.Int64N(int64(10*time.Second))))
		}
	}
	conclude(t, fmt.Sprintf("soak of %s", *soak), cfg.Seed, r.Finish())
}

// The proof catches what is really lost.
func TestLoss(t *testing.T) {
	if *kills == 0 {
		t.Skip("a long form: --kills 100")
	}
	chaos.Lose(t, setUp(t))
}
