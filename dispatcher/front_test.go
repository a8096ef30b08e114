package dispatcher

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/router"
	"notifyd/source"
)

// front is a dispatcher behind real sockets, with who calls before it. Its merchants m and shop-1 keep a row of whatever
// is accepted, so that everything shows at once.
type front struct {
	*Dispatcher
	memory  *ledger.Memory
	callers *Callers
	lines   *observer.ObservedLogs
	clock   *handClock
	handler http.Handler
	url     string
}

// handClock is a time that tests move.
type handClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *handClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// failingSources is a store of sources that can be told to fail.
type failingSources struct {
	Sources
	fail atomic.Bool
}

func (s *failingSources) SourcesSince(ctx context.Context, version int64) ([]*source.Source, error) {
	if s.fail.Load() {
		return nil, errDown
	}
	return s.Sources.SourcesSince(ctx, version)
}

func newFront(t *testing.T, cfg CallersConfig) *front {
	t.Helper()
	clock := &handClock{at: time.Now().UTC().Truncate(time.Microsecond)}
	memory := ledger.NewMemory(ledger.Config{Now: clock.now})
	t.Cleanup(memory.Close)
	return newNode(t, cfg, memory, clock)
}

// newNode is a node of its own on a ledger that others may use too.
func newNode(t *testing.T, cfg CallersConfig, memory *ledger.Memory, clock *handClock) *front {
	t.Helper()
	core, lines := observer.New(zap.DebugLevel)
	f := &front{memory: memory, clock: clock, lines: lines}
	routes, err := router.New(router.Config{}, router.Known{})
	must(t, err)
	f.Dispatcher, err = New(DefaultConfig(), Parts{
		Ledger: memory, Store: memory, Merchants: merchant.NewRegistry(), Sources: source.NewRegistry(), SourceStore: memory, AccessStore: memory, KeyStore: memory, Router: routes,
		URLs: anyURL{}, Delay: &fakeDelay{log: &journal{}}, Hand: hand.NewTable(), Places: fakePlaces{}, Observer: Observers{}, Log: zap.New(core), Now: clock.now,
	})
	must(t, err)
	f.Connect(&fakeAsync{log: &journal{}}, nil)
	for _, id := range []string{"m", "shop-1"} {
		_, err := memory.PutMerchant(t.Context(), &merchant.Merchant{ID: id, NotifyURL: "https://m.test/notify", Persist: notification.PersistLedger}, nil)
		must(t, err)
	}
	must(t, f.LearnMerchants(t.Context()))
	f.callers, err = NewCallers(cfg, f.sources, zap.New(core), clock.now)
	must(t, err)
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(f.Dispatcher))
	mux.Handle(notifydv1connect.NewMerchantServiceHandler(NewMerchantService(f.Dispatcher, nil, nil)))
	mux.Handle(notifydv1connect.NewSourceServiceHandler(NewSourceService(f.Dispatcher)))
	mux.Handle(notifydv1connect.NewAccessServiceHandler(NewAccessService(f.Dispatcher)))
	mux.Handle(notifydv1connect.NewKeyServiceHandler(NewKeyService(f.Dispatcher, fakeMasterKeys{})))
	mux.Handle(grpcreflect.NewHandlerV1(grpcreflect.NewStaticReflector(notifydv1connect.NotificationServiceName)))
	f.handler = f.callers.Authenticate(mux)
	server := httptest.NewUnstartedServer(f.handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// prover puts a credential on a request.
type prover func(req *http.Request) error

func nobody(*http.Request) error { return nil }

func header(values ...string) prover {
	return func(req *http.Request) error {
		req.Header["Authorization"] = values
		return nil
	}
}

func bearer(key string) prover { return header("Bearer " + key) }

func signed(secret string, at func() time.Time) prover {
	return func(req *http.Request) error {
		key, err := source.ParseSecret(secret)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return err
		}
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		value, err := key.SignRequest(req.Method, req.URL.EscapedPath(), body, at())
		req.Header.Set("Authorization", value)
		return err
	}
}

type provingTransport struct {
	base  *http.Transport
	prove prover
}

func (p provingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if err := p.prove(req); err != nil {
		return nil, err
	}
	return p.base.RoundTrip(req)
}

