package dispatcher

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"notifyd/access"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// rule puts a block of merchant m, changed, and learns it.
func (w *world) rule(t *testing.T, mode access.Mode, change ...func(*access.Rule)) *access.Rule {
	t.Helper()
	r := &access.Rule{Subject: access.Subject{Kind: access.KindMerchant, ID: "m"}, Effect: access.EffectBlock, Mode: mode, Reason: "arrears"}
	for _, c := range change {
		c(r)
	}
	r.ID = access.RuleID(r.Subject, r.Effect)
	stored, err := w.memory.PutAccessRule(t.Context(), r, nil)
	must(t, err)
	must(t, w.LearnAccess(t.Context()))
	return stored
}

func ended(r *access.Rule) { r.Removed = true }

func everybody(r *access.Rule) { r.Subject.ID = "" }

func bySource(r *access.Rule) { r.Subject = access.Subject{Kind: access.KindSource, ID: "pay"} }

// What each mode answers, in both lanes, and again when it is submitted twice: nothing is sent, nothing goes into a queue,
// and each is where it says it is.
func TestSubmitOfWhatIsBarred(t *testing.T) {
	for name, c := range map[string]struct {
		mode   access.Mode
		change func(*access.Rule)
		state  notifydv1.State
		reason notification.Reason
	}{
		"hold":                    {access.ModeHold, nil, notifydv1.State_STATE_HELD, notification.ReasonBlocked},
		"hold a source":           {access.ModeHold, bySource, notifydv1.State_STATE_HELD, notification.ReasonBlocked},
		"allow-only, hold":        {access.ModeHold, everybody, notifydv1.State_STATE_HELD, notification.ReasonNotAllowed},
		"record only":             {access.ModeRecordOnly, nil, notifydv1.State_STATE_CANCELED, notification.ReasonBlocked},
		"allow-only, record only": {access.ModeRecordOnly, everybody, notifydv1.State_STATE_CANCELED, notification.ReasonNotAllowed},
	} {
		for lane, p := range map[string]*notifydv1.Notification{"async": payment("a"), "sync": payment("a", scan)} {
			t.Run(name+", "+lane, func(t *testing.T) {
				inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
					change := c.change
					if change == nil {
						change = func(*access.Rule) {}
					}
					w.rule(t, c.mode, change)
					for i := range 2 {
						res, err := w.submitOne(t.Context(), p)
						if err != nil || res.State != c.state || res.StateReason != string(c.reason) || res.Duplicate != (i == 1) {
							t.Fatalf("submission %d: %v, %v", i, res, err)
						}
						n, attempts := w.row(t, idOf(t, res.Id))
						if stateToProto(n.State) != c.state || n.Reason != c.reason || len(attempts) != 0 || n.Attempts != 0 {
							t.Errorf("row: %+v with %d attempts", n.Progress, len(attempts))
						}
						if held := n.State == notification.StateHeld; held == n.NextAt.IsZero() || n.Resting {
							t.Errorf("due at %s, resting %t: nobody looks for it", n.NextAt, n.Resting)
						}
					}
					if w.sends.count()+len(w.shards.accepted())+len(w.later.held()) != 0 {
						t.Errorf("%d sent, %d published, %d scheduled", w.sends.count(), len(w.shards.accepted()), len(w.later.held()))
					}
				})
			})
		}
	}
}

