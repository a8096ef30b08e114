package main_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// submitter submits until its context ends, and keeps what was accepted: an answer that did not come counts as not accepted.
type submitter struct {
	mu       sync.Mutex
	accepted map[string]bool
}

func (s *submitter) run(ctx context.Context, w *world, merchants []string, worker int) {
	for round := 0; ctx.Err() == nil; round++ {
		var batch []*notifydv1.Notification
		for i := range 20 {
			scene := []string{"payout", "recharge", "withhold"}[i%3]
			batch = append(batch, draft(merchants[(round+i)%len(merchants)], scene, fmt.Sprintf("load-%d-%d-%d", worker, round, i)))
		}
		res, err := w.Notifications.SubmitBatch(ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch}))
		if err == nil {
			s.keep(res.Msg.Results)
		}
		one, err := w.Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft(merchants[round%len(merchants)], "scan", fmt.Sprintf("scan-%d-%d", worker, round))}))
		if err == nil {
			s.keep([]*notifydv1.SubmitResult{{Result: &notifydv1.SubmitResult_Response{Response: one.Msg}}})
		}
	}
}

func (s *submitter) keep(results []*notifydv1.SubmitResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range results {
		if id := r.GetResponse().GetId(); id != "" {
			s.accepted[id] = true
		}
	}
}

// load submits for a while with a few callers at once, and does what the scenario does in the middle of it.
func load(w *world, merchants []string, during func()) map[string]bool {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	s := &submitter{accepted: map[string]bool{}}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() { s.run(ctx, w, merchants, worker) })
	}
	scenario.Within(w.t, 30*time.Second, "load is accepted", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.accepted) > 1000
	})
	during()
	cancel()
	wg.Wait()
	return s.accepted
}

func merchantsFor(w *world, m *scenario.Merchant, n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprintf("shop-%d", i))
		w.merchant(ids[i], m.URL, nil)
	}
	return ids
}

// P1, P2: kill -9 under load; what was accepted is told, and the proof agrees.
func TestKilledUnderLoadLosesNothing(t *testing.T) {
	dir := scenario.DataDir(t)
	m := scenario.NewMerchant(t)
	w := start(t, dir)
	ids := merchantsFor(w, m, 12)
	accepted := load(w, ids, w.Kill)
	seenBefore := len(m.Seen())
	t.Logf("killed after %d accepted, %d requests", len(accepted), seenBefore)

	again := start(t, dir)
	missing := func() (n int) {
		told := m.Count()
		for id := range accepted {
			if told[id] == 0 {
				n++
			}
		}
		return n
	}
	began := time.Now()
	scenario.Within(t, 90*time.Second, "everything accepted is told", func() bool { return missing() == 0 })
	var proof *notifydv1.ProveResponse
	scenario.Within(t, 90*time.Second, "the proof finds everything final", func() bool {
		proof = again.prove()
		return proof.Missing == 0 && proof.Final["delivered"] >= int64(len(accepted)) && len(proof.Waiting) == 0
	})
	repeated := 0
	for _, n := range m.Count() {
		repeated += n - 1
	}
	t.Logf("accepted %d, lost 0, repeated %d, everything told %s after the restart, proof: reserved %d final %v cut short %d", len(accepted), repeated, time.Since(began).Round(time.Millisecond), proof.Accepted, proof.Final, proof.Unanswered)
	// What was repeated is on record: an attempt row for each request seen, or an interrupted one for what left no trace.
	for id, requests := range m.Count() {
		if requests == 1 {
			continue
		}
		got := again.get(id)
		interrupted := 0
		for _, a := range got.Attempts {
			if a.Reason == "interrupted" {
				interrupted++
			}
		}
		if len(got.Attempts) < requests || (interrupted == 0 && len(got.Attempts) != requests) {
			t.Errorf("%s: %d requests seen, %d attempts on record, %d interrupted", id, requests, len(got.Attempts), interrupted)
		}
	}
	again.Stop(t)
}

// A clean stop under load: nothing is lost, and nothing is repeated.
func TestDrainedUnderLoadRepeatsNothing(t *testing.T) {
	dir := scenario.DataDir(t)
	m := scenario.NewMerchant(t)
	w := start(t, dir)
	ids := merchantsFor(w, m, 12)
	accepted := load(w, ids, func() { w.Stop(t) })

	again := start(t, dir)
	scenario.Within(t, 60*time.Second, "the proof finds everything final", func() bool {
		proof := again.prove()
		return proof.Missing == 0 && proof.Final["delivered"] >= int64(len(accepted)) && len(proof.Waiting) == 0
	})
	told := m.Count()
	for id := range accepted {
		if told[id] != 1 {
			t.Errorf("%s was sent %d times", id, told[id])
		}
	}
	t.Logf("accepted %d, told %d, requests %d", len(accepted), len(told), len(m.Seen()))
	again.Stop(t)
}

// P4 holds over restarts.
func TestSubmittedTwiceOverARestart(t *testing.T) {
	dir := scenario.DataDir(t)
	m := scenario.NewMerchant(t)
	w := start(t, dir)
	w.merchant("shop", m.URL, nil)
	first := w.submit(draft("shop", "payout", "again-1"))
	w.until(first.Id, notifydv1.State_STATE_DELIVERED)
	w.Stop(t)

	again := start(t, dir)
	second := again.submit(draft("shop", "payout", "again-1"))
	if second.Id != first.Id || !second.Duplicate || second.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("after a restart: %v", second)
	}
	changed := draft("shop", "payout", "again-1")
	changed.Payload = `{}`
	if _, err := again.trySubmit(changed); code(err) != connect.CodeAlreadyExists {
		t.Errorf("other content: %v", err)
	}
	if n := len(m.Seen()); n != 1 {
		t.Errorf("the merchant saw %d requests", n)
	}
	again.Stop(t)
}
