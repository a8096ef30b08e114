package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/async"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func payment(request string, change ...func(*notifydv1.Notification)) *notifydv1.Notification {
	p := &notifydv1.Notification{Source: "pay", RequestId: request, MerchantId: "m", Scene: "payout", EventType: "paid", OrderId: "o-" + request, Payload: `{"amount":1.10}`}
	for _, c := range change {
		c(p)
	}
	return p
}

func scan(p *notifydv1.Notification) { p.Scene = "scan" }

func (w *world) submitOne(ctx context.Context, p *notifydv1.Notification) (*notifydv1.SubmitResponse, error) {
	res, err := w.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: p}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func (w *world) submitAll(t *testing.T, ps ...*notifydv1.Notification) []*notifydv1.SubmitResult {
	t.Helper()
	res, err := w.SubmitBatch(t.Context(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: ps}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.Results
}

func idOf(t *testing.T, text string) notification.ID {
	t.Helper()
	id, err := notification.ParseID(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func wantCode(t *testing.T, err error, code connect.Code, retry bool) {
	t.Helper()
	if connect.CodeOf(err) != code {
		t.Errorf("got %v, want %s", err, code)
		return
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Errorf("%T is no connect error", err)
		return
	}
	found := slices.ContainsFunc(ce.Details(), func(d *connect.ErrorDetail) bool {
		value, err := d.Value()
		info, ok := value.(*errdetails.RetryInfo)
		return err == nil && ok && info.RetryDelay.AsDuration() > 0
	})
	if found != retry {
		t.Errorf("%v: retry info %v, want %v", err, found, retry)
	}
}

// A reservation without a proven publish is published again when it is submitted again, under its first acceptance (P4).
func TestReservationWithoutPublishIsPublishedAgain(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.shards.fail = errDown
		accepted := clock()
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeUnavailable, true)

		pass(time.Minute)
		w.shards.fail = nil
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || res.State != notifydv1.State_STATE_ACCEPTED {
			t.Fatalf("submitted again: %v, %v", res, err)
		}
		works := w.shards.accepted()
		if len(works) != 1 || !works[0].SecondCopy || !works[0].AcceptedAt.Equal(accepted) {
			t.Fatalf("published %+v, want a second copy accepted at %s", works, accepted)
		}
	})
}

// So is one of which only the row stands that persist ledger wants first: its due time is minutes away.
func TestRowWithoutPublishIsPublishedAgain(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Persist: notification.PersistLedger})
		w.shards.fail = errDown
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeUnavailable, true)
		w.shards.fail = nil

		pass(time.Second)
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || !res.Duplicate {
			t.Fatalf("submitted again: %v, %v", res, err)
		}
		if held := w.later.held(); len(held) != 1 || !held[0].SecondCopy || len(w.shards.accepted()) != 0 {
			t.Fatalf("soon: scheduled %+v, published %+v", held, w.shards.accepted())
		}
		pass(w.cfg.TraceAfter)
		if res, err = w.submitOne(t.Context(), payment("a")); err != nil || !res.Duplicate {
			t.Fatalf("submitted once more: %v, %v", res, err)
		}
		if works := w.shards.accepted(); len(works) != 1 || !works[0].SecondCopy {
			t.Fatalf("later: published %+v", works)
		}
		id := idOf(t, res.Id)
		if n, _ := w.row(t, id); !n.NextAt.After(clock().Add(time.Minute)) {
			t.Errorf("the row's own due time was moved: %+v", n.Progress)
		}
	})
}

// What waits for its not_before is due by its row: submitting it again puts nothing on its way.
func TestDuplicateBeforeItsTimeWaits(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		p := payment("a")
		p.NotBefore = timestamppb.New(clock().Add(time.Hour))
		for range 2 {
			if res, err := w.submitOne(t.Context(), p); err != nil || res.StateReason != string(notification.ReasonNotBefore) {
				t.Fatalf("%v, %v", res, err)
			}
		}
		if len(w.later.held())+len(w.shards.accepted()) != 0 {
			t.Errorf("scheduled %+v, published %+v", w.later.held(), w.shards.accepted())
		}
	})
}

func TestFirstPublishIsNoSecondCopy(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || res.Duplicate {
			t.Fatalf("%v, %v", res, err)
		}
		if works := w.shards.accepted(); len(works) != 1 || works[0].SecondCopy || works[0].Claim {
			t.Fatalf("published %+v", works)
		}
	})
}

