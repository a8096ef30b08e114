package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

func TestStreamCarriesBothLanesWithoutACall(t *testing.T) {
	const callers = 64
	first, release := make(chan struct{}, callers), make(chan struct{})
	s := &server{streamed: true, call: func(context.Context, int, []*client.Notification) error {
		select {
		case first <- struct{}{}:
		default:
		}
		<-release
		return nil
	}}
	c := s.start(t)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			n := refund(i)
			if i%2 == 1 {
				n = scan(i)
			}
			if r, err := c.Submit(t.Context(), n); err != nil || r.Id != fmt.Sprintf("ntf_billing_r%d", i) {
				t.Errorf("%d: %v, %v", i, r, err)
			}
		})
	}
	<-first
	eventually(t, "everybody has been sent", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		sent := 0
		for _, m := range s.messages {
			sent += len(m)
		}
		return sent == callers
	})
	close(release)
	all.Wait()
	if alone, batches := s.seen(); alone+batches != 0 {
		t.Errorf("%d calls, %d batches", alone, batches)
	}
	t.Logf("%d submissions in %d messages", callers, len(s.messages))
}

func TestStreamMessagesAreBounded(t *testing.T) {
	hold := make(chan struct{})
	s := &server{streamed: true, call: func(_ context.Context, _ int, ns []*client.Notification) error {
		if len(ns) > 3 {
			t.Errorf("%d in one message", len(ns))
		}
		<-hold
		return nil
	}}
	c := s.start(t, client.WithBatch(3, 1<<20))
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if _, err := c.Submit(t.Context(), refund(i)); err != nil {
				t.Error(err)
			}
		})
	}
	close(hold)
	all.Wait()
}

func TestStreamAnswersInAnyOrder(t *testing.T) {
	slow := make(chan struct{})
	s := &server{streamed: true, call: func(_ context.Context, _ int, ns []*client.Notification) error {
		if ns[0].RequestId == "r0" {
			<-slow
		}
		return nil
	}}
	c := s.start(t)
	held := make(chan error, 1)
	go func() { _, err := c.Submit(t.Context(), scan(0)); held <- err }()
	eventually(t, "the slow one is under way", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.requests == 1
	})
	for i := range 10 {
		if _, err := c.Submit(t.Context(), scan(i+1)); err != nil {
			t.Error(err)
		}
	}
	close(slow)
	if err := <-held; err != nil {
		t.Error(err)
	}
}

func TestOneCallersDeadlineTouchesNoOther(t *testing.T) {
	release := make(chan struct{})
	var waits sync.Map
	s := &server{streamed: true, call: func(ctx context.Context, _ int, ns []*client.Notification) error {
		deadline, _ := ctx.Deadline()
		waits.Store(ns[0].RequestId, time.Until(deadline))
		<-release
		return nil
	}}
	c := s.start(t)
	patient := make(chan error, 1)
	go func() { _, err := c.Submit(t.Context(), scan(1)); patient <- err }()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Submit(short, scan(2))
	if e := errorOf(t, err); !errors.Is(err, context.DeadlineExceeded) || !e.Uncertain || e.Tries != 1 {
		t.Errorf("%+v", e)
	}
	close(release)
	if err := <-patient; err != nil {
		t.Error(err)
	}
	for id, most := range map[string]time.Duration{"r1": 10 * time.Second, "r2": 50 * time.Millisecond} {
		left, _ := waits.Load(id)
		if left, ok := left.(time.Duration); !ok || left > most || left < most/2-50*time.Millisecond {
			t.Errorf("the server believes that %s waits for %v", id, left)
		}
	}
	if c.Stats().Streams != 1 {
		t.Error("the stream ended")
	}
}

