package async

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// What comes while a publish is under way shares the next message; nothing grows over the bounds (P1).
func TestEnvelopesGroupCommit(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	var works []notification.Work
	for i := range 300 {
		works = append(works, n.work(strconv.Itoa(i), "k"))
	}
	for i := range 4 {
		big := n.work(fmt.Sprint("big-", i), "k")
		big.Body = make([]byte, 200<<10)
		works = append(works, big)
	}
	accept(t, l, works...)
	state := n.stored(t, envelope.NotifyStream)
	if state.Msgs < 8 || state.Msgs > 40 {
		t.Errorf("%d notifications became %d messages", len(works), state.Msgs)
	}
	found := map[notification.ID]string{}
	if err := l.Waiting(t.Context(), func(id notification.ID, place string) { found[id] = place }); err != nil {
		t.Fatal(err)
	}
	for _, w := range works {
		if found[w.ID] != "shard" {
			t.Errorf("%s is in %q", w.RequestID, found[w.ID])
		}
	}
	run(t, l, time.Second)
	scenario.Within(t, 10*time.Second, "all are delivered and acknowledged", func() bool { return n.count() == len(works) && n.empty(t, envelope.NotifyStream) })
}

// A full stream is an error that can be told from others; what was stored stays (P10).
func TestFullStreamIsErrFull(t *testing.T) {
	n := newNode(t)
	n.cfg.StreamBytes = 1 << 20
	l := n.lane(t, false)
	stored, refused := 0, error(nil)
	for i := 0; i < 20 && refused == nil; i++ {
		w := n.work(strconv.Itoa(i), "k")
		w.Body = make([]byte, 200<<10)
		done := make(chan error, 1)
		l.Accept(w, func(err error) { done <- err })
		if refused = <-done; refused == nil {
			stored++
		}
	}
	if !errors.Is(refused, ErrFull) || stored == 0 {
		t.Fatalf("after %d: %v, want %v", stored, refused, ErrFull)
	}
	run(t, l, time.Second)
	scenario.Within(t, 10*time.Second, "what was stored is delivered", func() bool { return n.count() == stored && n.empty(t, envelope.NotifyStream) })
	accept(t, l, n.work("there is room again", "k"))
}

// An envelope is acknowledged after its last member is settled, not before. When the lane ends in between, the next one
// looks the members up: what is on record is not sent again, what has no trace is sent as one that may have been.
func TestEnvelopeOutlivesTheLane(t *testing.T) {
	n := newNode(t)
	settled, lost := n.work("settled", "a"), n.work("lost", "b")
	n.withhold = func(w notification.Work) bool { return w.RequestID == "lost" }
	first := n.lane(t, false)
	n.publish(t, envelope.NotifySubject(0), settled, lost)
	stop := run(t, first, 500*time.Millisecond)
	scenario.Within(t, 5*time.Second, "both are sent", func() bool { return n.count() == 2 })
	staysFor(t, 2500*time.Millisecond, "the message is stored and not handed out again", func() bool { return !n.empty(t, envelope.NotifyStream) && n.count() == 2 })
	stop()
	if _, attempts := n.row(t, settled); len(attempts) != 1 {
		t.Fatalf("%d attempts on record", len(attempts))
	}
	if _, _, err := n.Find(t.Context(), lost.ID); !errors.Is(err, ledger.ErrReservedOnly) {
		t.Fatalf("the lost one has a trace: %v", err)
	}

	n.mu.Lock()
	n.withhold = nil
	n.mu.Unlock()
	again := around(t, n.js)
	again.engine = n.engine
	run(t, again.lane(t, false), time.Second)
	scenario.Within(t, 10*time.Second, "the message is acknowledged", func() bool { return n.empty(t, envelope.NotifyStream) })
	want := []sent{{name: "settled"}, {name: "lost"}, {name: "lost", interrupted: true, claimed: true}}
	got := n.all()
	slices.SortStableFunc(got[:2], func(a, b sent) int { return -1 * map[bool]int{true: 1, false: -1}[a.name > b.name] })
	if !slices.Equal(got, want) {
		t.Errorf("sent %+v, want %+v", got, want)
	}
}

