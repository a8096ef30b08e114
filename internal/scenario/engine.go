// Package scenario runs the real binary, and the servers it stands on, against scripted merchants, and hurts them: test
// support for whole-engine tests.
package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Binary is the engine, built once for a test run, and how it is started.
type Binary struct {
	path string
	env  []string
	disk *Disk
	cpus string // in the form of taskset; empty: all
	log  string // a file
}

// Build builds ./cmd/notifyd into dir; race adds the race detector, which the scenarios run with, and tags are build tags.
func Build(ctx context.Context, dir string, race bool, tags ...string) (*Binary, error) {
	path := filepath.Join(dir, "notifyd")
	return &Binary{path: path}, build(ctx, path, "./cmd/notifyd", race, tags)
}

func build(ctx context.Context, path, pkg string, race bool, tags []string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	args := []string{"build", "-o", path, "-tags", strings.Join(tags, ",")}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
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

// With is the binary with more in its environment: NAME=value.
func (b *Binary) With(env ...string) *Binary {
	changed := *b
	changed.env = append(append([]string(nil), b.env...), env...)
	return &changed
}

// On is the binary as a process that sees a small disk.
func (b *Binary) On(disk *Disk) *Binary {
	changed := *b
	changed.disk = disk
	return &changed
}

// Logging is the binary whose processes' words are added to a file: a failed test names it, instead of quoting them.
func (b *Binary) Logging(path string) *Binary {
	changed := *b
	changed.log = path
	return &changed
}

// Engine is one run of the binary on a data folder.
type Engine struct {
	Notifications notifydv1connect.NotificationServiceClient
	Merchants     notifydv1connect.MerchantServiceClient
	Keys          notifydv1connect.KeyServiceClient
	Intake, Admin string // URLs

	*process // copies of an Engine that call it in another way share it
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
	e := b.Launch(tb, dataDir, args...)
	e.UntilReady(tb)
	return e
}

// Launch is Start without waiting: UntilReady or Ready does.
func (b *Binary) Launch(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	return b.launch(tb, append([]string{"dev", "--no-demo", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dataDir}, args...))
}

// Serve runs `notifyd serve` on free ports, and returns when it is ready. It must log as JSON.
func (b *Binary) Serve(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	e := b.LaunchServe(tb, dataDir, args...)
	e.UntilReady(tb)
	return e
}

// LaunchServe is Serve without waiting: UntilReady or Ready does.
func (b *Binary) LaunchServe(tb testing.TB, dataDir string, args ...string) *Engine {
	tb.Helper()
	return b.launch(tb, append([]string{"serve", "--intake-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--data-dir=" + dataDir}, args...))
}

func (b *Binary) launch(tb testing.TB, args []string) *Engine {
	tb.Helper()
	e := &Engine{}
	path := b.path
	if b.cpus != "" {
		path, args = "taskset", append([]string{"--cpu-list", b.cpus, b.path}, args...)
	}
	cmd := command(b.disk, path, args...)
	cmd.Env = append(os.Environ(), b.env...)
	e.process = spawn(tb, spawned{name: "notifyd", cmd: cmd, ready: e.learn, log: b.log})
	return e
}

// command is ended by Stop, Kill or the test's end.
func command(disk *Disk, path string, args ...string) *exec.Cmd {
	if disk != nil {
		path, args = disk.inside(path, args)
	}
	return exec.CommandContext(context.Background(), path, args...)
}

// UntilReady waits until the engine answers.
func (e *Engine) UntilReady(tb testing.TB) {
	tb.Helper()
	if err := e.Ready(); err != nil {
		tb.Fatal(err)
	}
}

// Ready waits until the engine answers, or says why it will not.
func (e *Engine) Ready() error {
	if err := e.awaitReady(); err != nil {
		return err
	}
	client := &http.Client{}
	e.Notifications = notifydv1connect.NewNotificationServiceClient(client, e.Intake)
	e.Merchants = notifydv1connect.NewMerchantServiceClient(client, e.Intake)
	e.Keys = notifydv1connect.NewKeyServiceClient(client, e.Intake)
	return nil
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
