package main_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/chaos"
	"notifyd/internal/scenario"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// Three nodes share the work on three NATS servers that keep copies, and one Postgres. Nodes and servers end, stand still
// and are cut off, one at a time and for a few seconds each: nothing is lost, nothing is sent twice that was not in flight
// then, and no merchant is sent more at once than it takes.
func TestSeveralNodes(t *testing.T) {
	t.Parallel()
	cfg := chaosConfig(t)
	cfg.Servers, cfg.Nodes, cfg.Rate = 3, 3, 40
	r := chaos.Begin(t, cfg)
	r.Share(10 * time.Second)
	for _, f := range append(append(chaos.Several(), chaos.OneBlind()), chaos.Clustered()...) {
		r.Do(f, 2*time.Second)
	}
	r.Share(20 * time.Second)
	nothingLost(t, r)
}

// An operator cancels and resends through any of two nodes, at moments that nobody chose: while the other node has the
// notification in hand, while its merchant thinks, while it waits for a retry, and just before it. Each takes effect, or is
// refused with FAILED_PRECONDITION: nothing is canceled that its merchant has been asked about since, and no merchant is
// asked twice at once.
func TestOperatorsAtAnyNode(t *testing.T) {
	t.Parallel()
	s := newStack(t, "dispatcher: {gate: {open_for: 300ms, open_at_most: 300ms}}") // merchants that fail at first open breakers
	nodes := []*world{s.node("a", ""), s.node("b", "")}
	m, watch := scenario.NewMerchant(t), &twice{ctx: t.Context(), asked: map[string][]time.Time{}, now: map[string]int{}}
	m.Answer(watch.answer)
	shops := make([]string, 8) // whose shards are shared by the two
	for i := range shops {
		shops[i] = fmt.Sprintf("shop-%d", i)
		nodes[0].merchant(shops[i], m.URL, func(m *notifydv1.Merchant) {
			m.Schedule = &notifydv1.Schedule{Gaps: []*durationpb.Duration{durationpb.New(time.Second), durationpb.New(300 * time.Millisecond)}}
		})
	}
	for _, w := range nodes {
		eventually(t, "each node knows the merchants", func() bool { return w.gate(shops[len(shops)-1]) == "" })
	}
	const rounds = 80
	type end struct {
		id       string
		canceled time.Time // zero: it was refused
	}
	ends := make([]end, rounds)
	var all sync.WaitGroup
	for i := range rounds {
		all.Go(func() {
			w, other := nodes[i%2], nodes[i/2%2]
			id, ok := w.submitUntil(draft(shops[i%len(shops)], "payout", fmt.Sprintf("op-%d", i)))
			if !ok {
				return
			}
			ends[i].id = id
			after(w.ctx, rand.N(1800*time.Millisecond))
			if i%4 == 3 {
				res, err := other.Notifications.ResendNotifications(other.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{id}, Operator: "test"}))
				if err != nil {
					t.Error(err)
				} else if e := res.Msg.Results[0].Error; e != nil && e.Code != connect.CodeFailedPrecondition.String() && e.Code != connect.CodeUnavailable.String() {
					t.Errorf("resend %s: %v", id, e)
				}
				return
			}
			switch res := other.cancel(id); {
			case res.Error == nil && res.State == notifydv1.State_STATE_CANCELED:
				ends[i].canceled = time.Now()
			case res.Error.GetCode() == connect.CodeUnavailable.String(): // on a busy machine
			case res.Error.GetCode() != connect.CodeFailedPrecondition.String():
				t.Errorf("cancel %s: %v", id, res)
			}
		})
		after(t.Context(), 10*time.Millisecond) // a caller every now and then
	}
	all.Wait()
	if t.Failed() {
		return
	}
	canceled := 0
	for _, e := range ends {
		if e.canceled.IsZero() {
			nodes[0].until(e.id, notifydv1.State_STATE_DELIVERED)
			continue
		}
		canceled++
		got := nodes[1].get(e.id)
		if got.Notification.State != notifydv1.State_STATE_CANCELED {
			t.Errorf("%s was canceled, and is %s", e.id, got.Notification.State)
		}
		asked := watch.of(e.id)
		if len(asked) != len(got.Attempts) {
			t.Errorf("%s: canceled, asked %d times, %d attempts on record", e.id, len(asked), len(got.Attempts))
		}
		for _, at := range asked {
			if at.After(e.canceled) {
				t.Errorf("%s: asked %s after it was canceled", e.id, at.Sub(e.canceled))
			}
		}
		for _, a := range got.Attempts {
			if a.Outcome == notifydv1.Outcome_OUTCOME_DELIVERED {
				t.Errorf("%s: canceled and acknowledged", e.id)
			}
		}
	}
	t.Logf("%d of %d canceled", canceled, rounds)
	for _, id := range watch.crossed() {
		t.Errorf("%s: its merchant was asked twice at once", id)
	}
}