// There is no stream where something on the way, or the server, knows none; submissions never wait for it, nor fail by it.
func TestWithoutStreamsThereAreCalls(t *testing.T) {
	silent := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == notifydv1connect.NotificationServiceSubmitStreamProcedure {
			<-r.Context().Done() // what holds requests back until they are whole
			return
		}
		next.ServeHTTP(w, r)
	}
	for name, test := range map[string]struct {
		http1 bool
		opts  []client.Option
		way   func(http.ResponseWriter, *http.Request, http.Handler)
		asked int64 // streams
	}{
		"older server":        {asked: 1},
		"HTTP/1.1 only":       {http1: true},
		"streams are held up": {way: silent, asked: 1},
		"turned off":          {opts: []client.Option{client.WithStreams(0)}},
		"signing caller":      {opts: []client.Option{client.WithHMACKey(anHMACKey)}},
		"own HTTP/1.1 client": {opts: []client.Option{client.WithHTTPClient(&http.Client{Transport: &http.Transport{}})}, asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{tries: map[string]int{}, taken: map[string]int{}}
			handler := s.handler()
			var asked atomic.Int64
			listener := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == notifydv1connect.NotificationServiceSubmitStreamProcedure {
					asked.Add(1)
				}
				if test.way != nil {
					test.way(w, r, handler)
					return
				}
				handler.ServeHTTP(w, r)
			}))
			listener.Config.Protocols = new(http.Protocols)
			listener.Config.Protocols.SetHTTP1(true)
			listener.Config.Protocols.SetUnencryptedHTTP2(!test.http1)
			listener.Start()
			t.Cleanup(listener.Close)
			c := newClient(t, listener.URL, test.opts...)
			for i := range 20 {
				for _, n := range []*client.Notification{refund(i), scan(100 + i)} {
					if r, err := c.Submit(t.Context(), n); err != nil || r.Duplicate {
						t.Errorf("%v, %v", r, err)
					}
				}
			}
			scenario.Within(t, 10*time.Second, "a stream is asked for as often as it should be", func() bool { return asked.Load() == test.asked })
			if alone, batches := s.seen(); alone != 20 || batches != 20 || c.Stats().Streams != 0 {
				t.Errorf("%d alone, %d batches, %+v", alone, batches, c.Stats())
			}
		})
	}
}

