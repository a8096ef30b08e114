// Package scenario runs the real binary against scripted merchants: test support for whole-engine tests.
package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Binary is the engine, built once for a test run.
type Binary struct{ path string }

// Build builds ./cmd/notifyd into dir; race adds the race detector, which the scenarios run with.
func Build(ctx context.Context, dir string, race bool) (*Binary, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "notifyd")
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/notifyd")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build notifyd: %w\n%s", err, out)
	}
	return &Binary{path: path}, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// At is a binary that stands somewhere already.
func At(path string) *Binary { return &Binary{path: path} }

// Path is where the binary stands.
func (b *Binary) Path() string { return b.path }

// Engine is one run of the binary on a data folder.
type Engine struct {
	Notifications notifydv1connect.NotificationServiceClient
	Merchants     notifydv1connect.MerchantServiceClient
	Intake, Admin string // URLs

	*process
}

// process is what runs. Copies of an Engine that call it in another way share it.
type process struct {
	cmd    *exec.Cmd
	began  chan struct{} // closed when it is ready
	exited chan struct{}
	err    error

	mu    sync.Mutex
	lines []string
}

// DataDir makes a folder that Postgres' own user can reach also when the test runs as root.
func DataDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "notifyd-scenario-")
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if !tb.Failed() {
			_ = os.RemoveAll(dir)
		} else {
			tb.Logf("data of the failed test: %s", dir)
		}
	})
	return dir
}

var ready = regexp.MustCompile(`^  (intake|admin)\s+(http://[^/\s]+)`)

// Start runs `notifyd dev` on free ports without the demo, and returns when it is ready.
func (b *Binary) Start(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	return b.run(tb, append([]string{"dev", "--no-demo", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dataDir}, args...))
}

// Serve runs `notifyd serve` on free ports, and returns when it is ready. It must log as JSON.
func (b *Binary) Serve(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	return b.run(tb, serveArgs(dataDir, args))
}

func serveArgs(dataDir string, more []string) []string {
	return append([]string{"serve", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dataDir}, more...)
}

func (b *Binary) run(tb testing.TB, args []string) *Engine {
	tb.Helper()
	e := b.launch(tb, args)
	e.UntilReady(tb)
	return e
}

// LaunchServe is Serve without waiting: UntilReady does.
func (b *Binary) LaunchServe(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	return b.launch(tb, serveArgs(dataDir, args))
}

func (b *Binary) launch(tb testing.TB, args []string) *Engine {
	tb.Helper()
	e := &Engine{process: &process{began: make(chan struct{}), exited: make(chan struct{})}}
	e.cmd = exec.CommandContext(context.Background(), b.path, args...) // ended by Stop, Kill or the test's end
	stdout, err := e.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	e.cmd.Stderr = e.cmd.Stdout
	if err := e.cmd.Start(); err != nil {
		tb.Fatalf("start notifyd: %v", err)
	}
	go e.read(stdout)
	tb.Cleanup(func() {
		e.Kill()
		if tb.Failed() {
			tb.Logf("the engine said:\n%s", e.Output())
		}
	})
	return e
}

// UntilReady waits until the engine answers.
func (e *Engine) UntilReady(tb testing.TB) {
	tb.Helper()
	timeout := time.NewTimer(60 * time.Second)
	defer timeout.Stop()
	select {
	case <-e.began:
	case <-e.exited:
		tb.Fatalf("notifyd ended before it was ready: %v\n%s", e.err, e.Output())
	case <-timeout.C:
		tb.Fatalf("notifyd was not ready in 60 s\n%s", e.Output())
	}
	client := &http.Client{}
	e.Notifications = notifydv1connect.NewNotificationServiceClient(client, e.Intake)
	e.Merchants = notifydv1connect.NewMerchantServiceClient(client, e.Intake)
}

// read keeps what the engine says, and learns from its banner where it listens.
func (e *Engine) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		e.mu.Lock()
		e.lines = append(e.lines, line)
		if e.learn(line) {
			close(e.began)
		}
		e.mu.Unlock()
	}
	e.err = e.cmd.Wait()
	close(e.exited)
}

// learn takes the addresses out of a line: of the banner, or of the log line that says ready. It reports the last of them.
func (e *Engine) learn(line string) (last bool) {
	if m := ready.FindStringSubmatch(line); m != nil {
		if m[1] == "intake" {
			e.Intake = m[2]
			return false
		}
		e.Admin = m[2]
		return true
	}
	var said struct{ Msg, Intake, Admin string }
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &said) != nil || said.Msg != "ready" {
		return false
	}
	e.Intake, e.Admin = "http://"+said.Intake, "http://"+said.Admin
	return true
}

// Signal sends a signal.
func (e *Engine) Signal(tb testing.TB, sig os.Signal) {
	tb.Helper()
	if err := e.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("signal notifyd: %v", err)
	}
}

// Exited is closed when the process has ended.
func (e *Engine) Exited() <-chan struct{} { return e.exited }

// Output is everything the engine has said.
func (e *Engine) Output() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.lines, "\n")
}

// PID is the engine's process.
func (e *Engine) PID() int { return e.cmd.Process.Pid }

// Kill ends the engine with SIGKILL, as a crash does, and waits for its end.
func (e *Engine) Kill() {
	_ = e.cmd.Process.Kill()
	<-e.exited
}

// Stop ends the engine with SIGTERM and waits until it has drained.
func (e *Engine) Stop(tb testing.TB) {
	tb.Helper()
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.NewTimer(60 * time.Second)
	defer timeout.Stop()
	select {
	case <-e.exited:
		if e.err != nil {
			tb.Errorf("notifyd did not stop cleanly: %v\n%s", e.err, e.Output())
		}
	case <-timeout.C:
		tb.Errorf("notifyd did not stop in 60 s\n%s", e.Output())
		e.Kill()
	}
}

// Within waits until the condition holds, looking at it again every few milliseconds.
func Within(tb testing.TB, limit time.Duration, what string, holds func() bool) {
	tb.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-timeout.C:
			tb.Fatalf("not within %s: %s", limit, what)
		case <-tick.C:
		}
	}
}