// After a crash NATS may have forgotten what it had handed out: what is stored counts as handed out before.
func TestAfterACrashEverythingIsLookedUp(t *testing.T) {
	n := newNode(t)
	old := n.work("stored before the crash", "a")
	accept(t, n.lane(t, false), old)
	l := n.lane(t, true)
	run(t, l, time.Second)
	accept(t, l, n.work("accepted since", "a"))
	scenario.Within(t, 5*time.Second, "both are sent", func() bool { return n.count() == 2 })
	for _, s := range n.all() {
		if s.interrupted != (s.name == old.RequestID) {
			t.Errorf("%+v", s)
		}
	}
}

// A redelivered member whose failed attempt is on record is put back into its schedule, not sent.
func TestRedeliveredRetryingIsScheduledAgain(t *testing.T) {
	n := newNode(t)
	w := n.work("a", "a")
	after := *w.Notification
	after.State, after.Attempts, after.NextAt, after.UpdatedAt = notification.StateRetrying, 1, now().Add(time.Minute), now()
	recorded := make(chan error, 1)
	n.Remember(t.Context(), &after, true, func(err error) { recorded <- err })
	if err := <-recorded; err != nil {
		t.Fatal(err)
	}
	accept(t, n.lane(t, false), w)
	run(t, n.lane(t, true), time.Second)
	scenario.Within(t, 5*time.Second, "the message is acknowledged", func() bool { return n.empty(t, envelope.NotifyStream) })
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.sent) != 0 || len(n.delayed) != 1 || n.delayed[0].Attempts != 1 || !n.delayed[0].NextAt.Equal(after.NextAt) {
		t.Errorf("sent %+v, scheduled %+v", n.sent, n.delayed)
	}
}

// A redelivered envelope waits for a ledger that does not answer; nothing of it is sent blindly.
func TestRedeliveredWaitsForTheLedger(t *testing.T) {
	n := newNode(t)
	accept(t, n.lane(t, false), n.work("a", "a"))
	n.failFind = errors.New("does not answer")
	run(t, n.lane(t, true), time.Second)
	staysFor(t, 300*time.Millisecond, "nothing is sent", func() bool { return n.count() == 0 })
	n.mu.Lock()
	n.failFind = nil
	n.mu.Unlock()
	scenario.Within(t, 5*time.Second, "it is sent", func() bool { return n.count() == 1 && n.empty(t, envelope.NotifyStream) })
}

// A message that cannot be read is set aside for good, and its neighbours feel nothing.
func TestUndecodableIsTerminated(t *testing.T) {
	for name, data := range map[string][]byte{"garbage": []byte("\xff\xff\xff not an envelope"), "empty": nil} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			l := n.lane(t, false)
			n.publish(t, envelope.NotifySubject(3), n.work("before", "a"))
			n.publishRaw(t, envelope.NotifySubject(3), data)
			n.publish(t, envelope.NotifySubject(3), n.work("after", "a"))
			run(t, l, time.Second)
			scenario.Within(t, 5*time.Second, "both neighbours are delivered, nothing stays", func() bool { return n.count() == 2 && n.empty(t, envelope.NotifyStream) })
		})
	}
}

// Second copies: the first one's row decides, or it is sent once.
func TestSecondCopies(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	run(t, l, time.Second)
	second := func(w notification.Work) notification.Work { w.SecondCopy = true; return w }

	told := n.work("delivered before", "a")
	accept(t, l, told)
	scenario.Within(t, 5*time.Second, "the first copy is on record", func() bool { _, _, err := n.Find(t.Context(), told.ID); return err == nil })
	accept(t, l, second(told))

	accept(t, l, second(n.work("without a publish", "b")))

	scenario.Within(t, 20*time.Second, "what was not published is sent", func() bool { return slices.Contains(n.names(), "without a publish") })

	release := make(chan struct{})
	n.mu.Lock()
	n.sending = func(w notification.Work) {
		if w.RequestID == "in hand" {
			<-release
		}
	}
	n.mu.Unlock()
	inHand := n.work("in hand", "c")
	accept(t, l, inHand)
	scenario.Within(t, 5*time.Second, "it is being sent", func() bool { return slices.Contains(n.names(), "in hand") })
	accept(t, l, second(inHand))
	staysFor(t, 200*time.Millisecond, "its copy is not sent beside it", func() bool { return n.count() == 3 })
	close(release)
	scenario.Within(t, 10*time.Second, "all are acknowledged", func() bool { return n.empty(t, envelope.NotifyStream) })
	if got := n.names(); len(got) != 3 {
		t.Errorf("sent %q", got)
	}
}

