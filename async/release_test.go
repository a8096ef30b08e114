package async

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// inTurn are works of one key that are accepted one after another, each in an envelope of its own.
func (n *node) inTurn(t *testing.T, l *Lane, from, count int) (works []notification.Work) {
	t.Helper()
	for i := from; i < from+count; i++ {
		w := n.work(strconv.Itoa(i), "k")
		accept(t, l, w)
		works = append(works, w)
	}
	return works
}

func isInOrder(t *testing.T, names []string) {
	t.Helper()
	for i, name := range names {
		if name != strconv.Itoa(i) {
			t.Fatalf("the %dth sent is %s: %q", i, name, names)
		}
	}
}

// A merchant that takes one at a time, and that backs up again and again, gets everything in order of arrival: what arrives
// while its own queue drains goes behind what waits there, and what comes after the return behind that.
func TestOrderOfArrivalOverMoves(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Depth, n.cfg.Patience = 1, 6, 40*time.Millisecond
	l := n.lane(t, false)
	n.sending = func(notification.Work) { <-time.NewTimer(3 * time.Millisecond).C }
	run(t, l, time.Second)
	before := n.stored(t, envelope.MerchantStream).LastSeq
	var works []notification.Work
	for round := range 5 {
		works = append(works, n.inTurn(t, l, len(works), 60)...)
		if round%2 == 1 {
			scenario.Within(t, 10*time.Second, "it is back at the shards", func() bool { return n.count() == len(works) && !l.isResting("k") })
		}
	}
	scenario.Within(t, 20*time.Second, "all are delivered", func() bool { return n.count() == len(works) && n.empty(t, envelope.MerchantStream) })
	if n.stored(t, envelope.MerchantStream).LastSeq == before {
		t.Error("nothing went through the own queue")
	}
	isInOrder(t, n.names())
	once(t, n, works)
}

// The order holds over a change of the shard's owner too: whoever gets the shard first looks for what rests.
func TestOrderOfArrivalOverOwners(t *testing.T) {
	a := newNode(t)
	a.cap = 1
	b := a.twin()
	b.engine = a.engine // one record of what was sent
	b.limits = a.limits
	s := newSharing()
	la := a.laneWith(t, func(p *Parts) { p.Shards = share{s, 0} })
	lb := b.laneWith(t, func(p *Parts) { p.Shards = share{s, 1} })
	run(t, la, time.Second)
	run(t, lb, time.Second)
	shard := notification.ShardOf("k")
	total := 0
	for round := range 4 {
		a.shut(notification.ReasonMerchantPaused)
		a.inTurn(t, la, total, 20)
		scenario.Within(t, 10*time.Second, "they rest", func() bool {
			return a.stored(t, envelope.MerchantStream).Msgs == 20 && a.empty(t, envelope.NotifyStream)
		})
		s.move(shard, (round+1)%2)
		a.inTurn(t, la, total+20, 20) // while the shard moves
		total += 40
		scenario.Within(t, 10*time.Second, "the shard has moved", s.settled)
		a.shut("")
		scenario.Within(t, 20*time.Second, "all are delivered", func() bool {
			la.Wake("k")
			lb.Wake("k")
			return a.count() == total && a.empty(t, envelope.MerchantStream)
		})
		isInOrder(t, a.names())
	}
}

// A merchant that has its own queue for good gets everything through it, in order.
func TestOwnQueueForGood(t *testing.T) {
	n := newNode(t)
	n.cap = 1
	n.limit(Limits{OwnQueue: true})
	l := n.lane(t, false)
	run(t, l, time.Second)
	before := n.stored(t, envelope.MerchantStream).LastSeq
	works := n.inTurn(t, l, 0, 30)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == 30 && n.empty(t, envelope.MerchantStream) && !l.isResting("k") })
	works = append(works, n.inTurn(t, l, 30, 1)...)
	scenario.Within(t, 10*time.Second, "another one too", func() bool { return n.count() == 31 && n.empty(t, envelope.MerchantStream) })
	if through := n.stored(t, envelope.MerchantStream).LastSeq - before; through != 31 {
		t.Errorf("%d of 31 went through the own queue", through)
	}
	isInOrder(t, n.names())
	once(t, n, works)
}

