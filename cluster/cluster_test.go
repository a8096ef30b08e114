package cluster

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
)

// server can be stopped and started on the same folder and port.
type server struct {
	t    *testing.T
	dir  string
	addr string
	nats *natsserver.Server
}

func newServer(t *testing.T) *server {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: t.TempDir(), addr: free.Addr().String()}
	free.Close()
	t.Cleanup(s.stop)
	return s
}

func (s *server) start() *server {
	s.t.Helper()
	var err error
	if s.nats, err = natsserver.Start(context.Background(), natsserver.Config{Dir: s.dir, Log: zap.NewNop(), Listen: s.addr}); err != nil {
		s.t.Fatal(err)
	}
	return s
}

func (s *server) stop() {
	if s.nats != nil {
		_ = s.nats.Stop(context.Background())
		s.nats = nil
	}
}

func (s *server) js() jetstream.JetStream {
	s.t.Helper()
	conn, err := nats.Connect("nats://"+s.addr, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return js
}

// node is a cluster's member with a lane that lets go at once.
type node struct {
	*Cluster
	stop func()
}

func quick(name, run string) Config {
	return Config{Node: name, Run: run, Heartbeat: 50 * time.Millisecond, Expiry: 400 * time.Millisecond, Replicas: 1, Shards: 64}
}

func newNode(t *testing.T, js jetstream.JetStream, cfg Config) *node {
	t.Helper()
	c, err := New(js, cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return &node{Cluster: c}
}

func (n *node) run(t *testing.T) *node {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = n.Run(ctx) })
	running.Go(func() {
		for {
			changed := n.Changed()
			for shard := range 64 {
				if !n.Owns(shard) {
					n.Release(shard)
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	})
	n.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(n.stop)
	return n
}

func (n *node) count() int {
	owned := 0
	for shard := range 64 {
		if n.Owns(shard) {
			owned++
		}
	}
	return owned
}

// each checks that every shard has one owner among nodes.
func each(nodes ...*node) bool {
	for shard := range 64 {
		owners := 0
		for _, n := range nodes {
			if n.Owns(shard) {
				owners++
			}
		}
		if owners != 1 {
			return false
		}
	}
	return true
}

// Alone a node has everything at once, also when the run before it died without a word.
func TestAloneAtOnce(t *testing.T) {
	s := newServer(t).start()
	cfg := quick("a", "a-1")
	cfg.Heartbeat, cfg.Expiry = time.Second, 4*time.Second
	first := newNode(t, s.js(), cfg)
	if err := first.once(t.Context()); err != nil { // and never again: it is dead
		t.Fatal(err)
	}
	if first.count() != 64 {
		t.Fatalf("owns %d", first.count())
	}
	cfg.Run = "a-2"
	again := newNode(t, s.js(), cfg).run(t)
	began := time.Now()
	scenario.Within(t, time.Second, "it owns everything", func() bool { return again.count() == 64 })
	t.Logf("after %s", time.Since(began))
	if !slices.Equal(again.Gone(), []string{"a-1"}) {
		t.Errorf("gone: %q", again.Gone())
	}
	if err := first.once(t.Context()); err == nil || first.count() != 0 {
		t.Errorf("the older run: %v, owns %d", err, first.count())
	}
}

func TestNodesShareAndHandOver(t *testing.T) {
	s := newServer(t).start()
	a := newNode(t, s.js(), quick("a", "a-1")).run(t)
	scenario.Within(t, time.Second, "a owns everything", func() bool { return a.count() == 64 })
	b, c := newNode(t, s.js(), quick("b", "b-1")).run(t), newNode(t, s.js(), quick("c", "c-1")).run(t)
	scenario.Within(t, 5*time.Second, "each has a share", func() bool {
		return each(a, b, c) && a.count() > 8 && b.count() > 8 && c.count() > 8
	})
	c.stop()
	if c.count() != 0 {
		t.Errorf("after its end it owns %d", c.count())
	}
	began := time.Now()
	scenario.Within(t, 5*time.Second, "a and b have everything", func() bool { return each(a, b) })
	if took := time.Since(began); took > 300*time.Millisecond { // it has said that it ends: nobody waits for the expiry
		t.Errorf("a clean end was taken over after %s", took)
	}
	scenario.Within(t, time.Second, "its run has ended for certain", func() bool { return slices.Equal(a.Gone(), []string{"c-1"}) })
	if s := a.Stats(); s.Nodes != 2 || s.Shards != a.count() {
		t.Errorf("stats: %+v", s)
	}
}

// A node that says nothing any more loses its shards; by its own clock it has lost them before. It is not taken for ended.
func TestAPausedNodeHasLostItsShardsFirst(t *testing.T) {
	s := newServer(t).start()
	a := newNode(t, s.js(), quick("a", "a-1")).run(t)
	paused := newNode(t, s.js(), quick("b", "b-1")) // takes its steps by hand
	scenario.Within(t, 5*time.Second, "b has its share", func() bool {
		return paused.once(t.Context()) == nil && each(a, paused) && paused.count() > 8
	})
	overlap := 0
	scenario.Within(t, 5*time.Second, "a has everything", func() bool {
		for shard := range 64 {
			if a.Owns(shard) && paused.Owns(shard) {
				overlap++
			}
		}
		return a.count() == 64
	})
	if overlap > 0 || paused.count() != 0 {
		t.Errorf("%d times a shard was owned twice; b owns %d", overlap, paused.count())
	}
	if len(a.Gone()) != 0 {
		t.Errorf("gone: %q", a.Gone())
	}
	paused.run(t) // it goes on
	scenario.Within(t, 5*time.Second, "both have a share", func() bool { return each(a, paused) && paused.count() > 8 })
}

func TestABlindNodeHandsOver(t *testing.T) {
	s := newServer(t).start()
	a, b := newNode(t, s.js(), quick("a", "a-1")).run(t), newNode(t, s.js(), quick("b", "b-1")).run(t)
	shared := func() bool { return each(a, b) && a.count() > 8 && b.count() > 8 }
	scenario.Within(t, 5*time.Second, "both have a share", shared)
	a.Blind(true)
	scenario.Within(t, 5*time.Second, "b has everything", func() bool { return each(a, b) && b.count() == 64 })
	b.Blind(true)
	scenario.Within(t, 5*time.Second, "where both are blind, both go on", shared)
	a.Blind(false)
	scenario.Within(t, 5*time.Second, "a has everything", func() bool { return each(a, b) && a.count() == 64 })
	b.Blind(false)
	scenario.Within(t, 5*time.Second, "both have a share again", shared)
}

// What NATS keeps from one node only, its clock tells it: nothing has to be heard.
func TestTheLeaseLapsesByTheClock(t *testing.T) {
	s := newServer(t).start()
	a := newNode(t, s.js(), quick("a", "a-1"))
	var ahead atomic.Int64
	a.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	if err := a.once(t.Context()); err != nil || a.count() != 64 {
		t.Fatal(err, a.count())
	}
	for _, step := range []struct {
		after time.Duration
		owns  int
	}{{200 * time.Millisecond, 64}, {301 * time.Millisecond, 0}, {time.Hour, 0}} {
		if ahead.Store(int64(step.after)); a.count() != step.owns {
			t.Errorf("%s after its last sign of life it owns %d, want %d", step.after, a.count(), step.owns)
		}
	}
}

// NATS away: nobody owns anything. When it is back, everything is as before, and nobody has taken from the others.
func TestNATSAway(t *testing.T) {
	s := newServer(t)
	a, b := newNode(t, s.js(), quick("a", "a-1")).run(t), newNode(t, s.js(), quick("b", "b-1")).run(t) // away at the start, too
	<-time.NewTimer(100 * time.Millisecond).C
	if a.count()+b.count() != 0 {
		t.Fatal("owns something without NATS")
	}
	s.start()
	scenario.Within(t, 10*time.Second, "each has a share", func() bool { return each(a, b) && a.count() > 8 && b.count() > 8 })
	shares := a.count()
	changed := a.Changed()
	s.stop()
	scenario.Within(t, 10*time.Second, "nobody owns anything", func() bool { return a.count()+b.count() == 0 })
	select {
	case <-changed:
	case <-time.After(time.Second):
		t.Error("nobody was told")
	}
	<-time.NewTimer(600 * time.Millisecond).C
	s.start()
	moved := 0
	scenario.Within(t, 10*time.Second, "each has its share", func() bool { moved = max(moved, a.count(), b.count()); return each(a, b) })
	if a.count() != shares || moved > max(shares, 64-shares) {
		t.Errorf("a had %d shards, has %d; as many as %d in between", shares, a.count(), moved)
	}
}

func TestTheBucketIsMadeAgain(t *testing.T) {
	s := newServer(t).start()
	js := s.js()
	a, b := newNode(t, s.js(), quick("a", "a-1")).run(t), newNode(t, s.js(), quick("b", "b-1")).run(t)
	scenario.Within(t, 10*time.Second, "each has a share", func() bool { return each(a, b) && a.count() > 8 && b.count() > 8 })
	if err := js.DeleteKeyValue(t.Context(), Bucket); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "it is there again", func() bool { _, err := js.KeyValue(t.Context(), Bucket); return err == nil })
	scenario.Within(t, 10*time.Second, "each has a share again", func() bool { return each(a, b) })
	kv, err := js.KeyValue(t.Context(), Bucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), documentKey, []byte("?")); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "the document is made again", func() bool {
		entry, err := kv.Get(t.Context(), documentKey)
		return err == nil && len(entry.Value()) > 100
	})
	scenario.Within(t, 10*time.Second, "each has a share again", func() bool { return each(a, b) })
}

