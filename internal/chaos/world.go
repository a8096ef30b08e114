package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"notifyd/internal/scenario"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Config says what a run is made of.
type Config struct {
	Engine *scenario.Binary
	// NATS runs the queues as processes of their own, with Postgres beside them. Without it a single node has both inside.
	NATS    *scenario.NATSBinary
	Servers int // of NATS: 1, or 3 that keep copies
	Nodes   int
	Rate    int // notifications per second
	Seed    uint64
	// Bound is how long everything may take to be settled after the load.
	Bound time.Duration
	// Default leaves the engine's settings as they are; otherwise its times are shortened, so that what waits for them
	// comes within seconds.
	Default bool
	// Disk is the size in bytes of the file system that a single NATS server is on; 0: it is on an ordinary one.
	Disk int64
}

// ofDisk is the share of a small disk that one stream may take.
const ofDisk = 8

// quick shortens what a notification of a dead node waits for, and what a merchant may take.
func quick() []string {
	return []string{
		"--set=egress.total_timeout=1500ms", "--set=egress.grace=500ms", "--set=dispatcher.attempt_bound=3s", "--set=dispatcher.gate.claim_for=4s",
		"--set=dispatcher.gate.open_for=200ms", "--set=dispatcher.gate.open_at_most=400ms", "--set=async.ack_wait=3s", "--set=retry.grace=4s", "--set=retry.sweep_every=500ms",
	}
}

// World is what the engine stands on, and its nodes.
type World struct {
	NATS     []*scenario.NATS // none: in the node
	Disk     *scenario.Disk   // of the only one; nil: an ordinary one
	Postgres *scenario.Postgres
	Nodes    []*Node
}

// Node is one engine, over every end of its process. Its links are its own.
type Node struct {
	Name     string
	NATS     []*scenario.Link // one before each server
	Postgres *scenario.Link

	cfg  Config
	dir  string
	file string // of its configuration; empty: everything is inside

	mu     sync.Mutex
	engine *scenario.Engine // nil: it does not run
}

// NewWorld starts everything but the nodes.
func NewWorld(tb testing.TB, cfg Config) *World {
	tb.Helper()
	w := &World{}
	dir := scenario.DataDir(tb)
	if cfg.NATS == nil {
		w.Nodes = []*Node{{Name: "node-0", cfg: cfg, dir: filepath.Join(dir, "node-0")}}
		return w
	}
	switch {
	case cfg.Disk > 0:
		w.Disk = scenario.NewDisk(tb, cfg.Disk)
		w.NATS = []*scenario.NATS{cfg.NATS.Start(tb, filepath.Join(w.Disk.Dir, "nats"), w.Disk)}
	case cfg.Servers > 1:
		w.NATS = cfg.NATS.Cluster(tb, filepath.Join(dir, "nats"), cfg.Servers)
	default:
		w.NATS = []*scenario.NATS{cfg.NATS.Start(tb, filepath.Join(dir, "nats"), nil)}
	}
	w.Postgres = scenario.StartPostgres(tb, filepath.Join(dir, "pg"))
	keyFile := filepath.Join(dir, "master.key")
	ctx, cancel := bounded(tb, time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, cfg.Engine.Path(), "keygen", "master", keyFile).CombinedOutput(); err != nil {
		tb.Fatalf("keygen master: %v: %s", err, out)
	}
	for i := range cfg.Nodes {
		w.Nodes = append(w.Nodes, w.newNode(tb, cfg, dir, fmt.Sprintf("node-%d", i), keyFile))
	}
	return w
}

