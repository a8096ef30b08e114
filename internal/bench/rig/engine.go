package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"notifyd/internal/embedded/postgres"
	"notifyd/internal/proc"
	"notifyd/ledger"
)

// EngineConfig says which engine is measured.
type EngineConfig struct {
	Binary  string
	Dir     string // of its data; must not exist yet
	Nodes   int    // 0: one with everything in its process (notifyd dev); else nodes that share one NATS and one Postgres
	Trust   string // a file with the authority of the merchants' certificates; empty: the system's
	LogAt   string // least level of log lines; empty: warn
	Further []string
}

// Engine is one or more nodes, and what they stand on.
type Engine struct {
	Nodes   []*Process
	Intakes []string
	Admin   string // of the first node
	DB      *pgx.Conn
	URL     string // of the database

	PostgresVersion string

	nats       *Process // nil: in the engine's process
	stopNATS   context.CancelFunc
	private    *postgres.Server
	postmaster int
	keyFile    string
}

// TempDir makes a folder that Postgres' own user can reach.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "notifyd-bench-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// Build builds the engine into a folder.
func Build(ctx context.Context, dir string) (path string, err error) {
	return buildProgram(ctx, dir, "notifyd/cmd/notifyd")
}

func buildProgram(ctx context.Context, dir, pkg string) (string, error) {
	path := filepath.Join(dir, filepath.Base(pkg))
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, pkg).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// StartEngine starts an engine, and returns when it is ready. What it returns beside an error must be stopped too.
func StartEngine(ctx context.Context, cfg EngineConfig) (*Engine, error) {
	e := &Engine{}
	var err error
	if cfg.Nodes == 0 {
		err = e.startDev(ctx, cfg)
	} else {
		err = e.startNodes(ctx, cfg)
	}
	if err != nil {
		return e, err
	}
	if e.DB, err = pgx.Connect(ctx, e.URL); err != nil {
		return e, err
	}
	return e, e.DB.QueryRow(ctx, `show server_version`).Scan(&e.PostgresVersion)
}

var bannerWord = regexp.MustCompile(`^  intake\s+(http://\S+)|^  admin\s+(http://[^\s/]+)|psql '([^']+)'`)

