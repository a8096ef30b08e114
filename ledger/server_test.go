package ledger_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"notifyd/internal/embedded/postgres"
	"notifyd/ledger"
)

// server is a private Postgres in a folder of its own.
type server struct {
	*postgres.Server
	dir      string
	settings map[string]string
}

// shared serves all tests that leave their server alone, each with a database of its own. It survives kills, not power
// cuts: that is quicker.
var shared = &server{settings: map[string]string{"fsync": "off", "full_page_writes": "off"}}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		err := shared.start()
		defer shared.remove()
		if err != nil {
			fmt.Fprintln(os.Stderr, "these tests need Postgres:", err)
			return 1
		}
		return m.Run()
	}())
}

// ownServer is for tests that stop or kill it, and for benchmarks: it syncs every commit.
func ownServer(tb testing.TB) *server {
	tb.Helper()
	s := &server{}
	tb.Cleanup(s.remove)
	if err := s.start(); err != nil {
		tb.Fatal(err)
	}
	return s
}

// start starts it, also again after a stop.
func (s *server) start() (err error) {
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("/tmp", "ledger-test-"); err != nil { // short: it is part of the socket's path
			return err
		}
		if err := os.Chmod(s.dir, 0o711); err != nil { // its account must get through
			return err
		}
	}
	s.Server, err = postgres.Start(context.Background(), postgres.Config{Dir: filepath.Join(s.dir, "pg"), Log: zap.NewNop(), Settings: s.settings})
	return err
}

func (s *server) stop(tb testing.TB) {
	tb.Helper()
	if err := s.Stop(context.WithoutCancel(tb.Context())); err != nil {
		tb.Fatal(err)
	}
}

// crash kills it; it comes back by itself.
func (s *server) crash(tb testing.TB) {
	tb.Helper()
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
}

func (s *server) remove() {
	if s.Server != nil {
		_ = s.Stop(context.Background())
	}
	_ = os.RemoveAll(s.dir)
}

var databases atomic.Int64

// database makes an empty one.
func (s *server) database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("t%d", databases.Add(1))
	if _, err := connect(tb, s.URL()).Exec(tb.Context(), "create database "+name); err != nil {
		tb.Fatal(err)
	}
	return strings.Replace(s.URL(), "/notifyd?", "/"+name+"?", 1)
}

func connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.WithoutCancel(tb.Context())) })
	return conn
}

var testKeys = func() ledger.Cipher {
	text, err := ledger.GenerateMasterKey()
	if err != nil {
		panic(err)
	}
	keys, err := ledger.NewCipher(text)
	if err != nil {
		panic(err)
	}
	return keys
}()

// openLedger opens a ledger and runs it until the test ends.
func openLedger(tb testing.TB, cfg ledger.Config) *ledger.Postgres {
	tb.Helper()
	cfg.Keys = testKeys
	l, err := ledger.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(tb.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
		l.Close()
	})
	return l
}

func waitFor(tb testing.TB, what string, ready <-chan struct{}) {
	tb.Helper()
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		tb.Fatalf("waited too long for %s", what)
	}
}
