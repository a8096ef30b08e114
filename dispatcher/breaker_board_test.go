package dispatcher

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"notifyd/cluster"
	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/notification"
)

// boardServer is a NATS server that can be stopped and started on the same folder and port.
type boardServer struct {
	t         *testing.T
	dir, addr string
	nats      *natsserver.Server
}

func newBoardServer(t *testing.T) *boardServer {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &boardServer{t: t, dir: t.TempDir(), addr: free.Addr().String()}
	free.Close()
	t.Cleanup(s.stop)
	return s
}

func (s *boardServer) start() *boardServer {
	s.t.Helper()
	var err error
	s.nats, err = natsserver.Start(context.Background(), natsserver.Config{Dir: s.dir, Log: zap.NewNop(), Listen: s.addr})
	must(s.t, err)
	return s
}

func (s *boardServer) stop() {
	if s.nats != nil {
		_ = s.nats.Stop(context.Background())
		s.nats = nil
	}
}

// gateNode is a node's gate that shares its breakers.
type gateNode struct {
	*Gate
	board *cluster.Board
	lines *observer.ObservedLogs
	woken atomic.Int32
	stop  func()
}

func quickGate() GateConfig {
	cfg := DefaultGateConfig()
	cfg.OpenFor = time.Second
	return cfg
}

func newGateNode(t *testing.T, s *boardServer, run string) *gateNode {
	t.Helper()
	conn, err := nats.Connect("nats://"+s.addr, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1))
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	cfg := cluster.DefaultBoardConfig()
	cfg.Bucket, cfg.Look = "notifyd_breakers", 100*time.Millisecond
	n := &gateNode{Gate: newGate(t, quickGate(), run)}
	core, lines := observer.New(zap.DebugLevel)
	n.log, n.lines = zap.New(core), lines
	n.wake = func(string) { n.woken.Add(1) }
	n.board, err = cluster.NewBoard(js, cfg, zap.NewNop())
	must(t, err)
	n.Gate.board = n.board
	ctx, cancel := context.WithCancel(context.Background())
	var sharing, reading sync.WaitGroup
	sharing.Go(func() { _ = n.Run(ctx) })
	reading.Go(func() { _ = n.board.Run(ctx, n.LearnBoard) })
	n.stop = sync.OnceFunc(func() { cancel(); sharing.Wait(); reading.Wait(); conn.Close() })
	t.Cleanup(n.stop)
	return n
}

func (n *gateNode) learned(t *testing.T) *gateNode {
	t.Helper()
	select {
	case <-n.board.Learned():
	case <-time.After(10 * time.Second):
		t.Fatal("the board was not learned")
	}
	return n
}

func (n *gateNode) opening(key string) opening {
	if k := n.find(key); k != nil {
		return k.state(n.now()).opening
	}
	return opening{}
}

func (n *gateNode) untilOpen(t *testing.T, key string, times int) {
	t.Helper()
	scenario.Within(t, 10*time.Second, "the other node knows that it is open", func() bool { return n.opening(key).Times == times })
}

func (n *gateNode) count(line string) int { return n.lines.FilterMessage(line).Len() }

// probes waits until the gate lets one of "m:m" through, and leaves it on its way.
func (n *gateNode) probes(t *testing.T) permission {
	t.Helper()
	var p permission
	scenario.Within(t, 10*time.Second, "a probe may be made", func() bool { p = n.asks(t, "m:m"); return p.kind == granted })
	return p
}

// What one node opens is open on the others too, without an attempt of their own; one of them probes, and what it finds
// holds for all.
func TestOpeningsAreShared(t *testing.T) {
	s := newBoardServer(t).start()
	a, b := newGateNode(t, s, "a").learned(t), newGateNode(t, s, "b").learned(t)
	a.sends(t, "m:m", repeat(5, refused)...)
	b.untilOpen(t, "m:m", 1)
	if p := b.asks(t, "m:m"); p.reason != notification.ReasonBreakerOpen || !p.until.After(a.opening("m:m").ProbeAt) {
		t.Fatalf("b: %+v; a probes at %s", p, a.opening("m:m").ProbeAt)
	}
	probe := a.probes(t)
	scenario.Within(t, 10*time.Second, "b leaves the probe to a", func() bool { return time.Until(b.opening("m:m").ProbeAt) > 10*time.Second })
	probe.learn(&notification.Attempt{Reason: refused})
	b.untilOpen(t, "m:m", 2)
	probe = a.probes(t)
	probe.learn(&notification.Attempt{Reason: acked})
	scenario.Within(t, 10*time.Second, "b knows that it is closed", func() bool { return b.opening("m:m").Times == 0 })
	b.sends(t, "m:m", repeat(10, acked)...)
	if b.woken.Load() == 0 {
		t.Error("what waits on b was not woken")
	}
	for line, want := range map[string]int{"breaker opens": 2, "breaker closes": 1} {
		if a.count(line) != want || b.count(line) != 0 {
			t.Errorf("%q: %d and %d lines", line, a.count(line), b.count(line))
		}
	}
}

// A node that starts again knows what was open before it sends, and probes like any other.
func TestOpeningsOutliveTheNode(t *testing.T) {
	s := newBoardServer(t).start()
	a := newGateNode(t, s, "a-1").learned(t)
	a.sends(t, "m:m", repeat(5, refused)...)
	a.stop() // at once: its last word is told on the way out
	s.stop()
	s.start()
	again := newGateNode(t, s, "a-2").learned(t)
	if o := again.opening("m:m"); o.Times != 1 || o.Cause != causeInARow {
		t.Fatalf("after the restart: %+v", o)
	}
	again.probes(t).learn(&notification.Attempt{Reason: refused})
	if o := again.opening("m:m"); o.Times != 2 {
		t.Fatalf("after its probe: %+v", o)
	}
	again.probes(t).learn(&notification.Attempt{Reason: acked})
	again.sends(t, "m:m", acked, acked)
}

