// Command plots draws what bench and isolation have kept as JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"notifyd/internal/bench/rig"
)

func main() {
	from := flag.String("from", "docs/data", "a folder of results")
	to := flag.String("to", "docs/img", "a folder for the pictures")
	flag.Parse()
	if err := run(*from, *to); err != nil {
		fmt.Fprintln(os.Stderr, "plots:", err)
		os.Exit(1)
	}
}

func run(from, to string) error {
	files, err := filepath.Glob(filepath.Join(from, "*.json"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s: no results; make bench and make isolation keep them with --json", from)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		pictures, err := draw(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for name, svg := range pictures {
			path := filepath.Join(to, strings.TrimSuffix(filepath.Base(file), ".json")+"-"+name+".svg")
			if err := os.WriteFile(path, []byte(svg), 0o644); err != nil {
				return err
			}
			fmt.Println(path)
		}
	}
	return nil
}

// results are those of bench or isolation: what is drawn of them.
type results struct {
	Kind  string `json:"kind"`
	Cases []struct {
		Case     string         `json:"case"`
		Varied   string         `json:"varied"`
		Shape    map[string]int `json:"shape"`
		Floor    float64        `json:"floor_us"`
		Engine   float64        `json:"engine_us"`
		Postgres float64        `json:"postgres_us"`
		Sink     float64        `json:"sink_us"`
		Load     float64        `json:"load_us"`
		All      float64        `json:"all_us"`
	} `json:"cases"`
	Latency []struct {
		Lane       string     `json:"lane"`
		Rate       int        `json:"rate"`
		ToMerchant rig.Spread `json:"to_merchant"`
		ToAnswer   rig.Spread `json:"to_answer"`
		Floor      rig.Spread `json:"floor"`
	} `json:"latency"`
	Scenarios []struct {
		Scenario  string `json:"scenario"`
		Without   side   `json:"without"`
		With      side   `json:"with"`
		Mass      []int  `json:"mass"`
		MassBinMS int    `json:"mass_bin_ms"`
	} `json:"scenarios"`
}

type side struct {
	Seconds []rig.Second `json:"seconds"`
}

// draw makes pictures of one run's results, by name.
func draw(raw []byte) (map[string]string, error) {
	var r results
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if r.Kind != "bench" && r.Kind != "isolation" {
		return nil, fmt.Errorf("kind %q: must be bench or isolation", r.Kind)
	}
	pictures := map[string]string{}
	r.drawCases(pictures)
	r.drawVaried(pictures)
	r.drawLatency(pictures)
	r.drawScenarios(pictures)
	return pictures, nil
}

func (r *results) drawCases(pictures map[string]string) {
	var rows []bar
	for _, c := range r.Cases {
		if c.Varied == "" {
			rows = append(rows, bar{label: c.Case, parts: []float64{0, c.Engine, c.Postgres, c.Sink, c.Load}}, bar{label: "its bare request", parts: []float64{c.Floor}})
		}
	}
	if len(rows) > 0 {
		pictures["cases"] = bars("CPU time of one notification", "µs", []string{"bare client and sink", "engine", "postgres", "sink", "load"}, rows)
	}
}

func (r *results) drawVaried(pictures map[string]string) {
	series := map[string][]line{}
	for _, c := range r.Cases {
		if c.Varied == "" {
			continue
		}
		key := c.Case + "-" + c.Varied
		if series[key] == nil {
			series[key] = []line{{name: "all"}, {name: "engine"}, {name: "postgres"}, {name: "bare request"}}
		}
		for i, y := range []float64{c.All, c.Engine, c.Postgres, c.Floor} {
			l := &series[key][i]
			l.x, l.y = append(l.x, float64(c.Shape[c.Varied])), append(l.y, y)
		}
	}
	for key, all := range series {
		name, varied, _ := cutLast(key, "-")
		pictures[key] = lines("CPU time of one notification, "+name, "µs", varied, slices.Max(all[0].x) >= 100, all)
	}
}

func cutLast(text, at string) (before, after string, found bool) {
	i := strings.LastIndex(text, at)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(at):], true
}

func (r *results) drawLatency(pictures map[string]string) {
	var rows []bar
	for _, l := range r.Latency {
		for _, one := range []struct {
			until string
			rig.Spread
		}{{"merchant", l.ToMerchant}, {"answer", l.ToAnswer}, {"bare answer", l.Floor}} {
			if one.N > 0 {
				rows = append(rows, bar{label: fmt.Sprintf("%s %d/s to %s", l.Lane, l.Rate, one.until), parts: []float64{one.P50, one.P99 - one.P50}})
			}
		}
	}
	if len(rows) > 0 {
		pictures["latency"] = bars("Latency at fixed offered rates", "ms", []string{"p50", "up to p99"}, rows)
	}
}

func (r *results) drawScenarios(pictures map[string]string) {
	for _, s := range r.Scenarios {
		if len(s.With.Seconds) == 0 {
			continue
		}
		pictures[s.Scenario] = lines("Healthy merchants' p99 in each second, "+s.Scenario, "ms", "second of the run", false,
			[]line{perSecond("without the fault", s.Without.Seconds), perSecond("with the fault", s.With.Seconds)})
		if len(s.Mass) > 0 {
			due := line{name: "sent"}
			for i, n := range s.Mass {
				due.x, due.y = append(due.x, float64(i*s.MassBinMS)/1000), append(due.y, float64(n))
			}
			pictures[s.Scenario+"-due"] = lines("Retries after a mass failure", fmt.Sprintf("in each %d ms", s.MassBinMS), "seconds since the first", false, []line{due})
		}
	}
}

func perSecond(name string, seconds []rig.Second) line {
	l := line{name: name}
	for i, s := range seconds {
		l.x, l.y = append(l.x, float64(i)), append(l.y, s.P99)
	}
	return l
}
