package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/internal/bench/rig"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// kind is what a case does otherwise than the batch case.
type kind struct {
	scene   string // empty: payout, which is async
	unary   bool
	client  bool // through the Go client, as a payment service would
	sink    rig.SinkConfig
	tls     bool
	dead    float64 // share of the traffic that goes to merchants who refuse connections
	persist notifydv1.Persist
	args    []string
	key     string // the algorithm of a private key that signs each request; empty: HMAC, as by default
	signs   string // how
}

func kinds() map[string]kind {
	return map[string]kind{
		"batch":        {},
		"unary":        {unary: true},
		"sync":         {unary: true, scene: "scan"},
		"unary-client": {unary: true, client: true},
		"sync-client":  {unary: true, client: true, scene: "scan"},
		"batch-synced": {args: []string{"--sync-always"}},
		"batch-ledger": {persist: notifydv1.Persist_PERSIST_LEDGER},
		"tls13":        {tls: true},
		"newconn":      {sink: rig.SinkConfig{Close: true}},
		"dead":         {dead: 0.05},
		"rsa":          {key: "rsa-2048", signs: "rsa-sha256"},
		"ed25519":      {key: "ed25519", signs: "ed25519"},
		"sm2":          {key: "sm2", signs: "sm2-sm3"},
	}
}

func caseNames() string { return strings.Join(slices.Sorted(maps.Keys(kinds())), ", ") }

// caseRow is what one case cost: medians over the rounds. CPU is in µs for each notification.
type caseRow struct {
	Case       string  `json:"case"`
	Varied     string  `json:"varied,omitempty"` // the dimension of the shape that this run varies
	Shape      shape   `json:"shape"`
	N          int     `json:"n"`
	Rounds     int     `json:"rounds"`
	FloorRate  float64 `json:"floor_per_second"`
	PipeRate   float64 `json:"pipe_per_second"`
	AnswerP50  float64 `json:"answer_p50_ms"` // of one call
	AnswerP99  float64 `json:"answer_p99_ms"`
	Floor      float64 `json:"floor_us"`
	Engine     float64 `json:"engine_us"`
	Postgres   float64 `json:"postgres_us"`
	Sink       float64 `json:"sink_us"`
	Load       float64 `json:"load_us"`
	All        float64 `json:"all_us"`
	Ratio      float64 `json:"ratio"`
	Worst      float64 `json:"worst"`
	EngineMiB  int     `json:"engine_mib"` // at the end
	MostMiB    int     `json:"most_mib"`
	ReadyAfter string  `json:"ready_after"` // merchants registered, ledger filled
}

func measureCases(ctx context.Context, s settings, dir string, out *results) error {
	fmt.Printf("%d rounds of %d; CPU in µs per notification of every process; ratio is the floor's CPU over all of it; answer is what a caller waits, in ms\n\n", s.rounds, s.perSlice)
	fmt.Printf("%-13s %9s %6s %9s %7s %5s | %8s %8s %7s %7s | %6s %7s %9s %6s %6s %7s | %6s %6s | %s\n", "case", "merchants", "bytes", "rows", "queues", "nodes",
		"floor/s", "pipe/s", "ans p50", "p99", "floor", "engine", "postgres", "sink", "load", "all", "ratio", "worst", "engine MiB (most)")
	if s.cases == "all" {
		s.cases = "batch,unary-client,unary,sync-client,sync,tls13,newconn,dead,batch-synced,batch-ledger"
	}
	for name := range strings.SplitSeq(s.cases, ",") {
		k, ok := kinds()[name]
		if !ok {
			return fmt.Errorf("--cases %q: must be one of %s", name, caseNames())
		}
		for i, v := range s.vary.shapes(s.shape) {
			row, version, err := measureCase(ctx, s, k, v, filepath.Join(dir, name+strconv.Itoa(i)), name)
			if err != nil {
				return fmt.Errorf("case %s, %+v: %w", name, v.shape, err)
			}
			out.Facts.Postgres = version
			out.Cases = append(out.Cases, row)
			row.print()
		}
	}
	return nil
}

func (r caseRow) print() {
	fmt.Printf("%-13s %9d %6d %9d %7d %5d | %8.0f %8.0f %7.1f %7.1f | %6.1f %7.1f %9.1f %6.1f %6.1f %7.1f | %6.2f %6.2f | %d (%d)\n", r.Case, r.Shape.Merchants, r.Shape.Bytes, r.Shape.Rows, r.Shape.Queues, r.Shape.Nodes,
		r.FloorRate, r.PipeRate, r.AnswerP50, r.AnswerP99, r.Floor, r.Engine, r.Postgres, r.Sink, r.Load, r.All, r.Ratio, r.Worst, r.EngineMiB, r.MostMiB)
}

// bench is one case's processes.
type bench struct {
	kind
	shape
	callers, batch int

	engine *rig.Engine
	sink   *rig.Sink
	floor  *rig.Floor
	load   *rig.Load
}

