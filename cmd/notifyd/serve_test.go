package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// notifyd runs a command to its end.
func notifyd(t *testing.T, args ...string) (out string, exit int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, engineBinary.Path(), args...)
	said, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatalf("run notifyd %v: %v", args, err)
	}
	return string(said), cmd.ProcessState.ExitCode()
}

// operatorKey makes a key as the operator would, and the configuration that knows it.
func operatorKey(t *testing.T) (key, yaml string) {
	t.Helper()
	out, exit := notifyd(t, "keygen", "operator", "mei")
	if exit != 0 {
		t.Fatalf("keygen operator: %s", out)
	}
	return regexp.MustCompile(`no_\S+`).FindString(out), out[strings.Index(out, "callers:"):]
}

func writeConfig(t *testing.T, dir, content string) string {
	t.Helper()
	path := filepath.Join(dir, "notifyd.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// bearer calls with a key.
type bearer struct {
	key  string
	next http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.key)
	return b.next.RoundTrip(r)
}

// as is the same engine, called with a key; it has sources too.
func (w *world) as(key string) (*world, notifydv1connect.SourceServiceClient) {
	caller := &http.Client{Transport: bearer{key, http.DefaultTransport}}
	e := *w.Engine
	e.Notifications = notifydv1connect.NewNotificationServiceClient(caller, w.Intake)
	e.Merchants = notifydv1connect.NewMerchantServiceClient(caller, w.Intake)
	return &world{Engine: &e, t: w.t, ctx: w.ctx}, notifydv1connect.NewSourceServiceClient(caller, w.Intake)
}

func serve(t *testing.T, dataDir string, args ...string) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return &world{Engine: engineBinary.Serve(t, dataDir, args...), t: t, ctx: ctx}
}

// metric is the value of a metric without labels.
func metric(tb testing.TB, page, name string) float64 {
	tb.Helper()
	_, rest, _ := strings.Cut(page, "\n"+name+" ")
	text, _, _ := strings.Cut(rest, "\n")
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		tb.Fatalf("/metrics: %s: %v", name, err)
	}
	return value
}

// page gets a page of the admin listener.
func (w *world) page(path string) (status int, body string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, w.Admin+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// source registers a payment service and returns its API key.
func (w *world) source(sources notifydv1connect.SourceServiceClient, s *notifydv1.Source) string {
	w.t.Helper()
	if _, err := sources.PutSource(w.ctx, connect.NewRequest(&notifydv1.PutSourceRequest{Source: s})); err != nil {
		w.t.Fatalf("put source %s: %v", s.Id, err)
	}
	return w.sourceKey(sources, s.Id, notifydv1.SourceKeyKind_SOURCE_KEY_KIND_API_KEY)
}

func (w *world) sourceKey(sources notifydv1connect.SourceServiceClient, id string, kind notifydv1.SourceKeyKind) string {
	w.t.Helper()
	made, err := sources.CreateSourceKey(w.ctx, connect.NewRequest(&notifydv1.CreateSourceKeyRequest{SourceId: id, Kind: kind, Label: "test"}))
	if err != nil {
		w.t.Fatalf("create key of %s: %v", id, err)
	}
	return made.Msg.Secret
}

// signs submits through the Go client, with a key that is never sent.
func (w *world) signs(key string, n *notifydv1.Notification) {
	w.t.Helper()
	c, err := client.New(w.Intake, client.WithHMACKey(key))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := c.Close(w.ctx); err != nil {
			w.t.Error(err)
		}
	}()
	got, err := c.Submit(w.ctx, n)
	if err != nil {
		w.t.Fatalf("submit with a signature: %v", err)
	}
	w.until(got.Id, notifydv1.State_STATE_DELIVERED)
}

const onLoopback = `
drain_notice: 2s
egress: {allowed_networks: [127.0.0.0/8]}
`

