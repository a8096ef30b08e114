package retry

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
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
)

// fired is one work that came due.
type fired struct {
	notification.Work
	at time.Time
}

// dues is a delay on a real server, and what has come due from it.
type dues struct {
	*Delay
	js jetstream.JetStream

	mu    sync.Mutex
	fired []fired
}

func clock() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func quick() Config {
	cfg := DefaultConfig()
	cfg.Window, cfg.SweepEvery, cfg.Grace = 4*time.Second, 100*time.Millisecond, time.Second
	return cfg
}

func newDues(t *testing.T, cfg Config) *dues {
	t.Helper()
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	delay, err := NewDelay(t.Context(), cfg, js)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(delay.Wait)
	d := &dues{Delay: delay, js: js}
	for i := range envelope.RetryStreams {
		consumer, err := js.CreateConsumer(t.Context(), envelope.RetryStream(i), jetstream.ConsumerConfig{FilterSubject: fmt.Sprintf("retry.%d.due.*", i), AckPolicy: jetstream.AckExplicitPolicy})
		if err != nil {
			t.Fatal(err)
		}
		taking, err := consumer.Consume(d.take)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(taking.Stop)
	}
	return d
}

func (d *dues) take(msg jetstream.Msg) {
	at := time.Now()
	works, err := envelope.Decode(msg.Data())
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range works {
		d.fired = append(d.fired, fired{w, at})
	}
	_ = msg.Ack()
}

func (d *dues) all() []fired {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]fired(nil), d.fired...)
}

func retrying(name string, next time.Time) notification.Work {
	n := &notification.Notification{
		Source: "pay", RequestID: name, MerchantID: "m", Body: []byte(`{}`), AcceptedAt: clock(),
		Route: notification.Route{Lane: notification.LaneAsync, IsolationKey: "key-" + name, Persist: notification.PersistStream},
		Progress: notification.Progress{
			State: notification.StateRetrying, Reason: notification.ReasonHTTPServerError, Generation: 1, Attempts: 1, NextAt: next.UTC().Truncate(time.Microsecond), UpdatedAt: clock(),
		},
	}
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	return notification.Work{Notification: n, Trigger: notification.TriggerAuto}
}

