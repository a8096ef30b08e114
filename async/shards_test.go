package async

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/cluster"
	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// sharing gives shards to lanes as a test wants it: politely, so that the new owner waits until the old one has let go.
type sharing struct {
	mu      sync.Mutex
	owner   [notification.Shards]int // of the lanes, from 0; -1: nobody
	next    [notification.Shards]int // -1: it stays
	changed chan struct{}
}

func newSharing() *sharing {
	s := &sharing{changed: make(chan struct{})}
	for i := range s.next {
		s.next[i] = -1
	}
	return s
}

func (s *sharing) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sharing) move(shard, to int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner[shard] != to {
		s.next[shard] = to
		s.notify()
	}
}

func (s *sharing) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, next := range s.next {
		if next >= 0 {
			return false
		}
	}
	return true
}

type share struct {
	*sharing
	lane int
}

func (s share) Owns(shard int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner[shard] == s.lane && s.next[shard] < 0
}

func (s share) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s share) Release(shard int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner[shard] == s.lane && s.next[shard] >= 0 {
		s.owner[shard], s.next[shard] = s.next[shard], -1
		s.notify()
	}
}

func (s share) Leave() {}

// twin is another process on the same NATS and ledger: a table of its own, and a record of its own of what it sent.
func (n *node) twin() *node {
	return &node{engine: &engine{Memory: n.Memory}, js: n.js, table: hand.NewTable(), cfg: n.cfg, cap: n.cap}
}

func (n *node) laneWith(t *testing.T, change func(*Parts)) *Lane {
	t.Helper()
	parts := Parts{
		JetStream: n.js, Deliverer: n.engine, Memory: n.engine, Delayer: n.engine, Hand: n.table, Log: zap.NewNop(),
		Limits: n.limitsOf,
	}
	change(&parts)
	l, err := New(t.Context(), n.cfg, parts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Five thousand notifications of healthy, slow and failing keys, while shards move between two lanes all the time: each
// is delivered once, whoever had it (P2).
func TestShardsMoveUnderLoad(t *testing.T) {
	const total, moves = 5000, 20
	a := newNode(t)
	a.cfg.Depth, a.cfg.Patience, a.cfg.InFlight, a.cfg.AckWait = 8, 20*time.Millisecond, 4, 5*time.Second
	b := a.twin()
	s := newSharing()
	first := a.laneWith(t, func(p *Parts) { p.Shards = share{s, 0} })
	second := b.laneWith(t, func(p *Parts) { p.Shards = share{s, 1} })
	for _, n := range []*node{a, b} {
		n.gate = func(w notification.Work) (notification.Reason, time.Time) {
			if w.MerchantID == "flaky" && rand.IntN(4) == 0 {
				return notification.ReasonRateLimited, time.Now().Add(time.Duration(rand.IntN(5)) * time.Millisecond)
			}
			return "", time.Time{}
		}
		n.sending = func(w notification.Work) {
			if w.MerchantID == "slow" {
				<-time.NewTimer(5 * time.Millisecond).C
			}
		}
	}
	stopFirst, stopSecond := run(t, first, 5*time.Second), run(t, second, 5*time.Second)
	works := make([]notification.Work, total)
	for i := range works {
		key := fmt.Sprint("k", i%97)
		switch i % 20 {
		case 0:
			key = "slow"
		case 1:
			key = "flaky"
		}
		works[i] = a.work(strconv.Itoa(i), key)
	}
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for i := 0; i < total; i += 100 {
			accept(t, []*Lane{first, second}[rand.IntN(2)], works[i:i+100]...)
		}
	})
	for move := range moves {
		for shard := range notification.Shards {
			if rand.IntN(2) == 0 || shard == notification.ShardOf("slow") || shard == notification.ShardOf("flaky") {
				s.move(shard, (move+1)%2)
			}
		}
		scenario.Within(t, 10*time.Second, "the shards have moved", s.settled)
		<-time.NewTimer(50 * time.Millisecond).C
	}
	feeding.Wait()
	scenario.Within(t, 60*time.Second, "all are delivered and nothing rests", func() bool {
		return a.count()+b.count() >= total && a.empty(t, envelope.MerchantStream) && a.empty(t, envelope.NotifyStream)
	})
	stopFirst()
	stopSecond()
	if a.count() < total/10 || b.count() < total/10 {
		t.Errorf("the work was not shared: %d and %d", a.count(), b.count())
	}
	times := map[string]int{}
	for _, name := range append(a.names(), b.names()...) {
		times[name]++
	}
	for _, w := range works {
		row, attempts := a.row(t, w)
		if times[w.RequestID] != 1 || row.State != notification.StateDelivered || len(attempts) != 1 {
			t.Errorf("%s: sent %d times, %s with %d attempts", w.RequestID, times[w.RequestID], row.State, len(attempts))
		}
	}
}

