package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"

	"notifyd/internal/proc"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// process is a child or the engine, with its standard input and output.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func spawn(ctx context.Context, path string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, path, args...)}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 30 * time.Second
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	return p, p.cmd.Start()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) line() (string, error) {
	s, err := p.out.ReadString('\n')
	return strings.TrimSpace(s), err
}

// turn lets a child do n, and returns how long it took.
func (p *process) turn(n int) (time.Duration, error) {
	if _, err := fmt.Fprintln(p.in, n); err != nil {
		return 0, err
	}
	s, err := p.line()
	if err != nil {
		return 0, err
	}
	us, err := strconv.Atoi(s)
	return time.Duration(us) * time.Microsecond, err
}

// measure runs every case.
func measure(ctx context.Context, s settings) error {
	dir, err := os.MkdirTemp("", "notifyd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	binary, err := scenario.Build(ctx, dir, false)
	if err != nil {
		return err
	}
	fmt.Printf("%d rounds of %d, %d merchants, payload %d bytes; CPU in µs per notification of every process; ratio is the floor's CPU over all of it\n\n", s.rounds, s.perSlice, s.merchants, s.bytes)
	fmt.Printf("%-13s %9s %9s | %7s %8s %9s %6s %6s %7s | %6s %6s | %s\n", "case", "floor/s", "pipe/s", "floor", "engine", "postgres", "sink", "load", "all", "ratio", "worst", "engine MiB")
	for kind := range strings.SplitSeq(s.cases, ",") {
		if err := measureCase(ctx, s, binary.Path(), filepath.Join(dir, kind), kind); err != nil {
			return fmt.Errorf("case %s: %w", kind, err)
		}
	}
	return nil
}

// bench is one case's processes.
type bench struct {
	engine, sink, floor, load *process
	postmaster                int
	admin                     string
	db                        *pgx.Conn
	run                       string
}

func measureCase(ctx context.Context, s settings, binary, dataDir, kind string) error {
	ctx, cancel := context.WithCancel(ctx)
	b := &bench{run: "bench-" + kind}
	defer func() {
		cancel()
		for _, p := range []*process{b.load, b.floor, b.engine, b.sink} {
			if p != nil {
				_ = p.cmd.Wait() // ended by our own signal
			}
		}
	}()
	if err := b.start(ctx, s, binary, dataDir, kind); err != nil {
		return err
	}
	defer b.db.Close(context.WithoutCancel(ctx))
	var rounds []round
	profiled := make(chan error, 1)
	for i := range s.rounds + 1 {
		if i == 1 && s.profiles != "" {
			go func() { profiled <- b.profile(ctx, s.profiles, kind) }()
		}
		r, err := b.round(ctx, s.perSlice, i+1)
		if err != nil {
			return err
		}
		if i > 0 { // the first one warms up
			rounds = append(rounds, r)
		}
	}
	if s.profiles != "" {
		if err := <-profiled; err != nil {
			return fmt.Errorf("profile: %w", err)
		}
	}
	report(kind, rounds, s.perSlice, proc.ResidentMiB(b.engine.pid()))
	return nil
}

var bannerWord = regexp.MustCompile(`^  intake\s+(http://\S+)|^  admin\s+(http://[^\s/]+)|psql '([^']+)'`)

func (b *bench) start(ctx context.Context, s settings, binary, dataDir, kind string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if b.sink, err = spawn(ctx, self, "child", "sink"); err != nil {
		return err
	}
	sinkURL, err := b.sink.line()
	if err != nil {
		return err
	}
	args := append([]string{"dev", "--no-demo", "--quiet", "--log-level=warn", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dataDir}, strings.Fields(s.args)...)
	if kind == "batch-synced" {
		args = append(args, "--sync-always")
	}
	if b.engine, err = spawn(ctx, binary, args...); err != nil {
		return err
	}
	var intake, database string
	for database == "" {
		line, err := b.engine.line()
		if err != nil {
			return fmt.Errorf("read the engine's banner: %w", err)
		}
		for _, m := range bannerWord.FindAllStringSubmatch("  "+line, -1) {
			intake, b.admin, database = intake+m[1], b.admin+m[2], database+m[3]
		}
	}
	if b.db, err = pgx.Connect(ctx, database); err != nil {
		return err
	}
	pid, err := os.ReadFile(filepath.Join(dataDir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(pid), "\n")
	if b.postmaster, err = strconv.Atoi(first); err != nil {
		return err
	}
	if err := register(ctx, intake, sinkURL, s.merchants, kind); err != nil {
		return err
	}
	if b.floor, err = spawn(ctx, self, "child", "floor", sinkURL+"/floor", strconv.Itoa(s.bytes)); err != nil {
		return err
	}
	b.load, err = spawn(ctx, self, "child", "load", intake, strings.TrimSuffix(strings.TrimSuffix(kind, "-synced"), "-ledger"),
		strconv.Itoa(s.batch), strconv.Itoa(s.callers), strconv.Itoa(s.merchants), strconv.Itoa(s.bytes), b.run)
	return err
}

func register(ctx context.Context, intake, sinkURL string, merchants int, kind string) error {
	client := notifydv1connect.NewMerchantServiceClient(http.DefaultClient, intake)
	for i := range merchants {
		m := &notifydv1.Merchant{Id: fmt.Sprintf("bench-%d", i), NotifyUrl: fmt.Sprintf("%s/m/%d", sinkURL, i)}
		if kind == "batch-ledger" {
			m.Persist = notifydv1.Persist_PERSIST_LEDGER
		}
		if _, err := client.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})); err != nil {
			return err
		}
	}
	return nil
}

