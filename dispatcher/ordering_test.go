package dispatcher

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func (l *fakeLedger) LineUp(ctx context.Context, list []*notification.Notification) ([]ledger.Lined, error) {
	if l.failLine != nil {
		return nil, l.failLine
	}
	return l.Memory.LineUp(ctx, list)
}

func (l *fakeLedger) Turn(ctx context.Context, n *notification.Notification) (ledger.Turn, error) {
	l.mu.Lock()
	l.turns++
	l.mu.Unlock()
	if l.failLine != nil {
		return ledger.Turn{}, l.failLine
	}
	return l.Memory.Turn(ctx, n)
}

func inLineOf(key string) func(*notifydv1.Notification) {
	return func(p *notifydv1.Notification) { p.OrderingKey = key }
}

func replacing(p *notifydv1.Notification) { p.SupersedeKey = "k" }

// fromShard is what the lane was given, as it hands it on.
func (w *world) fromShard(t *testing.T) []notification.Work {
	t.Helper()
	works := w.shards.accepted()
	for i := range works {
		works[i].HasRow = works[i].Route.Persist == notification.PersistLedger
		works[i].Claim = works[i].HasRow || works[i].Unreserved
	}
	return works
}

// sentNext are the requests of what was put on its way because its turn had come.
func (w *world) sentNext() (requests []string) {
	w.later.mu.Lock()
	defer w.later.mu.Unlock()
	for _, next := range w.later.now {
		requests = append(requests, next.RequestID)
	}
	return requests
}

func TestOneAfterAnother(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		results := w.submitAll(t, payment("1", inLineOf("k")), payment("2", inLineOf("k")), payment("3", inLineOf("l")), payment("4", inLineOf("k")))
		var reasons []string
		for _, r := range results {
			reasons = append(reasons, r.GetResponse().StateReason)
		}
		if diff := cmp.Diff([]string{"queued", "awaiting_predecessor", "queued", "awaiting_predecessor"}, reasons); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		works := w.fromShard(t)
		if len(works) != 2 || works[0].RequestID != "1" || works[1].RequestID != "3" {
			t.Fatalf("published: %d", len(works))
		}
		w.sends.answers(failed(notification.ReasonHTTPServerError))
		if _, err := w.deliver(t, works[0]); err != nil {
			t.Fatal(err)
		}
		if got := w.sentNext(); len(got) != 0 {
			t.Errorf("after a failure: %v go", got)
		}
		w.sends.answers(acknowledged())
		if _, err := w.deliver(t, w.again(t, works[0])); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"2"}, w.sentNext()); diff != "" {
			t.Errorf("after the acknowledgement (-want +got):\n%s", diff)
		}
		// The last one is resent before its turn: it waits, without anybody else's waiting for it.
		last := idOf(t, results[3].GetResponse().Id)
		if _, err := w.resend(t.Context(), last, "alice"); err != nil {
			t.Fatal(err)
		}
		verdict, err := w.deliver(t, w.again(t, notification.Work{Notification: &notification.Notification{ID: last}}))
		if err != nil || verdict.Deferred || verdict.Reason != notification.ReasonAwaitingPredecessor || w.sends.count() != 2 {
			t.Errorf("resent before its turn: %+v, %v", verdict, err)
		}
		second := w.again(t, notification.Work{Notification: &notification.Notification{ID: idOf(t, results[1].GetResponse().Id)}})
		if _, err := w.cancel(t.Context(), second.ID, "alice"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.sentNext(); len(got) < 2 || got[len(got)-1] != "4" {
			t.Errorf("after the second was canceled: %v", got)
		}
	})
}

func TestOrderWithoutTheLedger(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.memory.failLine = fmt.Errorf("%w: in a test", ledger.ErrAway)
		res, err := w.submitOne(t.Context(), payment("1", inLineOf("k")))
		if err != nil || res.State != notifydv1.State_STATE_ACCEPTED {
			t.Fatalf("submit: %v, %v", res, err)
		}
		if _, err := w.submitOne(t.Context(), payment("2")); err != nil {
			t.Fatal(err)
		}
		works := w.fromShard(t)
		if len(works) != 2 || !works[0].Claim {
			t.Fatalf("published: %+v", works)
		}
		began := clock()
		verdict, err := w.deliver(t, works[0])
		if err != nil || verdict.Deferred || w.sends.count() != 0 {
			t.Errorf("its turn is not known: %+v, %v, %d sent", verdict, err, w.sends.count())
		}
		if wait := verdict.After.NextAt.Sub(began); wait < firstLook || wait > 2*firstLook {
			t.Errorf("it is looked at again after %s", wait)
		}
		if held := w.later.held(); len(held) != 1 || held[0].ID != works[0].ID {
			t.Errorf("scheduled: %d", len(held))
		}
		if _, err := w.deliver(t, works[1]); err != nil || w.sends.count() != 1 {
			t.Errorf("one without a key: %v, %d sent", err, w.sends.count())
		}
		if w.memory.turns != 1 {
			t.Errorf("the ledger was asked %d times whose turn it is", w.memory.turns)
		}
		// One that was in hand when the engine died, and has no row, waits in its message: it alone, not its merchant.
		interrupted := works[0]
		interrupted.Interrupted = true
		if verdict, _ := w.deliver(t, interrupted); !verdict.Deferred || verdict.Reason != notification.ReasonInFlight {
			t.Errorf("an interrupted one whose turn is not known: %+v", verdict)
		}
		w.memory.failLine = nil
		if _, err := w.deliver(t, w.again(t, works[0])); err != nil || w.sends.count() != 2 {
			t.Errorf("the ledger is back: %v, %d sent", err, w.sends.count())
		}
	})
}