// A rejected submission leaves nothing behind, and its neighbours in a batch are accepted.
func TestRejectAcceptsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*access.Rule)
		want   string
	}{
		"merchant":   {func(*access.Rule) {}, `notification.merchant_id: merchant "m" is blocked by rule merchant/m/block`},
		"in a scene": {func(r *access.Rule) { r.Subject.Scene = "payout" }, `notification.merchant_id: merchant "m" is blocked in scene "payout" by rule merchant/m/payout/block`},
		"source":     {bySource, `notification.source: source "pay" is blocked by rule source/pay/block`},
		"allow-only": {everybody, `notification.merchant_id: only merchants that a rule allows may be used, and none allows this one (merchant/block)`},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.merchant(&merchant.Merchant{ID: "n"})
				w.rule(t, access.ModeReject, c.change)
				w.rule(t, 0, func(r *access.Rule) { r.Subject.ID, r.Effect = "n", access.EffectAllow })
				res := w.submitAll(t, payment("a"), payment("b", to("n"), from("bank")))
				e := res[0].GetError()
				if e.GetCode() != connect.CodeFailedPrecondition.String() || e.GetMessage() != c.want {
					t.Errorf("answer %v", e)
				}
				if res[1].GetResponse() == nil {
					t.Errorf("its neighbour: %v", res[1].GetError())
				}
				id := (&notification.Notification{Source: "pay", RequestID: "a"}).DeriveID()
				if _, _, err := w.memory.Find(t.Context(), id); !errors.Is(err, ledger.ErrNotFound) {
					t.Errorf("it is known: %v", err)
				}
			})
		})
	}
}

// Whoever submits again what was accepted before the rejection learns where it stands (P4); other content is refused.
func TestRejectKnowsWhatWasAccepted(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		first, err := w.submitOne(t.Context(), payment("a"))
		must(t, err)
		w.deliver(t, w.shards.accepted()[0])
		w.rule(t, access.ModeReject)
		again, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || again.Id != first.Id || !again.Duplicate || again.State != notifydv1.State_STATE_DELIVERED {
			t.Errorf("%v, %v", again, err)
		}
		_, err = w.submitOne(t.Context(), payment("a", func(p *notifydv1.Notification) { p.Payload = `{"amount":2}` }))
		wantCode(t, err, connect.CodeAlreadyExists, false)
		_, err = w.submitOne(t.Context(), payment("b"))
		wantCode(t, err, connect.CodeFailedPrecondition, false)
	})
}

// A submission that was cut short after its id was reserved is completed by the next one: once its first copy must have left
// a trace, the gate settles it as the rule says.
func TestRecordOnlyAfterACutSubmission(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.rule(t, access.ModeRecordOnly)
		w.memory.failRecord = errDown
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeUnavailable, true)
		w.memory.failRecord = nil
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || res.State != notifydv1.State_STATE_ACCEPTED || !res.Duplicate {
			t.Fatalf("%v, %v", res, err)
		}
		works := w.later.held()
		if len(works) == 0 {
			t.Fatal("nothing brings the second copy")
		}
		second := works[len(works)-1]
		pass(time.Until(second.NextAt))
		second.Claim = true
		w.deliver(t, second)
		n, attempts := w.row(t, idOf(t, res.Id))
		if n.State != notification.StateCanceled || n.Reason != notification.ReasonBlocked || len(attempts) != 0 || w.sends.count() != 0 {
			t.Errorf("%+v, %d attempts, %d sent", n.Progress, len(attempts), w.sends.count())
		}
		res, err = w.submitOne(t.Context(), payment("a"))
		if err != nil || res.State != notifydv1.State_STATE_CANCELED || !res.Duplicate {
			t.Errorf("submitted again: %v, %v", res, err)
		}
	})
}

