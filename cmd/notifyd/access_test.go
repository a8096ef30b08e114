package main_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// command runs the binary against the engine, and returns what it prints and its exit code.
func (w *world) command(args ...string) (string, int) {
	w.t.Helper()
	cmd := exec.CommandContext(w.ctx, engineBinary.Path(), append(args, "--server="+w.Intake)...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (w *world) mustCommand(args ...string) string {
	w.t.Helper()
	out, code := w.command(args...)
	if code != 0 {
		w.t.Fatalf("notifyd %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// submitting submits to a merchant again and again until it is stopped, and returns what was accepted, by id.
func (w *world) submitting(merchant, prefix string) (accepted *atomic.Int64, stop func() []string) {
	var count atomic.Int64
	var mu sync.Mutex
	var ids []string
	var stopping atomic.Bool
	var submitters sync.WaitGroup
	for s := range 2 {
		submitters.Go(func() {
			for i := 0; !stopping.Load(); i++ {
				res, err := w.trySubmit(draft(merchant, "payout", fmt.Sprintf("%s-%d-%d", prefix, s, i)))
				if err != nil {
					w.t.Error(err)
					return
				}
				mu.Lock()
				ids = append(ids, res.Id)
				mu.Unlock()
				count.Add(1)
				after(w.ctx, 5*time.Millisecond) // some two hundred a second of each submitter
			}
		})
	}
	return &count, func() []string {
		stopping.Store(true)
		submitters.Wait()
		return ids
	}
}

// underWay is how long an attempt that was granted before a block may still need to reach the merchant.
const underWay = 250 * time.Millisecond

func seenAfter(m *scenario.Merchant, at time.Time) (times []time.Time) {
	for _, s := range m.Seen() {
		if s.At.After(at) {
			times = append(times, s.At)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// A merchant is blocked in the middle of its traffic: from then on nothing reaches it, also over a restart, though more is
// accepted for it, and its neighbour notices nothing. When the block ends all goes out, each once, at the release rate.
func TestBlockUnderLoad(t *testing.T) {
	dir := scenario.DataDir(t)
	w := start(t, dir)
	blocked, neighbour := scenario.NewMerchant(t), scenario.NewMerchant(t)
	const perSecond = 20
	w.merchant("blocked", blocked.URL, func(m *notifydv1.Merchant) { m.Limits = &notifydv1.Limits{ReleasePerSecond: perSecond} })
	w.merchant("neighbour", neighbour.URL, nil)

	accepted, stop := w.submitting("blocked", "b")
	_, stopNeighbour := w.submitting("neighbour", "n")
	scenario.Within(t, 30*time.Second, "traffic", func() bool { return len(blocked.Seen()) > 50 })
	w.mustCommand("access", "block", "merchant", "blocked", "--mode=hold", "--reason=fraud case")
	since, before := time.Now().Add(underWay), accepted.Load()
	scenario.Within(t, 30*time.Second, "more is accepted while it is blocked", func() bool { return accepted.Load() > before+60 })
	ids := stop()
	neighbourIDs := stopNeighbour()
	for _, id := range neighbourIDs {
		w.until(id, notifydv1.State_STATE_DELIVERED)
	}
	held := 0
	scenario.Within(t, 30*time.Second, "each is delivered or held", func() bool {
		held = 0
		for _, id := range ids {
			switch n := w.get(id).Notification; {
			case n.State == notifydv1.State_STATE_HELD && n.StateReason == "blocked":
				held++
			case n.State != notifydv1.State_STATE_DELIVERED:
				return false
			}
		}
		return true
	})
	if held < 60 {
		t.Fatalf("%d are held of %d", held, len(ids))
	}
	listed, err := w.Notifications.ListNotifications(w.ctx, connect.NewRequest(&notifydv1.ListNotificationsRequest{
		Filter: &notifydv1.NotificationFilter{MerchantId: "blocked", States: []notifydv1.State{notifydv1.State_STATE_HELD}}, PageSize: 200,
	}))
	if err != nil || len(listed.Msg.Notifications) != min(held, 200) {
		t.Errorf("%d are listed, %v; %d are held", len(listed.Msg.GetNotifications()), err, held)
	}
	if p := w.prove(); p.Missing != 0 || p.Waiting["due_index"] < int64(held) {
		t.Errorf("proof: %v", p)
	}

	w.Kill()
	w = start(t, dir)
	if out := w.mustCommand("access", "list", "--json"); !strings.Contains(out, `"merchant/blocked/block"`) {
		t.Errorf("after a restart: %s", out)
	}
	late := w.submit(draft("blocked", "scan", "late")) // the sync lane answers where it stands
	if late.State != notifydv1.State_STATE_HELD || late.StateReason != "blocked" {
		t.Errorf("a sync submission: %v", late)
	}
	explained, err := w.Notifications.Explain(w.ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: draft("blocked", "payout", "why")}))
	if err != nil || explained.Msg.AccessRule != "merchant/blocked/block" || explained.Msg.Gate != "blocked" {
		t.Errorf("explained: %v, %v", explained, err)
	}
	ids, held = append(ids, late.Id), held+1
	if sent := seenAfter(blocked, since); len(sent) != 0 {
		t.Fatalf("%d requests reached it while it was blocked, the first %s after that was acknowledged", len(sent), sent[0].Sub(since)+underWay)
	}

	if out, code := w.command("access", "remove", "merchant/nobody/block", "--reason=x"); code != 1 || !strings.Contains(out, "not_found") {
		t.Errorf("exit code %d: %s", code, out)
	}
	w.mustCommand("access", "remove", "merchant/blocked/block", "--reason=case closed")
	for _, id := range ids {
		w.until(id, notifydv1.State_STATE_DELIVERED)
	}
	released := seenAfter(blocked, since)
	if len(released) != held {
		t.Errorf("%d requests for %d that were held", len(released), held)
	}
	// A second and a half's worth takes more than a second, wherever one begins to count but at the first feed.
	const some = perSecond * 3 / 2
	for i := perSecond * 2; i+some < len(released); i++ {
		if took := released[i+some].Sub(released[i]); took < time.Second {
			t.Errorf("%d went out within %s: the rate is %d a second", some, took, perSecond)
			break
		}
	}
	for id, n := range blocked.Count() {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
	eventually(t, "the proof finds all delivered", func() bool { // the last outcome is seen before it is on record
		p := w.prove()
		return p.Missing == 0 && p.Final["delivered"] == int64(len(ids)+len(neighbourIDs))
	})
	if out := w.mustCommand("access", "changes"); strings.Count(out, "merchant/blocked/block") != 2 || !strings.Contains(out, "case closed") {
		t.Errorf("changes:\n%s", out)
	}
}

// A rule that ends by itself lets go what it held; of a rejecting and a recording one nothing is ever sent.
func TestBlockExpires(t *testing.T) {
	w := start(t, scenario.DataDir(t))
	m := scenario.NewMerchant(t)
	for _, id := range []string{"soon", "recorded", "rejected"} {
		w.merchant(id, m.URL, nil)
	}
	w.mustCommand("access", "block", "merchant", "soon", "--mode=hold", "--reason=x", "--expires-in=4s")
	w.mustCommand("access", "block", "merchant", "recorded", "--scene=payout", "--mode=record-only", "--reason=x")
	w.mustCommand("access", "block", "merchant", "rejected", "--mode=reject", "--reason=x")
	var ids []string
	for i := range 5 {
		res := w.submit(draft("soon", "payout", fmt.Sprintf("soon-%d", i)))
		if res.State != notifydv1.State_STATE_HELD {
			t.Errorf("answer: %v", res)
		}
		ids = append(ids, res.Id)
	}
	recorded := w.submit(draft("recorded", "payout", "recorded"))
	again := w.submit(draft("recorded", "payout", "recorded"))
	if recorded.State != notifydv1.State_STATE_CANCELED || recorded.StateReason != "blocked" || !again.Duplicate || again.State != recorded.State {
		t.Errorf("recorded only: %v, and again %v", recorded, again)
	}
	elsewhere := w.submit(draft("recorded", "recharge", "other-scene"))
	if _, err := w.trySubmit(draft("rejected", "payout", "rejected")); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("rejected: %v", err)
	}
	for _, id := range append(ids, elsewhere.Id) {
		w.until(id, notifydv1.State_STATE_DELIVERED)
	}
	if n := len(m.Seen()); n != 6 {
		t.Errorf("%d requests, want 6", n)
	}
	if p := w.prove(); p.Missing != 0 || p.Accepted != 7 || p.Final["canceled"] != 1 {
		t.Errorf("proof: %v", p)
	}
}

// What is blocked through one node is blocked on the other within a second, and so it is with the end of it: which node
// releases does not matter.
func TestBlockAtAnyNode(t *testing.T) {
	t.Parallel()
	s := newStack(t, "")
	a, b := s.node("a", ""), s.node("b", "")
	m := scenario.NewMerchant(t)
	a.merchant("tea-house", m.URL, nil)
	const slack = 4 * time.Second // of a busy machine
	holds := func(what, gate string) {
		t.Helper()
		scenario.Within(t, time.Second+slack, what+" holds on the other node", func() bool { return b.gate("tea-house") == gate })
	}
	holds("a new merchant", "")
	a.mustCommand("access", "block", "merchant", "tea-house", "--mode=hold", "--reason=test")
	holds("a block", "blocked")
	id := b.submit(draft("tea-house", "payout", "held")).Id
	if got := a.get(id); got.Notification.State != notifydv1.State_STATE_HELD {
		t.Errorf("stands at %v", got)
	}
	a.mustCommand("access", "remove", "merchant/tea-house/block", "--reason=test")
	holds("its end", "")
	b.until(id, notifydv1.State_STATE_DELIVERED)
	a.mustCommand("access", "only", "merchants", "--mode=record-only", "--reason=test")
	holds("the allow-only mode", "not_allowed")
	b.mustCommand("access", "allow", "merchant", "tea-house", "--reason=test")
	a.until(a.submit(draft("tea-house", "payout", "allowed")).Id, notifydv1.State_STATE_DELIVERED)
	if n := len(m.Seen()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}