// What the caller is told when the notification cannot be made durable: each can be tried again (P10).
func TestWhatCannotBeMadeDurable(t *testing.T) {
	for name, c := range map[string]struct {
		breaks func(*world)
		code   connect.Code
		retry  bool
	}{
		"reservation":      {func(w *world) { w.memory.failReserve = errDown }, connect.CodeUnavailable, true},
		"publish":          {func(w *world) { w.shards.fail = errDown }, connect.CodeUnavailable, true},
		"full stream":      {func(w *world) { w.shards.fail = fmt.Errorf("publish to notify.3: %w", async.ErrFull) }, connect.CodeResourceExhausted, true},
		"refused for good": {func(w *world) { w.shards.fail = &ledger.QuarantinedError{Err: errDown} }, connect.CodeInvalidArgument, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				c.breaks(w)
				_, err := w.submitOne(t.Context(), payment("a"))
				wantCode(t, err, c.code, c.retry)
				if ids := w.owed.before(clock().Add(time.Hour)); len(ids) != 0 {
					t.Errorf("owed to a caller who was told of an error: %v", ids)
				}
			})
		})
	}
}

// One that cannot be looked up is not told that it is new.
func TestDuplicateThatCannotBeLookedUp(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		if _, err := w.submitOne(t.Context(), payment("a")); err != nil {
			t.Fatal(err)
		}
		w.memory.failFind = errDown
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeUnavailable, true)
		if works := w.shards.accepted(); len(works) != 1 {
			t.Fatalf("published %d times", len(works))
		}
	})
}

// Same id, other content: nothing is changed, whether it is in hand, on record or only reserved (P4).
func TestOtherContentIsRefused(t *testing.T) {
	for name, change := range map[string]func(*notifydv1.Notification){
		"payload":  func(p *notifydv1.Notification) { p.Payload = `{"amount":1.1}` },
		"order":    func(p *notifydv1.Notification) { p.OrderId = "another" },
		"merchant": func(p *notifydv1.Notification) { p.MerchantId = "m2" },
		"scene":    scan,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.merchant(&merchant.Merchant{ID: "m2"})
				if _, err := w.submitOne(t.Context(), payment("a")); err != nil {
					t.Fatal(err)
				}
				_, err := w.submitOne(t.Context(), payment("a", change))
				wantCode(t, err, connect.CodeAlreadyExists, false)
				w.deliver(t, w.shards.accepted()[0])
				_, err = w.submitOne(t.Context(), payment("a", change))
				wantCode(t, err, connect.CodeAlreadyExists, false)
				if len(w.shards.accepted()) != 1 || w.sends.count() != 1 {
					t.Errorf("%d published, %d sent", len(w.shards.accepted()), w.sends.count())
				}
			})
		})
	}
}

// A duplicate is answered with the first one's state, wherever that stands.
func TestDuplicateIsAnsweredWithTheFirst(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		if _, err := w.submitOne(t.Context(), payment("a")); err != nil {
			t.Fatal(err)
		}
		work := w.shards.accepted()[0]
		item, _ := w.hand.Enter(work, time.Now(), func(error) {})
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || !res.Duplicate || res.State != notifydv1.State_STATE_ACCEPTED {
			t.Fatalf("in hand: %v, %v", res, err)
		}
		w.hand.Leave(item, nil)
		w.deliver(t, work)
		res, err = w.submitOne(t.Context(), payment("a"))
		if err != nil || !res.Duplicate || res.State != notifydv1.State_STATE_DELIVERED {
			t.Fatalf("on record: %v, %v", res, err)
		}
		if len(w.shards.accepted()) != 1 || w.sends.count() != 1 {
			t.Errorf("%d published, %d sent", len(w.shards.accepted()), w.sends.count())
		}
	})
}

// Twins in one batch are published once; of twins with other content the later is refused. Neighbours feel nothing.
func TestTwinsInOneBatch(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		other := payment("a")
		other.Payload = `{"amount":2}`
		results := w.submitAll(t, payment("a"), payment("a"), other, payment("b"), payment("b"))
		var got []string
		for _, r := range results {
			if e := r.GetError(); e != nil {
				got = append(got, e.Code)
			} else {
				got = append(got, fmt.Sprint(r.GetResponse().State, r.GetResponse().Duplicate))
			}
		}
		want := []string{"STATE_ACCEPTED false", "STATE_ACCEPTED true", "already_exists", "STATE_ACCEPTED false", "STATE_ACCEPTED true"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if len(w.shards.accepted()) != 2 {
			t.Errorf("%d published, want 2", len(w.shards.accepted()))
		}
	})
}

