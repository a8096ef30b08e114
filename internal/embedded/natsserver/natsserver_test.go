package natsserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"notifyd/internal/embedded/natsserver"
)

// helperFolder makes this binary play an engine that publishes until it is killed.
const helperFolder = "NATSSERVER_TEST_FOLDER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(helperFolder); folder != "" {
		fmt.Println("error:", publishUntilKilled(folder))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func publishUntilKilled(folder string) error {
	ctx := context.Background()
	s, err := natsserver.Start(ctx, natsserver.Config{Dir: folder, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	conn, err := s.Connect()
	if err != nil {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	stream := jetstream.StreamConfig{Name: "INTAKE", Subjects: []string{"intake"}}
	if _, err := js.CreateStream(ctx, stream); err != nil {
		return err
	}
	for {
		ack, err := js.Publish(ctx, "intake", []byte("notification"))
		if err != nil {
			return err
		}
		fmt.Println(ack.Sequence)
	}
}

func start(t *testing.T, cfg natsserver.Config) *natsserver.Server {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = zaptest.NewLogger(t)
	}
	began := time.Now()
	s, err := natsserver.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("start took %s", time.Since(began))
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *natsserver.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	began := time.Now()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("stop took %s", time.Since(began).Round(time.Millisecond))
}

func connect(t *testing.T, s *natsserver.Server) (jetstream.JetStream, *nats.Conn) {
	t.Helper()
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js, conn
}

// must panics, which ends the test with the line that failed.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestAcknowledgedMessagesOutliveKill9(t *testing.T) {
	folder := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), helperFolder+"="+folder)
	out := must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged uint64
	for lines := bufio.NewScanner(out); lines.Scan(); {
		n, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			t.Errorf("helper says %q", lines.Text())
			break
		}
		if acknowledged = n; n == 2000 {
			// Lines already in the pipe are read on: they were acknowledged too.
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	js, _ := connect(t, start(t, natsserver.Config{Dir: folder}))
	info := must(must(js.Stream(t.Context(), "INTAKE")).Info(t.Context()))
	if acknowledged < 2000 || info.State.Msgs < acknowledged {
		t.Errorf("acknowledged %d messages, found %d", acknowledged, info.State.Msgs)
	}
}

func TestTwoServersOnOneFolder(t *testing.T) {
	cfg := natsserver.Config{Dir: t.TempDir(), Log: zaptest.NewLogger(t)}
	first := start(t, cfg)
	if _, err := natsserver.Start(t.Context(), cfg); !errors.Is(err, natsserver.ErrInUse) {
		t.Fatalf("want ErrInUse, got %v", err)
	}
	if err := first.Check(); err != nil {
		t.Errorf("the first server suffered: %v", err)
	}
	stop(t, first)
	if err := first.Check(); err == nil {
		t.Error("a stopped server passes the check")
	}
	start(t, cfg)
}

func TestMessageScheduleFires(t *testing.T) {
	js, _ := connect(t, start(t, natsserver.Config{Dir: t.TempDir()}))
	stream := must(js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "RETRY", Subjects: []string{"d.>", "due.>"}, Retention: jetstream.WorkQueuePolicy, AllowMsgSchedules: true,
	}))
	consumer := must(stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
		Durable: "due", FilterSubject: "due.7",
	}))
	due := time.Now().Add(1500 * time.Millisecond)
	must(js.PublishMsg(t.Context(), &nats.Msg{Subject: "d.n1", Data: []byte("n1"), Header: nats.Header{
		"Nats-Schedule":        {"@at " + due.UTC().Format(time.RFC3339Nano)},
		"Nats-Schedule-Target": {"due.7"},
	}}))
	msg := must(consumer.Next(jetstream.FetchMaxWait(15 * time.Second)))
	if arrived := time.Now(); arrived.Before(due) {
		t.Errorf("fired %s early", due.Sub(arrived))
	}
	if string(msg.Data()) != "n1" {
		t.Errorf("fired %q", msg.Data())
	}
}