// However much is stored, only so much is in hand (P10).
func TestInHandIsBounded(t *testing.T) {
	n := newNode(t)
	n.cfg.Depth, n.cfg.InFlight, n.cfg.InHand, n.cfg.Patience = 2, 2, 6, 10*time.Second
	l := n.lane(t, false)
	const total = 120
	for i := range total {
		accept(t, l, n.work(strconv.Itoa(i), fmt.Sprint("k", i%40)))
	}
	release := make(chan struct{})
	var running, most atomic.Int32
	n.sending = func(notification.Work) {
		most.Store(max(most.Load(), running.Add(1)))
		<-release
		running.Add(-1)
	}
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "the room is full", func() bool { return n.table.Len() == 6 })
	staysFor(t, 300*time.Millisecond, "no more is taken in hand", func() bool { return n.table.Len() <= 6 })
	close(release)
	scenario.Within(t, 20*time.Second, "all are delivered once", func() bool { return n.count() == total && n.empty(t, envelope.NotifyStream) })
	if most.Load() > 6 {
		t.Errorf("%d at once", most.Load())
	}
}

// A slow merchant's attempts are capped and hold back nobody (P8).
func TestSlowMerchantHurtsOnlyItself(t *testing.T) {
	n := newNode(t)
	n.cap = 3
	l := n.lane(t, false)
	release := make(chan struct{})
	var slow, most atomic.Int32
	n.sending = func(w notification.Work) {
		if w.Route.IsolationKey == "slow" {
			most.Store(max(most.Load(), slow.Add(1)))
			<-release
			slow.Add(-1)
		}
	}
	run(t, l, time.Second)
	for i := range 30 {
		accept(t, l, n.work(fmt.Sprint("slow-", i), "slow"), n.work(fmt.Sprint("quick-", i), "quick"))
	}
	quick := func() int {
		c := 0
		for _, name := range n.names() {
			if name[:4] == "quic" {
				c++
			}
		}
		return c
	}
	scenario.Within(t, 5*time.Second, "the quick merchant has all of its own", func() bool { return quick() == 30 })
	close(release)
	scenario.Within(t, 10*time.Second, "the slow one too", func() bool {
		return n.count() == 60 && n.empty(t, envelope.NotifyStream) && n.empty(t, envelope.MerchantStream)
	})
	if most.Load() > 3 {
		t.Errorf("%d at once, the cap is 3", most.Load())
	}
}

func TestConfigNamesTheKey(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"async.depth: 0: must be at least 1":                                      func(c *Config) { c.Depth = 0 },
		"async.in_flight: 0: must be at least 1":                                  func(c *Config) { c.InFlight = 0 },
		"async.in_hand: 519: must be at least depth and in_flight together (520)": func(c *Config) { c.InHand = 519 },
		"async.ack_wait: 1ms: must be at least 1s":                                func(c *Config) { c.AckWait = time.Millisecond },
		"async.replicas: 6: must be 1 to 5":                                       func(c *Config) { c.Replicas = 6 },
	} {
		c := DefaultConfig()
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// What is due without an attempt on record counts as interrupted where its first attempt would have left no trace.
func TestFirstAttemptThatLeftNoTrace(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *notification.Work)
		want   bool
	}{
		"the net of the sync lane":   {func(w *notification.Work) { w.Route.Lane = notification.LaneSync }, true},
		"its shard did not bring it": {func(w *notification.Work) { w.Trigger = notification.TriggerSweep }, true},
		"in its shard it was claimed": {func(w *notification.Work) {
			w.Trigger, w.Route.Persist = notification.TriggerSweep, notification.PersistLedger
		}, false},
		"it was in no shard":                  {func(w *notification.Work) { w.Trigger, w.NotBefore = notification.TriggerSweep, time.Now() }, false},
		"a second copy, which is asked about": {func(w *notification.Work) { w.SecondCopy = true }, false},
	} {
		n := &notification.Notification{}
		n.Route.Lane, n.Route.Persist = notification.LaneAsync, notification.PersistStream
		w := notification.Work{Notification: n, Trigger: notification.TriggerAuto}
		c.change(&w)
		if got := firstLeftNoTrace(w); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}
