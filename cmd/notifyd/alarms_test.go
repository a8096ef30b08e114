package main_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// pager takes the alarms' webhooks.
type pager struct {
	url string

	mu    sync.Mutex
	rings []string // for example "alarm.raised postgres_degraded"
}

func newPager(t *testing.T) *pager {
	t.Helper()
	p := &pager{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var ring struct {
			Type string
			Data struct{ Name string }
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &ring) != nil {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.rings = append(p.rings, ring.Type+" "+ring.Data.Name)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	p.url = "http://" + l.Addr().String() + "/page"
	return p
}

func (p *pager) rang(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.rings, what)
}

// active are the alarms that a node shows, as "name subject".
func (w *world) active() []string {
	w.t.Helper()
	_, text := w.page("/alarms")
	var shown struct {
		Active []struct{ Name, Subject string }
	}
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		w.t.Fatalf("/alarms: %v\n%s", err, text)
	}
	var out []string
	for _, a := range shown.Active {
		out = append(out, strings.TrimSpace(a.Name+" "+a.Subject))
	}
	return out
}

// Alarms of a whole node: Postgres is stopped and comes back, a merchant fails and recovers, dead letters grow, a key
// expires and is replaced, nothing goes out while work waits.
func TestAlarms(t *testing.T) {
	t.Parallel()
	bell := newPager(t)
	s := newStack(t, `alarms:
  webhook: {url: "`+bell.url+`"}
  degraded_after: 1s
  dead_letters: 3
  dead_letters_window: 10s
  merchant_failing_for: 10s
  merchant_failing_attempts: 3
`)
	w := s.node("all", "")
	raised := func(alarm string) {
		t.Helper()
		name, _, _ := strings.Cut(alarm, " ")
		eventually(t, alarm+" is raised", func() bool { return slices.Contains(w.active(), alarm) && bell.rang("alarm.raised "+name) })
	}
	cleared := func(alarm string) {
		t.Helper()
		name, _, _ := strings.Cut(alarm, " ")
		eventually(t, alarm+" is cleared", func() bool { return !slices.Contains(w.active(), alarm) && bell.rang("alarm.cleared "+name) })
	}
	m := scenario.NewMerchant(t)
	w.merchant("tea-house", m.URL, func(m *notifydv1.Merchant) { m.Schedule = &notifydv1.Schedule{Name: "10s-x5"} })
	w.merchant("no-house", m.URL, func(m *notifydv1.Merchant) {
		m.Schedule = &notifydv1.Schedule{Name: "10s-x5"}
	})

	// A key that ends soon.
	sources := notifydv1connect.NewSourceServiceClient(http.DefaultClient, w.Intake)
	if _, err := sources.PutSource(w.ctx, connect.NewRequest(&notifydv1.PutSourceRequest{Source: &notifydv1.Source{Id: "pay-old", Merchants: []string{"*"}}})); err != nil {
		t.Fatal(err)
	}
	made, err := sources.CreateSourceKey(w.ctx, connect.NewRequest(&notifydv1.CreateSourceKeyRequest{
		SourceId: "pay-old", Kind: notifydv1.SourceKeyKind_SOURCE_KEY_KIND_API_KEY, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
	}))
	if err != nil {
		t.Fatal(err)
	}
	key := "key_expiring pay-old/" + made.Msg.Key.Id
	raised(key)
	if _, err := sources.RevokeSourceKey(w.ctx, connect.NewRequest(&notifydv1.RevokeSourceKeyRequest{SourceId: "pay-old", KeyId: made.Msg.Key.Id})); err != nil {
		t.Fatal(err)
	}
	cleared(key)

	// Refused finally: dead letters.
	m.AnswerStatus(http.StatusGone)
	for _, request := range []string{"d1", "d2", "d3", "d4"} {
		w.submit(draft("no-house", "payout", request))
	}
	raised("dead_letters_growing")

	// A merchant that fails for longer than it may.
	m.AnswerStatus(http.StatusBadRequest)
	failing := []string{"f1", "f2", "f3", "f4"}
	for i, request := range failing {
		failing[i] = w.submit(draft("tea-house", "payout", request)).Id
	}
	raised("merchant_failing tea-house")
	m.AnswerStatus(http.StatusOK)
	cleared("merchant_failing tea-house")

	// Postgres goes and comes back; the alarm is in the ledger then.
	s.pg.Stop(t)
	raised("postgres_degraded")
	if status, text := w.page("/readyz"); status != http.StatusOK || !strings.Contains(text, "postgres: degraded") || !strings.Contains(text, "intake: ok") {
		t.Errorf("/readyz without Postgres: %d %s", status, text)
	}
	s.pg.Start(t)
	cleared("postgres_degraded")
	_, metrics := w.page("/metrics")
	if !strings.Contains(metrics, `notifyd_alarms_raised_total{alarm="postgres_degraded"} 1`) {
		t.Error("the alarm is not counted")
	}
	for _, id := range failing {
		w.until(id, notifydv1.State_STATE_DELIVERED)
	}
	eventually(t, "the alarms are in the log", func() bool {
		return strings.Contains(w.Output(), `"alarm is raised","alarm":"postgres_degraded"`) && strings.Contains(w.Output(), `"alarm is cleared","alarm":"postgres_degraded"`)
	})
}

// Work waits and nobody sends it: an intake node alone says so within ten seconds, and is quiet when a sender comes.
func TestNoDeliveriesIsAnAlarm(t *testing.T) {
	t.Parallel()
	s := newStack(t, "")
	intake := s.node("intake", "intake")
	m := scenario.NewMerchant(t)
	intake.merchant("tea-house", m.URL, nil)
	began := time.Now()
	id := intake.submit(draft("tea-house", "payout", "1")).Id
	eventually(t, "no_deliveries is raised", func() bool { return slices.Contains(intake.active(), "no_deliveries") })
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("raised after %s", took)
	}
	s.node("async", "async")
	intake.until(id, notifydv1.State_STATE_DELIVERED)
	eventually(t, "no_deliveries is cleared", func() bool { return len(intake.active()) == 0 })
}
