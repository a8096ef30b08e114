package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// fakeIntake answers as its functions say.
type fakeIntake struct {
	notifydv1connect.UnimplementedNotificationServiceHandler
	// item answers one notification; nil: accepted, or a duplicate when it was accepted before.
	item func(n *notifydv1.Notification) *notifydv1.SubmitResult
	// call may fail a whole batch.
	call  func(ctx context.Context, number int) error
	prove func(stream *connect.ServerStream[notifydv1.ProveResponse], req *notifydv1.ProveRequest) error

	mu    sync.Mutex
	calls int
	taken map[string]int
}

// serveFake starts it and returns its URL.
func serveFake(t *testing.T, f *fakeIntake) string {
	t.Helper()
	f.taken = map[string]int{}
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(f))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func (f *fakeIntake) SubmitBatch(ctx context.Context, req *connect.Request[notifydv1.SubmitBatchRequest]) (*connect.Response[notifydv1.SubmitBatchResponse], error) {
	f.mu.Lock()
	f.calls++
	number := f.calls
	f.mu.Unlock()
	if f.call != nil {
		if err := f.call(ctx, number); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &notifydv1.SubmitBatchResponse{}
	for _, n := range req.Msg.Notifications {
		out.Results = append(out.Results, f.answer(n))
	}
	return connect.NewResponse(out), nil
}

func (f *fakeIntake) answer(n *notifydv1.Notification) *notifydv1.SubmitResult {
	if f.item != nil {
		if r := f.item(n); r != nil {
			return r
		}
	}
	key := n.Source + "/" + n.RequestId
	f.taken[key]++
	return &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: &notifydv1.SubmitResponse{Duplicate: f.taken[key] > 1}}}
}

func (f *fakeIntake) Prove(_ context.Context, req *connect.Request[notifydv1.ProveRequest], stream *connect.ServerStream[notifydv1.ProveResponse]) error {
	return f.prove(stream, req.Msg)
}

func itemFailed(code connect.Code, message string, retryAfter time.Duration) *notifydv1.SubmitResult {
	e := &notifydv1.ItemError{Code: code.String(), Message: message}
	if retryAfter > 0 {
		e.RetryAfter = durationpb.New(retryAfter)
	}
	return &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Error{Error: e}}
}

func callFailed(t *testing.T, code connect.Code, message string, retryAfter time.Duration) error {
	t.Helper()
	err := connect.NewError(code, errors.New(message))
	detail, derr := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	if derr != nil {
		t.Error(derr)
	}
	err.AddDetail(detail)
	return err
}

// buffer is an output that many goroutines may write and read.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// runner is one run of a command.
type runner struct {
	in       io.Reader
	out, err buffer
}

type command interface {
	Run(ctx context.Context, s *streams) error
}

// exec returns the exit code, as main would end with it.
func (r *runner) exec(ctx context.Context, c command) int {
	if r.in == nil {
		r.in = strings.NewReader("")
	}
	err := c.Run(ctx, &streams{In: r.in, Out: &r.out, Err: &r.err})
	var coded *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		if coded.err != nil {
			_, _ = r.err.Write([]byte("notifyd: " + coded.err.Error() + "\n"))
		}
		return coded.code
	}
	_, _ = r.err.Write([]byte("notifyd: " + err.Error() + "\n"))
	return 1
}

// wants checks that a text holds each part.
func wants(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, text)
		}
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		case <-time.Tick(5 * time.Millisecond):
		}
	}
}

// closedPort is an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	return url
}

func TestRemoteReadsServerURLs(t *testing.T) {
	for server, want := range map[string]string{
		"http://127.0.0.1:8700":      "http://127.0.0.1:8700",
		"http://127.0.0.1:8700/":     "http://127.0.0.1:8700",
		"127.0.0.1:8700":             "http://127.0.0.1:8700",
		"https://notify.example/api": "https://notify.example/api",
		"ftp://127.0.0.1":            "",
		"http://":                    "",
		"http://a b":                 "",
	} {
		r, err := newRemote(server, 1)
		if want == "" {
			var coded *exitError
			if !errors.As(err, &coded) || coded.ExitCode() != exitUsage {
				t.Errorf("%q: %v, want a usage error", server, err)
			}
			continue
		}
		if err != nil || r.url != want {
			t.Errorf("%q: %v, %v, want %q", server, r, err, want)
		}
	}
}

func TestPrintableKeepsTheTerminalSafe(t *testing.T) {
	if got := printable("ok 登录\x1b[2J\r\x07\n"); got != "ok 登录\uFFFD[2J\uFFFD\uFFFD\n" {
		t.Errorf("%q", got)
	}
}