// What was accepted before the block is asked about again before every attempt: first, retry and resend.
func TestGateBarsEveryAttempt(t *testing.T) {
	works := map[string]func(t *testing.T, w *world) notification.Work{
		"first":             func(t *testing.T, w *world) notification.Work { t.Helper(); return w.accepted(t, "a") },
		"first, with a row": func(t *testing.T, w *world) notification.Work { t.Helper(); return w.due(t, "a", nil) },
		"retry": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			return w.due(t, "a", func(n *notification.Notification) { n.State, n.Attempts, n.Step = notification.StateRetrying, 2, 2 })
		},
		"resend of a dead one": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			work := w.due(t, "a", func(n *notification.Notification) {
				n.Attempts = 3
				n.Settle(notification.StateDead, notification.ReasonScheduleExhausted, notification.SettledBySchedule, clock())
			})
			_, err := w.memory.Resend(t.Context(), work.ID, "ops", clock())
			must(t, err)
			again := w.again(t, work)
			again.Trigger = notification.TriggerResend
			return again
		},
	}
	for name, work := range works {
		for _, mode := range []access.Mode{access.ModeReject, access.ModeHold, access.ModeRecordOnly} {
			t.Run(name+", "+mode.String(), func(t *testing.T) {
				inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
					one := work(t, w)
					before := one.Attempts
					w.rule(t, mode)
					v, err := w.deliver(t, one)
					want := notification.StateHeld
					if mode == access.ModeRecordOnly {
						want = notification.StateCanceled
					}
					n, attempts := w.row(t, one.ID)
					if err != nil || v.Deferred || w.sends.count() != 0 || n.State != want || n.Reason != notification.ReasonBlocked || n.Attempts != before || len(attempts) != 0 {
						t.Fatalf("verdict %+v, %v; row %+v, %d sent", v, err, n.Progress, w.sends.count())
					}
					if want == notification.StateHeld && (n.NextAt.Before(clock().Add(heldLook)) || n.NextAt.After(clock().Add(heldLook+heldSpread))) {
						t.Errorf("looked at again at %s", n.NextAt)
					}
				})
			})
		}
	}
}

// An attempt that left no outcome goes on record when the notification is held, not when it is sent.
func TestHeldKeepsAnInterruptedAttempt(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.accepted(t, "a")
		work.Interrupted = true
		w.rule(t, access.ModeHold)
		_, err := w.deliver(t, work)
		must(t, err)
		n, attempts := w.row(t, work.ID)
		if n.State != notification.StateHeld || n.Attempts != 1 || len(attempts) != 1 || attempts[0].Reason != notification.ReasonInterrupted {
			t.Errorf("%+v, %+v", n.Progress, attempts)
		}
	})
}

// Of two copies one is held; the other is dropped. While the ledger cannot be asked neither is sent.
func TestHeldIsClaimed(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "a", nil)
		w.rule(t, access.ModeHold)
		w.memory.failClaim = errDown
		if v, _ := w.deliver(t, work); !v.Deferred || w.sends.count() != 0 {
			t.Errorf("no answer: %+v", v)
		}
		w.memory.failClaim = nil
		_, err := w.memory.Resend(t.Context(), work.ID, "ops", clock()) // work is of an older generation now
		must(t, err)
		w.deliver(t, work)
		if n, _ := w.row(t, work.ID); n.State != notification.StateRetrying || n.Reason != notification.ReasonResend {
			t.Errorf("an old copy has changed the row: %+v", n.Progress)
		}
	})
}

// The resend of a delivered one cannot be held: it is refused, and one that is on its way already is dropped.
func TestResendOfADeliveredOneThatIsBarred(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.accepted(t, "a")
		w.deliver(t, work)
		w.rule(t, access.ModeHold)
		res, err := w.ResendNotifications(t.Context(), connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{work.ID.String()}}))
		must(t, err)
		if e := res.Msg.Results[0].Error; e.GetCode() != connect.CodeFailedPrecondition.String() {
			t.Errorf("answer %v", res.Msg.Results[0])
		}
		again := w.again(t, work)
		again.Trigger = notification.TriggerResend
		w.deliver(t, again)
		if n, attempts := w.row(t, work.ID); n.State != notification.StateDelivered || len(attempts) != 1 || w.sends.count() != 1 {
			t.Errorf("%+v, %d attempts, %d sent", n.Progress, len(attempts), w.sends.count())
		}
	})
}

// A node that does not know the lists yet sends nothing and accepts nothing.
func TestListsThatAreNotKnown(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		unknown := access.NewRegistry()
		w.access, w.gate.lists = unknown, unknown
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeUnavailable, true)
		if v, _ := w.deliver(t, w.accepted(t, "b")); !v.Deferred || w.sends.count() != 0 {
			t.Errorf("%+v, %d sent", v, w.sends.count())
		}
		w.Adopt(ledger.Settings{Access: []*access.Rule{{ID: "merchant/m/block", Version: 7, Subject: access.Subject{Kind: access.KindMerchant, ID: "m"}, Effect: access.EffectBlock, Mode: access.ModeHold}}})
		if res, err := w.submitOne(t.Context(), payment("a")); err != nil || res.State != notifydv1.State_STATE_HELD {
			t.Errorf("from the last run's settings: %v, %v", res, err)
		}
	})
}

