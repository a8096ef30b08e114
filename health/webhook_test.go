package health

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"notifyd/internal/scenario"
	"notifyd/ledger"
)

const testSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

// pager is an operator's receiver that answers as scripted, and then with 204.
type pager struct {
	*httptest.Server
	mu     sync.Mutex
	script []func(http.ResponseWriter, *http.Request)
	seen   []*http.Request
	bodies [][]byte
}

func newPager(t *testing.T, script ...func(http.ResponseWriter, *http.Request)) *pager {
	t.Helper()
	p := &pager{script: script}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		p.mu.Lock()
		p.seen, p.bodies = append(p.seen, r), append(p.bodies, body)
		answer := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
		if len(p.script) > 0 {
			answer, p.script = p.script[0], p.script[1:]
		}
		p.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func answers(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func (p *pager) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen)
}

func runWebhook(t *testing.T, cfg WebhookConfig) (*webhook, *observer.ObservedLogs) {
	t.Helper()
	core, logged := observer.New(zap.DebugLevel)
	w := newWebhook(zap.New(core), clock)
	w.backoff = time.Millisecond
	if err := w.configure(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { w.run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	return w, logged
}

func anAlarm() ledger.Alarm {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	return ledger.Alarm{Name: string(MerchantFailing), Subject: "m-1", Node: "n1", Severity: "warning", Detail: "12 attempts", RaisedAt: at, SeenAt: at}
}

// The published library verifies what is sent, each try has the same id, and the body is as documented.
func TestWebhookIsSignedAndRepeated(t *testing.T) {
	p := newPager(t, answers(http.StatusServiceUnavailable), answers(http.StatusTooManyRequests), func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	w, _ := runWebhook(t, WebhookConfig{URL: p.URL + "/hook?token=hush", Secret: testSecret})
	w.tell(eventRaised, anAlarm())
	cleared := anAlarm()
	cleared.ClearedAt = cleared.RaisedAt.Add(time.Minute)
	w.tell(eventCleared, cleared)
	scenario.Within(t, 5*time.Second, "four tries of the first, one of the second", func() bool { return p.count() == 5 })
	verifier, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for i, r := range p.seen {
		if err := verifier.Verify(p.bodies[i], r.Header); err != nil {
			t.Errorf("try %d: %v", i, err)
		}
		ids[r.Header.Get("Webhook-Id")]++
	}
	if len(ids) != 2 || p.seen[0].Header.Get("Webhook-Id") != p.seen[3].Header.Get("Webhook-Id") {
		t.Errorf("ids: %v", ids)
	}
	var got map[string]any
	if err := json.Unmarshal(p.bodies[4], &got); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339Nano, got["timestamp"].(string)); err != nil {
		t.Error(err)
	}
	delete(got, "timestamp")
	want := map[string]any{"type": "alarm.cleared", "data": map[string]any{
		"name": "merchant_failing", "subject": "m-1", "node": "n1", "severity": "warning", "detail": "12 attempts",
		"means": kinds[MerchantFailing].Means, "do": kinds[MerchantFailing].Do,
		"raised_at": "2026-03-01T12:00:00.123456Z", "seen_at": "2026-03-01T12:00:00.123456Z", "cleared_at": "2026-03-01T12:01:00.123456Z",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
	if w.givenUp.Load() != 0 {
		t.Error("given up")
	}
}

func TestWebhookGivesUp(t *testing.T) {
	elsewhere := newPager(t)
	for _, c := range []struct {
		name   string
		script []func(http.ResponseWriter, *http.Request)
		tries  int
	}{
		{"a redirect is not followed", []func(http.ResponseWriter, *http.Request){func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}}, 1},
		{"a refusal is final", []func(http.ResponseWriter, *http.Request){answers(http.StatusUnauthorized)}, 1},
		{"a server that stays down", []func(http.ResponseWriter, *http.Request){answers(500), answers(502), answers(503), answers(504), answers(500)}, webhookTries},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPager(t, c.script...)
			w, logged := runWebhook(t, WebhookConfig{URL: p.URL + "/hook?token=hush"})
			w.tell(eventRaised, anAlarm())
			scenario.Within(t, 5*time.Second, "given up", func() bool { return w.givenUp.Load() == 1 })
			if p.count() != c.tries || elsewhere.count() != 0 {
				t.Errorf("%d tries, want %d; %d elsewhere", p.count(), c.tries, elsewhere.count())
			}
			if p.seen[0].Header.Get("Webhook-Signature") != "" {
				t.Error("signed without a secret")
			}
			for _, line := range logged.All() {
				if text, _ := line.ContextMap()["error"].(string); strings.Contains(text, "hush") || strings.Contains(text, "/hook") {
					t.Errorf("the log shows the target: %v", line.ContextMap())
				}
			}
		})
	}
}

// A receiver that hangs holds nobody up; what does not fit the queue is given up and counted.
func TestWebhookHoldsNobodyUp(t *testing.T) {
	release := make(chan struct{})
	p := newPager(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	w, _ := runWebhook(t, WebhookConfig{URL: p.URL})
	w.tell(eventRaised, anAlarm())
	scenario.Within(t, 5*time.Second, "the receiver hangs", func() bool { return p.count() == 1 })
	began := time.Now()
	for range webhookQueue + 10 {
		w.tell(eventRaised, anAlarm())
	}
	if took := time.Since(began); took > time.Second || w.givenUp.Load() != 10 {
		t.Errorf("took %s, %d given up, want 10", took, w.givenUp.Load())
	}
}

func TestWebhookErrorsHideTheTarget(t *testing.T) {
	p := newPager(t)
	p.Close() // nobody listens
	w, logged := runWebhook(t, WebhookConfig{URL: p.URL + "/hook?token=hush"})
	w.tell(eventRaised, anAlarm())
	scenario.Within(t, 5*time.Second, "given up", func() bool { return w.givenUp.Load() == 1 })
	if text, _ := logged.All()[0].ContextMap()["error"].(string); strings.Contains(text, "hush") || !strings.Contains(text, "refused") {
		t.Errorf("logged: %s", text)
	}
	if err := w.configure(WebhookConfig{}); err != nil {
		t.Fatal(err)
	}
	w.tell(eventRaised, anAlarm())
	if len(w.queue) != 0 {
		t.Error("queued without a target")
	}
}