func (cfg EngineConfig) args(command, dir string) []string {
	level := cfg.LogAt
	if level == "" {
		level = "warn"
	}
	args := []string{command, "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dir}
	if command == "dev" {
		args = append(args, "--no-demo", "--quiet", "--log-level="+level)
	}
	return append(args, cfg.Further...)
}

func (cfg EngineConfig) env() (env []string) {
	if cfg.Trust != "" {
		env = append(env, "SSL_CERT_FILE="+cfg.Trust)
	}
	return env
}

func (e *Engine) startDev(ctx context.Context, cfg EngineConfig) error {
	p, err := spawn(ctx, program{path: cfg.Binary, args: cfg.args("dev", cfg.Dir), env: cfg.env()})
	if err != nil {
		return err
	}
	e.Nodes = []*Process{p}
	var intake string
	for e.URL == "" {
		line, err := p.Line()
		if err != nil {
			return fmt.Errorf("read the engine's banner: %w", err)
		}
		for _, m := range bannerWord.FindAllStringSubmatch("  "+line, -1) {
			intake, e.Admin, e.URL = intake+m[1], e.Admin+m[2], e.URL+m[3]
		}
	}
	e.Intakes, e.keyFile = []string{intake}, filepath.Join(cfg.Dir, "master.key")
	go func() { _, _ = io.Copy(io.Discard, p.out) }() // ends with the engine
	pid, err := os.ReadFile(filepath.Join(cfg.Dir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(pid), "\n")
	e.postmaster, err = strconv.Atoi(first)
	return err
}

// startNodes starts a NATS server, a Postgres and as many nodes on them.
func (e *Engine) startNodes(ctx context.Context, cfg EngineConfig) error {
	if err := os.Mkdir(cfg.Dir, 0o755); err != nil {
		return err
	}
	var err error
	if e.private, err = postgres.Start(context.WithoutCancel(ctx), postgres.Config{Dir: filepath.Join(cfg.Dir, "pg"), Log: zap.NewNop()}); err != nil {
		return err
	}
	e.URL, e.postmaster = e.private.URL(), e.private.PID()
	natsURL, err := e.startNATS(ctx, cfg.Dir)
	if err != nil {
		return err
	}
	e.keyFile = filepath.Join(cfg.Dir, "shared.key")
	if _, err := ledger.LoadMasterKey(e.keyFile, true); err != nil {
		return err
	}
	file := filepath.Join(cfg.Dir, "notifyd.yaml")
	text := fmt.Sprintf(`drain_notice: 0s
callers: {required: false}
egress: {allowed_networks: [127.0.0.0/8]}
log: {level: warn, attempts: false}
nats: {url: %q, user: bench, password: bench}
postgres: {url: %q}
ledger: {master_key_file: %q}
`, natsURL, e.URL, e.keyFile)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	for i := range cfg.Nodes {
		if err := e.startNode(ctx, cfg, file, i); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) startNATS(ctx context.Context, dir string) (url string, err error) {
	path, err := buildProgram(ctx, dir, "notifyd/internal/scenario/natsd")
	if err != nil {
		return "", err
	}
	port, err := freePort(ctx)
	if err != nil {
		return "", err
	}
	args := []string{"-name=bench", "-port=" + port, "-store=" + filepath.Join(dir, "nats"), "-user=bench", "-password=bench"}
	ctx, e.stopNATS = context.WithCancel(context.WithoutCancel(ctx)) // it outlives the nodes
	if e.nats, err = spawn(ctx, program{path: path, args: args, quiet: true}); err != nil {
		return "", err
	}
	if line, err := e.nats.Line(); err != nil || line != "ready" {
		return "", fmt.Errorf("natsd is not ready: %q: %w", line, err)
	}
	return "nats://127.0.0.1:" + port, nil
}

// freePort is one that nobody listens on just now.
func freePort(ctx context.Context) (string, error) {
	l, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

func (e *Engine) startNode(ctx context.Context, cfg EngineConfig, file string, i int) error {
	intake, err := freePort(ctx) // a node that logs at level warn does not say where it listens
	if err != nil {
		return err
	}
	admin, err := freePort(ctx)
	if err != nil {
		return err
	}
	args := append(cfg.args("serve", filepath.Join(cfg.Dir, "node-"+strconv.Itoa(i))), "--config="+file, "--intake-listen=127.0.0.1:"+intake, "--admin-listen=127.0.0.1:"+admin)
	p, err := spawn(ctx, program{path: cfg.Binary, args: args, env: cfg.env()})
	if err != nil {
		return err
	}
	e.Nodes, e.Intakes = append(e.Nodes, p), append(e.Intakes, "http://127.0.0.1:"+intake)
	if i == 0 {
		e.Admin = "http://127.0.0.1:" + admin
	}
	go func() { _, _ = io.Copy(io.Discard, p.out) }() // ends with the node
	return untilReady(ctx, "http://127.0.0.1:"+admin+"/readyz")
}

func untilReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Until(ctx, 50*time.Millisecond, "the node is ready", func() (bool, error) {
		body, err := Fetch(ctx, url)
		if err != nil {
			return false, nil //nolint:nilerr // it does not answer yet
		}
		return true, body.Close()
	})
}

// Stop waits for the end of everything; the context that it was started with has ended.
func (e *Engine) Stop(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	if e == nil {
		return
	}
	if e.DB != nil {
		_ = e.DB.Close(ctx)
	}
	for _, p := range e.Nodes {
		p.Wait()
	}
	if e.nats != nil {
		e.stopNATS()
		e.nats.Wait()
	}
	if e.private != nil {
		_ = e.private.Stop(ctx)
	}
}

// CPU is the CPU time so far of all nodes and their NATS.
func (e *Engine) CPU() (sum time.Duration) {
	for _, p := range e.Nodes {
		sum += proc.CPU(p.PID())
	}
	if e.nats != nil {
		sum += proc.CPU(e.nats.PID())
	}
	return sum
}

// PostgresCPU is the CPU time so far of Postgres, all its processes together.
func (e *Engine) PostgresCPU() time.Duration { return proc.FamilyCPU(e.postmaster) }

// MiB is the resident memory of the largest node.
func (e *Engine) MiB() (most int) {
	for _, p := range e.Nodes {
		most = max(most, proc.ResidentMiB(p.PID()))
	}
	return most
}

// MasterKey seals the secrets in the engine's ledger.
func (e *Engine) MasterKey() (ledger.Cipher, error) {
	raw, err := ledger.LoadMasterKey(e.keyFile, false)
	if err != nil {
		return ledger.Cipher{}, err
	}
	return ledger.NewCipher(raw)
}

// Memory watches the resident memory of the largest node.
type Memory struct {
	stop, done chan struct{}
	samples    []int
}

// WatchMemory looks every quarter of a second until End.
func (e *Engine) WatchMemory() *Memory {
	m := &Memory{stop: make(chan struct{}), done: make(chan struct{}), samples: []int{e.MiB()}}
	go func() {
		defer close(m.done)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-tick.C:
				m.samples = append(m.samples, e.MiB())
			}
		}
	}()
	return m
}

// End returns the most and the median of what was seen, in MiB.
func (m *Memory) End() (most, median int) {
	close(m.stop)
	<-m.done
	return Quantile(m.samples, 1), Quantile(m.samples, 0.5)
}
