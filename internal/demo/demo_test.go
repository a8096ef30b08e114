package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"

	"notifyd/contract/sign"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// intake is an engine that takes what it is given and remembers it.
type intake struct {
	notifydv1connect.UnimplementedNotificationServiceHandler
	notifydv1connect.UnimplementedMerchantServiceHandler

	mu        sync.Mutex
	refuse    int // so many calls are answered with UNAVAILABLE first
	always    bool
	merchants map[string]*notifydv1.Merchant
	taken     map[string]int // by request id
	batches   int
	faults    []error
	enough    chan struct{} // closed when wanted are taken
	wanted    int
}

func newIntake(t *testing.T, wanted int) (*intake, string) {
	t.Helper()
	in := &intake{merchants: map[string]*notifydv1.Merchant{}, taken: map[string]int{}, enough: make(chan struct{}), wanted: wanted}
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(in))
	mux.Handle(notifydv1connect.NewMerchantServiceHandler(in))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return in, server.URL
}

func (in *intake) refused() error {
	if in.refuse == 0 && !in.always {
		return nil
	}
	in.refuse = max(in.refuse-1, 0)
	return connect.NewError(connect.CodeUnavailable, errors.New("not yet"))
}

func (in *intake) PutMerchant(_ context.Context, req *connect.Request[notifydv1.PutMerchantRequest]) (*connect.Response[notifydv1.PutMerchantResponse], error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.refused(); err != nil {
		return nil, err
	}
	in.fault(protovalidate.Validate(req.Msg))
	in.merchants[req.Msg.Merchant.Id] = req.Msg.Merchant
	return connect.NewResponse(&notifydv1.PutMerchantResponse{Merchant: req.Msg.Merchant}), nil
}

func (in *intake) Submit(_ context.Context, req *connect.Request[notifydv1.SubmitRequest]) (*connect.Response[notifydv1.SubmitResponse], error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.refused(); err != nil {
		return nil, err
	}
	in.take(req.Msg.Notification)
	return connect.NewResponse(&notifydv1.SubmitResponse{}), nil
}

func (in *intake) SubmitBatch(_ context.Context, req *connect.Request[notifydv1.SubmitBatchRequest]) (*connect.Response[notifydv1.SubmitBatchResponse], error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.refused(); err != nil {
		return nil, err
	}
	in.batches++
	out := &notifydv1.SubmitBatchResponse{}
	for _, n := range req.Msg.Notifications {
		if n.BatchId == "" {
			in.fault(errors.New("no batch id"))
		}
		in.take(n)
		out.Results = append(out.Results, &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: &notifydv1.SubmitResponse{}}})
	}
	return connect.NewResponse(out), nil
}

func (in *intake) take(n *notifydv1.Notification) {
	in.fault(protovalidate.Validate(n))
	if !json.Valid([]byte(n.Payload)) {
		in.fault(fmt.Errorf("payload %q is not JSON", n.Payload))
	}
	if in.merchants[n.MerchantId] == nil {
		in.fault(fmt.Errorf("merchant %s is not registered", n.MerchantId))
	}
	in.taken[n.RequestId]++
	if len(in.taken) == in.wanted {
		close(in.enough)
	}
}

func (in *intake) fault(err error) {
	if err != nil {
		in.faults = append(in.faults, err)
	}
}

// lines collects what the demo prints.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) log(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, fmt.Sprintf(format, args...))
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

// run starts a demo and returns it with what ends it.
func run(t *testing.T, config Config) (d *Demo, end func()) {
	t.Helper()
	d, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(end)
	return d, end
}

func TestSubmitsATrickleAndResubmits(t *testing.T) {
	in, url := newIntake(t, 150)
	in.refuse = 2
	var said lines
	d, end := run(t, Config{IntakeURL: url, Rate: 500, Log: said.log})
	select {
	case <-in.enough:
	case <-time.After(20 * time.Second):
		t.Error("too few were submitted")
	}
	end()
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, err := range in.faults {
		t.Error(err)
	}
	if len(in.merchants) != len(d.Merchants()) {
		t.Errorf("%d merchants are registered, want %d", len(in.merchants), len(d.Merchants()))
	}
	twice := 0
	for _, times := range in.taken {
		if times == 2 {
			twice++
		}
	}
	if twice == 0 || in.batches == 0 {
		t.Errorf("%d were submitted twice, %d batches; want some of both", twice, in.batches)
	}
	if text := said.String(); !strings.Contains(text, "register lanshan-coffee: unavailable: not yet") || !strings.Contains(text, "13 merchants answer at") {
		t.Errorf("it said:\n%s", text)
	}
}