// A stream on which nothing is heard is given up: calls bring the answer.
func TestSilentStreamIsGivenUp(t *testing.T) {
	s := &server{streamed: true}
	s.call = func(ctx context.Context, _ int, _ []*client.Notification) error {
		if _, isCall := ctx.Deadline(); !isCall {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	c := s.start(t, client.WithCallTimeout(300*time.Millisecond))
	var told atomic.Pointer[client.Error]
	r, err := newTold(t, s, &told).Submit(t.Context(), refund(1))
	if err != nil {
		t.Fatal(err)
	}
	if e := told.Load(); r.Id != "ntf_billing_r1" || e == nil || e.Code != connect.CodeDeadlineExceeded && e.Code != connect.CodeUnavailable || !e.Uncertain {
		t.Errorf("%v after %+v", r, e)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func newTold(t *testing.T, s *server, told *atomic.Pointer[client.Error]) *client.Client {
	t.Helper()
	c := newClient(t, s.url, client.WithCallTimeout(300*time.Millisecond), client.WithOnRetry(func(_ *client.Notification, err *client.Error, _ time.Duration) { told.Store(err) }))
	openStream(t, c)
	return c
}

// ending is a server whose streams end as it says, after they have taken a message.
type ending struct {
	*server
	why error
}

func (e *ending) SubmitStream(_ context.Context, call *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]) error {
	if err := call.Send(&notifydv1.SubmitStreamResponse{}); err != nil {
		return err
	}
	_, _ = call.Receive()
	return e.why
}

func TestEndOfAStreamFailsNobody(t *testing.T) {
	for name, test := range map[string]struct {
		why  error
		soon bool // it is opened again
	}{
		"cleanly":      {nil, true},
		"unavailable":  {failed(connect.CodeUnavailable, "this node is stopping", time.Second), true},
		"key revoked":  {failed(connect.CodeUnauthenticated, "the credential is not valid", 0), false},
		"one too long": {failed(connect.CodeResourceExhausted, "a message has more than 1000 bytes", 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &ending{&server{tries: map[string]int{}, taken: map[string]int{}}, test.why}
			mux := http.NewServeMux()
			mux.Handle(notifydv1connect.NewNotificationServiceHandler(s))
			listener := httptest.NewUnstartedServer(mux)
			listener.Config.Protocols = new(http.Protocols)
			listener.Config.Protocols.SetHTTP1(true)
			listener.Config.Protocols.SetUnencryptedHTTP2(true)
			listener.Start()
			t.Cleanup(listener.Close)
			c := newClient(t, listener.URL)
			openStream(t, c)
			for i := range 5 {
				if _, err := c.Submit(t.Context(), refund(i)); err != nil {
					t.Error(err)
				}
			}
			if !test.soon {
				return
			}
			openStream(t, c)
		})
	}
}

// Whoever is connected when the server is lost hears at last of an acceptance, each of one.
func TestServerIsLostInTheMiddle(t *testing.T) {
	const callers, each = 32, 40
	s := &server{streamed: true}
	c := s.start(t)
	address := s.listener.Listener.Addr().String()
	var done atomic.Int64
	var all sync.WaitGroup
	for w := range callers {
		all.Go(func() {
			for i := range each {
				n := refund(w*each + i)
				if i%4 == 0 {
					n = scan(w*each + i)
				}
				if _, err := c.Submit(t.Context(), n); err != nil {
					t.Errorf("%d: %v", w*each+i, err)
				}
				done.Add(1)
			}
		})
	}
	for restart := range 3 {
		scenario.Within(t, 20*time.Second, "some are through", func() bool { return done.Load() >= int64(callers*each*(restart+1)/5) })
		lost := s.listener
		lost.Listener.Close()
		lost.CloseClientConnections()
		again, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		s.listener = httptest.NewUnstartedServer(s.handler())
		s.listener.Listener.Close()
		s.listener.Listener, s.listener.Config.Protocols = again, lost.Config.Protocols
		s.listener.Start()
		t.Cleanup(s.listener.Close)
	}
	all.Wait()
	if len(s.taken) != callers*each {
		t.Errorf("%d of %d were taken", len(s.taken), callers*each)
	}
	openStream(t, c)
	if err := c.Close(t.Context()); err != nil { // a server waits for its streams
		t.Error(err)
	}
}

func TestCloseEndsTheStream(t *testing.T) {
	release := make(chan struct{})
	s := &server{streamed: true, call: func(context.Context, int, []*client.Notification) error { <-release; return nil }}
	c := s.start(t)
	answered := make(chan error, 2)
	for _, n := range []*client.Notification{refund(1), scan(2)} {
		go func() { _, err := c.Submit(t.Context(), n); answered <- err }()
	}
	eventually(t, "both are under way", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.requests == 2
	})
	closed := make(chan error, 1)
	go func() { closed <- c.Close(t.Context()) }()
	eventually(t, "nothing more is taken", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // it may be just before the close
		defer cancel()
		_, err := c.Submit(ctx, refund(3))
		return errors.Is(err, client.ErrClosed)
	})
	select {
	case err := <-closed:
		t.Fatalf("closed before the answers: %v", err)
	default:
	}
	close(release)
	for range 2 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil || c.Stats().Streams != 0 {
		t.Errorf("%v, %+v", err, c.Stats())
	}
}

func TestCloseWithoutPatienceOnAStream(t *testing.T) {
	s := &server{streamed: true, call: func(ctx context.Context, _ int, _ []*client.Notification) error { <-ctx.Done(); return ctx.Err() }}
	c := s.start(t)
	answered := make(chan error, 1)
	go func() { _, err := c.Submit(t.Context(), refund(1)); answered <- err }()
	eventually(t, "it is under way", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.requests == 1
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
	if err := <-answered; !errors.Is(err, client.ErrClosed) || !errors.Is(err, client.ErrUncertain) {
		t.Errorf("%v", err)
	}
}

func TestTraceparentTravelsWithTheSubmission(t *testing.T) {
	type traceKey struct{}
	got := make(chan string, 1)
	s := &tracing{&server{tries: map[string]int{}, taken: map[string]int{}}, got}
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(s))
	listener := httptest.NewUnstartedServer(mux)
	listener.Config.Protocols = new(http.Protocols)
	listener.Config.Protocols.SetUnencryptedHTTP2(true)
	listener.Start()
	t.Cleanup(listener.Close)
	c := newClient(t, listener.URL, client.WithRetryFor(0), client.WithTraceparent(func(ctx context.Context) string {
		trace, _ := ctx.Value(traceKey{}).(string)
		return trace
	}))
	openStream(t, c)
	if _, err := c.Submit(context.WithValue(t.Context(), traceKey{}, "00-1-2-01"), refund(1)); err == nil {
		t.Error("this server answers nothing")
	}
	if trace := <-got; trace != "00-1-2-01" {
		t.Errorf("%q", trace)
	}
}

type tracing struct {
	*server
	got chan<- string
}

func (s *tracing) SubmitStream(_ context.Context, call *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]) error {
	if err := call.Send(&notifydv1.SubmitStreamResponse{}); err != nil {
		return err
	}
	msg, err := call.Receive()
	if err == nil {
		s.got <- msg.Notifications[0].Traceparent
	}
	return err
}
