package async

import (
	"fmt"
	"math"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// fleet offers notifications of many keys at a fixed rate and measures how long those of healthy keys take to be sent.
type fleet struct {
	n       *node
	mu      sync.Mutex
	took    []time.Duration
	hang    atomic.Bool
	release chan struct{}
	hanging atomic.Int32
	most    atomic.Int32
}

func newFleet(t *testing.T) *fleet {
	f := &fleet{n: newNode(t), release: make(chan struct{})}
	f.n.sending = func(w notification.Work) {
		if strings.HasPrefix(w.MerchantID, "bad") && f.hang.Load() {
			f.most.Store(max(f.most.Load(), f.hanging.Add(1)))
			<-f.release
			f.hanging.Add(-1)
			return
		}
		f.mu.Lock()
		f.took = append(f.took, time.Since(w.AcceptedAt))
		f.mu.Unlock()
	}
	return f
}

// offer submits so many in even steps over a span: every second one to one of the bad keys.
func (f *fleet) offer(t *testing.T, l *Lane, round string, count int, span time.Duration) (p99 time.Duration) {
	t.Helper()
	const keys, bad, step = 1000, 50, 20
	f.mu.Lock()
	f.took = nil
	f.mu.Unlock()
	tick := time.NewTicker(span * step / time.Duration(count))
	defer tick.Stop()
	var accepted sync.WaitGroup
	for i := 0; i < count; i += step {
		<-tick.C
		for j := i; j < i+step; j++ {
			key := fmt.Sprint("good-", j%(keys-bad))
			if j%2 == 0 {
				key = fmt.Sprint("bad-", j/2%bad)
			}
			accepted.Add(1)
			l.Accept(f.n.work(fmt.Sprint(round, "-", j), key), func(err error) {
				if err != nil {
					t.Error(err)
				}
				accepted.Done()
			})
		}
	}
	accepted.Wait()
	good := count / 2
	scenario.Within(t, 10*time.Second, "the healthy keys have all of theirs", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.took) >= good
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.took)
	return f.took[len(f.took)*99/100]
}

// 50 of 1,000 merchants hang, with half of the traffic, from the first moment on: the others do not feel it, and no more
// than a bounded number of requests hang (P8).
func TestHangingMerchantsHurtNobody(t *testing.T) {
	f := newFleet(t)
	l := f.n.lane(t, false)
	run(t, l, time.Second)
	const count, span = 2400, 4 * time.Second // half of what a busy machine does under the race detector
	without := f.offer(t, l, "without", count, span)
	paused := l.Stats().Pauses
	f.hang.Store(true)
	with := f.offer(t, l, "with", count, span)
	s := l.Stats()
	t.Logf("p99 %s without, %s with %d hanging requests", without, with, f.most.Load())
	if limit := 3*without/2 + time.Second; with > limit { // a busy machine is slower in one second than in another
		t.Errorf("p99 of healthy keys is %s, and %s without hanging ones", with, without)
	}
	if s.Pauses > paused {
		t.Errorf("taking stood still %d times", s.Pauses-paused)
	}
	if s.InHand > s.InHandLimit/10 {
		t.Errorf("%d are in hand", s.InHand)
	}
	if most := f.most.Load(); int(most) > 50*f.n.cfg.InFlight {
		t.Errorf("%d requests hang", most)
	}
	f.hang.Store(false)
	close(f.release)
	scenario.Within(t, 30*time.Second, "all are delivered", func() bool { return f.n.count() == 2*count && f.n.empty(t, envelope.MerchantStream) })
}

