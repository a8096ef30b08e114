package main_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

var engineBinary *scenario.Binary

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if flag.Lookup("test.fuzz").Value.String() != "" { // each worker is a process of its own, and none of them runs the binary
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "notifyd-binary-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if engineBinary, err = scenario.Build(context.Background(), dir, true); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// world is one engine with the calls that the scenarios make.
type world struct {
	*scenario.Engine
	t   *testing.T
	ctx context.Context // of the test
}

func start(t *testing.T, dataDir string) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return &world{Engine: engineBinary.Start(t, dataDir), t: t, ctx: ctx}
}

// merchant registers a merchant; change may set what the scenario needs. It returns the signing secret.
func (w *world) merchant(id, url string, change func(*notifydv1.Merchant)) string {
	w.t.Helper()
	m := &notifydv1.Merchant{Id: id, Name: id, NotifyUrl: url}
	if change != nil {
		change(m)
	}
	res, err := w.Merchants.PutMerchant(w.ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m}))
	if err != nil {
		w.t.Fatalf("put merchant %s: %v", id, err)
	}
	return res.Msg.GeneratedSecret
}

// draft is a notification as a payment service would submit it.
func draft(merchant, scene, request string) *notifydv1.Notification {
	return &notifydv1.Notification{
		Source: "pay-core", RequestId: request, MerchantId: merchant, Scene: scene, EventType: "payment.succeeded",
		OrderId: "order-" + request, OrderStatus: "SUCCESS", Terminal: true,
		Payload: `{"order":"` + request + `", "amount":10.50,"big":12345678901234567890}`,
		Amount:  &notifydv1.Amount{Currency: "CNY", MinorUnits: 1050},
	}
}

func (w *world) submit(n *notifydv1.Notification) *notifydv1.SubmitResponse {
	w.t.Helper()
	res, err := w.trySubmit(n)
	if err != nil {
		w.t.Fatalf("submit %s: %v", n.RequestId, err)
	}
	return res
}

func (w *world) trySubmit(n *notifydv1.Notification) (*notifydv1.SubmitResponse, error) {
	res, err := w.Notifications.Submit(w.ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (w *world) get(id string) *notifydv1.GetNotificationResponse {
	w.t.Helper()
	res, err := w.Notifications.GetNotification(w.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
	if err != nil {
		w.t.Fatalf("get %s: %v", id, err)
	}
	return res.Msg
}

// until waits for a state.
func (w *world) until(id string, state notifydv1.State) *notifydv1.GetNotificationResponse {
	w.t.Helper()
	var last *notifydv1.GetNotificationResponse
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("%s stood at %v", id, last)
		}
	})
	scenario.Within(w.t, 30*time.Second, fmt.Sprintf("%s is %s", id, state), func() bool {
		last = w.get(id)
		return last.Notification.State == state
	})
	return last
}

// prove returns the last answer of the proof over everything accepted until now.
func (w *world) prove() *notifydv1.ProveResponse {
	w.t.Helper()
	last, err := proveUntilNow(w)
	if err != nil {
		w.t.Fatalf("prove: %v", err)
	}
	return last
}

func code(err error) connect.Code { return connect.CodeOf(err) }

// after lets a while pass, where the moment at which something happens is what a test is about; less when the test ends.
func after(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