// An own queue goes with its shard: the old owner's drain ends, the new owner's begins.
func TestAnOwnQueueGoesWithItsShard(t *testing.T) {
	a := newNode(t)
	b := a.twin()
	s := newSharing()
	first := a.laneWith(t, func(p *Parts) { p.Shards = share{s, 0} })
	second := b.laneWith(t, func(p *Parts) { p.Shards = share{s, 1} })
	run(t, first, time.Second)
	run(t, second, time.Second)
	a.shut(notification.ReasonMerchantPaused)
	for i := range 30 {
		accept(t, first, a.work(strconv.Itoa(i), "k"))
	}
	scenario.Within(t, 5*time.Second, "all rest", func() bool { return a.stored(t, envelope.MerchantStream).Msgs == 30 && first.isResting("k") })
	s.move(notification.ShardOf("k"), 1)
	scenario.Within(t, 5*time.Second, "the second lane has delivered all", func() bool { return b.count() == 30 && a.empty(t, envelope.MerchantStream) })
	scenario.Within(t, time.Second, "the first lane has let go", func() bool { return !first.isResting("k") && a.count() == 0 })

	// What its old owner moves there afterwards is found, too.
	b.shut(notification.ReasonMerchantPaused)
	late := a.work("late", "k")
	first.Offer(t.Context(), late, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	scenario.Within(t, 5*time.Second, "it rests", func() bool { return a.stored(t, envelope.MerchantStream).Msgs == 1 })
	b.shut("")
	scenario.Within(t, 3*ownQueuesEvery, "the second lane has delivered it", func() bool { return b.count() == 31 })
	if a.count() != 0 {
		t.Errorf("the first lane sent %q", a.names())
	}
}

// Two nodes with a real cluster: one stops, the other goes on with everything.
func TestNodesTakeOver(t *testing.T) {
	a := newNode(t)
	b := a.twin()
	node := func(n *node, name string) (stop func(), owned func() int) {
		cfg := cluster.DefaultConfig()
		cfg.Node, cfg.Run, cfg.Shards, cfg.Heartbeat, cfg.Expiry = name, name+"-1", notification.Shards, 100*time.Millisecond, time.Second
		c, err := cluster.New(n.js, cfg, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		l := n.laneWith(t, func(p *Parts) { p.Shards = c })
		stopLane := run(t, l, 2*time.Second)
		stop = sync.OnceFunc(func() { stopLane(); cancel(); running.Wait() })
		t.Cleanup(stop)
		return stop, func() int { return c.Stats().Shards }
	}
	feeder := a.laneWith(t, func(*Parts) {})
	stopA, ownsA := node(a, "a")
	_, ownsB := node(b, "b")
	scenario.Within(t, 10*time.Second, "both have shards", func() bool {
		return ownsA()+ownsB() == notification.Shards && ownsA() > 2 && ownsB() > 2
	})
	works := make([]notification.Work, 400)
	for i := range works {
		works[i] = a.work(strconv.Itoa(i), fmt.Sprint("k", i))
	}
	accept(t, feeder, works[:200]...)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return a.count()+b.count() == 200 })
	if a.count() == 0 || b.count() == 0 {
		t.Errorf("the work is not shared: %d and %d", a.count(), b.count())
	}
	stopA()
	accept(t, feeder, works[200:]...)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return a.count()+b.count() == 400 && a.empty(t, envelope.NotifyStream) })
	if ownsB() != notification.Shards {
		t.Errorf("b owns %d", ownsB())
	}
}

// A message that this process could not keep hold of, because it stood still, is claimed before it is sent: another
// taker may have it by now.
func TestALapsedHoldIsClaimed(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Patience, n.cfg.AckWait = 1, 10*time.Second, 10*time.Second
	l := n.lane(t, false)
	ahead := make(chan time.Duration, 1)
	ahead <- 0
	l.clock = func() time.Time {
		d := <-ahead
		ahead <- d
		return time.Now().Add(d)
	}
	release := make(chan struct{})
	n.sending = func(notification.Work) { <-release }
	run(t, l, time.Second)
	accept(t, l, n.work("before", "k"), n.work("after", "k"))
	scenario.Within(t, 5*time.Second, "one is sent, one waits", func() bool { return n.count() == 1 && n.table.Len() == 2 })
	<-ahead
	ahead <- 9 * time.Second
	close(release)
	scenario.Within(t, 5*time.Second, "both are sent", func() bool { return n.count() == 2 && n.empty(t, envelope.NotifyStream) })
	if got := n.all(); got[0].claimed || !got[1].claimed || got[1].interrupted {
		t.Errorf("sent %+v", got)
	}
}

