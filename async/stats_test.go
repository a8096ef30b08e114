package async

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

func (n *node) backlog(t *testing.T, l *Lane) Backlog {
	t.Helper()
	b, err := l.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStatsCountEnvelopes(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	accept(t, l, n.work("a", "m"))
	accept(t, l, n.work("b", "m"))
	s := l.Stats()
	if s.Envelopes != 2 || s.EnvelopeNotifications != 2 || s.EnvelopeBytes == 0 || s.PublishFailures != 0 || s.InHandLimit != n.cfg.InHand {
		t.Errorf("stats: %+v", s)
	}
}

// What rests in NATS is found by place, and nobody takes it while no lane runs.
func TestBacklogByPlace(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	if b := n.backlog(t, l); b != (Backlog{}) {
		t.Errorf("of nothing: %+v", b)
	}
	began := time.Now().Add(-time.Second)
	accept(t, l, n.work("a", "m"))
	accept(t, l, n.work("b", "m"))
	n.publish(t, envelope.DueSubject(3), n.work("due", "m"))
	n.publish(t, envelope.DelaySubject(5, n.work("later", "m").ID), n.work("later", "m"))
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("own", "k"))
	b := n.backlog(t, l)
	if b.Shards.Messages != 2 || b.Due.Messages != 1 || b.Delayed.Messages != 1 || b.Own.Messages != 1 || b.OwnQueues != 1 || b.Untaken != 3 || b.Taken != 0 {
		t.Errorf("backlog: %+v", b)
	}
	for place, at := range map[string]time.Time{"shards": b.Shards.Oldest, "due": b.Due.Oldest, "own": b.Own.Oldest} {
		if at.Before(began) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("oldest of %s: %s", place, at)
		}
	}
	n.publishRaw(t, envelope.UndecodableSubject, []byte("?"))
	if b := n.backlog(t, l); b.Undecodable != 1 || b.Own.Messages != 1 || b.OwnQueues != 1 || !b.Own.Oldest.IsZero() {
		t.Errorf("beside something undecodable: %+v", b)
	}
}

// What is in hand counts as taken; a merchant that is slow to answer is no standstill.
func TestSlowMerchantIsNoStandstill(t *testing.T) {
	n := newNode(t)
	release := make(chan struct{})
	n.sending = func(notification.Work) { <-release }
	n.cap = 1
	l := n.lane(t, false)
	run(t, l, time.Second)
	var works []notification.Work
	for i := range 10 {
		works = append(works, n.work(fmt.Sprintf("w%d", i), "slow"))
	}
	accept(t, l, works...)
	scenario.Within(t, 10*time.Second, "all but what is in flight rest in the own queue", func() bool { return l.Stats().OwnQueues == 1 && len(n.inOwnQueue(t, "slow")) == 9 })
	s := l.Stats()
	if s.InFlight != 1 || s.InHand < 1 || s.OldestInHand.IsZero() {
		t.Errorf("stats: %+v", s)
	}
	b := n.backlog(t, l)
	if b.Untaken != 0 || b.Taken == 0 || b.Own.Messages != 9 {
		t.Errorf("backlog: %+v", b)
	}
	staysFor(t, 500*time.Millisecond, "no standstill", func() bool { return l.Stats().Stalled == 0 })
	close(release)
	scenario.Within(t, 10*time.Second, "all is delivered", func() bool { return n.count() == 10 && l.Stats().InHand == 0 })
}

func TestWhatWaitsRightlyIsNoStandstill(t *testing.T) {
	for reason, stands := range map[notification.Reason]bool{
		notification.ReasonMerchantPaused: false, notification.ReasonMerchantMissing: false, notification.ReasonBreakerOpen: false, notification.ReasonRateLimited: false,
		notification.ReasonInternal: true, // the ledger does not answer
	} {
		t.Run(string(reason), func(t *testing.T) {
			n := newNode(t)
			n.shut(reason)
			l := n.lane(t, false)
			run(t, l, time.Second)
			accept(t, l, n.work("a", "m"))
			scenario.Within(t, 5*time.Second, "it rests", func() bool { return l.isResting("m") && len(n.inOwnQueue(t, "m")) == 1 })
			stalled := 0
			for range 20 {
				<-time.NewTimer(10 * time.Millisecond).C
				stalled += l.Stats().Stalled
			}
			if (stalled > 15) != stands {
				t.Errorf("stood still in %d of 20 looks, want it to: %v", stalled, stands)
			}
		})
	}
}

// A key whose drain does not come back to look, and a message that waits for a ledger that does not answer, stand still.
func TestStandstills(t *testing.T) {
	now := time.Now()
	stale := merchantQueue{resting: true, reason: notification.ReasonMerchantPaused, wakeAt: now.Add(-stallSlack - 1)}
	if !stale.stalled(now, time.Second) {
		t.Error("a drain that is late")
	}
	if fresh := (&merchantQueue{resting: true, reason: notification.ReasonInFlight, wakeAt: now}); fresh.stalled(now, time.Second) {
		t.Error("another attempt is in flight, and the drain looks again")
	}
	stale.began.Store(now.Add(-time.Second).UnixNano())
	stale.sending.Store(1)
	if stale.stalled(now, time.Second) {
		t.Error("its merchant is being asked")
	}
	if !stale.stalled(now.Add(longestAttempt), time.Second) {
		t.Error("an attempt that does not end")
	}

	n := newNode(t)
	l := n.lane(t, false)
	accept(t, l, n.work("a", "m"))
	n.mu.Lock()
	n.failFind = errStopping
	n.mu.Unlock()
	again := n.lane(t, true) // after a crash it is looked up first
	stop := run(t, again, time.Second)
	scenario.Within(t, 10*time.Second, "it counts as standing still", func() bool { return again.Stats().Stalled == 1 })
	n.mu.Lock()
	n.failFind = nil
	n.mu.Unlock()
	scenario.Within(t, 10*time.Second, "it goes on", func() bool { return n.count() == 1 && again.Stats().Stalled == 0 })
	stop()
}

// What rests is found to the last one, however many pages a stream has: a reader has room for all that one read returns.
func TestWaitingFindsAllPages(t *testing.T) {
	n := newNode(t)
	l := n.lane(t, false)
	const all = 2*placesPage + 100
	for i := range all {
		n.publish(t, envelope.OwnQueueSubject("k"), n.work(strconv.Itoa(i), "k"))
	}
	for range 5 {
		found := map[notification.ID]bool{}
		if err := l.Waiting(t.Context(), func(id notification.ID, _ string) { found[id] = true }); err != nil || len(found) != all {
			t.Fatalf("found %d of %d: %v", len(found), all, err)
		}
	}
}