// Many callers with one id at once: one publish that is no second copy, and nobody is refused.
func TestManySubmitOneID(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		errs := make(chan error, 100)
		for range 100 {
			go func() { _, err := w.submitOne(context.WithoutCancel(t.Context()), payment("a")); errs <- err }()
		}
		for range 100 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		firsts := 0
		for _, work := range w.shards.accepted() {
			if !work.SecondCopy {
				firsts++
			}
		}
		if firsts != 1 {
			t.Errorf("%d publishes are not marked as second copies", firsts)
		}
	})
}

// not_before rests: with a row, and with a schedule only inside the window.
func TestNotBeforeRests(t *testing.T) {
	for ahead, schedules := range map[time.Duration]int{time.Minute: 1, time.Hour: 0} {
		t.Run(ahead.String(), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				at := clock().Add(ahead)
				res, err := w.submitOne(t.Context(), payment("a", scan, func(p *notifydv1.Notification) { p.NotBefore = timestamppb.New(at) }))
				if err != nil || res.StateReason != string(notification.ReasonNotBefore) {
					t.Fatalf("%v, %v", res, err)
				}
				n, _ := w.row(t, idOf(t, res.Id))
				if !n.NextAt.Equal(at) || n.Route.Lane != notification.LaneAsync || len(w.later.held()) != schedules || w.sends.count() != 0 {
					t.Errorf("row %+v, %d scheduled, %d sent", n.Progress, len(w.later.held()), w.sends.count())
				}
			})
		})
	}
}

// The sync lane answers with the attempt.
func TestSyncAnswersWithTheAttempt(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		res, err := w.submitOne(t.Context(), payment("a", scan))
		if err != nil || res.State != notifydv1.State_STATE_DELIVERED || res.Attempt == nil || res.Attempt.Number != 1 || res.Lane != notifydv1.Lane_LANE_SYNC {
			t.Fatalf("%v, %v", res, err)
		}
		if held := w.later.held(); len(held) != 1 || !held[0].NextAt.Equal(held[0].AcceptedAt.Add(w.cfg.AttemptBound)) {
			t.Fatalf("net %+v", held)
		}
		w.sends.answers(failed(notification.ReasonHTTPServerError))
		res, err = w.submitOne(t.Context(), payment("b", scan))
		if err != nil || res.State != notifydv1.State_STATE_RETRYING || res.Attempt.GetReason() != string(notification.ReasonHTTPServerError) {
			t.Fatalf("%v, %v", res, err)
		}
	})
}

// Where the sync lane cannot take it, or the gate would not let it through, the asynchronous lane does.
func TestSyncGoesAsync(t *testing.T) {
	for name, c := range map[string]struct {
		arrange func(t *testing.T, w *world)
		reason  notification.Reason
	}{
		"lane full": {func(t *testing.T, w *world) {
			t.Helper()
			for range 2 {
				if _, err := w.lane.Enter(w.accepted(t, "place").Route.IsolationKey); err != nil {
					t.Fatal(err)
				}
			}
		}, notification.ReasonSyncLaneFull},
		"paused":       {func(_ *testing.T, w *world) { w.merchant(&merchant.Merchant{ID: "m", Paused: true}) }, notification.ReasonMerchantPaused},
		"breaker open": {func(t *testing.T, w *world) { t.Helper(); openBreaker(t, w) }, notification.ReasonBreakerOpen},
		"over rate": {func(t *testing.T, w *world) { // found out only when the attempt is to be made
			t.Helper()
			w.merchant(&merchant.Merchant{ID: "m", Limits: merchant.Limits{RatePerSecond: 1, Burst: 1}})
			w.deliver(t, w.accepted(t, "before"))
		}, notification.ReasonRateLimited},
	} {
		for _, persist := range []notification.Persist{notification.PersistStream, notification.PersistAfter, notification.PersistLedger} {
			t.Run(name+"/"+persist.String(), func(t *testing.T) {
				inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
					c.arrange(t, w)
					m := *w.merchants.Get("m")
					m.Persist = persist
					w.merchant(&m)
					sent := w.sends.count()
					res, err := w.submitOne(t.Context(), payment("a", scan))
					if err != nil || res.Lane != notifydv1.Lane_LANE_ASYNC || res.StateReason != string(c.reason) || res.Attempt != nil {
						t.Fatalf("%v, %v", res, err)
					}
					works := w.shards.accepted()
					if len(works) != 1 || works[0].Route.Persist == notification.PersistAfter || w.sends.count() != sent {
						t.Errorf("published %+v, sent %d", works, w.sends.count()-sent)
					}
					if w.hand.Len() != 0 {
						t.Errorf("%d stay in hand", w.hand.Len())
					}
				})
			})
		}
	}
}

