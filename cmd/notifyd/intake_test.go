package main_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

const rules = `
router:
  rules:
    - name: big-money-is-written-first
      when: {scenes: [payout], amount: {currency: CNY, min_minor_units: 1000000}}
      then: {persist: ledger, isolation: merchant_scene, schedule: alipay}
    - name: vip-waits
      when: {labels: {tier: vip}}
      then: {lane: sync}
`

// A rule from the file decides, and its name is stored and returned; the same engine answers gRPC with reflection.
func TestRulesAndProtocols(t *testing.T) {
	dir := scenario.DataDir(t)
	file := filepath.Join(dir, "notifyd.yaml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{Engine: engineBinary.Start(t, dir, "--config="+file), t: t, ctx: t.Context()}
	m := scenario.NewMerchant(t)
	w.merchant("ruled", m.URL, nil)

	big := draft("ruled", "payout", "ruled-big")
	big.Amount.MinorUnits = 1_000_000
	res := w.submit(big)
	got := w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	if res.Rule != "big-money-is-written-first" || got.Notification.Rule != res.Rule {
		t.Errorf("rule %q, stored %q", res.Rule, got.Notification.Rule)
	}
	explained, err := w.Notifications.Explain(w.ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: big}))
	if err != nil || explained.Msg.Persist != "ledger" || explained.Msg.Schedule != "alipay" || explained.Msg.IsolationKey != "m:ruled/s:payout" {
		t.Errorf("explained as %v, %v", explained, err)
	}
	vip := draft("ruled", "recharge", "ruled-vip")
	vip.Labels = map[string]string{"tier": "vip"}
	if res := w.submit(vip); res.Rule != "vip-waits" || res.Lane != notifydv1.Lane_LANE_SYNC || res.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("vip: %v", res)
	}

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h2c := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	grpc := notifydv1connect.NewNotificationServiceClient(h2c, w.Intake, connect.WithGRPC())
	again, err := grpc.Submit(w.ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: vip}))
	if err != nil || !again.Msg.Duplicate {
		t.Errorf("over gRPC: %v, %v", again, err)
	}
	reflection := grpcreflect.NewClient(h2c, w.Intake).NewStream(w.ctx)
	names, err := reflection.ListServices()
	if err != nil || !slices.Contains(names, "notifyd.v1.NotificationService") || !slices.Contains(names, "notifyd.v1.MerchantService") {
		t.Errorf("reflection lists %v, %v", names, err)
	}
	if _, err := reflection.Close(); err != nil {
		t.Error(err)
	}

	plain, err := http.Post(w.Intake+"/notifyd.v1.NotificationService/Submit", "application/json", strings.NewReader(`{"notification":{"source":"s","requestId":"r","merchantId":"ruled","scene":"payout","payload":"{}"}}`))
	if err != nil || plain.StatusCode != http.StatusOK {
		t.Fatalf("JSON as curl sends it: %v %v", plain, err)
	}
	_ = plain.Body.Close()
	w.Stop(t)
}