func measureCase(ctx context.Context, s settings, k kind, v variant, dir, name string) (row caseRow, version string, err error) {
	began := time.Now()
	b, stop, err := start(ctx, s, k, v.shape, dir)
	defer stop()
	if err != nil {
		return row, "", err
	}
	ready := time.Since(began)
	var rounds []round
	memory := b.engine.WatchMemory()
	profiled := make(chan error, 1)
	for i := range s.rounds + 1 {
		if i == 1 && s.profiles != "" {
			go func() { profiled <- profile(ctx, b.engine.Admin, s.profiles, name) }()
		}
		r, err := b.round(ctx, s.perSlice, fmt.Sprintf("bench-%d", i))
		if err != nil {
			return row, "", err
		}
		if i > 0 { // the first one warms up
			rounds = append(rounds, r)
		}
	}
	most, _ := memory.End()
	if s.profiles != "" {
		if err := <-profiled; err != nil {
			return row, "", fmt.Errorf("profile: %w", err)
		}
	}
	row = summary(rounds, s.perSlice)
	row.Case, row.Varied, row.Shape, row.N, row.Rounds = name, v.of, v.shape, s.perSlice, s.rounds
	row.EngineMiB, row.MostMiB, row.ReadyAfter = b.engine.MiB(), most, ready.Round(time.Millisecond).String()
	return row, b.engine.PostgresVersion, nil
}

// start starts a case's processes; stop ends them, also after an error.
func start(ctx context.Context, s settings, k kind, sh shape, dir string) (b *bench, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	b = &bench{kind: k, shape: sh, callers: s.callers, batch: 1}
	if !k.unary {
		b.callers, b.batch = 4, s.batch
	}
	stop = func() {
		cancel()
		b.engine.Stop(ctx)
		if b.load != nil {
			b.load.Wait()
		}
		if b.floor != nil {
			b.floor.Wait()
		}
		if b.sink != nil {
			b.sink.Wait()
		}
	}
	if k.tls {
		k.sink.TLSDir = filepath.Dir(dir)
	}
	if b.sink, err = rig.StartSink(ctx, k.sink); err != nil {
		return b, stop, err
	}
	args := append(slices.Clone(k.args), strings.Fields(s.args)...)
	if b.engine, err = rig.StartEngine(ctx, rig.EngineConfig{Binary: s.binary, Dir: dir, Nodes: sh.Nodes, Trust: b.sink.CA, LogAt: "error", Further: args}); err != nil {
		return b, stop, err
	}
	if err := fillLedger(ctx, b.engine, sh.Rows); err != nil {
		return b, stop, err
	}
	own := &notifydv1.Merchant{Persist: k.persist}
	if k.key != "" {
		if err := b.engine.GenerateKey(ctx, signingKey, k.key); err != nil {
			return b, stop, err
		}
		own.Contract = &notifydv1.Contract{Profile: "custom", Signer: &notifydv1.Signer{Algorithm: k.signs, KeyId: signingKey, Input: "{timestamp}.{body}", Header: "X-Signature"}}
	}
	classes := []rig.Merchants{{Class: "bench", Count: sh.Merchants, Base: b.sink.URL, Settings: own}}
	if k.dead > 0 { // the door is closed
		classes = append(classes, rig.Merchants{Class: "dead", Count: max(1, int(k.dead*float64(sh.Merchants))), Base: b.sink.Door, Settings: own})
	}
	if err := b.engine.Register(ctx, classes...); err != nil {
		return b, stop, err
	}
	if b.floor, err = rig.StartFloor(ctx, rig.FloorConfig{URL: b.sink.URL + "/floor/0", CA: b.sink.CA, Size: sh.Bytes}); err != nil {
		return b, stop, err
	}
	if b.load, err = rig.StartLoad(ctx, rig.LoadConfig{Intakes: b.engine.Intakes, Client: k.client}); err != nil {
		return b, stop, err
	}
	return b, stop, b.rest(ctx)
}

// signingKey is the name of the key that signs for all merchants.
const signingKey = "bench"

func (b *bench) targets() []rig.Target {
	all := []rig.Target{{Class: "bench", Count: b.Merchants, Share: 1 - b.dead}}
	if b.dead > 0 {
		all = append(all, rig.Target{Class: "dead", Count: max(1, int(b.dead*float64(b.Merchants))), Share: b.dead})
	}
	return all
}

func (b *bench) order(source string) rig.LoadOrder {
	scene := b.scene
	if scene == "" {
		scene = "payout"
	}
	return rig.LoadOrder{Source: source, Scene: scene, Size: b.Bytes, Batch: b.batch, Callers: b.callers, Targets: b.targets()}
}

// round is one turn of the floor and one of the pipeline.
type round struct {
	floorWall, pipeWall                 time.Duration
	answers                             rig.Spread
	floor, engine, postgres, sink, load time.Duration // CPU
}