// The caller's time is up first: accepted, awaiting the answer; the attempt goes on and is on record.
func TestSyncAwaitsAnswer(t *testing.T) {
	for _, persist := range []notification.Persist{notification.PersistStream, notification.PersistAfter, notification.PersistLedger} {
		t.Run(persist.String(), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.merchant(&merchant.Merchant{ID: "m", Persist: persist})
				w.sends.answer = func(notification.Work) notification.Attempt { pass(8 * time.Second); return acknowledged() }
				began := time.Now()
				res, err := w.submitOne(t.Context(), payment("a", scan))
				if err != nil || res.State != notifydv1.State_STATE_ACCEPTED || res.StateReason != string(notification.ReasonAwaitingAnswer) || time.Since(began) != 5*time.Second {
					t.Fatalf("after %s: %v, %v", time.Since(began), res, err)
				}
				twin, err := w.submitOne(t.Context(), payment("a", scan))
				if err != nil || !twin.Duplicate || w.sends.count() != 1 {
					t.Fatalf("its twin: %v, %v, %d sent", twin, err, w.sends.count())
				}
				pass(5 * time.Second)
				synctest.Wait()
				if n, attempts := w.row(t, idOf(t, res.Id)); n.State != notification.StateDelivered || len(attempts) != 1 {
					t.Errorf("afterwards %+v", n.Progress)
				}
			})
		})
	}
}

// A second submission of a sync one of which nothing is known looks again when the first must be over; it does not ask
// the merchant beside it.
func TestSyncDuplicateWaitsForTheFirst(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.later.fail = errDown // the first copy's net is not spread: its caller is told so
		accepted := clock()
		_, err := w.submitOne(t.Context(), payment("a", scan))
		wantCode(t, err, connect.CodeUnavailable, true)
		w.later.fail = nil
		res, err := w.submitOne(t.Context(), payment("a", scan))
		if err != nil || !res.Duplicate || res.StateReason != string(notification.ReasonAwaitingAnswer) || w.sends.count() != 0 {
			t.Fatalf("%v, %v, %d sent", res, err, w.sends.count())
		}
		held := w.later.held()
		if len(held) != 1 || !held[0].SecondCopy || !held[0].NextAt.Equal(accepted.Add(w.cfg.AttemptBound)) {
			t.Fatalf("scheduled %+v", held)
		}
	})
}

// Persist ledger means a row before the answer, and the sweep knows when to miss it.
func TestPersistLedgerHasARowFirst(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Persist: notification.PersistLedger})
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := w.row(t, idOf(t, res.Id)); n.State != notification.StateAccepted || !n.NextAt.After(clock()) {
			t.Errorf("row %+v", n.Progress)
		}
		if w.log.index("recorded") > w.log.index("published") {
			t.Errorf("order: %q", w.log.lines)
		}
		w.memory.failRecord = errDown
		_, err = w.submitOne(t.Context(), payment("b"))
		wantCode(t, err, connect.CodeUnavailable, true)
		if len(w.shards.accepted()) != 1 {
			t.Errorf("published without its row")
		}
	})
}

// Only what stays without a row is marked as answered, once, and again if that failed.
func TestOwedIsWhatStaysWithoutARow(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		var ids []notification.ID
		for i := range 4 {
			res, err := w.submitOne(t.Context(), payment(strconv.Itoa(i)))
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, idOf(t, res.Id))
		}
		w.deliver(t, w.shards.accepted()[1])
		w.deliver(t, w.shards.accepted()[3])
		w.markOwed(t.Context(), w.now().Add(-markAfter))
		if w.memory.marks != 0 {
			t.Fatal("marked at once")
		}
		pass(markAfter + time.Millisecond)
		w.memory.failMark = errDown
		w.markOwed(t.Context(), w.now().Add(-markAfter))
		w.memory.failMark = nil
		w.markOwed(t.Context(), w.now().Add(-markAfter))
		w.markOwed(t.Context(), w.now().Add(-markAfter))
		if w.memory.marks != 1 || len(w.memory.marked) != 2 || !slices.Contains(w.memory.marked, ids[0]) || !slices.Contains(w.memory.marked, ids[2]) {
			t.Fatalf("%d marks of %v, want one of %v and %v", w.memory.marks, w.memory.marked, ids[0], ids[2])
		}
	})
}