// Each fires at its time and not before, however the second is divided; what it carries is what was given.
func TestDelayFiresOnTime(t *testing.T) {
	d := newDues(t, DefaultConfig())
	start := time.Now().Add(500 * time.Millisecond)
	want := map[notification.ID]notification.Work{}
	for i := range 40 {
		w := retrying(strconv.Itoa(i), start.Add(time.Duration(i)*50*time.Millisecond+time.Duration(i)*time.Microsecond))
		w.Operator, w.Trigger = "ops", notification.TriggerResend
		want[w.ID] = w
		if err := d.Delay.Delay(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	scenario.Within(t, 10*time.Second, "all are fired", func() bool { return len(d.all()) == len(want) })
	var latest time.Duration
	for _, f := range d.all() {
		w, ok := want[f.ID]
		if !ok {
			t.Errorf("%s fired twice", f.RequestID)
			continue
		}
		delete(want, f.ID)
		late := f.at.Sub(w.NextAt)
		latest = max(latest, late)
		if late < 0 {
			t.Errorf("%s fired %s early", w.RequestID, -late)
		}
		if f.Attempts != 1 || f.Generation != 1 || f.Trigger != w.Trigger || f.Operator != "ops" || !f.NextAt.Equal(w.NextAt) {
			t.Errorf("fired %+v", f)
		}
	}
	if latest > 2*time.Second {
		t.Errorf("as late as %s", latest)
	}
	t.Logf("at most %s late", latest)
}

// There is one schedule an id: the newest replaces the others, in both directions.
func TestDelayReplaces(t *testing.T) {
	d := newDues(t, DefaultConfig())
	now := time.Now()
	for name, times := range map[string][2]time.Duration{"later": {300 * time.Millisecond, 900 * time.Millisecond}, "earlier": {time.Hour, 600 * time.Millisecond}} {
		for i, after := range times {
			w := retrying(name, now.Add(after))
			w.Attempts = i + 1
			if err := d.Delay.Delay(t.Context(), w); err != nil {
				t.Fatal(err)
			}
		}
	}
	scenario.Within(t, 5*time.Second, "both are fired", func() bool { return len(d.all()) >= 2 })
	<-time.NewTimer(300 * time.Millisecond).C
	if got := d.all(); len(got) != 2 || got[0].Attempts != 2 || got[1].Attempts != 2 {
		t.Errorf("fired %+v", got)
	}
}

// A canceled one does not fire; its neighbours do, and canceling what is not there is no error.
func TestDelayCancels(t *testing.T) {
	d := newDues(t, DefaultConfig())
	at := time.Now().Add(600 * time.Millisecond)
	gone, kept := retrying("gone", at), retrying("kept", at.Add(300*time.Millisecond))
	kept.Route.IsolationKey = gone.Route.IsolationKey // the same shard
	for _, w := range []notification.Work{gone, kept} {
		if err := d.Delay.Delay(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Cancel(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if err := d.Cancel(t.Context(), retrying("never", at)); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 5*time.Second, "the other one is fired", func() bool { return len(d.all()) > 0 })
	if got := d.all(); len(got) != 1 || got[0].RequestID != "kept" {
		t.Errorf("fired %+v", got)
	}
}

// What is due already fires at once.
func TestDelayOfThePast(t *testing.T) {
	d := newDues(t, DefaultConfig())
	if err := d.Delay.Delay(t.Context(), retrying("past", time.Now().Add(-time.Minute))); err != nil {
		t.Fatal(err)
	}
	if err := d.Now(t.Context(), retrying("now", time.Time{})); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 3*time.Second, "both are fired", func() bool { return len(d.all()) == 2 })
}

// A caller that stops waiting takes nothing back.
func TestDelayOutlivesItsCaller(t *testing.T) {
	d := newDues(t, DefaultConfig())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = d.Delay.Delay(ctx, retrying("a", time.Now().Add(200*time.Millisecond)))
	scenario.Within(t, 3*time.Second, "it is fired", func() bool { return len(d.all()) == 1 })
}

func TestWithin(t *testing.T) {
	d := &Delay{cfg: DefaultConfig()}
	d.most.Store(1)
	now := time.Now()
	if !d.Within(now.Add(10*time.Minute), now) || d.Within(now.Add(10*time.Minute+1), now) || !d.Within(now.Add(-time.Hour), now) {
		t.Error("the window's edge is not where it is said to be")
	}
}

// With as many schedules as there are to be, what is due soon joins them, and nothing else; what others do is seen at the next look.
func TestWithinWhenThereIsNoRoom(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxSchedules = 1000
	d := newDues(t, cfg)
	far := func() bool { return d.Within(time.Now().Add(5*time.Minute), time.Now()) }
	looks := func(want int) {
		t.Helper()
		if err := d.count(t.Context()); err != nil || d.Room() != want {
			t.Errorf("room for %d, %v; want %d", d.Room(), err, want)
		}
	}
	fill := func(from, to int) {
		t.Helper()
		results := make(chan error, to-from)
		for i := from; i < to; i++ {
			d.DelayThen(retrying(strconv.Itoa(i), time.Now().Add(5*time.Minute)), func(err error) { results <- err })
		}
		for range to - from {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
	}
	looks(1000)
	fill(0, 999)
	if !far() {
		t.Error("there is room for one more")
	}
	fill(999, 1001)
	if far() || !d.Within(time.Now().Add(30*time.Second), time.Now()) {
		t.Error("it takes more than there is room for, or not even what is due soon")
	}
	looks(-1)
	if far() {
		t.Error("there is room after a look that found none")
	}
	if err := d.Cancel(t.Context(), retrying("0", time.Time{})); err != nil {
		t.Fatal(err)
	}
	if err := d.Cancel(t.Context(), retrying("1", time.Time{})); err != nil {
		t.Fatal(err)
	}
	looks(1)
	if !far() {
		t.Error("no room after two were taken back")
	}
}

// put files a row as the engine does after an attempt.
func put(t *testing.T, m *ledger.Memory, w notification.Work) {
	t.Helper()
	done := make(chan error, 1)
	m.Record(t.Context(), ledger.Record{Notification: w.Notification, New: true, Unreserved: true}, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A stream that somebody deletes is made again; Delay.Ensure says when, and its sequences never come twice.
func TestEnsureMakesWhatIsMissing(t *testing.T) {
	d := newDues(t, DefaultConfig())
	before, err := d.Ensure(t.Context())
	if err != nil || len(before) != envelope.RetryStreams {
		t.Fatal(err, before)
	}
	w := retrying("later", time.Now().Add(time.Hour))
	if err := d.Delay.Delay(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	name := envelope.RetryStream(notification.ShardOf(w.Route.IsolationKey))
	last := sequences(t, d.js, name).LastSeq
	if err := d.js.DeleteStream(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := d.Delay.Delay(t.Context(), w); err == nil {
		t.Error("delayed without a stream")
	}
	after, err := d.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for stream, at := range after {
		if at.Equal(before[stream]) == (stream == name) {
			t.Errorf("%s was made at %s, then at %s", stream, before[stream], at)
		}
	}
	if first := sequences(t, d.js, name).FirstSeq; first <= last {
		t.Errorf("begins again at %d, the old one ended at %d", first, last)
	}
	if err := d.Delay.Delay(t.Context(), w); err != nil {
		t.Error(err)
	}
	if err := d.Cancel(t.Context(), w); err != nil {
		t.Error(err)
	}
}

func sequences(t *testing.T, js jetstream.JetStream, name string) jetstream.StreamState {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State
}

// A start bears that NATS is away; the streams are made when it is there.
func TestDelayStartsWithoutNATS(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	conn, err := nats.Connect("nats://"+addr, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDelay(t.Context(), DefaultConfig(), js)
	if err != nil {
		t.Fatal(err)
	}
	w := retrying("a", time.Now().Add(time.Hour))
	if err := d.Delay(t.Context(), w); err == nil {
		t.Error("delayed without NATS")
	}
	if err := d.Cancel(t.Context(), w); err == nil {
		t.Error("canceled without NATS")
	}
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop(), Listen: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); _ = server.Stop(context.Background()) })
	scenario.Within(t, 10*time.Second, "the streams are made", func() bool { _, err := d.Ensure(t.Context()); return err == nil })
	if err := d.Delay(t.Context(), w); err != nil {
		t.Error(err)
	}
}

// A net comes due with all its members as long as one of them is in it, and not at all after the last one was taken away.
func TestNetsAreShared(t *testing.T) {
	d := newDues(t, quick())
	due := clock().Add(1500 * time.Millisecond)
	spread := func(names ...string) []func(context.Context) {
		away := make([]func(context.Context), len(names))
		var spreading sync.WaitGroup
		for i, name := range names {
			spreading.Add(1)
			d.SpreadThen(retrying(name, due), func(takeAway func(context.Context), err error) {
				if err != nil {
					t.Error(err)
				}
				away[i] = takeAway
				spreading.Done()
			})
		}
		spreading.Wait()
		return away
	}
	spread("alone") // the commit under way, for which others wait together
	settled, partly := spread("a", "b", "c"), spread("d", "e", "f")
	for _, takeAway := range append(settled, partly[1:]...) {
		takeAway(t.Context())
	}
	spread("last")[0](t.Context()) // those before it are purged now
	stored := 0
	for i := range envelope.RetryStreams {
		stream, err := d.js.Stream(t.Context(), envelope.RetryStream(i))
		if err != nil {
			t.Fatal(err)
		}
		stored += int(stream.CachedInfo().State.Msgs)
	}
	if stored < 3 || stored > 5 { // one for "alone", one to three for d, e and f, and the last one
		t.Errorf("%d nets are stored", stored)
	}
	scenario.Within(t, 10*time.Second, "what is left comes due", func() bool { return len(d.all()) >= 2 })
	for _, w := range d.all() {
		if w.at.Before(due) {
			t.Errorf("%s came %s early", w.RequestID, due.Sub(w.at))
		}
		if slices.Contains([]string{"a", "b", "c"}, w.RequestID) {
			t.Errorf("%s was taken away and comes due", w.RequestID)
		}
	}
}
