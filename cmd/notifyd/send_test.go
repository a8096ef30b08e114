package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	"notifyd/internal/demo"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

func sendTo(url string) *sendCmd {
	return &sendCmd{connection: connection{Server: url}, Batch: 100, Concurrency: 4, RetryFor: 30 * time.Second}
}

func someLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"source":"t","requestId":"r%d","merchantId":"m","scene":"scan","payload":"{}"}`+"\n", i+1)
	}
	return b.String()
}

func TestSendTakesTheExamples(t *testing.T) {
	const file = "../../examples/notifications.jsonl"
	merchants := map[string]demo.Merchant{}
	for _, m := range demo.New(demo.Config{}).Merchants() {
		merchants[m.ID] = m
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		var p notifydv1.Notification
		if err := protojson.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		if err := protovalidate.Validate(&p); err != nil {
			t.Errorf("line %d: %v", n, err)
		}
		if m, ok := merchants[p.MerchantId]; !ok || !slices.Contains(m.Scenes, p.Scene) {
			t.Errorf("line %d: the demo plays no %s with scene %s", n, p.MerchantId, p.Scene)
		}
		if p.Payload != "" && !json.Valid([]byte(p.Payload)) {
			t.Errorf("line %d: the payload is not JSON", n)
		}
	}
	url := serveFake(t, &fakeIntake{})
	c := sendTo(url)
	c.File = file
	for _, want := range []string{fmt.Sprintf(": %d accepted, 0 duplicates,", n), fmt.Sprintf(": 0 accepted, %d duplicates,", n)} {
		var r runner
		if code := r.exec(t.Context(), c); code != 0 {
			t.Errorf("exit code %d: %s", code, r.err.String())
		}
		wants(t, "the summary", r.out.String(), want)
	}
}

func TestSendReportsBadLinesAndGoesOn(t *testing.T) {
	fake := &fakeIntake{item: func(n *notifydv1.Notification) *notifydv1.SubmitResult {
		switch n.MerchantId {
		case "nobody":
			return itemFailed(connect.CodeNotFound, `merchant "nobody": not found`, 0)
		case "bad":
			r := itemFailed(connect.CodeInvalidArgument, "notification.amount.currency: value does not match (and 1 more)", 0)
			r.GetError().Violations = []*notifydv1.Violation{
				{Field: "notification.amount.currency", Description: "value does not match"}, {Field: "notification.scene", Description: "value is required"},
			}
			return r
		}
		return nil
	}}
	url := serveFake(t, fake)
	input := "\xEF\xBB\xBF" + `{"requestId":"r1","merchantId":"m"}` + "\r\n" +
		"{not json}\n\n" +
		`{"requestId":"r4","merchant":"m"}` + "\n" +
		`{"requestId":"r5","merchantId":"` + strings.Repeat("x", maxLine) + `"}` + "\n" +
		`{"requestId":"r6","merchantId":"bad"}` + "\n" +
		`{"requestId":"r7","merchantId":"nobody"}` + "\n" +
		`{"source":"own","requestId":"r8","merchantId":"m"}`
	c := sendTo(url)
	c.Source = "standard"
	r := runner{in: strings.NewReader(input)}
	if code := r.exec(t.Context(), c); code != exitSome {
		t.Errorf("exit code %d", code)
	}
	wants(t, "standard error", r.err.String(),
		"line 2: json: ", "line 4: json: unknown field \"merchant\" (column 19)\n", "line 5: json: is longer than 1 MiB\n",
		"line 6: amount.currency: value does not match\nline 6: scene: value is required\n", `line 7: not_found: merchant "nobody": not found`)
	wants(t, "the summary", r.out.String(), "7 lines in", ": 2 accepted, 0 duplicates, 5 refused, 0 failed;")
	if fake.taken["standard/r1"] != 1 || fake.taken["own/r8"] != 1 {
		t.Errorf("taken: %v", fake.taken)
	}
}

func TestSendTriesAgainWhatTheServerCannotTakeNow(t *testing.T) {
	fake := &fakeIntake{}
	fake.call = func(_ context.Context, number int) error {
		if number <= 2 {
			return callFailed(t, []connect.Code{connect.CodeUnavailable, connect.CodeResourceExhausted}[number-1], "not now", 10*time.Millisecond)
		}
		return nil
	}
	tries := map[string]int{}
	fake.item = func(n *notifydv1.Notification) *notifydv1.SubmitResult {
		if tries[n.RequestId]++; tries[n.RequestId] == 1 && strings.HasSuffix(n.RequestId, "7") {
			return itemFailed(connect.CodeResourceExhausted, "queue of the merchant is full", 300*time.Millisecond)
		}
		return nil
	}
	c := sendTo(serveFake(t, fake))
	c.Batch = 10
	r := runner{in: strings.NewReader(someLines(100))}
	began := time.Now()
	if code := r.exec(t.Context(), c); code != 0 {
		t.Errorf("exit code %d: %s", code, r.err.String())
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("took %v: the server's RetryInfo was not honoured", took)
	}
	wants(t, "the summary", r.out.String(), ": 100 accepted, 0 duplicates, 0 refused, 0 failed;")
	if len(fake.taken) != 100 {
		t.Errorf("%d were taken", len(fake.taken))
	}
}

func TestSendGivesUpVisibly(t *testing.T) {
	fake := &fakeIntake{item: func(n *notifydv1.Notification) *notifydv1.SubmitResult {
		if n.RequestId == "r2" {
			return itemFailed(connect.CodeResourceExhausted, "queue of the merchant is full", time.Millisecond)
		}
		return nil
	}}
	c := sendTo(serveFake(t, fake))
	c.RetryFor = 300 * time.Millisecond
	r := runner{in: strings.NewReader(someLines(3))}
	if code := r.exec(t.Context(), c); code != exitSome {
		t.Errorf("exit code %d", code)
	}
	wants(t, "standard error", r.err.String(), "line 2: resource_exhausted: queue of the merchant is full (given up after 300ms)")
	wants(t, "the summary", r.out.String(), ": 2 accepted, 0 duplicates, 0 refused, 1 failed;")
}

func TestSendWithoutAServer(t *testing.T) {
	t.Run("nothing listens", func(t *testing.T) {
		r := runner{in: strings.NewReader(someLines(500))}
		began := time.Now()
		if code := r.exec(t.Context(), sendTo(closedPort(t))); code != exitUnreachable || time.Since(began) > 5*time.Second {
			t.Errorf("exit code %d after %v", code, time.Since(began))
		}
		wants(t, "standard error", r.err.String(), "cannot reach http://127.0.0.1:", "refused", "does notifyd run there?")
	})
	t.Run("something else listens", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		r := runner{in: strings.NewReader(someLines(1))}
		if code := r.exec(t.Context(), sendTo(server.URL)); code != exitUnreachable {
			t.Errorf("exit code %d: %s", code, r.err.String())
		}
	})
	t.Run("it dies on the way", func(t *testing.T) {
		fake := &fakeIntake{taken: map[string]int{}}
		mux := http.NewServeMux()
		mux.Handle(notifydv1connect.NewNotificationServiceHandler(fake))
		server := httptest.NewServer(mux)
		in, feed := io.Pipe()
		c := sendTo(server.URL)
		c.Batch, c.Concurrency, c.RetryFor = 1, 1, 300*time.Millisecond
		r := runner{in: in}
		code := make(chan int, 1)
		go func() { code <- r.exec(t.Context(), c) }()
		_, _ = io.WriteString(feed, someLines(1))
		eventually(t, "the first is taken", func() bool { fake.mu.Lock(); defer fake.mu.Unlock(); return len(fake.taken) == 1 })
		server.Close() // answers what is under way
		_, _ = io.WriteString(feed, someLines(2))
		if got := <-code; got != exitUnreachable {
			t.Errorf("exit code %d", got)
		}
		_ = feed.Close()
		wants(t, "the report", r.out.String()+r.err.String(), ": 1 accepted,", "given up after 300ms", "cannot reach")
	})
}

func TestSendStopsForWhoIsNotLetIn(t *testing.T) {
	fake := &fakeIntake{call: func(context.Context, int) error {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("no key"))
	}}
	r := runner{in: strings.NewReader(someLines(1000))}
	c := sendTo(serveFake(t, fake))
	c.Batch, c.Concurrency = 10, 2
	if code := r.exec(t.Context(), c); code != exitSome || fake.calls > 4 {
		t.Errorf("exit code %d after %d calls", code, fake.calls)
	}
	wants(t, "standard error", r.err.String(), "unauthenticated: no key", "stopped early")
}

func TestSendInterruptedCountsTheCallsUnderWay(t *testing.T) {
	var stalled atomic.Bool
	release := make(chan struct{})
	fake := &fakeIntake{call: func(context.Context, int) error {
		stalled.Store(true)
		<-release
		return nil
	}}
	c := sendTo(serveFake(t, fake))
	c.Batch, c.Concurrency = 5, 1
	ctx, cancel := context.WithCancel(t.Context())
	r := runner{in: strings.NewReader(someLines(100))}
	code := make(chan int, 1)
	go func() { code <- r.exec(ctx, c) }()
	eventually(t, "a call is under way", stalled.Load)
	cancel()
	close(release)
	if got := <-code; got != exitSome {
		t.Errorf("exit code %d", got)
	}
	wants(t, "the report", r.out.String()+r.err.String(), ": 5 accepted, 0 duplicates, 0 refused, 0 failed", "stopped early", "interrupted")
}

func TestSendDoesNotWaitForAFullBatch(t *testing.T) {
	fake := &fakeIntake{}
	url := serveFake(t, fake)
	in, feed := io.Pipe()
	r := runner{in: in}
	code := make(chan int, 1)
	go func() { code <- r.exec(t.Context(), sendTo(url)) }()
	_, _ = io.WriteString(feed, someLines(1))
	eventually(t, "it is taken while the input is open", func() bool { fake.mu.Lock(); defer fake.mu.Unlock(); return len(fake.taken) == 1 })
	_ = feed.Close()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d", got)
	}
}

func TestSendAsJSON(t *testing.T) {
	fake := &fakeIntake{item: func(n *notifydv1.Notification) *notifydv1.SubmitResult {
		if n.RequestId == "r2" {
			return itemFailed(connect.CodeAlreadyExists, "was submitted before with other content", 0)
		}
		return nil
	}}
	c := sendTo(serveFake(t, fake))
	c.JSON = true
	r := runner{in: strings.NewReader(someLines(3))}
	if code := r.exec(t.Context(), c); code != exitSome {
		t.Errorf("exit code %d", code)
	}
	var kinds []string
	for line := range strings.Lines(r.out.String()) {
		var got struct {
			Type, Code              string
			Line, Accepted, Refused int
			Complete                bool
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, got.Type)
		if got.Type == "error" && (got.Line != 2 || got.Code != "already_exists") || got.Type == "summary" && (got.Accepted != 2 || got.Refused != 1 || !got.Complete) {
			t.Errorf("%s", line)
		}
	}
	if !slices.Equal(kinds, []string{"error", "summary"}) || r.err.String() != "" {
		t.Errorf("printed %v, and %q", kinds, r.err.String())
	}
}

func TestSendTakesEachLineOnce(t *testing.T) {
	fake := &fakeIntake{}
	url := serveFake(t, fake)
	file := filepath.Join(t.TempDir(), "many.jsonl")
	if err := os.WriteFile(file, []byte(someLines(20_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := sendTo(url)
	c.File, c.Concurrency, c.Batch, c.Quiet = file, 8, 500, true
	var r runner
	if code := r.exec(t.Context(), c); code != 0 {
		t.Errorf("exit code %d: %s", code, r.err.String())
	}
	if len(fake.taken) != 20_000 || r.out.String()+r.err.String() != "" {
		t.Errorf("%d were taken; printed %q", len(fake.taken), r.out.String()+r.err.String())
	}
	for key, times := range fake.taken {
		if times != 1 {
			t.Errorf("%s was taken %d times", key, times)
		}
	}
}

// Over TLS, with files and keys as an operator gives them.
func TestSendProvesItsCaller(t *testing.T) {
	fake := &fakeIntake{taken: map[string]int{}}
	var heard atomic.Value
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(fake))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard.Store(r.Header.Get("Authorization"))
		mux.ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	ca, cert, key := pemFiles(t, server)
	send := func(env map[string]string, args ...string) (int, string) {
		for _, name := range []string{"NOTIFYD_API_KEY", "NOTIFYD_HMAC_KEY"} {
			t.Setenv(name, env[name])
		}
		var out, errs buffer
		code := run(t.Context(), append([]string{"send", "--server", server.URL, "--retry-for", "0s"}, args...),
			&streams{In: strings.NewReader(someLines(1)), Out: &out, Err: &errs})
		return code, out.String() + errs.String()
	}
	files := []string{"--ca-file", ca, "--cert-file", cert, "--key-file", key}
	for name, test := range map[string]struct {
		env  map[string]string
		args []string
		want string
	}{
		"API key":                 {args: []string{"--api-key", anAPIKey}, want: "Bearer " + anAPIKey},
		"HMAC key":                {args: []string{"--hmac-key", anHMACKey}, want: "NOTIFYD-HMAC-SHA256 key=abcdefghijklmnop,timestamp="},
		"API key by environment":  {env: map[string]string{"NOTIFYD_API_KEY": anAPIKey}, want: "Bearer " + anAPIKey},
		"HMAC key by environment": {env: map[string]string{"NOTIFYD_HMAC_KEY": anHMACKey}, want: "NOTIFYD-HMAC-SHA256 key="},
	} {
		code, said := send(test.env, append(test.args, files...)...)
		if got, _ := heard.Load().(string); code != 0 || !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: exit code %d, authorization %q: %s", name, code, got, said)
		}
	}
	for name, args := range map[string][]string{"server not trusted": nil, "no client certificate": {"--ca-file", ca}} {
		code, said := send(nil, append(args, "--api-key", anAPIKey)...)
		if code != exitUnreachable || strings.Contains(said, anAPIKey) {
			t.Errorf("%s: exit code %d: %s", name, code, said)
		}
		wants(t, name, said, "cannot reach https://")
	}
	code, said := send(nil, "--api-key", anHMACKey)
	if code != exitUsage || strings.Contains(said, anHMACKey) {
		t.Errorf("wrong kind of key: exit code %d: %s", code, said)
	}
}

// pemFiles are the server's own certificate, as a root, and a client's certificate with its key: the same.
func pemFiles(t *testing.T, server *httptest.Server) (ca, cert, key string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert = write("cert.pem", "CERTIFICATE", server.Certificate().Raw)
	return cert, cert, write("key.pem", "PRIVATE KEY", der)
}

func TestSendUsage(t *testing.T) {
	for name, change := range map[string]func(*sendCmd){
		"batch":       func(c *sendCmd) { c.Batch = 1001 },
		"concurrency": func(c *sendCmd) { c.Concurrency = 0 },
		"retry":       func(c *sendCmd) { c.RetryFor = -time.Second },
		"server":      func(c *sendCmd) { c.Server = "ftp://x" },
		"key":         func(c *sendCmd) { c.APIKey = "secret" },
		"file":        func(c *sendCmd) { c.File = "/no/such/file" },
		"folder":      func(c *sendCmd) { c.File = t.TempDir() },
	} {
		c := sendTo("http://127.0.0.1:1")
		change(c)
		var r runner
		if code := r.exec(t.Context(), c); code != exitUsage || r.err.String() == "" {
			t.Errorf("%s: exit code %d: %s", name, code, r.err.String())
		}
	}
}