// The later twin is told what the first is told: no success for what was refused (P1, P4).
func TestTwinsShareTheirFate(t *testing.T) {
	for name, breaks := range map[string]func(w *world){
		"publish fails":     func(w *world) { w.shards.fail = errDown },
		"stream is full":    func(w *world) { w.shards.fail = async.ErrFull },
		"reservation fails": func(w *world) { w.memory.failReserve = errDown },
		"other content was there first": func(w *world) {
			other := payment("a")
			other.Payload = `{"amount":3}`
			_, _ = w.submitOne(context.Background(), other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				breaks(w)
				results := w.submitAll(t, payment("a"), payment("a"))
				first, second := results[0].GetError(), results[1].GetError()
				if first == nil || second == nil || first.Code != second.Code {
					t.Errorf("first: %v; its twin: %v", results[0], results[1])
				}
			})
		})
	}
}

// A second copy of what was accepted a moment ago, by whatever node, waits until the first has left a trace (P4).
func TestSecondCopyWaitsForATrace(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		accepted := clock()
		w.submitOne(t.Context(), payment("a"))
		pass(100 * time.Millisecond)
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || !res.Duplicate || res.State != notifydv1.State_STATE_ACCEPTED {
			t.Fatalf("%v, %v", res, err)
		}
		held := w.later.held()
		if len(w.shards.accepted()) != 1 || len(held) != 1 || !held[0].SecondCopy || !held[0].NextAt.Equal(accepted.Add(w.cfg.TraceAfter)) {
			t.Fatalf("published %d, scheduled %+v", len(w.shards.accepted()), held)
		}
		if n, _ := w.row(t, held[0].ID); !n.NextAt.Equal(held[0].NextAt) {
			t.Errorf("row %+v", n.Progress)
		}
	})
}

// While Postgres is away the queues keep reservations; whatever row comes first makes the ledger's.
func TestReservedElsewhere(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.memory.elsewhere = true
		w.submitOne(t.Context(), payment("a"))
		works := w.shards.accepted()
		if len(works) != 1 || !works[0].Unreserved {
			t.Fatalf("published %+v", works)
		}
		w.deliver(t, works[0])
		if last := w.memory.records[len(w.memory.records)-1]; !last.New || !last.Unreserved {
			t.Errorf("recorded %+v", last)
		}
	})
}

// A full stream does not refuse what a row stands for: it would be sent nevertheless.
func TestFullStreamBehindARow(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Persist: notification.PersistLedger})
		w.shards.fail = fmt.Errorf("publish to notify.3: %w", async.ErrFull)
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || res.State != notifydv1.State_STATE_ACCEPTED {
			t.Fatalf("%v, %v", res, err)
		}
		if n, _ := w.row(t, idOf(t, res.Id)); n.NextAt.IsZero() {
			t.Errorf("row %+v", n.Progress)
		}
	})
}

// What the sync lane held and could not ask is let go of: whichever node has the shard may take it at once.
func TestDeferredSyncLetsGo(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Persist: notification.PersistLedger, Limits: merchant.Limits{RatePerSecond: 0.1, Burst: 1}})
		if _, err := w.submitOne(t.Context(), payment("a", scan)); err != nil {
			t.Fatal(err)
		}
		res, err := w.submitOne(t.Context(), payment("b", scan))
		if err != nil || res.Lane != notifydv1.Lane_LANE_ASYNC || res.StateReason != string(notification.ReasonRateLimited) {
			t.Fatalf("%v, %v", res, err)
		}
		n, _ := w.row(t, idOf(t, res.Id))
		claim := ledger.Claim{ID: n.ID, AcceptedAt: n.AcceptedAt, Generation: n.Generation, Attempts: n.Attempts, By: "another node", Until: clock().Add(time.Minute)}
		if verdict, until, err := w.memory.Claim(t.Context(), claim); verdict != ledger.ClaimGranted || err != nil {
			t.Errorf("verdict %d until %s, %v", verdict, until, err)
		}
	})
}

// The outcome of a sync submission is on record when it is answered: nothing is owed for it.
func TestSyncAnswerOwesNothing(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		if _, err := w.submitOne(t.Context(), payment("a", scan)); err != nil {
			t.Fatal(err)
		}
		if owed := w.owed.before(clock().Add(time.Hour)); len(owed) != 0 {
			t.Errorf("owed: %v", owed)
		}
	})
}
