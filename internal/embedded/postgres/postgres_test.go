package postgres_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"notifyd/internal/embedded/postgres"
)

func TestDataOutlivesRestart(t *testing.T) {
	cfg := config(t, filepath.Join(reachable(t), "deep", "er"))
	first := start(t, cfg)
	exec1(t, first, `CREATE TABLE kept (n int)`, `INSERT INTO kept VALUES (7)`)
	stop(t, first)
	stop(t, first) // harmless
	select {
	case <-first.Done():
	default:
		t.Error("stopped, but not done")
	}
	if first.PID() != 0 || first.Err() != nil {
		t.Errorf("stopped, but pid %d and error %v", first.PID(), first.Err())
	}

	second := start(t, cfg)
	if n := query[int](t, second, `SELECT n FROM kept`); n != 7 {
		t.Errorf("found %d", n)
	}
}

func TestSettings(t *testing.T) {
	cfg := config(t, reachable(t))
	cfg.Settings = map[string]string{"max_connections": "23", "work_mem": "8MB"}
	s := start(t, cfg)
	for name, want := range map[string]string{
		"max_connections": "23", "work_mem": "8MB", "shared_buffers": "256MB", "max_wal_size": "2GB",
		"fsync": "on", "synchronous_commit": "on", "autovacuum": "on", "jit": "off", "data_checksums": "on",
		"server_encoding": "UTF8", "listen_addresses": "", "TimeZone": "UTC",
	} {
		if got := query[string](t, s, "SHOW "+name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if collation := query[string](t, s, `SELECT datcollate FROM pg_database WHERE datname = current_database()`); collation != "C" {
		t.Errorf("collation is %q", collation)
	}
	if who := query[string](t, s, `SELECT current_user || '@' || current_database()`); who != "notifyd@notifyd" {
		t.Errorf("connected as %s", who)
	}
	if query[bool](t, s, `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`) {
		t.Error("the engine's role is a superuser")
	}
	exec1(t, s, `CREATE DATABASE scratch`) // tests of others rely on it
}

func TestConfigIsValidated(t *testing.T) {
	for want, change := range map[string]func(*postgres.Config){
		"dir is empty":                 func(c *postgres.Config) { c.Dir = "" },
		"log is missing":               func(c *postgres.Config) { c.Log = nil },
		"must not be negative":         func(c *postgres.Config) { c.StopGrace = -1 },
		"give up after is -1":          func(c *postgres.Config) { c.GiveUpAfter = -1 },
		`"a b" is not a name`:          func(c *postgres.Config) { c.Settings = map[string]string{"a b": ""} },
		`"port" cannot be changed`:     func(c *postgres.Config) { c.Settings = map[string]string{"port": "1"} },
		`"hba_file" cannot be changed`: func(c *postgres.Config) { c.Settings = map[string]string{"hba_file": "x"} },
	} {
		cfg := config(t, "/nowhere")
		change(&cfg)
		if _, err := postgres.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}

func TestBadSettingSaysWhatPostgresSays(t *testing.T) {
	cfg := config(t, reachable(t))
	cfg.Settings = map[string]string{"shared_buffers": "plenty"}
	_, err := postgres.Start(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter`) {
		t.Fatalf("want what postgres says, got %v", err)
	}
	cfg.Settings = nil
	start(t, cfg) // a failed start leaves the folder free and usable
}

func TestTwoEnginesOnOneFolder(t *testing.T) {
	cfg := config(t, reachable(t))
	first := start(t, cfg)
	if _, err := postgres.Start(t.Context(), cfg); !errors.Is(err, postgres.ErrInUse) {
		t.Fatalf("want ErrInUse, got %v", err)
	}
	query[int](t, first, `SELECT 1`)
}

func TestPostmasterKilledIsRestarted(t *testing.T) {
	s := start(t, config(t, reachable(t)))
	exec1(t, s, `CREATE TABLE kept (n int)`)
	for round := 1; round <= 2; round++ {
		exec1(t, s, `INSERT INTO kept VALUES (1)`)
		// A busy backend notices late that its postmaster is gone, and holds up the next.
		busy := must(pgx.Connect(t.Context(), s.URL()))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = busy.Exec(t.Context(), `DO $$ BEGIN LOOP END LOOP; END $$`)
		}()
		eventually(t, "a busy backend", func() bool {
			return query[int](t, s, `SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO%'`) == 1
		})
		killed := s.PID()
		check(t, syscall.Kill(killed, syscall.SIGKILL))
		eventually(t, "restarted", func() bool { return s.Restarts() == round })
		<-ended
		if s.PID() == killed || s.PID() == 0 || s.Err() != nil {
			t.Errorf("pid %d after %d, error %v", s.PID(), killed, s.Err())
		}
		if n := query[int](t, s, `SELECT count(*) FROM kept`); n != round {
			t.Errorf("round %d: found %d rows", round, n)
		}
	}
}

func TestGivesUpWhenToldTo(t *testing.T) {
	cfg := config(t, reachable(t))
	cfg.GiveUpAfter = 2
	s := start(t, cfg)
	// Postgres can't start without it.
	check(t, os.Rename(filepath.Join(cfg.Dir, "data", "global"), filepath.Join(cfg.Dir, "data", "gone")))
	check(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	select {
	case <-s.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("did not give up")
	}
	if s.Err() == nil || s.PID() != 0 {
		t.Errorf("gave up with pid %d and error %v", s.PID(), s.Err())
	}
	stop(t, s)
}

func TestStopDuringRestartAttempts(t *testing.T) {
	cfg := config(t, reachable(t))
	s := start(t, cfg)
	check(t, os.Rename(filepath.Join(cfg.Dir, "data", "global"), filepath.Join(cfg.Dir, "data", "gone")))
	check(t, syscall.Kill(s.PID(), syscall.SIGKILL))
	eventually(t, "down", func() bool { return s.Err() != nil })
	stop(t, s)
	check(t, os.Rename(filepath.Join(cfg.Dir, "data", "gone"), filepath.Join(cfg.Dir, "data", "global")))
	start(t, cfg)
}

func TestStopDisconnectsClients(t *testing.T) {
	s := start(t, config(t, reachable(t)))
	conn := must(pgx.Connect(t.Context(), s.URL()))
	defer conn.Close(context.Background())
	stop(t, s)
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("still connected")
	}
}

// A postmaster that is stopped in its tracks hears neither fast nor immediate.
func TestStopEndsWhatDoesNotHear(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as an immediate shutdown may")
	}
	cfg := config(t, reachable(t))
	s := start(t, cfg)
	exec1(t, s, `CREATE TABLE kept AS SELECT 1 AS n`)
	pid := s.PID()
	check(t, syscall.Kill(pid, syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	check(t, s.Stop(ctx))
	if alive(pid) {
		t.Error("still there")
	}
	// Its children, which are still there, are cleared away.
	if n := query[int](t, start(t, cfg), `SELECT n FROM kept`); n != 1 {
		t.Errorf("found %d", n)
	}
}

func TestCommitsOutliveKill9OfTheEngine(t *testing.T) {
	folder := reachable(t)
	_, committed := killWhileCommitting(t, folder)
	s := start(t, config(t, folder)) // at once, while the old one shuts down
	if n := query[int](t, s, `SELECT count(*) FROM kept`); n < committed {
		t.Errorf("%d committed, %d found", committed, n)
	}
}

func TestKill9OfTheEngineStopsPostgres(t *testing.T) {
	folder := reachable(t)
	postmaster, _ := killWhileCommitting(t, folder)
	eventually(t, "postmaster gone", func() bool { return !alive(postmaster) })
	if _, err := os.Stat(filepath.Join(folder, "data", "postmaster.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it did not shut down cleanly: %v", err)
	}
}

// A terminal sends its Ctrl-C to the whole process group of the engine.
func TestPostmasterHasItsOwnProcessGroup(t *testing.T) {
	s := start(t, config(t, reachable(t)))
	if group := must(unix.Getpgid(s.PID())); group != s.PID() {
		t.Errorf("group of %d is %d, the engine's is %d", s.PID(), group, unix.Getpgrp())
	}
}

func TestRunningPostmasterLeftFromBeforeIsReplaced(t *testing.T) {
	cfg := config(t, reachable(t))
	first := start(t, cfg)
	exec1(t, first, `CREATE TABLE kept AS SELECT 1 AS n`)
	binary := must(os.Readlink("/proc/" + strconv.Itoa(first.PID()) + "/exe"))
	stop(t, first)

	old := postgresAs(t, binary, cfg.Dir, "-D", filepath.Join(cfg.Dir, "data"), "-c", "listen_addresses=", "-c", "unix_socket_directories="+filepath.Join(cfg.Dir, "run"))
	ended := make(chan error, 1)
	go func() { ended <- old.Wait() }()
	eventually(t, "old postmaster ready", func() bool {
		content, _ := os.ReadFile(filepath.Join(cfg.Dir, "data", "postmaster.pid"))
		return strings.Contains(string(content), "ready")
	})

	second := start(t, cfg)
	if err := <-ended; err != nil {
		t.Errorf("the old postmaster did not end cleanly: %v", err)
	}
	if n := query[int](t, second, `SELECT n FROM kept`); n != 1 {
		t.Errorf("found %d", n)
	}
}

func TestStalePidFileIsNoObstacle(t *testing.T) {
	cfg := config(t, reachable(t))
	first := start(t, cfg)
	pidFile := filepath.Join(cfg.Dir, "data", "postmaster.pid")
	lines := must(os.ReadFile(pidFile))
	stop(t, first)
	_, rest, _ := strings.Cut(string(lines), "\n")
	owner := ownerOf(t, filepath.Join(cfg.Dir, "data"))

	// The id has gone to another program of the same user, the one case in which
	// Postgres itself gives up. And: to nobody.
	other := exec.CommandContext(t.Context(), "sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	check(t, other.Start())
	dead := exec.CommandContext(t.Context(), "true")
	check(t, dead.Run())
	for _, pid := range []int{other.Process.Pid, dead.Process.Pid} {
		check(t, os.WriteFile(pidFile, []byte(strconv.Itoa(pid)+"\n"+rest), 0o600))
		check(t, os.Chown(pidFile, int(owner.Uid), int(owner.Gid)))
		s := start(t, cfg)
		query[int](t, s, `SELECT 1`)
		stop(t, s)
	}
	check(t, other.Process.Kill())
	_ = other.Wait()
}

func TestHalfMadeDataIsMadeAnew(t *testing.T) {
	cfg := config(t, reachable(t))
	half := filepath.Join(cfg.Dir, "data.init-123", "base")
	check(t, os.MkdirAll(half, 0o700))
	start(t, cfg)
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestForeignDataFolderIsLeftAlone(t *testing.T) {
	cfg := config(t, reachable(t))
	precious := filepath.Join(cfg.Dir, "data", "precious")
	check(t, os.MkdirAll(precious, 0o700))
	if _, err := postgres.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no PG_VERSION") {
		t.Errorf("got %v", err)
	}
	check(t, os.Remove(precious))
}

// A role or database that a crash during the first start left out.
func TestMissingDatabaseIsMade(t *testing.T) {
	cfg := config(t, reachable(t))
	s := start(t, cfg)
	admin := must(pgx.Connect(t.Context(), strings.ReplaceAll(s.URL(), "notifyd@/notifyd", "postgres@/postgres")))
	for _, statement := range []string{`DROP DATABASE notifyd`, `DROP ROLE notifyd`} {
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	check(t, admin.Close(t.Context()))
	stop(t, s)
	query[int](t, start(t, cfg), `SELECT 1`)
}

func TestLongPath(t *testing.T) {
	cfg := config(t, filepath.Join(reachable(t), strings.Repeat("long", 30)))
	s := start(t, cfg)
	exec1(t, s, `CREATE TABLE kept AS SELECT 1 AS n`)
	before := s.URL()
	if strings.Contains(before, "longlong") {
		t.Errorf("socket in %s", before)
	}
	stop(t, s)
	s = start(t, cfg)
	if s.URL() != before {
		t.Errorf("was %s, is %s", before, s.URL())
	}
	query[int](t, s, `SELECT n FROM kept`)
	stop(t, s)

	// Somebody built a door of that name.
	parsed := must(pgx.ParseConfig(before))
	check(t, os.Mkdir(parsed.Host, 0o777))
	check(t, os.Chmod(parsed.Host, 0o777))
	t.Cleanup(func() { _ = os.Remove(parsed.Host) })
	if _, err := postgres.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "not a private folder") {
		t.Errorf("got %v", err)
	}
}

func TestAwkwardPath(t *testing.T) {
	names := []string{"with space & = ' ?#%", `comma, "quote"`}
	if os.Getenv(postgres.EnvBundle) != "" {
		// A bundle may have to be copied below the folder, and initdb cannot run from a path with a double quote.
		names[1] = "comma, quote"
	}
	for _, name := range names {
		query[int](t, start(t, config(t, filepath.Join(reachable(t), name))), `SELECT 1`)
	}
}

func TestCancelledStartLeavesTheFolderFree(t *testing.T) {
	cfg := config(t, reachable(t))
	for _, patience := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if s, err := postgres.Start(ctx, cfg); err == nil {
			stop(t, s) // it may have been quicker
		}
		cancel()
	}
	query[int](t, start(t, cfg), `SELECT 1`)
}

func TestRootRunsPostgresAsSomebodyElse(t *testing.T) {
	needRoot(t)
	cfg := config(t, reachable(t))
	cfg.User = "nobody"
	s := start(t, cfg)
	if owner := ownerOf(t, "/proc/"+strconv.Itoa(s.PID())); owner.Uid != somebody(t).Uid {
		t.Errorf("runs as %d", owner.Uid)
	}
	stop(t, s)
	cfg.User = "" // the data's owner is kept
	s = start(t, cfg)
	if owner := ownerOf(t, "/proc/"+strconv.Itoa(s.PID())); owner.Uid != somebody(t).Uid {
		t.Errorf("runs as %d after a restart", owner.Uid)
	}
	stop(t, s)
	cfg.User = "root"
	if _, err := postgres.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is root") {
		t.Errorf("got %v", err)
	}
}

func TestRootTakesOverDataRestoredByRoot(t *testing.T) {
	needRoot(t)
	cfg := config(t, reachable(t))
	stop(t, start(t, cfg))
	check(t, exec.CommandContext(t.Context(), "chown", "-R", "root:root", cfg.Dir).Run())
	query[int](t, start(t, cfg), `SELECT 1`)
}

func TestClosedParentIsNamed(t *testing.T) {
	needRoot(t)
	home := filepath.Join(reachable(t), "home")
	check(t, os.Mkdir(home, 0o700))
	_, err := postgres.Start(t.Context(), config(t, filepath.Join(home, "project", "data")))
	if err == nil || !strings.Contains(err.Error(), "chmod o+x "+home) || strings.Contains(err.Error(), "chmod o+x "+home+"/") {
		t.Errorf("want an error that names %s, got %v", home, err)
	}
}

func TestEngineThatIsNotRoot(t *testing.T) {
	needRoot(t) // who is not root runs every other test so
	folder, owner := reachable(t), somebody(t)
	check(t, os.Chown(folder, int(owner.Uid), int(owner.Gid)))
	check(t, os.Chmod(folder, 0o700))
	for round := range 2 {
		cmd, out := helper(t, startAndStop, folder, owner)
		said := make([]byte, 4096)
		n, _ := out.Read(said)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("round %d: %v: %s", round, err, said[:n])
		}
	}
	// Root may open it too, and leaves it usable for its owner.
	s := start(t, config(t, folder))
	if n := query[int](t, s, `SELECT count(*) FROM kept`); n != 2 {
		t.Errorf("found %d rows", n)
	}
	stop(t, s)
	cmd, _ := helper(t, startAndStop, folder, owner)
	check(t, cmd.Wait())
}

func ownerOf(t *testing.T, path string) *syscall.Credential {
	t.Helper()
	stat, ok := must(os.Stat(path)).Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner")
	}
	return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid, NoSetGroups: os.Geteuid() != 0}
}

// postgresAs starts the server's binary by hand, as the owner of the data.
func postgresAs(t *testing.T, binary, folder string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: ownerOf(t, filepath.Join(folder, "data"))}
	check(t, cmd.Start())
	return cmd
}