// Leave gives everything to the others before the node ends, as its lane lets go.
func TestLeave(t *testing.T) {
	s := newServer(t).start()
	a, b := newNode(t, s.js(), quick("a", "a-1")).run(t), newNode(t, s.js(), quick("b", "b-1")).run(t)
	scenario.Within(t, 10*time.Second, "each has a share", func() bool { return each(a, b) && a.count() > 8 && b.count() > 8 })
	a.Leave()
	if a.count() != 0 {
		t.Error("owns something still")
	}
	scenario.Within(t, 5*time.Second, "b has everything", func() bool { return b.count() == 64 })
	if len(b.Gone()) != 0 {
		t.Error("it has not ended yet")
	}
}

func TestConfigNamesTheFault(t *testing.T) {
	for want, spoil := range map[string]func(*Config){
		"cluster: node is empty":                                        func(c *Config) { c.Node = "" },
		"cluster: run is empty":                                         func(c *Config) { c.Run = "" },
		"cluster: heartbeat is 0s, must be at least 10ms":               func(c *Config) { c.Heartbeat = 0 },
		"cluster: expiry is 2s, must be at least three heartbeats (3s)": func(c *Config) { c.Expiry = 2 * time.Second },
		"cluster: replicas is 0, must be 1 to 5":                        func(c *Config) { c.Replicas = 0 },
		"cluster: shards is -1, must not be negative":                   func(c *Config) { c.Shards = -1 },
	} {
		cfg := DefaultConfig()
		cfg.Node, cfg.Run, cfg.Shards = "n", "r", 64
		spoil(&cfg)
		if _, err := New(nil, cfg, zap.NewNop()); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