// A node as a platform team would run it: nobody gets in without a key, a source does what it may, metrics and health
// answer, SIGHUP takes over new rules, SIGTERM drains in two steps, and the log says it all without a secret.
func TestServe(t *testing.T) {
	t.Parallel()
	dir := scenario.DataDir(t)
	key, operators := operatorKey(t)
	file := writeConfig(t, dir, onLoopback+operators)
	w := serve(t, dir, "--config="+file)
	m := scenario.NewMerchant(t)

	if _, err := w.trySubmit(draft("tea-house", "payout", "1")); code(err) != connect.CodeUnauthenticated {
		t.Errorf("without a key: %v", err)
	}
	operator, sources := w.as(key)
	operator.merchant("tea-house", m.URL+"?token=hush-hush", nil)
	operator.merchant("bakery", m.URL, nil)
	service, _ := w.as(operator.source(sources, &notifydv1.Source{Id: "pay-core", Merchants: []string{"tea-*"}}))

	id := service.submit(draft("tea-house", "payout", "1")).Id
	service.until(id, notifydv1.State_STATE_DELIVERED)
	if got := service.submit(draft("tea-house", "scan", "2")); got.State != notifydv1.State_STATE_DELIVERED || got.Rule == "" {
		t.Errorf("scan: %v", got)
	}
	service.signs(operator.sourceKey(sources, "pay-core", notifydv1.SourceKeyKind_SOURCE_KEY_KIND_HMAC), draft("tea-house", "payout", "signed"))
	if _, err := service.trySubmit(draft("bakery", "payout", "3")); code(err) != connect.CodePermissionDenied {
		t.Errorf("another merchant: %v", err)
	}

	if status, text := w.page("/readyz"); status != http.StatusOK || !strings.Contains(text, "postgres") {
		t.Errorf("/readyz: %d %s", status, text)
	}
	_, metrics := w.page("/metrics")
	for _, line := range []string{`notifyd_attempts_total{kind="send",outcome="delivered",reason="acknowledged",trigger="auto"} 3`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	scenario.Within(t, 10*time.Second, "a small heap is collected less often than Go would", func() bool {
		_, metrics := w.page("/metrics")
		return metric(t, metrics, "go_gc_gogc_percent") > 100 || metric(t, metrics, "go_memstats_next_gc_bytes") >= 60<<20
	})

	// SIGHUP: a new rule holds from now on; what needs a restart is named; a fault changes nothing.
	ruled := onLoopback + operators + "async: {in_flight: 5}\nrouter: {rules: [{name: teas-by-alipay, when: {merchants: [tea-house]}, then: {schedule: alipay}}]}\n"
	writeConfig(t, dir, ruled)
	w.Signal(t, syscall.SIGHUP)
	scenario.Within(t, 10*time.Second, "the reload is in the log", func() bool {
		return strings.Contains(w.Output(), "the configuration is reloaded")
	})
	if !strings.Contains(w.Output(), `"need_a_restart":["async.in_flight"]`) {
		t.Error("the log does not say what needs a restart")
	}
	if got := service.submit(draft("tea-house", "payout", "4")); got.Rule != "teas-by-alipay" {
		t.Errorf("after the reload rule %q decides", got.Rule)
	}
	writeConfig(t, dir, "router: {rulez: []}\n")
	w.Signal(t, syscall.SIGHUP)
	scenario.Within(t, 10*time.Second, "the fault is in the log", func() bool {
		return strings.Contains(w.Output(), "router.rulez: unknown key")
	})
	if got := service.submit(draft("tea-house", "payout", "5")); got.Rule != "teas-by-alipay" {
		t.Errorf("after a faulty reload rule %q decides", got.Rule)
	}

	// SIGTERM: first /readyz says that the node is going while calls are taken, then it drains.
	w.Signal(t, syscall.SIGTERM)
	scenario.Within(t, time.Second, "/readyz says that the node is going", func() bool {
		status, text := w.page("/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(text, "draining")
	})
	late := service.submit(draft("tea-house", "payout", "6")).Id
	select {
	case <-w.Exited():
	case <-time.After(30 * time.Second):
		t.Fatal("the node does not stop")
	}
	if m.Count()[late] != 1 {
		t.Errorf("what was accepted while going was sent %d times before the end", m.Count()[late])
	}
	checkLog(t, w.Output(), id)
}

// checkLog finds the wide line of a delivery, and no secret anywhere.
func checkLog(t *testing.T, log, id string) {
	t.Helper()
	for _, secret := range []string{"hush-hush", "whsec_", "nk_", "no_mei_"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	for line := range strings.Lines(log) {
		var said map[string]any
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Errorf("the log is not JSON: %s", line)
			continue
		}
		if said["msg"] != "attempt" || said["id"] != id {
			continue
		}
		for _, field := range []string{"time", "outcome", "reason", "status", "took", "attempt", "merchant_id", "state", "scene", "lane", "source", "request_id", "order_id", "url", "remote_addr", "since_accepted"} {
			if said[field] == nil || said[field] == "" {
				t.Errorf("the line of the attempt has no %s: %s", field, line)
			}
		}
		return
	}
	t.Errorf("no line of the attempt of %s", id)
}

// TLS on the intake: a source proves itself by its certificate, a new certificate is taken over by SIGHUP, and an expired
// one is not.
func TestServeOverTLS(t *testing.T) {
	t.Parallel()
	dir := scenario.DataDir(t)
	ca := scenario.NewCA(t, dir)
	certFile, keyFile := ca.Issue(t, "intake", nil)
	operator, operators := operatorKey(t)
	file := writeConfig(t, dir, fmt.Sprintf("%s%sintake: {tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}\n", onLoopback, operators, certFile, keyFile, ca.File))
	w := serve(t, dir, "--config="+file, "--set=drain_notice=0s")
	server := strings.Replace(w.Intake, "http:", "https:", 1)
	m := scenario.NewMerchant(t)

	roots := x509.NewCertPool()
	pem, err := os.ReadFile(ca.File)
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	with := func(key string, certs ...tls.Certificate) *world {
		transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: certs}, ForceAttemptHTTP2: true, DisableKeepAlives: true}
		caller := &http.Client{Transport: transport}
		if key != "" {
			caller.Transport = bearer{key, transport}
		}
		e := *w.Engine
		e.Notifications = notifydv1connect.NewNotificationServiceClient(caller, server, connect.WithGRPC())
		e.Merchants = notifydv1connect.NewMerchantServiceClient(caller, server)
		c := &world{Engine: &e, t: t, ctx: w.ctx}
		if key != "" {
			c.merchant("tea-house", m.URL, nil)
			c.source(notifydv1connect.NewSourceServiceClient(caller, server), &notifydv1.Source{Id: "pay-core", Merchants: []string{"*"}, Certificates: []string{"dns:pay-core.internal"}})
		}
		return c
	}
	with(operator)
	cert, key := ca.Issue(t, "pay-core", nil, "pay-core.internal")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := with("").trySubmit(draft("tea-house", "payout", "1")); code(err) != connect.CodeUnauthenticated {
		t.Errorf("without a certificate: %v", err)
	}
	service := with("", pair)
	service.until(service.submit(draft("tea-house", "payout", "1")).Id, notifydv1.State_STATE_DELIVERED)

	serial := func() string {
		conn, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}).DialContext(w.ctx, "tcp", strings.TrimPrefix(server, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	ca.Issue(t, "intake", nil)
	w.Signal(t, syscall.SIGHUP)
	scenario.Within(t, 10*time.Second, "the new certificate is shown", func() bool { return serial() != before })
	renewed := serial()
	ca.Issue(t, "intake", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	w.Signal(t, syscall.SIGHUP)
	scenario.Within(t, 10*time.Second, "the log names the expired certificate", func() bool { return strings.Contains(w.Output(), "expired on") })
	if serial() != renewed {
		t.Error("an expired certificate is taken over")
	}
	service.submit(draft("tea-house", "payout", "2"))
}

// A submission is one trace from its caller to the merchant, whose request carries it on when the operator wants that.
func TestTraced(t *testing.T) {
	t.Parallel()
	spans := make(chan []byte, 100)
	collector := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err == nil {
			spans <- body
		}
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = collector.Serve(l) }()
	t.Cleanup(func() { _ = collector.Close() })

	dir := scenario.DataDir(t)
	w := serve(t, dir, "--set=callers.required=false", "--set=drain_notice=0s", "--set=egress.allowed_networks=127.0.0.0/8",
		"--set=traces.endpoint=http://"+l.Addr().String()+"/v1/traces", "--set=traces.send_to_merchants=true")
	m := scenario.NewMerchant(t)
	w.merchant("tea-house", m.URL, nil)
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	req := connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft("tea-house", "payout", "1")})
	req.Header().Set("Traceparent", "00-"+traceID+"-00f067aa0ba902b7-01")
	res, err := w.Notifications.Submit(w.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	w.until(res.Msg.Id, notifydv1.State_STATE_DELIVERED)
	if got := m.Seen()[0].Header.Get("Traceparent"); !strings.HasPrefix(got, "00-"+traceID+"-") {
		t.Errorf("the merchant's request carries the trace %q", got)
	}
	w.Stop(t) // sends what is left
	var all strings.Builder
	for len(spans) > 0 {
		all.Write(<-spans)
	}
	for _, word := range []string{"notifyd.v1.NotificationService/Submit", "attempt", res.Msg.Id, "acknowledged"} {
		if !strings.Contains(all.String(), word) {
			t.Errorf("no span says %q", word)
		}
	}
}