// releasing lets the releases go on until the test ends.
func (w *world) releasing(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.RunReleases(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-done)
	})
}

// turns are the due times of what was released, in the order of acceptance; the zero time for what is still held.
func (w *world) turns(t *testing.T, ids []notification.ID) (turns []time.Time) {
	t.Helper()
	for _, id := range ids {
		n, _ := w.row(t, id)
		if n.State == notification.StateHeld {
			turns = append(turns, time.Time{})
			continue
		}
		if n.Reason != notification.ReasonReleased || n.State != notification.StateAccepted {
			t.Fatalf("%+v", n.Progress)
		}
		turns = append(turns, n.NextAt)
	}
	return turns
}

// When a rule ends, by a call, by its expiry or by a narrower allowance, what it held comes due one after another at the
// merchant's rate, and nothing else does.
func TestReleaseAtARate(t *testing.T) {
	for name, c := range map[string]struct {
		put, end func(*access.Rule)
		perSec   float64
		gap      time.Duration
	}{
		"removed":                    {nil, ended, 4, 250 * time.Millisecond},
		"without a rate of its own":  {nil, ended, 0, 10 * time.Millisecond},
		"expired, and nobody called": {func(r *access.Rule) { r.ExpiresAt = clock().Add(time.Minute) }, nil, 4, 250 * time.Millisecond},
		"allowed in this scene": {nil, func(r *access.Rule) {
			r.Subject.Scene, r.Effect, r.Mode = "payout", access.EffectAllow, 0
		}, 4, 250 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.merchant(&merchant.Merchant{ID: "m", Limits: merchant.Limits{Release: c.perSec}})
				w.releasing(t)
				put := c.put
				if put == nil {
					put = func(*access.Rule) {}
				}
				w.rule(t, access.ModeHold, put)
				var ids []notification.ID
				for i := range 100 {
					res, err := w.submitOne(t.Context(), payment(strconv.Itoa(i)))
					must(t, err)
					ids = append(ids, idOf(t, res.Id))
					pass(time.Millisecond)
				}
				other, err := w.submitOne(t.Context(), payment("scan", scan))
				must(t, err)
				pass(30 * time.Second)
				for i, at := range w.turns(t, ids) {
					if !at.IsZero() {
						t.Fatalf("%d is released while the rule holds", i)
					}
				}
				if c.end != nil {
					w.rule(t, access.ModeHold, c.end)
				} else {
					pass(time.Minute)
				}
				began := clock()
				pass(time.Minute)
				turns := w.turns(t, ids)
				for i := range turns {
					if turns[i].IsZero() {
						t.Fatalf("%d is still held", i)
					}
					if i > 0 && turns[i].Sub(turns[i-1]) != c.gap {
						t.Fatalf("turn %d is %s after the one before, want %s", i, turns[i].Sub(turns[i-1]), c.gap)
					}
				}
				if c.end != nil && (turns[0].Before(began) || turns[0].After(began.Add(5*time.Second))) {
					t.Errorf("the first turn is %s after the end", turns[0].Sub(began))
				}
				if again, err := w.submitOne(t.Context(), payment("99")); err != nil || again.StateReason != "released" || len(w.shards.accepted()) != 0 {
					t.Errorf("submitting again is no way past the rate: %v, %v, %d published", again, err, len(w.shards.accepted()))
				}
				n, _ := w.row(t, idOf(t, other.Id))
				if stillHeld := name == "allowed in this scene"; stillHeld != (n.State == notification.StateHeld) {
					t.Errorf("of another scene: %+v", n.Progress)
				}
				synctest.Wait()
			})
		})
	}
}