// As many consumers as the engine has, with an acknowledged, an unacknowledged
// and an undelivered message for each.
func TestConsumersOutliveRestart(t *testing.T) {
	const shards = 130
	ctx, cfg := t.Context(), natsserver.Config{Dir: t.TempDir(), SyncAlways: false}
	first := start(t, cfg)
	js, conn := connect(t, first)
	stream := must(js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "ASYNC", Subjects: []string{"async.>"}, Retention: jetstream.WorkQueuePolicy,
	}))
	for i := range shards {
		subject := fmt.Sprintf("async.%d", i)
		for range 3 {
			must(js.Publish(ctx, subject, []byte(subject)))
		}
		consumer := must(stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
			Durable: fmt.Sprintf("shard-%d", i), FilterSubject: subject, AckWait: time.Hour,
		}))
		if err := must(consumer.Next()).DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
		must(consumer.Next())
	}
	conn.Close()
	stop(t, first)

	js, _ = connect(t, start(t, cfg))
	for i := range shards {
		consumer := must(js.Consumer(ctx, "ASYNC", fmt.Sprintf("shard-%d", i)))
		info := must(consumer.Info(ctx))
		if info.NumPending != 1 || info.NumAckPending != 1 {
			t.Fatalf("shard %d: %d pending and %d unacknowledged, want 1 and 1", i, info.NumPending, info.NumAckPending)
		}
	}
}

func TestSyncAlwaysAndLargePayload(t *testing.T) {
	const payload = 3 << 20
	js, conn := connect(t, start(t, natsserver.Config{Dir: t.TempDir(), SyncAlways: true, MaxPayload: 4 << 20}))
	if conn.MaxPayload() != 4<<20 {
		t.Errorf("max payload is %d", conn.MaxPayload())
	}
	must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "BIG", Subjects: []string{"big"}}))
	must(js.Publish(t.Context(), "big", make([]byte, payload)))
}

func TestListenIsOffUnlessAskedFor(t *testing.T) {
	if url := start(t, natsserver.Config{Dir: t.TempDir()}).ClientURL(); url != "" {
		t.Errorf("listens on %s", url)
	}
	s := start(t, natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	conn := must(nats.Connect(s.ClientURL()))
	conn.Close()
}

func TestStartFailuresAreErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	blocked := t.TempDir()
	if err := os.WriteFile(filepath.Join(blocked, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.WarnLevel)
	log := zap.New(core)
	for name, tc := range map[string]struct {
		cfg  natsserver.Config
		want string
	}{
		"no dir":          {natsserver.Config{Log: log}, "dir is empty"},
		"no log":          {natsserver.Config{Dir: t.TempDir()}, "log is missing"},
		"small payload":   {natsserver.Config{Dir: t.TempDir(), Log: log, MaxPayload: 100}, "max payload is 100 bytes"},
		"sync interval":   {natsserver.Config{Dir: t.TempDir(), Log: log, SyncInterval: time.Hour}, "sync interval is 1h"},
		"negative store":  {natsserver.Config{Dir: t.TempDir(), Log: log, MaxStore: -1}, "max store"},
		"listen":          {natsserver.Config{Dir: t.TempDir(), Log: log, Listen: "nonsense"}, "listen address"},
		"dir is a file":   {natsserver.Config{Dir: file, Log: log}, "make nats folder"},
		"store is a file": {natsserver.Config{Dir: blocked, Log: log}, "start nats"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := natsserver.Start(t.Context(), tc.cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want an error with %q, got %v", tc.want, err)
			}
		})
	}
	if logged.Len() == 0 {
		t.Error("the server's own error did not reach the log")
	}
	// A start that failed leaves the folder free.
	if err := os.Remove(filepath.Join(blocked, "jetstream")); err != nil {
		t.Fatal(err)
	}
	start(t, natsserver.Config{Dir: blocked})
}

func TestCancelledStartLeavesTheFolderFree(t *testing.T) {
	cfg := natsserver.Config{Dir: t.TempDir(), Log: zaptest.NewLogger(t)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := natsserver.Start(ctx, cfg); err == nil {
		stop(t, s) // it may have been quicker
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("want the context's error, got %v", err)
	}
	start(t, cfg)
}

// A full disk turns JetStream off. Once there is room it is on again by itself, with everything that was acknowledged.
func TestComesBackAfterAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("no small file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := natsserver.Start(t.Context(), natsserver.Config{Dir: filepath.Join(dir, "nats"), Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "INTAKE", Subjects: []string{"intake"}}); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 140<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 512<<10)
	publish := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "intake", message)
		return err
	}
	acknowledged := uint64(0)
	for err = publish(); err == nil; err = publish() {
		acknowledged++
	}
	t.Logf("%d messages acknowledged, then: %v", acknowledged, err)
	until(t, "the server says so", func() bool { return s.Check() != nil })
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	until(t, "it takes messages again", func() bool { return s.Check() == nil && publish() == nil })
	stream, err := js.Stream(t.Context(), "INTAKE")
	if err != nil {
		t.Fatal(err)
	}
	if kept := stream.CachedInfo().State.Msgs; kept < acknowledged+1 {
		t.Errorf("%d messages are there, %d were acknowledged", kept, acknowledged+1)
	}
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}