// Of what waits for one key, first tries go ahead of retries, and those ahead of what was resent.
func TestFirstTriesGoAhead(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Patience = 1, 10*time.Second
	l := n.lane(t, false)
	blocked, release := make(chan struct{}), make(chan struct{})
	n.sending = func(w notification.Work) {
		if w.RequestID == "blocks" {
			close(blocked)
			<-release
		}
	}
	run(t, l, time.Second)
	accept(t, l, n.work("blocks", "k"))
	<-blocked
	for i, name := range []string{"resent", "retry", "first"} {
		w := n.work(name, "k")
		switch name {
		case "resent":
			w.Trigger = notification.TriggerResend
		case "retry":
			w.Attempts, w.State = 1, notification.StateRetrying
		}
		l.Offer(t.Context(), w, func(error) {})
		if got := l.Stats().Waiting; got != i+1 {
			t.Fatalf("%d wait after %s", got, name)
		}
	}
	close(release)
	scenario.Within(t, 5*time.Second, "all are sent", func() bool { return n.count() == 4 })
	if got, want := n.names(), []string{"blocks", "first", "retry", "resent"}; !slices.Equal(got, want) {
		t.Errorf("sent %q, want %q", got, want)
	}
}

// However much comes due, half of the room is left for what is new.
func TestWhatComesDueLeavesRoom(t *testing.T) {
	n := newNode(t)
	n.cfg.Depth, n.cfg.InFlight, n.cfg.InHand, n.cfg.Patience = 2, 2, 20, 10*time.Second
	l := n.lane(t, false)
	release := make(chan struct{})
	n.sending = func(w notification.Work) {
		if strings.HasPrefix(w.MerchantID, "due") {
			<-release
		}
	}
	for i := range 100 {
		w := n.work(fmt.Sprint("due-", i), fmt.Sprint("due-", i))
		n.publish(t, envelope.DueSubject(notification.ShardOf(w.Route.IsolationKey)), w)
	}
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "what has come due has its half", func() bool { return l.Stats().InHand == 10 })
	for i := range 50 {
		accept(t, l, n.work(fmt.Sprint("new-", i), fmt.Sprint("new-", i)))
	}
	isNew := func(s sent) bool { return strings.HasPrefix(s.name, "new") }
	scenario.Within(t, 5*time.Second, "what is new goes out", func() bool {
		all := n.all()
		return len(slices.DeleteFunc(all, func(s sent) bool { return !isNew(s) })) == 50
	})
	close(release)
	scenario.Within(t, 20*time.Second, "the rest too", func() bool { return n.count() == 150 })
}

func TestFreshIsLate(t *testing.T) {
	var f fresh
	now := time.Now()
	if f.isLate(now) {
		t.Error("nothing was taken yet")
	}
	taken := f.come(1, now, now.Add(-time.Second))
	if !f.isLate(now) || !f.isLate(now.Add(time.Minute)) {
		t.Error("not late while it is being taken")
	}
	if taken(); !f.isLate(time.Now()) || f.isLate(time.Now().Add(freshFor)) {
		t.Error("late now, and not known later")
	}
	now = time.Now()
	if taken = f.come(1, now, now.Add(-time.Millisecond)); f.isLate(now) {
		t.Error("in time")
	}
	taken()
}

// An engine is behind when most shards are, with what came since it began.
func TestFreshIsBehind(t *testing.T) {
	var f fresh
	began := time.Now()
	now := began.Add(time.Minute)
	if f.behind(now, began) {
		t.Error("nothing was taken yet")
	}
	f.come(1, now, now.Add(-2*behindAfter))
	f.come(2, now, now.Add(-time.Millisecond))
	if f.behind(now, began) {
		t.Error("one of two shards is late")
	}
	f.come(3, now, now.Add(-2*behindAfter))
	if !f.behind(now, began) {
		t.Error("two of three shards are late")
	}
	f.come(3, now, began.Add(-time.Second))
	if f.behind(now, began) {
		t.Error("one of them is late with what was there before")
	}
}

// Half of what waited for the processor since the last look waited no longer.
func TestMedianWait(t *testing.T) {
	waits := &metrics.Float64Histogram{Buckets: []float64{math.Inf(-1), 0, 0.001, 0.010, math.Inf(1)}, Counts: []uint64{0, 100, 30, 20}}
	for _, c := range []struct {
		before []uint64
		want   time.Duration
	}{
		{[]uint64{0, 0, 0, 0}, 0},
		{[]uint64{0, 100, 0, 0}, time.Millisecond},
		{[]uint64{0, 100, 20, 0}, 10 * time.Millisecond},
		{[]uint64{0, 100, 30, 20}, 0}, // nothing came
	} {
		if got := median(waits, c.before); got != c.want {
			t.Errorf("since %v: %s, want %s", c.before, got, c.want)
		}
	}
}

