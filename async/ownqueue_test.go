package async

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"

	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// inOwnQueue are the names that rest in an own queue, oldest first.
func (n *node) inOwnQueue(t *testing.T, key string) []string {
	t.Helper()
	messages, err := jetstreamext.GetBatch(t.Context(), n.js, envelope.MerchantStream, 1000, jetstreamext.GetBatchSubject(envelope.OwnQueueSubject(key)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for msg, err := range messages {
		if err != nil {
			break
		}
		works, err := envelope.Decode(msg.Data)
		if err != nil {
			continue
		}
		for _, w := range works {
			names = append(names, w.RequestID)
		}
	}
	return names
}

// wakeUntil asks again and again, as somebody who resumes merchant k would, until something holds.
func wakeUntil(t *testing.T, l *Lane, what string, holds func() bool) {
	t.Helper()
	scenario.Within(t, 10*time.Second, what, func() bool { l.Wake("k"); return holds() })
}

// A merchant that is deferred gets its own queue; its rows say why it waits and that it rests. When the gate opens, the
// queue drains oldest first and the merchant returns to the shards.
func TestDeferredMovesDrainsAndReturns(t *testing.T) {
	n := newNode(t)
	n.cap = 1 // one at a time: the order shows
	l := n.lane(t, false)
	run(t, l, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	var works []notification.Work
	for i := range 100 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	accept(t, l, works...)
	scenario.Within(t, 10*time.Second, "all rest in the own queue, and their envelopes are acknowledged", func() bool {
		return n.stored(t, envelope.MerchantStream).Msgs == 100 && n.empty(t, envelope.NotifyStream)
	})
	if n.count() != 0 || n.table.Len() > 1 {
		t.Errorf("%d sent, %d in hand", n.count(), n.table.Len())
	}
	for _, w := range works {
		if row, _ := n.row(t, w); !row.Resting || !row.NextAt.IsZero() || row.State != notification.StateHeld || row.DeferredSince.IsZero() {
			t.Fatalf("row of %s: %+v", w.RequestID, row.Progress)
		}
	}
	order := n.inOwnQueue(t, "k")
	n.shut("")
	wakeUntil(t, l, "all are delivered and the queue is gone", func() bool {
		return n.count() == 100 && n.empty(t, envelope.MerchantStream) && !l.isResting("k")
	})
	if got := n.names(); !slices.Equal(got, order) {
		t.Errorf("sent %q\nstored %q", got, order)
	}
	before := n.stored(t, envelope.MerchantStream).LastSeq
	accept(t, l, n.work("after", "k"))
	scenario.Within(t, 5*time.Second, "one that comes later is delivered", func() bool { return n.count() == 101 })
	if after := n.stored(t, envelope.MerchantStream).LastSeq; after != before {
		t.Errorf("it took the way over the own queue")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queues) > 1 {
		t.Errorf("%d keys are remembered", len(l.queues))
	}
}

// A broken merchant is asked with one at a time, and not before the gate said so.
func TestDrainAsksOnceAndWaits(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	var mu sync.Mutex
	asked := 0
	n.gate = func(notification.Work) (notification.Reason, time.Time) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return notification.ReasonBreakerOpen, time.Now().Add(2 * time.Second)
	}
	run(t, l, time.Second)
	for i := range 50 {
		accept(t, l, n.work(strconv.Itoa(i), "k"))
	}
	scenario.Within(t, 5*time.Second, "all rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 50 })
	mu.Lock()
	before := asked
	mu.Unlock()
	staysFor(t, time.Second, "nobody asks", func() bool { mu.Lock(); defer mu.Unlock(); return asked <= before+1 })
	if before > n.cfg.InFlight+2 {
		t.Errorf("asked %d times for 50", before)
	}
	n.shut("")
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == 50 && n.empty(t, envelope.MerchantStream) })
}

// While the slots of a merchant that answers are taken, as many again have their claims and wait: a claim takes as long as
// the ledger takes. The merchant never sees more than its cap.
func TestDrainClaimsAhead(t *testing.T) {
	const slots, free, all = 3, 6, 40
	n := newNode(t)
	n.cap = slots
	l := n.lane(t, false)
	run(t, l, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	works := n.inTurn(t, l, 0, all)
	scenario.Within(t, 10*time.Second, "they rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == all })
	var asked, begun, under, most atomic.Int32
	release := make(chan struct{})
	n.mu.Lock()
	n.gate = func(notification.Work) (notification.Reason, time.Time) { asked.Add(1); return "", time.Time{} }
	n.sending = func(notification.Work) {
		if now := under.Add(1); now > most.Load() {
			most.Store(now)
		}
		if begun.Add(1) > free { // enough were let through before
			<-release
		}
		under.Add(-1)
	}
	n.mu.Unlock()
	l.Wake("k")
	scenario.Within(t, 5*time.Second, "all slots are taken, and as many wait for one", func() bool { return asked.Load() == free+2*slots && under.Load() == slots })
	staysFor(t, 100*time.Millisecond, "nobody else asks, or is sent", func() bool { return asked.Load() == free+2*slots && under.Load() == slots })
	close(release)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == all && n.empty(t, envelope.MerchantStream) && !l.isResting("k") })
	if most.Load() > slots {
		t.Errorf("%d at once, for a merchant that takes %d", most.Load(), slots)
	}
	once(t, n, works)
}

func TestWhoClaimsAhead(t *testing.T) {
	l := newNode(t).lane(t, false)
	for name, c := range map[string]struct {
		cap, ramp int
		took      time.Duration
		want      int
	}{
		"answers":                 {8, 8, 20 * time.Millisecond, 16},
		"was just let through":    {8, 3, 20 * time.Millisecond, 3},
		"is probed":               {8, 1, 0, 1},
		"takes one at a time":     {1, 8, 20 * time.Millisecond, 1},
		"is slow":                 {8, 8, 2 * time.Second, 8},
		"is slow, and begins":     {8, 2, 2 * time.Second, 2},
		"answers, and has ramped": {2, 100, 20 * time.Millisecond, 4},
	} {
		q := &merchantQueue{pace: pace{width: newWidth(c.cap, c.cap), took: c.took}}
		if got := newPass(l, q, c.ramp).mayAsk(); got != c.want {
			t.Errorf("a merchant that %s: %d may be under way, want %d", name, got, c.want)
		}
	}
}

// A merchant that begins to hang gets narrower with each round. Who has a claim by then goes on when one attempt ends, before
// the claim lapses, and nobody is added to those before.
func TestThePermittedWaitForOneAttempt(t *testing.T) {
	const slots = 4
	cfg := DefaultConfig()
	l := &Lane{cfg: cfg, pacing: newPacing(cfg), queues: map[string]*merchantQueue{}}
	q := &merchantQueue{key: "k", pace: pace{width: newWidth(slots, slots)}, wake: make(chan struct{}, 1)}
	p := newPass(l, q, slots)
	has := make(chan struct{}, 2*slots)
	for range 2 * slots {
		if !p.ask() {
			t.Fatal("not as many may ask as have a slot")
		}
		go func() { p.awaitSlot(t.Context()); has <- struct{}{} }()
	}
	for range slots {
		<-has
	}
	scenario.Within(t, 5*time.Second, "the others wait", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.permitted) == slots })
	q.pace.width.wide = 1
	for left := slots - 1; left >= 0; left-- {
		p.end(true)
		<-has
		if len(p.permitted) != left || q.inFlight != slots {
			t.Fatalf("%d wait and %d are sent, want %d and %d", len(p.permitted), q.inFlight, left, slots)
		}
	}
	if p.ask() {
		t.Error("one more asks, of a merchant that takes one now")
	}
}

