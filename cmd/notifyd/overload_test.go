package main_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/chaos"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// P10: more than the engine can do is refused with a time to wait, and costs nobody who was accepted. The long form, which
// holds it to its goodput and its memory on a machine of its own, is in internal/chaos.
func TestOverload(t *testing.T) {
	t.Parallel()
	cfg := chaosConfig(t)
	out := chaos.RunOverload(t, chaos.Overload{
		Engine: cfg.Engine, Seed: cfg.Seed, Times: 3, Measure: 3 * time.Second, For: 8 * time.Second,
		Args: []string{"--set=async.stream_bytes=1MiB"},
	})
	t.Logf("seed %d: %s", cfg.Seed, out)
	if len(out.Violations) > 0 {
		t.Errorf("%d violations, for example %q", len(out.Violations), out.Violations[:min(5, len(out.Violations))])
	}
	if out.Refused == 0 {
		t.Error("nothing was refused")
	}
	if out.Most > out.Before+512 {
		t.Errorf("memory grew from %d to %d MiB", out.Before, out.Most)
	}
	if out.Share() < 0.25 { // other tests run beside it: a collapse leaves a few percent
		t.Errorf("goodput is %.0f %% of the capacity", 100*out.Share())
	}
}

// A merchant whose own queue is full refuses nobody, itself included; what does not fit waits in the ledger.
func TestFullOwnQueue(t *testing.T) {
	t.Parallel()
	m := scenario.NewMerchant(t)
	var well atomic.Bool
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		if strings.HasSuffix(seen.Path, "/down") && !well.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	w := &world{t: t, ctx: t.Context()}
	w.Engine = engineBinary.Start(t, scenario.DataDir(t), "--set=async.own_queue=20", "--set=async.own_queue_rest=2s", "--set=retry.sweep_every=300ms", "--set=dispatcher.gate.open_for=1s")
	w.merchant("down", m.URL+"/down", func(m *notifydv1.Merchant) {
		m.Schedule = &notifydv1.Schedule{Gaps: slices.Repeat([]*durationpb.Duration{durationpb.New(2 * time.Second)}, 100)}
	})
	w.merchant("up", m.URL+"/up", nil)
	var down []string
	for i := range 100 {
		down = append(down, w.submit(draft("down", "payout", fmt.Sprintf("down-%d", i))).Id)
	}
	rests := func(reason string) (n int) {
		for _, id := range down {
			if w.get(id).Notification.StateReason == reason {
				n++
			}
		}
		return n
	}
	scenario.Within(t, 30*time.Second, "some wait in the ledger", func() bool { return rests("backlog") > 0 })
	for i := range 20 {
		up := w.submit(draft("up", "payout", fmt.Sprintf("up-%d", i)))
		w.until(up.Id, notifydv1.State_STATE_DELIVERED)
	}
	well.Store(true)
	scenario.Within(t, 60*time.Second, "all are delivered in the end", func() bool {
		return !slices.ContainsFunc(down, func(id string) bool { return w.get(id).Notification.State != notifydv1.State_STATE_DELIVERED })
	})
	scenario.Within(t, 30*time.Second, "the proof finds everything final", func() bool {
		proof := w.prove()
		return proof.Missing == 0 && len(proof.Waiting) == 0 && proof.Final["delivered"] == 120
	})
	w.Stop(t)
}