func TestDeadPredecessor(t *testing.T) {
	for rule, sent := range map[merchant.DeadPredecessor]int{"": 2, merchant.DeadReleases: 2, merchant.DeadBlocks: 1} {
		t.Run("rule "+string(rule), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.merchant(&merchant.Merchant{ID: "m", Ordering: merchant.Ordering{DeadPredecessor: rule}})
				results := w.submitAll(t, payment("1", inLineOf("k")), payment("2", inLineOf("k")))
				w.sends.answers(notification.Attempt{Outcome: notification.OutcomeRejected, Reason: notification.ReasonGone, Counted: true})
				if _, err := w.deliver(t, w.fromShard(t)[0]); err != nil {
					t.Fatal(err)
				}
				w.sends.answers(acknowledged())
				second := notification.Work{Notification: &notification.Notification{ID: idOf(t, results[1].GetResponse().Id)}}
				if _, err := w.deliver(t, w.again(t, second)); err != nil || w.sends.count() != sent {
					t.Errorf("%v, %d sent, want %d", err, w.sends.count(), sent)
				}
				if rule != merchant.DeadBlocks {
					return
				}
				row, _ := w.row(t, second.ID)
				if row.Reason != notification.ReasonAwaitingPredecessor || row.NextAt.IsZero() {
					t.Fatalf("it stands at %s, looked at again %s", row.Reason, row.NextAt)
				}
				w.merchant(&merchant.Merchant{ID: "m"})
				pass(time.Until(row.NextAt))
				if _, err := w.deliver(t, w.again(t, second)); err != nil || w.sends.count() != 2 {
					t.Errorf("after the rule has changed: %v, %d sent", err, w.sends.count())
				}
			})
		})
	}
}

func TestSyncBehindAnother(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.submitAll(t, payment("1", inLineOf("k")))
		res, err := w.submitOne(t.Context(), payment("2", scan, inLineOf("k")))
		if err != nil || res.State != notifydv1.State_STATE_ACCEPTED || res.StateReason != "awaiting_predecessor" || res.Attempt != nil || w.sends.count() != 0 {
			t.Errorf("behind another: %v, %v, %d sent", res, err, w.sends.count())
		}
		first, err := w.submitOne(t.Context(), payment("3", scan, inLineOf("l")))
		if err != nil || first.State != notifydv1.State_STATE_DELIVERED {
			t.Errorf("the first of its key: %v, %v", first, err)
		}
	})
}

func TestSuperseded(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		older, err := w.submitOne(t.Context(), payment("1", replacing))
		if err != nil {
			t.Fatal(err)
		}
		work := w.fromShard(t)[0]
		id := idOf(t, older.Id)
		// In flight it is left alone; its failure ends it.
		w.sends.answer = func(notification.Work) notification.Attempt {
			newer, err := w.submitOne(context.Background(), payment("2", replacing))
			if err != nil || newer.State != notifydv1.State_STATE_ACCEPTED {
				t.Errorf("the newer one: %v, %v", newer, err)
			}
			synctest.Wait() // whoever would cancel it has seen that it is in flight
			return failed(notification.ReasonHTTPServerError)
		}
		if _, err := w.deliver(t, work); err != nil {
			t.Fatal(err)
		}
		if row, _ := w.row(t, id); row.State != notification.StateRetrying {
			t.Errorf("the older one is %s, %s", row.State, row.Reason)
		}
		verdict, err := w.deliver(t, w.again(t, work))
		if err != nil || verdict.Reason != notification.ReasonSuperseded || w.sends.count() != 1 {
			t.Errorf("tried again: %+v, %v", verdict, err)
		}
		// One that waits is canceled at once.
		second := w.fromShard(t)[1]
		if _, err := w.submitOne(t.Context(), payment("3", replacing)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		row, _ := w.row(t, second.ID)
		if row.State != notification.StateCanceled || row.Reason != notification.ReasonSuperseded || row.Generation != 2 {
			t.Errorf("the second one is %s, %s", row.State, row.Reason)
		}
		if verdict, err := w.deliver(t, second); err != nil || w.sends.count() != 1 {
			t.Errorf("its copy in the shard: %+v, %v", verdict, err)
		}
		again, err := w.submitOne(t.Context(), payment("1", replacing))
		if err != nil || !again.Duplicate || again.State != notifydv1.State_STATE_CANCELED || again.StateReason != "superseded" {
			t.Errorf("submitted again: %v, %v", again, err)
		}
	})
}

func TestNotBeforeInLine(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		at := clock().Add(time.Hour)
		first, err := w.submitOne(t.Context(), payment("1", inLineOf("k"), func(p *notifydv1.Notification) { p.NotBefore = toTimestamp(at) }))
		if err != nil || first.StateReason != "not_before" {
			t.Errorf("the first: %v, %v", first, err)
		}
		second, err := w.submitOne(t.Context(), payment("2", inLineOf("k")))
		if err != nil || second.StateReason != "awaiting_predecessor" {
			t.Errorf("the second: %v, %v", second, err)
		}
		if len(w.fromShard(t)) != 0 {
			t.Error("something was published")
		}
	})
}