// What piles up in process moves to the own queue and is delivered from there: nothing waits for long, nothing is lost.
func TestBacklogGoesThroughTheOwnQueue(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Depth, n.cfg.InFlight, n.cfg.Patience = 2, 4, 2, 20*time.Millisecond
	l := n.lane(t, false)
	before := n.stored(t, envelope.MerchantStream).LastSeq
	n.sending = func(notification.Work) { <-time.NewTimer(5 * time.Millisecond).C }
	run(t, l, time.Second)
	var works []notification.Work
	for i := range 150 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	accept(t, l, works...)
	scenario.Within(t, 20*time.Second, "all are delivered", func() bool {
		return n.count() == 150 && n.empty(t, envelope.MerchantStream) && n.empty(t, envelope.NotifyStream)
	})
	if n.stored(t, envelope.MerchantStream).LastSeq == before {
		t.Error("nothing went through the own queue")
	}
	once(t, n, works)
}

// once checks that each work was sent once and is on record as delivered with one attempt.
func once(t *testing.T, n *node, works []notification.Work) {
	t.Helper()
	times := map[string]int{}
	for _, name := range n.names() {
		times[name]++
	}
	for _, w := range works {
		row, attempts := n.row(t, w)
		if times[w.RequestID] != 1 || row.State != notification.StateDelivered || len(attempts) != 1 {
			t.Errorf("%s: sent %d times, %s with %d attempts", w.RequestID, times[w.RequestID], row.State, len(attempts))
		}
	}
}