func TestGoesOnWithoutAnIntake(t *testing.T) {
	in, url := newIntake(t, 1)
	in.always = true
	var said lines
	_, end := run(t, Config{IntakeURL: url, Rate: 500, Log: said.log})
	deadline := time.After(10 * time.Second)
	for said.String() == "" {
		select {
		case <-deadline:
			t.Fatal("it said nothing")
		case <-time.Tick(10 * time.Millisecond):
		}
	}
	end()
	if n := len(said.text); n > 2 {
		t.Errorf("it said %d lines:\n%s", n, said.String())
	}
}

// tell makes a signed call as the engine does.
func tell(t *testing.T, d *Demo, id, secretText string) (status int, answer string, err error) {
	t.Helper()
	secret, err := sign.ParseStandardSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"trade_status":"TRADE_SUCCESS"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.URL()+"/"+id+"/notify", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	req.Header.Set(sign.StandardID, "n1")
	req.Header.Set(sign.StandardTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(sign.StandardSignature, secret.Sign("n1", now, body))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func (d *Demo) actor(t *testing.T, id string) *actor {
	t.Helper()
	for _, a := range d.actors {
		if a.ID == id {
			return a
		}
	}
	t.Fatalf("nobody plays %s", id)
	return nil
}

func TestMerchantsPlayTheirParts(t *testing.T) {
	_, url := newIntake(t, -1)
	d, _ := run(t, Config{IntakeURL: url, Rate: 0.001})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for _, test := range []struct {
		id     string
		status [4]int // to four calls; 0: the connection breaks
		body   string // of the first answer
	}{
		{"lanshan-coffee", [4]int{200, 200, 200, 200}, `"SUCCESS"`},
		{"xingwan-games", [4]int{200, 200, 200, 200}, "success"},
		{"wanli-express", [4]int{200, 200, 200, 500}, `"SUCCESS"`},
		{"metro-parking", [4]int{200, 200, 0, 200}, `"SUCCESS"`},
		{"jinshi-gym", [4]int{200, 200, 200, 200}, "请先登录"},
	} {
		t.Run(test.id, func(t *testing.T) {
			a := d.actor(t, test.id)
			for i, want := range test.status {
				status, body, err := tell(t, d, test.id, a.secret)
				if want == 0 {
					if err == nil {
						t.Errorf("call %d: answered %d, want a reset", i+1, status)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if status != want || (i == 0 && !strings.Contains(body, test.body)) {
					t.Errorf("call %d: answered %d %q, want %d and %q", i+1, status, body, want, test.body)
				}
			}
		})
	}
	t.Run("wrong signature", func(t *testing.T) {
		other := d.actor(t, "yunhe-fresh").secret
		status, _, err := tell(t, d, "lanshan-coffee", other)
		if err != nil || status != http.StatusUnauthorized {
			t.Errorf("answered %d, %v, want 401", status, err)
		}
	})
}

func TestEndsWhileALateAnswerWaits(t *testing.T) {
	_, url := newIntake(t, -1)
	d, end := run(t, Config{IntakeURL: url, Rate: 0.001})
	a := d.actor(t, "riverside-hotel")
	a.calls.Store(2) // the next is the third: 11 s late
	hungUp := make(chan error, 1)
	go func() {
		_, _, err := tell(t, d, a.ID, a.secret)
		hungUp <- err
	}()
	for a.calls.Load() != 3 {
		<-time.Tick(time.Millisecond)
	}
	began := time.Now()
	end()
	if err := <-hungUp; err == nil || time.Since(began) > 3*time.Second {
		t.Errorf("hung up after %v with %v, want at once", time.Since(began), err)
	}
}

func TestOrdersAreValidAndUnique(t *testing.T) {
	till := newTill(cast())
	seen := map[string]bool{}
	scenes := map[string]int{}
	for range 2000 {
		n := till.next(time.Now())
		if err := protovalidate.Validate(n); err != nil {
			t.Fatal(err)
		}
		var p trade
		if err := json.Unmarshal([]byte(n.Payload), &p); err != nil || p.TotalAmount != n.Amount.MinorUnits || p.OutTradeNo != n.OrderId {
			t.Fatalf("payload %s does not match %v: %v", n.Payload, n, err)
		}
		if seen[n.RequestId] {
			t.Fatalf("request id %s twice", n.RequestId)
		}
		seen[n.RequestId] = true
		scenes[n.Scene]++
	}
	for _, scene := range []string{"scan", "netbank", "withhold", "payout", "recharge", "refund"} {
		if scenes[scene] == 0 {
			t.Errorf("no order of scene %s in %v", scene, scenes)
		}
	}
}

func TestATakenPortFallsBack(t *testing.T) {
	first, err := Start(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.listener.Close()
	second, err := Start(t.Context(), Config{Listen: first.listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer second.listener.Close()
	if second.URL() == first.URL() {
		t.Errorf("both listen at %s", first.URL())
	}
	for _, m := range second.Merchants() {
		if m.String() == "" || m.Plays == "" {
			t.Errorf("%+v says nothing", m)
		}
	}
}
