package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/client"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// server is a notifyd that remembers what it took and fails as its script says.
type server struct {
	notifydv1connect.UnimplementedNotificationServiceHandler
	url      string
	listener *httptest.Server

	streamed bool // whether clients find it with a stream open, or with none to be had

	// around plays faults of the network; request counts from 1.
	around func(request int, w http.ResponseWriter, r *http.Request, next http.Handler)
	// call may fail a whole call, or hold it up.
	call func(ctx context.Context, request int, ns []*client.Notification) error
	// item may fail one notification; try counts from 1 for each.
	item func(n *client.Notification, try int) error

	mu       sync.Mutex
	requests int
	alone    []string // request_ids of Submit
	batches  [][]string
	messages [][]string // of streams
	tries    map[string]int
	taken    map[string]int
}

// start serves until the test ends, and makes a client that is closed before.
func (s *server) start(tb testing.TB, opts ...client.Option) *client.Client {
	tb.Helper()
	s.tries, s.taken = map[string]int{}, map[string]int{}
	s.listener = httptest.NewUnstartedServer(s.handler())
	s.listener.Config.Protocols = new(http.Protocols)
	s.listener.Config.Protocols.SetHTTP1(true)
	s.listener.Config.Protocols.SetUnencryptedHTTP2(true)
	s.listener.Start()
	tb.Cleanup(s.listener.Close)
	s.url = s.listener.URL
	if !s.streamed {
		return newClient(tb, s.url, append([]client.Option{client.WithStreams(0)}, opts...)...)
	}
	c := newClient(tb, s.url, opts...)
	openStream(tb, c)
	return c
}

// openStream returns when a client has one.
func openStream(tb testing.TB, c *client.Client) {
	tb.Helper()
	scenario.Within(tb, 20*time.Second, "a stream is open", func() bool {
		c.OpenStreams()
		return c.Stats().Streams > 0
	})
}

// bothWays runs a test by calls and by a stream.
func bothWays(t *testing.T, test func(t *testing.T, streamed bool)) {
	t.Helper()
	for way, streamed := range map[string]bool{"calls": false, "stream": true} {
		t.Run(way, func(t *testing.T) { test(t, streamed) })
	}
}

func newClient(tb testing.TB, url string, opts ...client.Option) *client.Client {
	tb.Helper()
	opts = append([]client.Option{client.WithSource("billing"), client.WithRetryWaits(time.Millisecond, 20*time.Millisecond)}, opts...)
	c, err := client.New(url, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = c.Close(ctx) // tests that care look
	})
	return c
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(s))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == notifydv1connect.NotificationServiceSubmitStreamProcedure { // its messages count
			mux.ServeHTTP(w, r)
			return
		}
		request := s.next()
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, request))
		if s.around != nil {
			s.around(request, w, r, mux)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

type requestKey struct{}

func (s *server) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	return s.requests
}

func (s *server) SubmitStream(ctx context.Context, call *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]) error {
	if !s.streamed {
		return connect.NewError(connect.CodeUnimplemented, errors.New("an older notifyd"))
	}
	var mu sync.Mutex
	send := func(results ...*notifydv1.StreamedResult) error {
		mu.Lock()
		defer mu.Unlock()
		return call.Send(&notifydv1.SubmitStreamResponse{Results: results})
	}
	if err := send(); err != nil {
		return err
	}
	var working sync.WaitGroup
	defer working.Wait()
	for {
		msg, err := call.Receive()
		if err != nil {
			return nil
		}
		var ids []string
		var together []*notifydv1.StreamedNotification
		for _, item := range msg.Notifications {
			ids = append(ids, item.Notification.RequestId)
			if !item.AllowSync {
				together = append(together, item)
				continue
			}
			working.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, item.Wait.AsDuration())
				defer cancel()
				_ = send(s.streamedResults(ctx, item)...) // who is gone needs none
			})
		}
		s.mu.Lock()
		s.messages = append(s.messages, ids)
		s.mu.Unlock()
		if len(together) > 0 {
			working.Go(func() { _ = send(s.streamedResults(ctx, together...)...) })
		}
	}
}