// Arrivals race with the drain and with a gate that opens and shuts: each is delivered once, whatever the order (P2).
func TestArrivalsAgainstTheDrain(t *testing.T) {
	n := newNode(t)
	n.cfg.Depth, n.cfg.InFlight, n.cfg.Patience = 4, 2, 20*time.Millisecond
	l := n.lane(t, false)
	run(t, l, 2*time.Second)
	keys := []string{"k1", "k2", "k3"}
	var mu sync.Mutex
	var works []notification.Work
	for round := range 12 {
		n.mu.Lock()
		n.gate = func(notification.Work) (notification.Reason, time.Time) {
			if rand.IntN(3) == 0 {
				return notification.ReasonRateLimited, time.Now().Add(time.Duration(rand.IntN(8)) * time.Millisecond)
			}
			return "", time.Time{}
		}
		n.mu.Unlock()
		var arriving sync.WaitGroup
		for _, key := range keys {
			arriving.Go(func() {
				for i := range 15 {
					w := n.work(fmt.Sprint(key, "-", round, "-", i), key)
					mu.Lock()
					works = append(works, w)
					mu.Unlock()
					accept(t, l, w)
					if i%5 == 0 {
						<-time.NewTimer(time.Duration(rand.IntN(10)) * time.Millisecond).C
					}
				}
			})
		}
		arriving.Wait()
		if round%3 == 2 { // let it run empty, so that the return to the shards races with the next round's first arrivals
			n.shut("")
			scenario.Within(t, 20*time.Second, "the round is delivered", func() bool { return n.count() == len(works) })
		}
	}
	n.shut("")
	scenario.Within(t, 20*time.Second, "all are delivered and nothing rests", func() bool {
		return n.count() == len(works) && n.empty(t, envelope.MerchantStream) && n.empty(t, envelope.NotifyStream) && n.table.Len() == 0
	})
	once(t, n, works)
}

// A restart finds the own queues that an earlier run left, and drains them.
func TestOwnQueuesAreResumed(t *testing.T) {
	n := newNode(t)
	first := n.lane(t, false)
	stop := run(t, first, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	var works []notification.Work
	for i := range 30 {
		works = append(works, n.work(strconv.Itoa(i), fmt.Sprint("k", i%3)))
	}
	accept(t, first, works...)
	scenario.Within(t, 5*time.Second, "all rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 30 })
	stop()
	n.shut("")
	again := around(t, n.js)
	again.engine = n.engine
	run(t, again.lane(t, false), time.Second)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == 30 && n.empty(t, envelope.MerchantStream) })
	once(t, n, works)
}

// A stop moves what waits in process to own queues; the next start delivers it, and nothing was sent twice.
func TestStopWithABacklog(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Patience = 1, 10*time.Second
	first := n.lane(t, false)
	n.sending = func(notification.Work) { <-time.NewTimer(300 * time.Millisecond).C }
	stop := run(t, first, 2*time.Second)
	var works []notification.Work
	for i := range 40 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	accept(t, first, works...)
	scenario.Within(t, 5*time.Second, "all are in hand", func() bool { return n.table.Len() >= 38 })
	stop()
	if n.table.Len() != 0 || !n.empty(t, envelope.NotifyStream) {
		t.Errorf("%d in hand, %d envelopes after the stop", n.table.Len(), n.stored(t, envelope.NotifyStream).Msgs)
	}
	n.mu.Lock()
	n.sending = nil
	n.mu.Unlock()
	again := around(t, n.js)
	again.engine = n.engine
	run(t, again.lane(t, false), time.Second)
	scenario.Within(t, 10*time.Second, "the rest is delivered", func() bool { return n.count() == 40 && n.empty(t, envelope.MerchantStream) })
	once(t, n, works)
}