// As long as NATS confirms it, a hold does not lapse, however long it takes; nothing is handed out twice.
func TestAKeptHoldIsNotClaimed(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Patience = 1, 10*time.Second
	l := n.lane(t, false)
	release := make(chan struct{})
	n.sending = func(notification.Work) { <-release }
	run(t, l, time.Second)
	accept(t, l, n.work("first", "k"), n.work("second", "k"))
	scenario.Within(t, 5*time.Second, "one is sent, one waits", func() bool { return n.count() == 1 && n.table.Len() == 2 })
	staysFor(t, 3*n.cfg.AckWait, "it is held", func() bool { return n.table.Len() == 2 })
	close(release)
	scenario.Within(t, 5*time.Second, "both are sent", func() bool { return n.count() == 2 && n.empty(t, envelope.NotifyStream) })
	for _, s := range n.all() {
		if s.claimed || s.interrupted {
			t.Errorf("%+v", s)
		}
	}
}

// What is taken long after its acceptance is looked up, and claimed only where another copy may be on its way; it is not
// taken for one that was interrupted.
func TestWhatIsTakenLate(t *testing.T) {
	n := newNode(t)
	n.cfg.PublishTimeout = time.Minute
	l := n.lane(t, false)
	aged := func(name string, age time.Duration) notification.Work {
		w := n.work(name, name)
		w.AcceptedAt = w.AcceptedAt.Add(-age)
		return w
	}
	waited, known, row := aged("no trace", 2*lookUpAfter), aged("delivered by another copy", 2*lookUpAfter), aged("only a row", 2*lookUpAfter)
	stored := aged("stored long after its acceptance", 2*time.Minute)
	after := *known.Notification
	after.Attempts = 1
	after.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, now())
	for _, c := range []*notification.Notification{&after, row.Notification} {
		recorded := make(chan error, 1)
		n.Record(t.Context(), ledger.Record{Notification: c, New: true}, func(err error) { recorded <- err })
		if err := <-recorded; err != nil {
			t.Fatal(err)
		}
	}
	accept(t, l, n.work("in time", "k"), waited, known, row, stored)
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "nothing is left", func() bool { return n.empty(t, envelope.NotifyStream) })
	got := n.all()
	slices.SortFunc(got, func(a, b sent) int { return strings.Compare(a.name, b.name) })
	want := []sent{{name: "in time"}, {name: "no trace"}, {name: "only a row", claimed: true}, {name: "stored long after its acceptance", claimed: true}}
	if !slices.Equal(got, want) {
		t.Errorf("sent %+v, want %+v", got, want)
	}
}

// A second copy waits as long as the first one may come out of their shard unclaimed.
func TestASecondCopyWaitsForTheFirst(t *testing.T) {
	n := newNode(t)
	n.cap = 1
	l := n.lane(t, false)
	release := make(chan struct{})
	n.sending = func(w notification.Work) {
		if w.RequestID == "first" {
			<-release
		}
	}
	run(t, l, time.Second)
	first := n.work("first", "k")
	accept(t, l, first)
	scenario.Within(t, 5*time.Second, "the first copy is being sent", func() bool { return n.count() == 1 })

	other := n.lane(t, false) // with a table of its own it does not see what the first lane has in hand
	other.hand = hand.NewTable()
	second := first
	second.SecondCopy = true
	m := &message{}
	m.left.Store(1)
	settled := make(chan error, 1)
	other.takeUp(t.Context(), m, second, nil, false, func(err error) { settled <- err })
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	if len(n.delayed) != 1 || !n.delayed[0].SecondCopy || !n.delayed[0].NextAt.After(now()) {
		t.Errorf("delayed %+v", n.delayed)
	}
	n.mu.Unlock()
	close(release)
	scenario.Within(t, 5*time.Second, "nothing is left", func() bool { return n.empty(t, envelope.NotifyStream) })
	if come, err := other.firstMayCome(t.Context(), m, second); come || err != nil {
		t.Errorf("after the first one: may come %v, %v", come, err)
	}
	if n.count() != 1 {
		t.Errorf("sent %+v", n.all())
	}
}

// A message counts as handed out when NATS can have been asked for it at the earliest.
func TestHandedOut(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	h := newHandedOut(at(100))
	for i := range 3 * len(h.opened) {
		want := at(100)
		if i >= len(h.opened) {
			want = at(200 + i - len(h.opened))
		}
		if got := h.next(at(200 + i)); !got.Equal(want) {
			t.Errorf("message %d: %s, want %s", i, got, want)
		}
	}
}