func (s *server) streamedResults(ctx context.Context, items ...*notifydv1.StreamedNotification) []*notifydv1.StreamedResult {
	ns := make([]*client.Notification, len(items))
	for i, item := range items {
		ns[i] = item.Notification
	}
	fault := s.scripted(context.WithValue(ctx, requestKey{}, s.next()), ns)
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*notifydv1.StreamedResult, len(items))
	for i, item := range items {
		result, err := (*client.Result)(nil), fault
		if err == nil {
			result, err = s.accept(item.Notification)
		}
		answer := &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: result}}
		if err != nil {
			answer = &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Error{Error: itemError(err)}}
		}
		out[i] = &notifydv1.StreamedResult{Number: item.Number, Result: answer}
	}
	return out
}

func (s *server) scripted(ctx context.Context, ns []*client.Notification) error {
	if s.call == nil {
		return nil
	}
	request, _ := ctx.Value(requestKey{}).(int)
	return s.call(ctx, request, ns)
}

func (s *server) Submit(ctx context.Context, req *connect.Request[notifydv1.SubmitRequest]) (*connect.Response[notifydv1.SubmitResponse], error) {
	n := req.Msg.Notification
	if err := s.scripted(ctx, []*client.Notification{n}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = append(s.alone, n.RequestId)
	result, err := s.accept(n)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(result), nil
}

func (s *server) SubmitBatch(ctx context.Context, req *connect.Request[notifydv1.SubmitBatchRequest]) (*connect.Response[notifydv1.SubmitBatchResponse], error) {
	if err := s.scripted(ctx, req.Msg.Notifications); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &notifydv1.SubmitBatchResponse{}
	var ids []string
	for _, n := range req.Msg.Notifications {
		ids = append(ids, n.RequestId)
		result, err := s.accept(n)
		if err != nil {
			out.Results = append(out.Results, &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Error{Error: itemError(err)}})
			continue
		}
		out.Results = append(out.Results, &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: result}})
	}
	s.batches = append(s.batches, ids)
	return connect.NewResponse(out), nil
}

func (s *server) accept(n *client.Notification) (*client.Result, error) {
	s.tries[n.RequestId]++
	if s.item != nil {
		if err := s.item(n, s.tries[n.RequestId]); err != nil {
			return nil, err
		}
	}
	s.taken[n.RequestId]++
	return &client.Result{Id: "ntf_" + n.Source + "_" + n.RequestId, State: notifydv1.State_STATE_ACCEPTED, Duplicate: s.taken[n.RequestId] > 1}, nil
}

// seen is what came so far.
func (s *server) seen() (alone, batches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.alone), len(s.batches)
}

func itemError(err error) *notifydv1.ItemError {
	if errors.Is(err, context.DeadlineExceeded) {
		err = connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	e := client.ErrorOf(err)
	out := &notifydv1.ItemError{Code: e.Code.String(), Message: e.Message, Violations: e.Violations}
	if e.RetryAfter > 0 {
		out.RetryAfter = durationpb.New(e.RetryAfter)
	}
	return out
}

// failed is an error as the engine makes it.
func failed(code connect.Code, message string, retryAfter time.Duration, violations ...*client.Violation) error {
	err := connect.NewError(code, errors.New(message))
	if retryAfter > 0 {
		if d, derr := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}); derr == nil {
			err.AddDetail(d)
		}
	}
	if len(violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		if d, derr := connect.NewErrorDetail(bad); derr == nil {
			err.AddDetail(d)
		}
	}
	return err
}

// reset breaks the connection after the request was read. done: after it was worked on too.
func reset(w http.ResponseWriter, r *http.Request, next http.Handler, done bool) {
	if done {
		next.ServeHTTP(httptest.NewRecorder(), r)
	} else {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

func refund(i int) *client.Notification {
	return &client.Notification{RequestId: fmt.Sprintf("r%d", i), MerchantId: "shop-7", Scene: "refund", Payload: `{"paid":true}`}
}

func scan(i int) *client.Notification {
	n := refund(i)
	n.Scene = "scan"
	return n
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		case <-time.Tick(time.Millisecond):
		}
	}
}

// errorOf fails the test when there is none.
func errorOf(t *testing.T, err error) *client.Error {
	t.Helper()
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		t.Fatalf("%v (%T), want a *client.Error", err, err)
	}
	return e
}

// inMemory accepts everything.
func inMemory() http.Handler {
	return (&server{tries: map[string]int{}, taken: map[string]int{}}).handler()
}
