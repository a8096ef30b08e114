package sync

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/hand"
)

// twoNodes is a lane that serves over a real NATS server, and the node that asks it.
type twoNodes struct {
	lane   *world
	asking *world // its net
	remote *Remote
	stop   func()
}

func startTwoNodes(t *testing.T, serving bool) *twoNodes {
	t.Helper()
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	connect := func() *nats.Conn {
		conn, err := server.Connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		return conn
	}
	cfg := Config{PerKey: 2, Total: 3, Deadline: 5 * time.Second, Margin: 100 * time.Millisecond}
	n := &twoNodes{lane: &world{table: hand.NewTable()}, asking: &world{}, stop: func() {}}
	if n.lane.Lane, err = New(cfg, n.lane, n.lane, n.lane.table); err != nil {
		t.Fatal(err)
	}
	if n.remote, err = NewRemote(cfg, connect(), n.asking); err != nil {
		t.Fatal(err)
	}
	if !serving {
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	conn := connect()
	go func() { ended <- n.lane.ServeRemote(ctx, conn, zap.NewNop()) }()
	scenario.Within(t, 5*time.Second, "the lane serves", func() bool { return conn.NumSubscriptions() > 0 })
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	return n
}

func (n *twoNodes) ask(ctx context.Context, w notification.Work) (Answer, error) {
	place, err := n.remote.Enter(w.Route.IsolationKey)
	if err != nil {
		return Answer{}, err
	}
	return n.remote.Ask(ctx, place, w, time.Now().Add(30*time.Second))
}

func TestRemoteAnswersAsTheLaneItselfWould(t *testing.T) {
	n := startTwoNodes(t, true)
	w := work("1", notification.PersistStream)
	w.Body = bytes.Repeat([]byte("x"), 256<<10)
	w.Labels = map[string]string{"channel": "网银"}
	w.HasRow, w.Trace = true, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	var got notification.Work
	n.lane.deliver = func(_ context.Context, w notification.Work) notification.Verdict {
		got = w
		v := ends(w, notification.StateDelivered)
		v.Attempts[0].Request.Body = w.Body
		v.Attempts[0].Response = &notification.Response{Status: 200, Body: bytes.Repeat([]byte("y"), 64<<10)}
		return v
	}
	answer, err := n.ask(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if a := answer.Verdict.Attempt(); a == nil || a.Response == nil || len(a.Response.Body) != 64<<10 || !bytes.Equal(a.Request.Body, w.Body) || !bytes.Equal(answer.Verdict.After.Body, w.Body) || answer.Verdict.After.State != notification.StateDelivered {
		t.Errorf("got %+v", answer.Verdict)
	}
	if !reflect.DeepEqual(got.Notification, w.Notification) || !got.HasRow || got.Trace != w.Trace {
		t.Errorf("the lane was asked for %+v, want %+v", got, w)
	}

	n.lane.deliver = func(_ context.Context, w notification.Work) notification.Verdict { return deferred(w) }
	if answer, err := n.ask(t.Context(), work("2", notification.PersistStream)); err != nil || !answer.Verdict.Deferred || answer.Verdict.Reason != notification.ReasonRateLimited {
		t.Errorf("a deferred one: %+v, %v", answer, err)
	}
	n.stop()
	if _, err := n.ask(t.Context(), work("3", notification.PersistStream)); !errors.Is(err, ErrAway) {
		t.Errorf("without a sync node: %v, want ErrAway", err)
	}
	if len(n.asking.spread) > 0 {
		t.Errorf("the asking node spread %d nets of its own", len(n.asking.spread))
	}
}

func TestRemoteSaysFullInHandAndFailed(t *testing.T) {
	n := startTwoNodes(t, true)
	defer n.stop()
	hold := make(chan struct{})
	n.lane.deliver = func(_ context.Context, w notification.Work) notification.Verdict {
		<-hold
		return ends(w, notification.StateDelivered)
	}
	answered := make(chan error, 2)
	for _, id := range []string{"1", "2"} { // PerKey is 2
		go func() {
			_, err := n.ask(t.Context(), work(id, notification.PersistStream))
			answered <- err
		}()
	}
	scenario.Within(t, 5*time.Second, "both callers are in the lane", func() bool {
		n.lane.Lane.mu.Lock()
		defer n.lane.Lane.mu.Unlock()
		return n.lane.total == 2
	})
	if _, err := n.ask(t.Context(), work("3", notification.PersistStream)); !errors.Is(err, ErrFull) {
		t.Errorf("a third caller: %v, want ErrFull", err)
	}
	other := work("1", notification.PersistStream) // the id that is being sent
	other.Route.IsolationKey = "m:other"
	if _, err := n.ask(t.Context(), other); !errors.Is(err, ErrInHand) {
		t.Errorf("a second copy: %v, want ErrInHand", err)
	}
	close(hold)
	for range 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	n.lane.mu.Lock()
	n.lane.failNet = errDown
	n.lane.mu.Unlock()
	if _, err := n.ask(t.Context(), work("4", notification.PersistStream)); err == nil {
		t.Error("an answer though the net could not be spread")
	}
}

// The node that took the question dies: the asking node makes the notification durable itself before it answers.
func TestRemoteThatDiesLeavesADurableNotification(t *testing.T) {
	n := startTwoNodes(t, false)
	silent, err := n.remote.conn.QueueSubscribe(askSubject, askGroup, func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Unsubscribe() }()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	began := time.Now()
	answer, err := n.ask(ctx, work("1", notification.PersistStream))
	if err != nil || !answer.TimedOut || answer.Verdict.Reason != notification.ReasonAwaitingAnswer {
		t.Errorf("got %+v, %v", answer, err)
	}
	if len(n.asking.spread) != 1 {
		t.Errorf("%d nets, want 1", len(n.asking.spread))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %s, the caller waits for 400ms", took)
	}
	n.asking.failNet = errDown
	if _, err := n.ask(ctx, work("2", notification.PersistStream)); err == nil {
		t.Error("an answer though nothing is durable")
	}
}

// Without NATS nobody can be asked, and that is known at once: the notification goes on asynchronously.
func TestRemoteWithoutNATSIsAway(t *testing.T) {
	n := startTwoNodes(t, true)
	defer n.stop()
	n.remote.conn.Close()
	began := time.Now()
	if _, err := n.ask(t.Context(), work("1", notification.PersistStream)); !errors.Is(err, ErrAway) || time.Since(began) > time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}