// What was canceled or delivered while it rested is dropped by its claim when the drain comes to it.
func TestDrainDropsWhatIsVoid(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	run(t, l, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	canceled, kept := n.work("canceled", "k"), n.work("kept", "k")
	accept(t, l, canceled, kept)
	scenario.Within(t, 5*time.Second, "both rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 2 })
	scenario.Within(t, 5*time.Second, "both are out of hand", func() bool { return n.table.Len() == 0 })
	if _, err := n.Cancel(context.WithoutCancel(t.Context()), canceled.ID, "ops", now()); err != nil {
		t.Fatal(err)
	}
	n.shut("")
	wakeUntil(t, l, "the own queue is empty", func() bool { return n.empty(t, envelope.MerchantStream) })
	if got := n.names(); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("sent %q", got)
	}
}

// An own queue's message that cannot be read is removed; its neighbours are delivered.
func TestUndecodableInTheOwnQueue(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	first := n.stored(t, envelope.MerchantStream).LastSeq
	run(t, l, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	accept(t, l, n.work("before", "k"))
	scenario.Within(t, 5*time.Second, "it rests", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 1 })
	n.publishRaw(t, envelope.OwnQueueSubject("k"), []byte("\xff\xff\xff"))
	accept(t, l, n.work("after", "k"))
	scenario.Within(t, 5*time.Second, "all rest", func() bool { return n.stored(t, envelope.MerchantStream).LastSeq >= first+3 })
	n.shut("")
	wakeUntil(t, l, "both are delivered and only what was set aside stays", func() bool {
		return n.count() == 2 && n.stored(t, envelope.MerchantStream).Msgs == 1 && !l.isResting("k")
	})
}

// A restart finds what lies behind a message that cannot be read.
func TestResumeLooksBehindABadMessage(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	n.publishRaw(t, envelope.OwnQueueSubject("k"), []byte("\xff\xff\xff"))
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("good", "k"))
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "the good one is delivered", func() bool { return n.count() == 1 })
}

// Many that cannot be read, more than one read returns, do not look like an empty queue.
func TestDrainLooksBehindBadMessages(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("first", "k"))
	for range 80 {
		n.publishRaw(t, envelope.OwnQueueSubject("k"), []byte("\xff\xff\xff"))
	}
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("last", "k"))
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "both are delivered", func() bool { return n.count() == 2 })
}

// A NATS that does not answer is no empty own queue: what rests is delivered when it is back, without a restart (P9).
func TestNATSBlipDoesNotStrandAnOwnQueue(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, dir := free.Addr().String(), t.TempDir()
	free.Close()
	start := func() *natsserver.Server {
		s, err := natsserver.Start(context.Background(), natsserver.Config{Dir: dir, Log: zap.NewNop(), Listen: addr})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	server := start()
	conn, err := nats.Connect(server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	n := around(t, js)
	n.cfg.PublishTimeout = 500 * time.Millisecond
	l := n.lane(t, false)
	stop := run(t, l, time.Second)
	n.gate = func(notification.Work) (notification.Reason, time.Time) {
		return notification.ReasonRateLimited, time.Now().Add(100 * time.Millisecond)
	}
	for i := range 10 {
		accept(t, l, n.work(strconv.Itoa(i), "k"))
	}
	scenario.Within(t, 10*time.Second, "all rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 10 })
	scenario.Within(t, 10*time.Second, "the lane takes from everywhere", func() bool {
		for i := range envelope.RetryStreams {
			if n.stored(t, envelope.RetryStream(i)).Consumers != notification.Shards/envelope.RetryStreams {
				return false
			}
		}
		return true
	})

	ctx := context.Background()
	if err := server.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	<-time.NewTimer(2 * time.Second).C
	server = start()
	defer func() { _ = server.Stop(ctx) }()
	n.shut("")
	scenario.Within(t, 15*time.Second, "all are delivered after the blip", func() bool { l.Wake("k"); return n.count() == 10 })
	stop()
}
