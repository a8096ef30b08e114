package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"notifyd/internal/scenario"
)

// echo answers each line with itself.
func echo(t *testing.T) (addr string) {
	t.Helper()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = door.Close() })
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					fmt.Fprintln(conn, lines.Text())
				}
			}()
		}
	}()
	return door.Addr().String()
}

// ask sends a line and reads the answer within a bound.
func ask(conn net.Conn, bound time.Duration) (took time.Duration, err error) {
	began := time.Now()
	if err := conn.SetDeadline(began.Add(bound)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return time.Since(began), err
	}
	answer := make([]byte, 6)
	_, err = conn.Read(answer)
	return time.Since(began), err
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestLink(t *testing.T) {
	t.Parallel()
	l := scenario.NewLink(t, echo(t))
	conn := dial(t, l.Addr())
	if _, err := ask(conn, 5*time.Second); err != nil {
		t.Fatalf("passing: %v", err)
	}

	l.Cut(t)
	if _, err := ask(conn, 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection over a cut link: %v, want silence", err)
	}
	if _, err := ask(dial(t, l.Addr()), 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection over a cut link: %v, want silence", err)
	}
	l.Pass(t)
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 6)); err != nil {
		t.Errorf("what was said while the link was cut is gone: %v", err)
	}

	const delay = 150 * time.Millisecond
	l.Slow(t, delay)
	if took, err := ask(conn, 5*time.Second); err != nil || took < delay {
		t.Errorf("slow by %s: answered after %s, %v", delay, took, err)
	}

	l.Refuse(t)
	if _, err := ask(conn, 5*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection over a refusing link: %v, want its end", err)
	}
	if _, err := net.Dial("tcp", l.Addr()); err == nil {
		t.Error("a refusing link lets a new connection in")
	}
	l.Pass(t)
	if _, err := ask(dial(t, l.Addr()), 5*time.Second); err != nil {
		t.Errorf("passing again: %v", err)
	}
}

func buildNATS(t *testing.T) *scenario.NATSBinary {
	t.Helper()
	b, err := scenario.BuildNATS(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func stored(ctx context.Context, js jetstream.JetStream) uint64 {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, "S")
	if err != nil {
		return 0
	}
	return s.CachedInfo().State.Msgs
}

func TestNATS(t *testing.T) {
	t.Parallel()
	binary := buildNATS(t)
	disk := scenario.NewDisk(t, 32<<20)
	n := binary.Start(t, filepath.Join(disk.Dir, "nats"), disk)
	js := n.Connect(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	put := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "s", make([]byte, 1000))
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(){"killed": func() { n.Kill() }, "stopped": func() { n.Stop(t) }} {
		end()
		if err := put(); err == nil {
			t.Errorf("%s, it takes messages", name)
		}
		n.Start(t)
		scenario.Within(t, 20*time.Second, name+", it comes back with what it had", func() bool { return stored(t.Context(), js) == 1 })
	}
	n.Pause(t)
	scenario.Within(t, 20*time.Second, "paused, it takes nothing", func() bool { return put() != nil }) // some threads stop a moment later
	n.Resume(t)
	scenario.Within(t, 20*time.Second, "it takes messages again", func() bool { return put() == nil })

	disk.Fill(t)
	scenario.Within(t, 20*time.Second, "it feels the full disk", func() bool { return put() != nil })
	disk.Free(t)
	n.Kill()
	n.Start(t)
	scenario.Within(t, 20*time.Second, "it takes messages when there is space", func() bool { return put() == nil })
}

func TestCluster(t *testing.T) {
	t.Parallel()
	servers := buildNATS(t).Cluster(t, t.TempDir(), 3)
	js := servers[2].Connect(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	servers[0].Kill()
	scenario.Within(t, 20*time.Second, "two of three take messages", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "s", nil)
		return err == nil
	})
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	p := scenario.StartPostgres(t, filepath.Join(scenario.DataDir(t), "pg"))
	url := p.Via(scenario.NewLink(t, p.Socket(t)))
	reach := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	if err := reach(); err != nil {
		t.Fatal(err)
	}
	idle, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	release := p.Exhaust(t)
	if err := reach(); err == nil {
		t.Error("exhausted, it takes a connection")
	}
	if err := idle.Ping(t.Context()); err == nil {
		t.Error("exhausted, an old connection still works")
	}
	release()
	scenario.Within(t, 10*time.Second, "it takes connections again", func() bool { return reach() == nil })

	p.Kill(t)
	if err := reach(); err == nil {
		t.Error("killed, it takes a connection")
	}
	p.Start(t)
	if err := reach(); err != nil {
		t.Errorf("started again: %v", err)
	}
}