// A consumer that somebody deletes, and a stream that somebody deletes, come back by themselves.
func TestStreamsComeBack(t *testing.T) {
	n := newNode(t)
	type recalled struct {
		stream string
		before time.Time
	}
	var mu sync.Mutex
	var told []recalled
	l := n.laneWith(t, func(p *Parts) {
		p.Recall = func(_ context.Context, stream string, before time.Time) error {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, recalled{stream, before})
			return nil
		}
	})
	l.started = l.started.Add(time.Hour) // as if the streams had been there before this process
	known := map[string]time.Time{}
	if err := l.lookAtStreams(t.Context(), known); err != nil || len(told) != 0 {
		t.Fatal(err, told)
	}
	run(t, l, time.Second)
	accept(t, l, n.work("before", "k"))
	scenario.Within(t, 5*time.Second, "it is delivered", func() bool { return n.count() == 1 && n.empty(t, envelope.NotifyStream) })
	for _, name := range []string{envelope.NotifyStream, envelope.MerchantStream} {
		last := n.stored(t, name).LastSeq
		if err := n.js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := l.lookAtStreams(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		if first := n.stored(t, name).FirstSeq; first <= last {
			t.Errorf("%s begins again at %d, its old one ended at %d: an old acknowledgement could hit a new message", name, first, last)
		}
	}
	if len(told) != 2 || told[0].stream != envelope.NotifyStream || told[1].stream != envelope.MerchantStream || time.Since(told[0].before) > time.Minute {
		t.Errorf("recalled %+v", told)
	}
	if err := l.lookAtStreams(t.Context(), known); err != nil || len(told) != 2 {
		t.Error("told twice", err, told)
	}
	accept(t, l, n.work("after", "k"))
	scenario.Within(t, 20*time.Second, "it is delivered", func() bool { return n.count() == 2 && n.empty(t, envelope.NotifyStream) })
	n.shut(notification.ReasonMerchantPaused)
	accept(t, l, n.work("rests", "k"))
	scenario.Within(t, 5*time.Second, "it rests", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 1 })
	n.shut("")
	wakeUntil(t, l, "it is delivered", func() bool { return n.count() == 3 && n.empty(t, envelope.MerchantStream) })
}

// A stream from before the bound of own queues gets it, and loses nothing to it.
func TestTheBoundOfOwnQueuesComesInPlace(t *testing.T) {
	n := newNode(t)
	old := n.lane(t, false).merchantStream()
	if err := n.js.DeleteStream(t.Context(), old.Name); err != nil {
		t.Fatal(err)
	}
	old.MaxMsgsPerSubject, old.DiscardNewPerSubject = 0, false
	if _, err := n.js.CreateStream(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		n.publish(t, envelope.OwnQueueSubject("k"), n.work(strconv.Itoa(i), "k"))
	}
	n.cfg.OwnQueue = 10
	bound := func() jetstream.StreamConfig {
		s, err := n.js.Stream(t.Context(), envelope.MerchantStream)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().Config
	}
	n.lane(t, false)
	if got := bound(); got.MaxMsgsPerSubject < 20 || !got.DiscardNewPerSubject || n.stored(t, envelope.MerchantStream).Msgs != 20 {
		t.Fatalf("bound %d with %d stored", got.MaxMsgsPerSubject, n.stored(t, envelope.MerchantStream).Msgs)
	}
	run(t, n.lane(t, false), time.Second)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == 20 && n.empty(t, envelope.MerchantStream) })
	n.lane(t, false)
	if got := bound(); got.MaxMsgsPerSubject != 10 {
		t.Errorf("bound %d", got.MaxMsgsPerSubject)
	}
}

// A full own queue refuses nobody else: what it does not take waits in the ledger, due in about a minute.
func TestAFullOwnQueue(t *testing.T) {
	n := newNode(t)
	n.cfg.OwnQueue = 5
	l := n.lane(t, false)
	run(t, l, time.Second)
	n.mu.Lock()
	n.gate = func(w notification.Work) (notification.Reason, time.Time) {
		if w.MerchantID == "full" {
			return notification.ReasonMerchantPaused, time.Time{}
		}
		return "", time.Time{}
	}
	n.mu.Unlock()
	var works []notification.Work
	for i := range 12 {
		works = append(works, n.work(strconv.Itoa(i), "full"))
	}
	accept(t, l, works...)
	scenario.Within(t, 10*time.Second, "all are out of hand", func() bool { return n.empty(t, envelope.NotifyStream) && n.table.Len() == 0 })
	resting, due := 0, 0
	for _, w := range works {
		row, _ := n.row(t, w)
		switch in := time.Until(row.NextAt); {
		case row.Resting:
			resting++
		case row.Reason == notification.ReasonBacklog && in > 50*time.Second && in < 90*time.Second:
			due++
		}
	}
	if resting != 5 || due != 7 {
		t.Errorf("%d rest, %d are due later", resting, due)
	}
	accept(t, l, n.work("neighbour", "other"))
	scenario.Within(t, 5*time.Second, "its neighbour is delivered", func() bool { return n.count() == 1 })
	if l.Full() {
		t.Error("the shards are not full")
	}
}
