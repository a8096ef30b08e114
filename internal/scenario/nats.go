package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATSBinary is a NATS server for processes of its own, built once for a test run.
type NATSBinary struct{ path string }

// BuildNATS builds it into dir.
func BuildNATS(ctx context.Context, dir string) (*NATSBinary, error) {
	path := filepath.Join(dir, "natsd")
	return &NATSBinary{path: path}, build(ctx, path, "./internal/scenario/natsd", false, nil)
}

// NATS is a NATS server with JetStream as a process. It keeps its port and its folder over every end of the process.
type NATS struct {
	*process
	Name string

	port   string
	disk   *Disk
	path   string
	args   []string
	log    string  // a file beside its folder
	routes []*Link // between it and each other server of its cluster, both ways
}

// Isolate cuts a server of a cluster off from the others, and from them alone; Rejoin ends it.
func (n *NATS) Isolate(tb testing.TB) {
	tb.Helper()
	for _, l := range n.routes {
		l.Cut(tb)
	}
}

// Rejoin lets the server talk to the others again.
func (n *NATS) Rejoin(tb testing.TB) {
	tb.Helper()
	for _, l := range n.routes {
		l.Pass(tb)
	}
}

// Start runs a server that stands alone. disk may be nil: then the folder is an ordinary one.
func (b *NATSBinary) Start(tb testing.TB, dir string, disk *Disk) *NATS {
	tb.Helper()
	n := b.server(tb, "natsd", dir)
	n.disk = disk
	n.Start(tb)
	return n
}

func (b *NATSBinary) server(tb testing.TB, name, dir string) *NATS {
	tb.Helper()
	port := strconv.Itoa(FreePort(tb))
	return &NATS{Name: name, path: b.path, port: port, log: logFile(dir), args: []string{"-name=" + name, "-port=" + port, "-store=" + dir, "-user=" + NATSUser, "-password=" + NATSPassword}}
}

// logFile stands beside a folder; empty where there is nothing beside it that the test sees.
func logFile(dir string) string {
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		return ""
	}
	return dir + ".log"
}

// Addr is host:port.
func (n *NATS) Addr() string { return net.JoinHostPort("127.0.0.1", n.port) }

// URL is where clients connect; NATSUser and NATSPassword let them in.
func (n *NATS) URL() string { return "nats://" + n.Addr() }

// Start runs the server, also again after Stop or Kill, and returns when it takes connections.
func (n *NATS) Start(tb testing.TB) {
	tb.Helper()
	n.launch(tb)
	if err := n.awaitReady(); err != nil {
		tb.Fatal(err)
	}
}

func (n *NATS) launch(tb testing.TB) {
	tb.Helper()
	n.process = spawn(tb, spawned{
		name: "natsd", cmd: command(n.disk, n.path, n.args...), log: n.log,
		ready: func(line string) bool { return line == "ready" },
	})
}

// Connect opens a connection that the test's end closes: to look into streams, and to hurt them, behind the engine's back.
func (n *NATS) Connect(tb testing.TB) jetstream.JetStream {
	tb.Helper()
	conn, err := nats.Connect(n.URL(), nats.UserInfo(NATSUser, NATSPassword), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		tb.Fatalf("connect to nats: %v", err)
	}
	tb.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		tb.Fatalf("open jetstream: %v", err)
	}
	return js
}

// Cluster runs n servers that keep copies of each other's streams, and returns when a stream with n copies works.
func (b *NATSBinary) Cluster(tb testing.TB, dir string, n int) []*NATS {
	tb.Helper()
	servers, ports := make([]*NATS, n), make([]string, n)
	for i := range servers {
		name := fmt.Sprintf("natsd-%d", i)
		servers[i] = b.server(tb, name, filepath.Join(dir, name))
		ports[i] = strconv.Itoa(FreePort(tb))
	}
	for i, s := range servers {
		var routes []string // each of a pair reaches the other through a link of its own
		for j, other := range servers {
			if i == j {
				continue
			}
			l := NewLink(tb, net.JoinHostPort("127.0.0.1", ports[j]))
			s.routes, other.routes = append(s.routes, l), append(other.routes, l)
			routes = append(routes, l.Addr())
		}
		s.args = append(s.args, "-cluster-port="+ports[i], "-routes="+strings.Join(routes, ","))
	}
	for _, s := range servers {
		s.launch(tb)
	}
	for _, s := range servers {
		if err := s.awaitReady(); err != nil {
			tb.Fatal(err)
		}
	}
	js := servers[0].Connect(tb)
	Within(tb, startBound, "the cluster keeps copies", func() bool { return keepsCopies(tb, js, n) == nil })
	return servers
}

// keepsCopies makes a stream with n copies, writes to it, and waits until each copy is current.
func keepsCopies(tb testing.TB, js jetstream.JetStream, n int) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 5*time.Second)
	defer cancel()
	const name = "PROBE"
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{"probe"}, Replicas: n})
	if err != nil {
		return err
	}
	if _, err := js.Publish(ctx, "probe", nil); err != nil {
		return err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return err
	}
	if info.Cluster == nil || len(info.Cluster.Replicas) != n-1 {
		return errors.New("copies are missing")
	}
	for _, peer := range info.Cluster.Replicas {
		if !peer.Current {
			return fmt.Errorf("%s is behind", peer.Name)
		}
	}
	return js.DeleteStream(ctx, name)
}

// Leader is the server that leads a stream; nil: none does just now.
func Leader(ctx context.Context, js jetstream.JetStream, servers []*NATS, stream string) *NATS {
	found, err := js.Stream(ctx, stream)
	if err != nil || found.CachedInfo().Cluster == nil {
		return nil
	}
	for _, s := range servers {
		if s.Name == found.CachedInfo().Cluster.Leader {
			return s
		}
	}
	return nil
}