// A node that dies with its probe on the way leaves the next one to the others, when an attempt's time is over.
func TestAProbeThatIsLost(t *testing.T) {
	s := newBoardServer(t).start()
	a, b := newGateNode(t, s, "a").learned(t), newGateNode(t, s, "b").learned(t)
	a.probeBound = time.Second
	a.sends(t, "m:m", repeat(5, refused)...)
	_ = a.probes(t) // of which nobody hears
	b.untilOpen(t, "m:m", 1)
	b.probes(t).learn(&notification.Attempt{Reason: acked})
	scenario.Within(t, 10*time.Second, "a knows that it is closed", func() bool { return a.opening("m:m").Times == 0 })
	a.sends(t, "m:m", acked)
}

// NATS away: each node goes by what it sees itself, and tells the others when it is back.
func TestOpeningsWhileNATSIsAway(t *testing.T) {
	s := newBoardServer(t)
	a, b := newGateNode(t, s, "a"), newGateNode(t, s, "b")
	a.cfg.OpenFor = time.Minute
	a.sends(t, "m:m", repeat(5, refused)...)
	if !a.isDeferred(t, "m:m") || b.isDeferred(t, "m:m") {
		t.Fatal("a does not go by what it sees")
	}
	s.start()
	a.learned(t)
	b.untilOpen(t, "m:m", 1)
	s.stop()
	a.sends(t, "m:2", repeat(5, refused)...)
	if err := a.force(t.Context(), "x", &forced{Merchant: "m"}); err == nil || a.forced.Load() != nil {
		t.Fatal("a decision was taken that nobody keeps")
	}
	s.start()
	b.untilOpen(t, "m:2", 1)
	b.untilOpen(t, "m:m", 1)
}

// What an operator decides holds on every node, also on one that starts later, until it ends by itself or is lifted.
func TestForcedEverywhere(t *testing.T) {
	s := newBoardServer(t).start()
	a, b := newGateNode(t, s, "a").learned(t), newGateNode(t, s, "b").learned(t)
	name := boardName(onBoardForcedMerchant, "m")
	must(t, a.force(t.Context(), name, &forced{Merchant: "m", Open: true, Reason: "drill", By: "alice", At: time.Now()}))
	if a.asks(t, "m:m").reason != notification.ReasonBreakerForcedOpen {
		t.Fatal("it does not hold at once where it was decided")
	}
	scenario.Within(t, 10*time.Second, "it holds on b", func() bool { return b.isDeferred(t, "m:m") })
	b.stop()
	s.stop()
	s.start()
	b = newGateNode(t, s, "b-2").learned(t)
	if p := b.asks(t, "m:m"); p.reason != notification.ReasonBreakerForcedOpen || !p.until.IsZero() {
		t.Fatalf("after a restart: %+v", p)
	}
	if f := b.forced.Load().of("m:m", "m", time.Now()); f.By != "alice" || f.Reason != "drill" {
		t.Errorf("%+v", f)
	}
	scenario.Within(t, 10*time.Second, "it is lifted", func() bool { return a.force(t.Context(), name, nil) == nil })
	scenario.Within(t, 10*time.Second, "b may send", func() bool { return !b.isDeferred(t, "m:m") })

	until := time.Now().Add(2 * time.Second)
	must(t, b.force(t.Context(), name, &forced{Merchant: "m", Open: true, Until: until}))
	scenario.Within(t, 10*time.Second, "it holds on a", func() bool { return a.isDeferred(t, "m:m") })
	scenario.Within(t, 10*time.Second, "it has expired on a", func() bool { return !a.isDeferred(t, "m:m") })
	if time.Now().Before(until) {
		t.Error("too soon")
	}
	scenario.Within(t, 90*time.Second, "nothing of it is left", func() bool { return a.forced.Load() == nil && b.forced.Load() == nil })
}

// What cannot be read changes nothing, and says so.
func TestBoardOfOthersWords(t *testing.T) {
	g := newGate(t, DefaultGateConfig(), "a")
	core, lines := observer.New(zap.WarnLevel)
	g.log = zap.New(core)
	for _, name := range []string{boardName(onBoardOpening, "m:m"), boardName(onBoardForcedKey, "m:m"), boardName(onBoardForcedMerchant, "m")} {
		g.LearnBoard(name, []byte("?"))
		g.LearnBoard(name, nil)
	}
	g.LearnBoard(boardName(onBoardForcedMerchant, "m"), []byte(`{}`))
	g.LearnBoard("of.tomorrow", []byte("?"))
	if lines.Len() != 4 || g.forced.Load() != nil || len(g.keys) != 0 {
		t.Errorf("%d lines, %d keys", lines.Len(), len(g.keys))
	}
	// a clock that is a year ahead
	g.hear(notice{Key: "m:m", Merchant: "m", By: "b", opening: opening{At: time.Now(), ProbeAt: time.Now().AddDate(1, 0, 0), Times: 1}})
	if wait := time.Until(g.asks(t, "m:m").until); wait < time.Minute || wait > longestPutOff+3*time.Minute {
		t.Errorf("wait %s", wait)
	}
}