// What is changed through one node holds on the other within a second: a pause, and its end.
func TestSettingsAtAnyNode(t *testing.T) {
	t.Parallel()
	s := newStack(t, "")
	a, b := s.node("a", ""), s.node("b", "")
	m := scenario.NewMerchant(t)
	a.merchant("tea-house", m.URL, nil)
	const slack = 4 * time.Second // of a busy machine
	holds := func(what string, gate notification.Reason) {
		t.Helper()
		began := time.Now()
		scenario.Within(t, time.Second+slack, what+" holds on the other node", func() bool { return b.gate("tea-house") == string(gate) })
		t.Logf("%s holds after %s", what, time.Since(began).Round(time.Millisecond))
	}
	holds("a new merchant", "")
	for i := range 3 {
		if _, err := a.Merchants.PauseMerchant(a.ctx, connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "tea-house", Reason: "test"})); err != nil {
			t.Fatal(err)
		}
		holds("a pause", notification.ReasonMerchantPaused)
		id := b.submit(draft("tea-house", "payout", fmt.Sprintf("paused-%d", i))).Id
		a.until(id, notifydv1.State_STATE_HELD)
		if n := m.Count()[id]; n != 0 {
			t.Errorf("sent %d times to a paused merchant", n)
		}
		if _, err := b.Merchants.ResumeMerchant(b.ctx, connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "tea-house"})); err != nil {
			t.Fatal(err)
		}
		a.until(id, notifydv1.State_STATE_DELIVERED)
		holds("its end", "")
	}
}

// submitUntil submits again while a node has no answer, as callers do. It is for goroutines of a test.
func (w *world) submitUntil(n *notifydv1.Notification) (id string, ok bool) {
	for {
		res, err := w.trySubmit(n)
		switch {
		case err == nil:
			return res.Id, true
		case code(err) != connect.CodeUnavailable && code(err) != connect.CodeResourceExhausted:
			w.t.Errorf("submit %s: %v", n.RequestId, err)
			return "", false
		}
		after(w.ctx, 100*time.Millisecond)
	}
}

// gate is what Explain says of a merchant's gate; "unknown" when the node does not know the merchant.
func (w *world) gate(merchant string) string {
	w.t.Helper()
	res, err := w.Notifications.Explain(w.ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: draft(merchant, "payout", "gate")}))
	if err != nil {
		return "unknown"
	}
	return res.Msg.Gate
}

// twice is a merchant that thinks for a while, acknowledges some requests at once and fails the first of others, and
// notes when it is asked about one notification twice at once.
type twice struct {
	ctx   context.Context
	mu    sync.Mutex
	asked map[string][]time.Time
	now   map[string]int // being answered
	wrong []string
}

func (m *twice) answer(w http.ResponseWriter, seen scenario.Seen) {
	m.mu.Lock()
	m.asked[seen.ID] = append(m.asked[seen.ID], seen.At)
	nth := len(m.asked[seen.ID])
	if m.now[seen.ID]++; m.now[seen.ID] > 1 {
		m.wrong = append(m.wrong, seen.ID)
	}
	m.mu.Unlock()
	after(m.ctx, rand.N(600*time.Millisecond))
	if nth == 1 && seen.ID[len(seen.ID)-1]%4 != 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	m.mu.Lock()
	m.now[seen.ID]--
	m.mu.Unlock()
}

func (m *twice) of(id string) []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[id]
}

func (m *twice) crossed() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wrong
}