// round is one turn of the floor and one of the pipeline.
type round struct {
	floorWall, pipeWall                 time.Duration
	floor, engine, postgres, sink, load time.Duration // CPU
}

func (r round) all() time.Duration { return r.engine + r.postgres + r.sink + r.load }
func (r round) ratio() float64     { return float64(r.floor) / float64(r.all()) }

func (b *bench) round(ctx context.Context, n, nth int) (round, error) {
	var r round
	var err error
	floor, sink := proc.CPU(b.floor.pid()), proc.CPU(b.sink.pid())
	if r.floorWall, err = b.floor.turn(n); err != nil {
		return r, err
	}
	r.floor = proc.CPU(b.floor.pid()) - floor + proc.CPU(b.sink.pid()) - sink

	began := time.Now()
	sink = proc.CPU(b.sink.pid())
	engine, postgres, load := proc.CPU(b.engine.pid()), proc.FamilyCPU(b.postmaster), proc.CPU(b.load.pid())
	if _, err := b.load.turn(n); err != nil {
		return r, err
	}
	if err := b.awaitDelivered(ctx, n*nth); err != nil {
		return r, err
	}
	r.pipeWall = time.Since(began)
	r.sink = proc.CPU(b.sink.pid()) - sink
	r.engine, r.postgres, r.load = proc.CPU(b.engine.pid())-engine, proc.FamilyCPU(b.postmaster)-postgres, proc.CPU(b.load.pid())-load
	return r, nil
}

// awaitDelivered waits until the ledger holds n delivered notifications of this run.
func (b *bench) awaitDelivered(ctx context.Context, n int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var have int
		if err := b.db.QueryRow(ctx, `select count(*) from notifications where state = 4 and source = $1`, b.run).Scan(&have); err != nil {
			return err
		}
		if have >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// report prints medians over the rounds, and the worst ratio beside the median one.
func report(kind string, rounds []round, n, mib int) {
	median := func(value func(round) float64) float64 {
		var all []float64
		for _, r := range rounds {
			all = append(all, value(r))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	us := func(value func(round) time.Duration) float64 {
		return median(func(r round) float64 { return float64(value(r).Microseconds()) / float64(n) })
	}
	worst := slices.MinFunc(rounds, func(a, b round) int { return int(1000 * (a.ratio() - b.ratio())) })
	fmt.Printf("%-13s %9.0f %9.0f | %7.1f %8.1f %9.1f %6.1f %6.1f %7.1f | %6.2f %6.2f | %d\n", kind,
		median(func(r round) float64 { return float64(n) / r.floorWall.Seconds() }), median(func(r round) float64 { return float64(n) / r.pipeWall.Seconds() }),
		us(func(r round) time.Duration { return r.floor }), us(func(r round) time.Duration { return r.engine }), us(func(r round) time.Duration { return r.postgres }),
		us(func(r round) time.Duration { return r.sink }), us(func(r round) time.Duration { return r.load }), us(round.all), median(round.ratio), worst.ratio(), mib)
}

// profileFor is how long the CPU profile lasts.
const profileFor = 10 * time.Second

// profile keeps what the engine's admin listener tells about where its time and its memory go.
func (b *bench) profile(ctx context.Context, dir, kind string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for name, query := range map[string]string{"cpu": "profile?seconds=" + strconv.Itoa(int(profileFor.Seconds())), "allocs": "allocs"} {
		if err := fetch(ctx, b.admin+"/debug/pprof/"+query, filepath.Join(dir, kind+"-"+name+".pprof")); err != nil {
			return err
		}
	}
	return nil
}

func fetch(ctx context.Context, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, res.Body)
	return errors.Join(err, file.Close())
}
