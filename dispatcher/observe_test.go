package dispatcher

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func (o *told) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	events := o.events
	o.events = nil
	return events
}

func (o *told) want(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, o.take()); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// answer is what an observer is told of one submission, as far as it does not name it.
type answer struct {
	code      string
	duplicate bool
	reserved  Reserving
	lane      notification.Lane
}

func (o *told) wantAnswers(t *testing.T, want ...answer) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	var got []answer
	for _, a := range o.answers {
		one := answer{code: a.Code, duplicate: a.Duplicate, reserved: a.Reserved}
		if a.Code == CodeOK {
			one.lane = a.Notification.Route.Lane
		} else if a.Err == nil {
			t.Errorf("%s without an error", a.Code)
		}
		got = append(got, one)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	o.answers = nil
}

func TestObserverIsToldOfAnswers(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		other := func(p *notifydv1.Notification) { p.Payload = `{"other":1}` }
		w.submitAll(t, payment("1"), payment("1"), payment("1", other), payment("2", func(p *notifydv1.Notification) { p.MerchantId = "nobody" }), &notifydv1.Notification{})
		w.told.wantAnswers(t,
			answer{CodeOK, false, ReservingFresh, notification.LaneAsync}, answer{CodeOK, true, "", notification.LaneAsync},
			answer{connect.CodeAlreadyExists.String(), false, "", 0}, answer{connect.CodeNotFound.String(), false, "", 0},
			answer{connect.CodeInvalidArgument.String(), false, "", 0})

		w.put(t, w.shards.accepted()[0].Notification)
		_, _ = w.submitOne(t.Context(), payment("1"))
		_, _ = w.submitOne(t.Context(), payment("1", other))
		_, _ = w.submitOne(t.Context(), payment("3", scan))
		w.memory.failReserve = errDown
		_, _ = w.submitOne(t.Context(), payment("4"))
		w.memory.failReserve = nil
		w.shards.fail = errDown
		_, _ = w.submitOne(t.Context(), payment("5"))
		w.told.wantAnswers(t,
			answer{CodeOK, true, ReservingDuplicate, notification.LaneAsync}, answer{connect.CodeAlreadyExists.String(), false, ReservingConflict, 0},
			answer{CodeOK, false, ReservingFresh, notification.LaneSync}, answer{connect.CodeUnavailable.String(), false, ReservingFailed, 0},
			answer{connect.CodeUnavailable.String(), false, ReservingFresh, 0})
	})
}

func TestObserverIsToldOfDeliveries(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Gate.ConsecutiveFailures = 2
	inBubble(t, cfg, func(t *testing.T, w *world) {
		began := clock()
		_, _ = w.deliver(t, w.accepted(t, "well"))
		w.told.want(t, "attempted acknowledged", "settled delivered")
		if s := w.Stats(); s.Started != 1 || s.Sending != 0 || s.LastStarted.Before(began) || s.OpenBreakers != 0 {
			t.Errorf("stats: %+v", s)
		}

		w.sends.answers(failed(notification.ReasonConnectRefused))
		_, _ = w.deliver(t, w.accepted(t, "one"))
		_, _ = w.deliver(t, w.accepted(t, "two"))
		w.told.want(t, "attempted connect_refused", "opened m:m", "attempted connect_refused")
		_, _ = w.deliver(t, w.accepted(t, "three"))
		w.told.want(t, "deferred breaker_open")
		if s := w.Stats(); s.OpenBreakers != 1 || s.Started != 3 {
			t.Errorf("stats: %+v", s)
		}
		pass(cfg.Gate.OpenFor + time.Second)
		if s := w.Stats(); s.OpenBreakers != 0 {
			t.Errorf("stats when a probe is allowed: %+v", s)
		}
		_, _ = w.deliver(t, w.accepted(t, "probe"))
		w.told.want(t, "opened m:m", "attempted connect_refused")
		pass(2*cfg.Gate.OpenFor + time.Second)

		w.sends.answers(notification.Attempt{Outcome: notification.OutcomeRejected, Reason: notification.ReasonGone, Counted: true})
		_, _ = w.deliver(t, w.accepted(t, "refused"))
		w.told.want(t, "attempted gone", "settled dead")

		late := w.accepted(t, "late")
		late.ExpiresAt = clock().Add(-time.Second)
		_, _ = w.deliver(t, late)
		w.told.want(t, "settled expired")

		w.memory.failClaim = errDown
		_, _ = w.deliver(t, w.due(t, "unclaimed", nil))
		w.memory.failClaim = nil
		w.told.want(t, "deferred internal")

		waiting := w.due(t, "canceled", nil)
		if _, err := w.cancel(t.Context(), waiting.ID, "op"); err != nil {
			t.Fatal(err)
		}
		w.told.want(t, "settled canceled")

		w.merchant(&merchant.Merchant{ID: "m", Paused: true})
		_, _ = w.deliver(t, w.accepted(t, "held"))
		w.told.want(t, "deferred merchant_paused")
	})
}

// What was delivered is settled once: a resend of it adds an attempt.
func TestResendOfADeliveredIsNotSettledAgain(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		_, _ = w.deliver(t, w.accepted(t, "1"))
		w.told.take()
		work := w.accepted(t, "1")
		n, _ := w.row(t, work.ID)
		again := notification.Work{Notification: n, Trigger: notification.TriggerResend, Claim: true, HasRow: true}
		_, _ = w.deliver(t, again)
		w.told.want(t, "attempted acknowledged")
	})
}

func TestStatsShowWhatIsOnTheWire(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.sends.mu.Lock()
		w.sends.answer = func(notification.Work) notification.Attempt {
			<-release
			return acknowledged()
		}
		w.sends.mu.Unlock()
		work := w.accepted(t, "1")
		go w.Deliver(t.Context(), work, nil, func(error) {})
		synctest.Wait()
		if s := w.Stats(); s.Sending != 1 || s.Started != 1 {
			t.Errorf("stats: %+v", s)
		}
		close(release)
		synctest.Wait()
		if s := w.Stats(); s.Sending != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}
