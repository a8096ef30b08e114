package async

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// owe writes rows that are due now and that no queue was told of.
func (n *node) owe(t *testing.T, works ...notification.Work) {
	t.Helper()
	done := make(chan error, len(works))
	for _, w := range works {
		c := *w.Notification
		c.NextAt = now()
		n.Record(t.Context(), ledger.Record{Notification: &c, New: true, Unfed: true}, func(err error) { done <- err })
	}
	for range works {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// away is a server that is not there yet, and what connects to it.
func away(t *testing.T) (start func() (stop func()), js jetstream.JetStream) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, dir := free.Addr().String(), t.TempDir()
	free.Close()
	conn, err := nats.Connect("nats://"+addr, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if js, err = jetstream.New(conn); err != nil {
		t.Fatal(err)
	}
	return func() func() {
		s, err := natsserver.Start(context.Background(), natsserver.Config{Dir: dir, Log: zap.NewNop(), Listen: addr})
		if err != nil {
			t.Fatal(err)
		}
		stop := sync.OnceFunc(func() { _ = s.Stop(context.Background()) })
		t.Cleanup(stop)
		return stop
	}, js
}

// NATS away at the start and for a while afterwards: what is due goes out from the ledger, what the gate defers goes back
// there and never to an own queue; when NATS comes, the streams are made and the lane takes from them (P9).
func TestWithoutNATSTheLedgerFeedsTheLane(t *testing.T) {
	start, js := away(t)
	cfg := DefaultConfig()
	cfg.AckWait, cfg.StreamBytes, cfg.PublishTimeout = time.Second, 64<<20, 500*time.Millisecond
	n := &node{engine: &engine{Memory: ledger.NewMemory(ledger.Config{Now: now})}, js: js, table: hand.NewTable(), cfg: cfg}
	l := n.laneWith(t, func(p *Parts) {
		p.Away, p.Due = func() bool { return !js.Conn().IsConnected() }, n.engine
	})
	ctx, cancel := context.WithCancel(context.Background())
	var keeping sync.WaitGroup
	keeping.Go(func() { _ = l.KeepStreams(ctx) })
	t.Cleanup(func() { cancel(); keeping.Wait() })
	n.gate = func(w notification.Work) (notification.Reason, time.Time) {
		if w.MerchantID == "paused" {
			return notification.ReasonMerchantPaused, time.Time{}
		}
		return "", time.Time{}
	}
	run(t, l, time.Second)
	var works []notification.Work
	for i := range 300 {
		works = append(works, n.work(strconv.Itoa(i), fmt.Sprint("k", i%7)))
	}
	n.owe(t, works...)
	held := n.work("held", "paused")
	n.owe(t, held)
	scenario.Within(t, 10*time.Second, "all are sent from the ledger", func() bool { return n.count() == 300 })
	for _, s := range n.all() {
		if !s.claimed || s.interrupted {
			t.Fatalf("%+v", s)
		}
	}
	scenario.Within(t, 5*time.Second, "the held one is back in the ledger", func() bool {
		row, _ := n.row(t, held)
		return row.State == notification.StateHeld && !row.Resting && time.Until(row.NextAt) > 2*time.Second && time.Until(row.NextAt) < 6*time.Second
	})
	once(t, n, works)

	n.shut("")
	scenario.Within(t, 10*time.Second, "the held one is sent when its merchant is resumed", func() bool { return n.count() == 301 })
	start()
	scenario.Within(t, 10*time.Second, "the streams are made", func() bool { return isClosed(l.ready) })
	accept(t, l, n.work("through NATS", "k0"))
	scenario.Within(t, 10*time.Second, "it is delivered", func() bool { return n.count() == 302 })
	if got := n.all()[301]; got.claimed {
		t.Errorf("%+v", got)
	}
}

// While NATS is away a key that had an own queue is asked about nevertheless, and a slow one gives back what waits too long.
func TestWithoutNATSARestingKeyGoesOn(t *testing.T) {
	n := newNode(t)
	n.cap, n.cfg.Depth, n.cfg.Patience = 1, 4, 50*time.Millisecond
	var isAway atomic.Bool
	l := n.laneWith(t, func(p *Parts) { p.Away, p.Due = isAway.Load, n.engine })
	run(t, l, time.Second)
	n.shut(notification.ReasonMerchantPaused)
	accept(t, l, n.work("rests", "k"))
	scenario.Within(t, 5*time.Second, "it rests", func() bool { return l.isResting("k") && n.stored(t, envelope.MerchantStream).Msgs == 1 })
	n.mu.Lock()
	n.gate = nil
	release := make(chan struct{})
	t.Cleanup(func() { close(release) }) // before the lane's stop
	n.sending = func(notification.Work) { <-release }
	n.mu.Unlock()
	for i := range 20 {
		n.owe(t, n.work(strconv.Itoa(i), "k"))
	}
	isAway.Store(true)
	scenario.Within(t, 5*time.Second, "one is sent, the others are back", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.sent) >= 1 && len(n.putBack) >= 19
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.putBack {
		if c.Resting || c.NextAt.IsZero() || c.Reason != notification.ReasonBacklog {
			t.Errorf("put back as %+v", c.Progress)
		}
	}
}

func TestPublishFailures(t *testing.T) {
	store := func(description string) error {
		return fmt.Errorf("publish: %w", &jetstream.APIError{Code: 503, ErrorCode: 10077, Description: description})
	}
	for _, c := range []struct {
		err  error
		full bool
	}{
		{store("maximum bytes exceeded"), true},
		{store("maximum messages exceeded"), true},
		{store("maximum messages per subject exceeded"), true},
		{store("write /data/1.blk: no space left on device"), false},
		{&jetstream.APIError{Code: 503, ErrorCode: 10023, Description: "insufficient resources"}, false},
		{&jetstream.APIError{Code: 503, ErrorCode: 10076, Description: "JetStream not enabled"}, false},
		{jetstream.ErrNoStreamResponse, false},
		{nats.ErrNoResponders, false},
		{context.DeadlineExceeded, false},
	} {
		if got := errors.Is(publishError(c.err), ErrFull); got != c.full {
			t.Errorf("%v: full %v", c.err, got)
		}
	}
}

// A lane that was refused says so for a moment, until something fits again.
func TestFull(t *testing.T) {
	n := newNode(t)
	n.cfg.StreamBytes = 1 << 20
	l := n.lane(t, false)
	big := func(name string) error {
		w := n.work(name, "k")
		w.Body = make([]byte, 200<<10)
		done := make(chan error, 1)
		l.Accept(w, func(err error) { done <- err })
		return <-done
	}
	if l.Full() {
		t.Error("full from the start")
	}
	var err error
	for i := 0; err == nil; i++ {
		err = big(strconv.Itoa(i))
	}
	if !errors.Is(err, ErrFull) || !l.Full() {
		t.Fatalf("%v, full: %v", err, l.Full())
	}
	scenario.Within(t, 5*fullFor, "it is tried again", func() bool { return !l.Full() })
	if err := big("again"); !errors.Is(err, ErrFull) || !l.Full() {
		t.Fatalf("%v, full: %v", err, l.Full())
	}
	accept(t, l, n.work("small", "k")) // what fits goes in, and says that there is room
	if l.Full() {
		t.Error("full after something fitted")
	}
}

// A panic in the lane's own hands is about one message: it is set aside once, its neighbours go on.
func TestPanicsAreContained(t *testing.T) {
	n := newNode(t)
	bad := func(w notification.Work) { // the lane schedules it again, and the schedule panics
		after := *w.Notification
		after.State, after.Attempts, after.NextAt, after.UpdatedAt = notification.StateRetrying, 1, now().Add(time.Minute), now()
		done := make(chan error, 1)
		n.Remember(t.Context(), &after, true, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	poison, good := n.work("poison", "a"), n.work("good", "b")
	feeder := n.lane(t, false)
	bad(poison)
	n.publish(t, envelope.NotifySubject(0), poison, good)
	l := n.laneWith(t, func(p *Parts) { p.Delayer, p.Crashed = panics{n.engine}, true })
	run(t, l, time.Second)
	scenario.Within(t, 5*time.Second, "the message is done with", func() bool { return n.empty(t, envelope.NotifyStream) && n.table.Len() == 0 })
	if got := n.names(); len(got) != 1 || got[0] != "good" {
		t.Errorf("sent %q", got)
	}
	if s := l.Stats(); s.Panics != 1 || s.SetAside != 1 || n.stored(t, envelope.MerchantStream).Msgs != 1 {
		t.Errorf("stats %+v, %d set aside", s, n.stored(t, envelope.MerchantStream).Msgs)
	}
	_ = feeder
}

type panics struct{ *engine }

func (panics) Delay(context.Context, notification.Work) error { panic("poison") }

// What cannot be decoded and cannot be set aside either does not keep what lies behind it.
func TestOwnQueueBehindWhatStays(t *testing.T) {
	n := newNode(t)
	n.cfg.OwnQueue = 1000
	l := n.lane(t, false)
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("first", "k"))
	for range 100 {
		n.publishRaw(t, envelope.OwnQueueSubject("k"), []byte("\xff\xff\xff"))
	}
	n.publish(t, envelope.OwnQueueSubject("k"), n.work("last", "k"))
	for range 1000 { // no room for what is set aside
		n.publishRaw(t, envelope.UndecodableSubject, []byte("?"))
	}
	run(t, l, time.Second)
	scenario.Within(t, 10*time.Second, "both are delivered, and the key returns to the shards", func() bool { return n.count() == 2 && !l.isResting("k") })
}