// A merchant that answers quickly and has much traffic gets more than what everybody begins with.
func TestQuickMerchantGetsMore(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	var running, most atomic.Int32
	n.sending = func(notification.Work) {
		most.Store(max(most.Load(), running.Add(1)))
		<-time.NewTimer(20 * time.Millisecond).C
		running.Add(-1)
	}
	run(t, l, time.Second)
	var works []notification.Work
	for i := range 1500 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	accept(t, l, works...)
	scenario.Within(t, 5*time.Second, "the cap grows", func() bool { _, limit := l.InFlight("k"); return limit > 12 })
	scenario.Within(t, 20*time.Second, "all are delivered", func() bool { return n.count() == len(works) && n.empty(t, envelope.MerchantStream) })
	if most.Load() <= int32(n.cfg.InFlight) || int(most.Load()) > n.cfg.MaxInFlight {
		t.Errorf("%d at once", most.Load())
	}
	once(t, n, works)
}

// A flood over the merchant's rate drains at that rate, without asking for much more than that.
func TestDrainAtTheMerchantsRate(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	limiter := rate.NewLimiter(100, 10)
	n.limit(Limits{PerSecond: 100})
	var asked atomic.Int32
	n.gate = func(notification.Work) (notification.Reason, time.Time) {
		asked.Add(1)
		now := time.Now()
		r := limiter.ReserveN(now, 1)
		if wait := r.DelayFrom(now); wait > 0 {
			r.CancelAt(now)
			return notification.ReasonRateLimited, now.Add(wait)
		}
		return "", time.Time{}
	}
	run(t, l, time.Second)
	var works []notification.Work
	for i := range 200 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	began := time.Now()
	accept(t, l, works...)
	scenario.Within(t, 10*time.Second, "all are delivered", func() bool { return n.count() == 200 && n.empty(t, envelope.MerchantStream) })
	t.Logf("200 at 100/s took %s, asked %d times", time.Since(began), asked.Load())
	if took := time.Since(began); took < 1800*time.Millisecond || took > 6*time.Second {
		t.Errorf("200 at 100/s took %s", took)
	}
	if asked.Load() > 600 {
		t.Errorf("asked %d times for 200", asked.Load())
	}
	once(t, n, works)
}

// While the ledger does not keep up nothing more is accepted, and what waits for it is no merchant's fault: nobody gets an
// own queue, which would only give the ledger more to write (P10).
func TestLateLedgerIsNobodysFault(t *testing.T) {
	n := newNode(t)
	n.cfg.Patience = 50 * time.Millisecond
	var behind atomic.Int64
	behind.Store(int64(2 * behindAfter))
	l := n.laneWith(t, func(p *Parts) { p.Behind = func() time.Duration { return time.Duration(behind.Load()) } })
	release := make(chan struct{})
	n.sending = func(notification.Work) { <-release }
	run(t, l, 10*time.Second)
	var works []notification.Work
	for i := range 30 {
		works = append(works, n.work(strconv.Itoa(i), "slow"))
	}
	accept(t, l, works...)
	scenario.Within(t, 10*time.Second, "some wait", func() bool { return l.Stats().Waiting > 0 })
	for range 10 { // twenty times the patience
		<-time.After(2 * n.cfg.Patience)
		if s := l.Stats(); s.OwnQueues > 0 || s.Waiting == 0 || !l.Full() {
			t.Fatalf("%d own queues, %d wait, full: %v", s.OwnQueues, s.Waiting, l.Full())
		}
	}
	if behind.Store(int64(behindAfter / 2)); !l.Full() {
		t.Error("not full, and the ledger was far behind a moment ago")
	}
	if l.pressedUntil.Store(0); l.Full() || !l.late() {
		t.Error("full for a moment's delay, or not even late")
	}
	behind.Store(0)
	scenario.Within(t, 10*time.Second, "whoever is slow gets its own queue", func() bool { return l.Stats().OwnQueues == 1 })
	close(release)
	scenario.Within(t, 20*time.Second, "all are sent", func() bool { return n.count() == len(works) })
}
