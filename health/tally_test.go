package health

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/notification"
)

// ended is a notification that was acknowledged, and the attempt that brought it.
func ended(took time.Duration) (*notification.Notification, *notification.Attempt) {
	n := &notification.Notification{MerchantID: "m", AcceptedAt: start.Add(-took)}
	n.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, start)
	return n, &notification.Attempt{Kind: notification.KindSend, Trigger: notification.TriggerAuto, Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged}
}

func settled(state notification.State) *notification.Notification {
	n := &notification.Notification{AcceptedAt: start}
	n.State = state
	return n
}

func TestTallyCountsShares(t *testing.T) {
	now := start
	tally := NewTally(DefaultConfig(), func() time.Time { return now })
	for _, took := range []time.Duration{time.Millisecond, 13 * time.Second, 13*time.Second + 1, 100 * time.Second, 100*time.Second + 1} {
		tally.Attempted(ended(took))
	}
	held, attempt := ended(time.Hour)
	held.NotBefore = start.Add(-time.Second)
	tally.Attempted(held, attempt) // it could not be sent earlier
	resent, attempt := ended(time.Hour)
	attempt.Trigger = notification.TriggerResend
	tally.Attempted(resent, attempt) // an operator's doing
	for _, state := range []notification.State{notification.StateDead, notification.StateExpired, notification.StateCanceled, notification.StateDelivered} {
		tally.Settled(settled(state))
	}
	if diff := cmp.Diff(Shares{Settled: 8, Soon: 3, InTime: 5}, tally.Shares()); diff != "" {
		t.Errorf("shares (-want +got):\n%s", diff)
	}
	f := Facts{Now: now}
	tally.tell(&f)
	if f.Acknowledged != 6 || f.AcknowledgedLate != 3 || f.Dead != 1 {
		t.Errorf("facts: %+v", f)
	}
	now = start.Add(shareWindow + time.Minute)
	if diff := cmp.Diff(Shares{}, tally.Shares()); diff != "" {
		t.Errorf("shares after the window (-want +got):\n%s", diff)
	}
	f = Facts{Now: now}
	if tally.tell(&f); f.Acknowledged != 0 || f.Dead != 0 {
		t.Errorf("facts after the windows: %+v", f)
	}
}

// P7: what is our own fault, and what is no notification, says nothing about a merchant.
func TestTallyCountsOnlyTheMerchantsFaults(t *testing.T) {
	now := start
	cfg := DefaultConfig()
	cfg.MerchantFailingAttempts = 1
	tally := NewTally(cfg, func() time.Time { return now })
	n := &notification.Notification{MerchantID: "m"}
	for _, a := range []notification.Attempt{
		{Kind: notification.KindSend, Outcome: notification.OutcomeRetryable, Reason: notification.ReasonResolverFailure},
		{Kind: notification.KindTest, Outcome: notification.OutcomeRetryable, Reason: notification.ReasonConnectRefused},
	} {
		tally.Attempted(n, &a)
	}
	now = start.Add(cfg.MerchantFailingFor)
	f := Facts{Now: now}
	if tally.tell(&f); len(f.Failing) != 0 {
		t.Errorf("failing: %+v", f.Failing)
	}
	tally.Attempted(n, &notification.Attempt{Kind: notification.KindSend, Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonResponseTimeout})
	now = now.Add(cfg.MerchantFailingFor)
	if tally.tell(&f); len(f.Failing) != 0 { // by the facts' time it has just begun
		t.Errorf("failing: %+v", f.Failing)
	}
	f.Now = now
	if tally.tell(&f); len(f.Failing) != 1 || f.Failing[0].Merchant != "m" {
		t.Errorf("failing: %+v", f.Failing)
	}
	tally.Attempted(ended(time.Second))
	if tally.tell(&f); len(f.Failing) != 0 {
		t.Errorf("failing after an acknowledgement: %+v", f.Failing)
	}
}

func TestTallyBeginsAnewWithOtherBounds(t *testing.T) {
	tally := NewTally(DefaultConfig(), func() time.Time { return start })
	tally.Attempted(ended(time.Minute))
	tally.Settled(settled(notification.StateDead))
	cfg := DefaultConfig()
	cfg.AcknowledgementP99 = time.Hour
	tally.configure(cfg)
	f := Facts{Now: start}
	if tally.tell(&f); f.Acknowledged != 0 || f.Dead != 1 {
		t.Errorf("facts: %+v", f)
	}
	tally.Attempted(ended(time.Minute))
	if tally.tell(&f); f.Acknowledged != 1 || f.AcknowledgedLate != 0 {
		t.Errorf("facts: %+v", f)
	}
}

func BenchmarkTally(b *testing.B) {
	tally := NewTally(DefaultConfig(), time.Now)
	n, a := ended(time.Second)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			tally.Attempted(n, a)
		}
	})
}