func (r round) all() time.Duration { return r.engine + r.postgres + r.sink + r.load }

// ratio is of the CPU times; 0 says that the pipeline's was too short for this machine's clocks.
func (r round) ratio() float64 {
	if r.all() <= 0 {
		return 0
	}
	return float64(r.floor) / float64(r.all())
}

func (b *bench) round(ctx context.Context, n int, source string) (r round, err error) {
	floor, sink := b.floor.CPU(), b.sink.CPU()
	paced, err := b.floor.Order(rig.FloorOrder{N: n, Callers: 64})
	if err != nil {
		return r, err
	}
	r.floorWall, r.floor = paced.Took, b.floor.CPU()-floor+b.sink.CPU()-sink

	seen, err := b.sink.Order(rig.SinkOrder{})
	if err != nil {
		return r, err
	}
	began := time.Now()
	sink = b.sink.CPU()
	engine, postgres, load := b.engine.CPU(), b.engine.PostgresCPU(), b.load.CPU()
	order := b.order(source)
	order.N, order.Patient = n, true // an engine with too much to do says when to come again
	answer, err := b.load.Order(order)
	if err != nil {
		return r, err
	}
	if err := b.awaitDelivered(ctx, source, seen.Requests, answer.Accepted["bench"]); err != nil {
		return r, err
	}
	r.pipeWall, r.answers = time.Since(began), rig.SpreadOf(answer.Latencies)
	r.sink = b.sink.CPU() - sink
	r.engine, r.postgres, r.load = b.engine.CPU()-engine, b.engine.PostgresCPU()-postgres, b.load.CPU()-load
	return r, nil
}

// awaitDelivered waits until the ledger holds n delivered notifications of a source. It asks the ledger only when the
// merchants have had as many requests: counting rows costs Postgres time that is not the engine's.
func (b *bench) awaitDelivered(ctx context.Context, source string, before int64, n int) error {
	err := rig.Until(ctx, 10*time.Millisecond, "the merchants were asked", func() (bool, error) {
		seen, err := b.sink.Order(rig.SinkOrder{})
		return seen.Requests-before >= int64(n), err
	})
	if err != nil {
		return err
	}
	return rig.Until(ctx, 50*time.Millisecond, "everything is in the ledger", func() (bool, error) {
		var have int
		err := b.engine.DB.QueryRow(ctx, `select count(*) from notifications where state = 4 and source = $1`, source).Scan(&have)
		return have >= n, err
	})
}

// summary is the median over the rounds, and the worst ratio beside the median one.
func summary(rounds []round, n int) caseRow {
	median := func(value func(round) float64) float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, value(r))
		}
		return rig.Quantile(all, 0.5)
	}
	us := func(value func(round) time.Duration) float64 {
		return median(func(r round) float64 { return float64(value(r).Microseconds()) / float64(n) })
	}
	row := caseRow{
		FloorRate: median(func(r round) float64 { return float64(n) / r.floorWall.Seconds() }),
		PipeRate:  median(func(r round) float64 { return float64(n) / r.pipeWall.Seconds() }),
		AnswerP50: median(func(r round) float64 { return r.answers.P50 }), AnswerP99: median(func(r round) float64 { return r.answers.P99 }),
		Floor: us(func(r round) time.Duration { return r.floor }), Engine: us(func(r round) time.Duration { return r.engine }),
		Postgres: us(func(r round) time.Duration { return r.postgres }), Sink: us(func(r round) time.Duration { return r.sink }),
		Load: us(func(r round) time.Duration { return r.load }), All: us(round.all), Ratio: median(round.ratio), Worst: rounds[0].ratio(),
	}
	for _, r := range rounds {
		row.Worst = min(row.Worst, r.ratio())
	}
	return row
}

// profileFor is how long the CPU profile lasts.
const profileFor = 10 * time.Second

// waitingFor is how long it is recorded who waits for whom.
const waitingFor = 3 * time.Second

// profile keeps what the engine's admin listener tells about where its time and its memory go, and who waits for whom.
func profile(ctx context.Context, admin, dir, name string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for _, p := range []struct {
		what string
		span time.Duration
	}{{"profile", profileFor}, {"mutex", waitingFor}, {"block", waitingFor}, {"allocs", 0}} { // the first before the others slow it down
		query := ""
		if p.span > 0 {
			query = "?seconds=" + strconv.Itoa(int(p.span.Seconds()))
		}
		body, err := rig.Fetch(ctx, admin+"/debug/pprof/"+p.what+query)
		if err != nil {
			return err
		}
		if err := keep(body, filepath.Join(dir, name+"-"+p.what+".pprof")); err != nil {
			return err
		}
	}
	return nil
}

func keep(body io.ReadCloser, path string) error {
	defer func() { _ = body.Close() }()
	raw, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}