// What was accepted before the merchant was resumed goes out at the rate of its release, over a restart too, whether it
// rested in the own queue or comes due; what came later waits behind it and is not bound.
func TestReleaseAtARate(t *testing.T) {
	const perSecond, waiting = 40, 60
	n := newNode(t)
	n.shut(notification.ReasonMerchantPaused)
	l := n.lane(t, false)
	stop := run(t, l, time.Second)
	n.inTurn(t, l, 0, waiting)
	scenario.Within(t, 10*time.Second, "they rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == waiting })
	due := n.work("due", "k")
	due.Attempts, due.State = 1, notification.StateRetrying
	remembered := make(chan error, 1)
	n.Remember(t.Context(), due.Notification, true, func(err error) { remembered <- err })
	if err := <-remembered; err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var at []time.Time // of what is bound
	n.mu.Lock()
	n.gate = nil
	n.sending = func(w notification.Work) {
		if w.AcceptedAt.Before(n.limitsOf("").Release.AcceptedBefore) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
		}
	}
	n.mu.Unlock()
	n.limit(Limits{Release: Release{PerSecond: perSecond, AcceptedBefore: now()}})
	l.Wake("k")
	n.inTurn(t, l, waiting, 20)
	n.publish(t, envelope.DueSubject(notification.ShardOf("k")), due)
	scenario.Within(t, 10*time.Second, "some are sent", func() bool { return n.count() > waiting/3 })
	stop()
	again := around(t, n.js)
	again.engine, again.limits = n.engine, n.limits
	run(t, again.lane(t, false), time.Second)
	scenario.Within(t, 20*time.Second, "all are sent", func() bool { return n.count() == waiting+21 && n.empty(t, envelope.MerchantStream) })
	mu.Lock()
	defer mu.Unlock()
	slices.SortFunc(at, time.Time.Compare)
	if len(at) != waiting+1 {
		t.Fatalf("%d of %d were bound", len(at), waiting+1)
	}
	if span := at[waiting].Sub(at[0]); span < (waiting-6)*time.Second/perSecond { // two at once at the beginning, and after the restart
		t.Errorf("%d at %d/s took %s", waiting+1, perSecond, span)
	}
	last := slices.IndexFunc(n.names(), func(name string) bool { return name == strconv.Itoa(waiting) })
	if last < waiting-1 {
		t.Errorf("the first that came later was sent as the %dth", last)
	}
}

// What a full own queue leaves to the ledger comes back at the pace of the drain, not in one instant, and not for ever.
func TestOverflowComesBackAtThePace(t *testing.T) {
	cfg := DefaultConfig()
	l := &Lane{cfg: cfg}
	q := &merchantQueue{speed: 100 * (cfg.Patience / 4).Seconds()}
	fresh := notification.Work{Notification: &notification.Notification{}}
	var last time.Duration
	for i := range 100_000 {
		last = time.Until(l.overflows(q, fresh))
		if i == 5_999 && (last < cfg.OwnQueueRest+50*time.Second || last > cfg.OwnQueueRest*5/4+70*time.Second) {
			t.Errorf("the 6,000th at 100/s comes back after %s", last)
		}
	}
	if most := longestOverflow*cfg.OwnQueueRest + cfg.OwnQueueRest/4; last > most {
		t.Errorf("the last comes back after %s, at most %s", last, most)
	}
	back := notification.Work{Notification: &notification.Notification{}, HasRow: true}
	back.Reason = notification.ReasonBacklog
	for range 50_000 {
		l.fits(q, back)
	}
	l.overflows(q, back) // it is counted already
	if q.overflow.waiting != 50_000 {
		t.Errorf("%d wait in the ledger, want 50,000", q.overflow.waiting)
	}
}

// Own queues are seen from every node, with how much rests and since when.
func TestOwnQueuesAreSeen(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	n.shut(notification.ReasonMerchantPaused)
	run(t, l, time.Second)
	began := time.Now().Add(-time.Second)
	for i := range 10 {
		accept(t, l, n.work(fmt.Sprint("a", i), "a"))
	}
	accept(t, l, n.work("b", "b"))
	n.publishRaw(t, envelope.UndecodableSubject, []byte("?"))
	scenario.Within(t, 10*time.Second, "all rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 12 })
	elsewhere := n.twin().laneWith(t, func(*Parts) {})
	for name, c := range map[string]struct {
		lane    *Lane
		drained bool
	}{"here": {l, true}, "elsewhere": {elsewhere, false}} {
		got, err := c.lane.OwnQueues(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for key, depth := range map[string]int64{"a": 10, "b": 1} {
			if q := got[key]; len(got) != 2 || q.MerchantID != key || q.Depth != depth || q.Reason != notification.ReasonMerchantPaused || q.Drained != c.drained || q.Oldest.Before(began) {
				t.Errorf("%s: %s: %+v", name, key, q)
			}
		}
	}
}

// One that hangs does not hold up what comes behind it in the own queue, as long as there are slots. The first one would:
// until it ends a drain asks with one alone.
func TestDrainGoesRoundWhatHangs(t *testing.T) {
	n := newNode(t)
	n.cfg.Patience = time.Minute // on a busy machine all would be slow, and the one that hangs would have the only slot
	l := n.lane(t, false)
	n.shut(notification.ReasonMerchantPaused)
	run(t, l, time.Second)
	n.inTurn(t, l, 0, 60)
	scenario.Within(t, 30*time.Second, "they rest", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 60 })
	release := make(chan struct{})
	var hangs atomic.Bool
	n.mu.Lock()
	n.gate = nil
	n.sending = func(w notification.Work) {
		if w.RequestID == "30" {
			hangs.Store(true)
			<-release
		}
	}
	n.mu.Unlock()
	l.Wake("k")
	scenario.Within(t, 30*time.Second, "all others are sent", func() bool { return n.count() == 60 && hangs.Load() })
	n.inTurn(t, l, 60, 5)
	scenario.Within(t, 30*time.Second, "what arrives meanwhile too", func() bool { return n.count() == 65 })
	scenario.Within(t, 30*time.Second, "only the one that hangs rests", func() bool { return n.stored(t, envelope.MerchantStream).Msgs == 1 })
	close(release)
	scenario.Within(t, 30*time.Second, "it returns to the shards", func() bool { return n.empty(t, envelope.MerchantStream) && !l.isResting("k") })
}