// client calls a node in one protocol, with one credential.
type client struct {
	notifications notifydv1connect.NotificationServiceClient
	sources       notifydv1connect.SourceServiceClient
	access        notifydv1connect.AccessServiceClient
	keys          notifydv1connect.KeyServiceClient
	merchants     notifydv1connect.MerchantServiceClient
	http          *http.Client
}

var protocols = map[string][]connect.ClientOption{
	"connect json": {connect.WithProtoJSON()}, "connect gzip": {connect.WithSendGzip()}, "grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
}

func (f *front) client(t *testing.T, prove prover, opts ...connect.ClientOption) client {
	t.Helper()
	base := &http.Transport{Protocols: new(http.Protocols)}
	base.Protocols.SetUnencryptedHTTP2(true)
	return newClient(t, f.url, base, prove, opts...)
}

func newClient(t *testing.T, url string, base *http.Transport, prove prover, opts ...connect.ClientOption) client {
	t.Helper()
	t.Cleanup(base.CloseIdleConnections)
	h := &http.Client{Transport: provingTransport{base, prove}}
	return client{
		notifications: notifydv1connect.NewNotificationServiceClient(h, url, opts...),
		sources:       notifydv1connect.NewSourceServiceClient(h, url, opts...),
		access:        notifydv1connect.NewAccessServiceClient(h, url, opts...),
		keys:          notifydv1connect.NewKeyServiceClient(h, url, opts...),
		merchants:     notifydv1connect.NewMerchantServiceClient(h, url, opts...),
		http:          h,
	}
}

func (c client) submit(t *testing.T, p *notifydv1.Notification) (*notifydv1.SubmitResponse, error) {
	t.Helper()
	return got(c.notifications.Submit(t.Context(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: p})))
}

func got[T any](res *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// put registers a source directly.
func (f *front) put(t *testing.T, s *source.Source) {
	t.Helper()
	_, err := f.memory.PutSource(t.Context(), s, nil)
	must(t, err)
	must(t, f.LearnSources(t.Context()))
}

// key registers one more key of a source and returns it whole.
func (f *front) key(t *testing.T, sourceID string, kind source.Kind, change ...func(*source.Key)) source.Secret {
	t.Helper()
	secret := source.NewSecret(kind)
	k := source.Key{ID: secret.KeyID, Kind: kind, CreatedAt: f.clock.now()}
	for _, c := range change {
		c(&k)
	}
	f.put(t, f.sources.Get(sourceID).WithKey(k, secret.Kept()))
	return secret
}

// pay registers the source pay, which may submit for m and shop-…, with a key of each kind.
func (f *front) pay(t *testing.T) (api, signing source.Secret) {
	t.Helper()
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m", "shop-*"}})
	return f.key(t, "pay", source.KindAPIKey), f.key(t, "pay", source.KindHMAC)
}

// alice is a configuration with one operator, alice, and her key.
func alice(t *testing.T) (CallersConfig, string) {
	t.Helper()
	key, hash, err := NewOperatorKey("alice")
	must(t, err)
	return CallersConfig{Required: true, Operators: []Operator{{Name: "alice", KeySHA256: hash}}}, key
}

// final makes a payment's status the order's last one.
func final(p *notifydv1.Notification) { p.Terminal = true }

func from(id string) func(*notifydv1.Notification) {
	return func(p *notifydv1.Notification) { p.Source = id }
}

func to(id string) func(*notifydv1.Notification) {
	return func(p *notifydv1.Notification) { p.MerchantId = id }
}

// wantError checks code and message, and that the violated field is named when one is given.
func wantError(t *testing.T, what string, err error, code connect.Code, message, field string) {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Errorf("%s: got %v, want %s", what, err, code)
		return
	}
	if ce.Code() != code || !strings.Contains(ce.Message(), message) {
		t.Errorf("%s:\n got %v\nwant %s: …%s…", what, err, code, message)
	}
	if field == "" {
		return
	}
	if !slices.ContainsFunc(ce.Details(), func(d *connect.ErrorDetail) bool {
		value, err := d.Value()
		bad, ok := value.(*errdetails.BadRequest)
		return err == nil && ok && bad.FieldViolations[0].Field == field
	}) {
		t.Errorf("%s: %v does not name %s", what, err, field)
	}
}

// overTLS serves the front once more, asking callers for certificates.
func (f *front) overTLS(t *testing.T, roots *authority) (url string) {
	t.Helper()
	server := httptest.NewUnstartedServer(f.handler)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots.pool()}
	server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}