func (w *World) newNode(tb testing.TB, cfg Config, dir, name, keyFile string) *Node {
	tb.Helper()
	n := &Node{Name: name, cfg: cfg, dir: filepath.Join(dir, name), file: filepath.Join(dir, name+".yaml"), Postgres: scenario.NewLink(tb, w.Postgres.Socket(tb))}
	// Which shards a node gets follows from its id: by chance, one of three would have none in one run of two hundred.
	if err := errors.Join(os.MkdirAll(n.dir, 0o755), os.WriteFile(filepath.Join(n.dir, "node_id"), []byte(name+"\n"), 0o600)); err != nil {
		tb.Fatal(err)
	}
	var urls []string
	for _, server := range w.NATS {
		link := scenario.NewLink(tb, server.Addr())
		n.NATS = append(n.NATS, link)
		urls = append(urls, "nats://"+link.Addr())
	}
	text := fmt.Sprintf(`
node: %s
drain_notice: 0s
callers: {required: false}
log: {attempts: false}
egress: {allowed_networks: [127.0.0.0/8]}
nats: {url: %q, user: %s, password: %s, replicas: %d}
postgres: {url: %q}
ledger: {master_key_file: %q}
`, name, strings.Join(urls, ","), scenario.NATSUser, scenario.NATSPassword, len(w.NATS), w.Postgres.Via(n.Postgres), keyFile)
	if err := os.WriteFile(n.file, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	return n
}

// Launch starts the node's process, with more in its environment, and does not wait until it is ready.
func (n *Node) Launch(tb testing.TB, args []string, env ...string) *scenario.Engine {
	tb.Helper()
	if !n.cfg.Default {
		args = append(quick(), args...)
	}
	if n.cfg.Disk > 0 {
		share := fmt.Sprintf("%dMiB", n.cfg.Disk/ofDisk>>20)
		args = append(args, "--set=async.stream_bytes="+share, "--set=outage.spill_bytes="+share, "--set=outage.reserved_bytes="+share)
	}
	binary := n.cfg.Engine.With(env...).Logging(n.dir + ".log")
	if n.file == "" {
		return binary.Launch(tb, n.dir, append(args, "--quiet")...)
	}
	return binary.LaunchServe(tb, n.dir, append(args, "--config="+n.file)...)
}

// Start starts the node, and returns when it takes calls.
func (n *Node) Start(tb testing.TB, env ...string) error {
	tb.Helper()
	e := n.Launch(tb, nil, env...)
	err := e.Ready()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.engine = e; err != nil {
		e.Kill()
		n.engine = nil
	}
	return err
}

// forgetSettings takes away what the node would start with while Postgres is away.
func (n *Node) forgetSettings() { _ = os.Remove(filepath.Join(n.dir, "settings.snapshot")) }

// Engine is the node's process; nil: it does not run.
func (n *Node) Engine() *scenario.Engine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.engine
}

// Kill ends the node's process with SIGKILL.
func (n *Node) Kill() { n.ended((*scenario.Engine).Kill) }

// Stop lets the node drain and end.
func (n *Node) Stop(tb testing.TB) { tb.Helper(); n.ended(func(e *scenario.Engine) { e.Stop(tb) }) }

func (n *Node) ended(end func(*scenario.Engine)) {
	e := n.Engine()
	if e == nil {
		return
	}
	end(e)
	n.mu.Lock()
	n.engine = nil
	n.mu.Unlock()
}

// Any picks a node that runs.
func (w *World) Any(random *rand.Rand) notifydv1connect.NotificationServiceClient {
	first := random.IntN(len(w.Nodes))
	for i := range w.Nodes {
		if e := w.Nodes[(first+i)%len(w.Nodes)].Engine(); e != nil {
			return e.Notifications
		}
	}
	return nil
}

// StartAll starts the nodes that do not run, one after another.
func (w *World) StartAll(tb testing.TB) {
	tb.Helper()
	for _, n := range w.Nodes {
		if n.Engine() != nil {
			continue
		}
		if err := n.Start(tb); err != nil {
			tb.Fatal(err)
		}
	}
}

// bounded is a context for one call of a run, which goes on when the test's own context has ended.
func bounded(tb testing.TB, limit time.Duration) (context.Context, context.CancelFunc) {
	tb.Helper()
	return context.WithTimeout(context.WithoutCancel(tb.Context()), limit)
}
