package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/client"
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
		r, err := connection{Server: server}.remote()
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

// Keys as the engine makes them, of nobody.
const (
	anAPIKey      = "nk_abcdefghijklmnop_abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrsa"
	anHMACKey     = "nh_abcdefghijklmnop_abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrsa"
	anOperatorKey = "no_mei_abcdefghijklmnopqrstuvwxyz"
)

func TestConnectionFlags(t *testing.T) {
	folder := t.TempDir()
	noPEM := filepath.Join(folder, "no.pem")
	if err := os.WriteFile(noPEM, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		connection connection
		opts       []client.Option
		want       string
	}{
		"both keys":            {connection{Server: "https://h"}, callerKeys{APIKey: anAPIKey, HMACKey: anHMACKey}.options(), "--hmac-key: is given together with --api-key"},
		"wrong kind":           {connection{Server: "https://h"}, callerKeys{HMACKey: anAPIKey}.options(), "--hmac-key: want a key that begins with nh_"},
		"typing error":         {connection{Server: "https://h"}, callerKeys{APIKey: anAPIKey + "x"}.options(), "--api-key: parse key: want nk_"},
		"no operator":          {connection{Server: "https://h"}, operatorFlag{anAPIKey}.options(), "--operator-key: want an operator's key"},
		"certificates on http": {connection{Server: "http://u:hidden@h", CAFile: noPEM}, nil, "certificates go with https"},
		"no roots":             {connection{Server: "https://h", CAFile: noPEM}, nil, "--ca-file: " + noPEM + ": holds no certificate"},
		"no such file":         {connection{Server: "https://h", CAFile: "/no/such/file"}, nil, "--ca-file: open /no/such/file"},
		"certificate alone":    {connection{Server: "https://h", CertFile: noPEM}, nil, "goes with --key-file"},
		"no certificate":       {connection{Server: "https://h", CertFile: noPEM, KeyFile: noPEM}, nil, "--cert-file " + noPEM},
		"password in the URL":  {connection{Server: "http://u:hidden@h"}, nil, "--server: "},
	} {
		_, err := test.connection.remote(test.opts...)
		var coded *exitError
		if !errors.As(err, &coded) || coded.ExitCode() != exitUsage || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want a usage error with %q", name, err, test.want)
			continue
		}
		for _, secret := range []string{anAPIKey, anHMACKey, "hidden"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v holds a secret", name, err)
			}
		}
	}
}

func TestRemoteProvesTheOperator(t *testing.T) {
	heard := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { heard <- r.Header.Get("Authorization") }))
	defer server.Close()
	to, err := connection{Server: server.URL}.remote(operatorFlag{anOperatorKey}.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer to.close()
	stream, err := to.notifications.Prove(t.Context(), connect.NewRequest(&notifydv1.ProveRequest{}))
	if err == nil {
		_ = stream.Close()
	}
	if got := <-heard; got != "Bearer "+anOperatorKey {
		t.Errorf("authorization: %q", got)
	}
}

func TestPrintableKeepsTheTerminalSafe(t *testing.T) {
	if got := printable("ok 登录\x1b[2J\r\x07\n"); got != "ok 登录\uFFFD[2J\uFFFD\uFFFD\n" {
		t.Errorf("%q", got)
	}
}
