package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"notifyd/internal/embedded/postgres"
)

const (
	// helperMode makes this binary play an engine in a process of its own.
	helperMode   = "POSTGRES_TEST_HELPER"
	helperFolder = "POSTGRES_TEST_FOLDER"

	commitUntilKilled = "commit-until-killed"
	startAndStop      = "start-and-stop"
)

func TestMain(m *testing.M) {
	switch mode := os.Getenv(helperMode); mode {
	case "":
		os.Exit(m.Run())
	default:
		if err := help(mode, os.Getenv(helperFolder)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
}

// help prints the postmaster's id, then a number for each committed row.
func help(mode, folder string) error {
	ctx := context.Background()
	s, err := postgres.Start(ctx, postgres.Config{Dir: folder, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	fmt.Println("postmaster", s.PID())
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS kept (n bigint)`); err != nil {
		return err
	}
	for n := 1; mode == commitUntilKilled || n == 1; n++ {
		if _, err := conn.Exec(ctx, `INSERT INTO kept VALUES ($1)`, n); err != nil {
			return err
		}
		fmt.Println("committed", n)
	}
	return errors.Join(conn.Close(ctx), s.Stop(ctx))
}

// helper starts this binary again as an engine on the folder, as another user if
// one is given.
func helper(t *testing.T, mode, folder string, as *syscall.Credential) (*exec.Cmd, io.Reader) {
	t.Helper()
	binary := os.Args[0]
	if as != nil {
		binary = filepath.Join(reachable(t), "engine") // go test builds in a private folder
		content := must(os.ReadFile(os.Args[0]))
		check(t, os.WriteFile(binary, content, 0o755))
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), helperMode+"="+mode, helperFolder+"="+folder)
	if bundle := os.Getenv(postgres.EnvBundle); as != nil && bundle != "" { // it may lie below root's home
		copied := filepath.Join(reachable(t), "bundle")
		check(t, exec.CommandContext(t.Context(), "cp", "-a", bundle, copied).Run())
		cmd.Env = append(cmd.Env, postgres.EnvBundle+"="+copied)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out := must(cmd.StdoutPipe())
	cmd.Stderr = cmd.Stdout
	check(t, cmd.Start())
	return cmd, out
}

// killWhileCommitting kills an engine with -9 in the midst of its work. It returns
// the postmaster's id and the last commit that the engine had been told of.
func killWhileCommitting(t *testing.T, folder string) (postmaster, committed int) {
	t.Helper()
	cmd, out := helper(t, commitUntilKilled, folder, nil)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, number, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(number)
		switch {
		case word == "postmaster" && err == nil:
			postmaster = n
		case word == "committed" && err == nil:
			if committed = n; n == 200 {
				check(t, cmd.Process.Kill())
			}
		default:
			t.Fatalf("helper says %q", lines.Text())
		}
	}
	_ = cmd.Wait()
	if committed < 200 {
		t.Fatalf("helper ended after %d commits", committed)
	}
	return postmaster, committed
}

// reachable is a folder that other users can pass, unlike t.TempDir.
func reachable(t *testing.T) string {
	t.Helper()
	folder := must(os.MkdirTemp("", "pg")) //nolint:usetesting // t.TempDir is closed to other users
	t.Cleanup(func() { check(t, os.RemoveAll(folder)) })
	check(t, os.Chmod(folder, 0o755))
	return folder
}

func config(t *testing.T, folder string) postgres.Config {
	t.Helper()
	return postgres.Config{Dir: folder, Log: zaptest.NewLogger(t)}
}

func start(t *testing.T, cfg postgres.Config) *postgres.Server {
	t.Helper()
	began := time.Now()
	s, err := postgres.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("start took %s", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *postgres.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	began := time.Now()
	check(t, s.Stop(ctx))
	t.Logf("stop took %s", time.Since(began).Round(time.Millisecond))
}

func exec1(t *testing.T, s *postgres.Server, statements ...string) {
	t.Helper()
	conn := must(pgx.Connect(t.Context(), s.URL()))
	defer conn.Close(context.Background())
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

func query[T any](t *testing.T, s *postgres.Server, statement string) T {
	t.Helper()
	conn := must(pgx.Connect(t.Context(), s.URL()))
	defer conn.Close(context.Background())
	var value T
	check(t, conn.QueryRow(t.Context(), statement).Scan(&value))
	return value
}

// eventually polls a condition that another process brings about.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !met() {
		select {
		case <-deadline.C:
			t.Fatalf("still not so: %s", what)
		case <-tick.C:
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// somebody is a user that is not root, and an owner for what Postgres writes.
func somebody(t *testing.T) *syscall.Credential {
	t.Helper()
	found := must(user.Lookup("nobody"))
	return &syscall.Credential{
		Uid: uint32(must(strconv.Atoi(found.Uid))), Gid: uint32(must(strconv.Atoi(found.Gid))),
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must panics, which ends the test with the line that failed.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