// What another node holds by a rule whose end it has not learned yet is not left behind, nor what an outage brings late.
func TestReleaseOfWhatIsHeldLate(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.releasing(t)
		w.rule(t, access.ModeHold)
		w.rule(t, access.ModeHold, ended)
		hold := func(name string) notification.ID {
			work := w.accepted(t, name)
			work.Defer(notification.ReasonBlocked, clock())
			work.NextAt = clock().Add(heldLook)
			w.put(t, work.Notification)
			return work.ID
		}
		for _, wait := range []time.Duration{2 * time.Second, 5 * time.Minute} {
			pass(wait)
			id := hold(wait.String())
			pass(releaseIdle + 2*releaseEvery)
			if w.turns(t, []notification.ID{id})[0].IsZero() {
				t.Errorf("what was held %s after the rule's end stays behind", wait)
			}
		}
	})
}

// A look that fails is made again.
func TestReleaseAfterAFailure(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		store := &failingRules{AccessRules: w.memory}
		store.fail.Store(true)
		w.accessStore = store
		w.releasing(t)
		w.rule(t, access.ModeHold)
		held, err := w.submitOne(t.Context(), payment("a"))
		must(t, err)
		w.rule(t, access.ModeHold, ended)
		id := idOf(t, held.Id)
		pass(time.Minute)
		if !w.turns(t, []notification.ID{id})[0].IsZero() {
			t.Error("released by nobody")
		}
		store.fail.Store(false)
		pass(2 * releaseEvery)
		if w.turns(t, []notification.ID{id})[0].IsZero() {
			t.Error("still held")
		}
	})
}

// failingRules is a store that can be told not to know what is held.
type failingRules struct {
	AccessRules
	fail atomic.Bool
}

func (s *failingRules) Barred(ctx context.Context, after ledger.Barred, limit int) ([]ledger.Barred, error) {
	if s.fail.Load() {
		return nil, errDown
	}
	return s.AccessRules.Barred(ctx, after, limit)
}

// What is held waits in the due index, for the proof, and is listed.
func TestHeldIsProvenAndListed(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.rule(t, access.ModeHold)
		res, err := w.submitOne(t.Context(), payment("a"))
		must(t, err)
		list, err := w.ListNotifications(t.Context(), connect.NewRequest(&notifydv1.ListNotificationsRequest{
			Filter: &notifydv1.NotificationFilter{States: []notifydv1.State{notifydv1.State_STATE_HELD}},
		}))
		must(t, err)
		if found := list.Msg.Notifications; len(found) != 1 || found[0].Id != res.Id || found[0].StateReason != "blocked" {
			t.Errorf("listed: %v", found)
		}
		p := &proof{final: map[string]int64{}, waiting: map[string]int64{}, suspects: map[notification.ID]ledger.ProofRow{}}
		n, _ := w.row(t, idOf(t, res.Id))
		p.count(ledger.ProofRow{ID: n.ID, State: n.State, NextAt: n.NextAt, Resting: n.Resting})
		if p.waiting["due_index"] != 1 {
			t.Errorf("proof: %+v", p)
		}
	})
}

// Explain says which rule would decide, and Submit's answer to an error is none of Explain's.
func TestExplainNamesTheRule(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		explain := func(ctx context.Context) *notifydv1.ExplainResponse {
			res, err := w.Explain(ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: payment("a")}))
			must(t, err)
			return res.Msg
		}
		if e := explain(t.Context()); e.AccessRule != "" || e.AccessMode != 0 || e.Gate != "" {
			t.Errorf("nothing is blocked: %v", e)
		}
		w.rule(t, access.ModeReject)
		e := explain(t.Context())
		if e.AccessRule != "merchant/m/block" || e.AccessMode != notifydv1.AccessMode_ACCESS_MODE_REJECT || e.AccessReason != "arrears" || e.Gate != "blocked" {
			t.Errorf("blocked: %v", e)
		}
		if e := explain(context.WithValue(t.Context(), callerKey{}, Caller{Source: "pay"})); e.AccessReason != "" || e.AccessRule == "" {
			t.Errorf("to a source: %v", e)
		}
	})
}
