package health

import (
	"sync"
	"time"

	"notifyd/dispatcher"
	"notifyd/notification"
)

// shareWindow is what Shares looks back on.
const shareWindow = 10 * time.Minute

// The spans within which merchants should know: 13 s is what an order takes on average until its merchant knows, 100 s
// what nearly all take.
const (
	SoonWithin = 13 * time.Second
	LateWithin = 100 * time.Second
)

// Tally counts what alarms are about. It observes the dispatcher.
type Tally struct {
	now func() time.Time

	mu      sync.Mutex
	cfg     Config
	began   time.Time
	shares  window
	acks    window
	dead    window
	streaks *streaks
}

// What the windows count.
const (
	settledAll, settledSoon, settledInTime = 0, 1, 2 // shares
	acksAll, acksSlow                      = 0, 1    // acks
)

// NewTally returns an empty one.
func NewTally(cfg Config, now func() time.Time) *Tally {
	return &Tally{
		now: now, cfg: cfg, began: now(), shares: newWindow(shareWindow), acks: newWindow(cfg.AcknowledgementWindow),
		dead: newWindow(cfg.DeadLettersWindow), streaks: newStreaks(),
	}
}

// configure takes other bounds. What was counted by bounds that have changed begins anew.
func (t *Tally) configure(cfg Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.cfg
	t.cfg = cfg
	if old.AcknowledgementP99 != cfg.AcknowledgementP99 || old.AcknowledgementWindow != cfg.AcknowledgementWindow {
		t.acks = newWindow(cfg.AcknowledgementWindow)
	}
	if old.DeadLettersWindow != cfg.DeadLettersWindow {
		t.dead = newWindow(cfg.DeadLettersWindow)
	}
}

// Answered is not counted.
func (*Tally) Answered(dispatcher.Answer) {}

// Deferred is not counted.
func (*Tally) Deferred(*notification.Notification, notification.Reason) {}

// BreakerOpened is not counted.
func (*Tally) BreakerOpened(string) {}

// Attempted counts acknowledgements, and what fails by the merchant's fault.
func (t *Tally) Attempted(after *notification.Notification, a *notification.Attempt) {
	if a.Kind != notification.KindSend || a.Reason.OurFault() {
		return
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.Outcome != notification.OutcomeDelivered {
		t.streaks.failed(after.MerchantID, now, t.cfg.MerchantFailingAttempts)
		return
	}
	t.streaks.acknowledged(after.MerchantID)
	took, counts := AcknowledgedAfter(after, a)
	if !counts {
		return
	}
	switch {
	case took <= SoonWithin:
		t.shares.add(now, settledAll, settledSoon, settledInTime)
	case took <= LateWithin:
		t.shares.add(now, settledAll, settledInTime)
	default:
		t.shares.add(now, settledAll)
	}
	if took > t.cfg.AcknowledgementP99 {
		t.acks.add(now, acksAll, acksSlow)
	} else {
		t.acks.add(now, acksAll)
	}
}

// Settled counts what ended undelivered.
func (t *Tally) Settled(n *notification.Notification) {
	switch n.State {
	case notification.StateDead, notification.StateExpired:
	case notification.StateDelivered, notification.StateCanceled, notification.StateAccepted, notification.StateRetrying, notification.StateHeld:
		return
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shares.add(now, settledAll)
	if n.State == notification.StateDead {
		t.dead.add(now, 0)
	}
}

// AcknowledgedAfter is how long an acknowledged notification took, from when it could first be sent: from its acceptance, or
// its not_before. What an operator sent again does not count.
func AcknowledgedAfter(after *notification.Notification, a *notification.Attempt) (took time.Duration, counts bool) {
	if a.Trigger == notification.TriggerResend || after.State != notification.StateDelivered {
		return 0, false
	}
	return max(0, after.SettledAt.Sub(SendableFrom(after))), true
}

// SendableFrom is when a notification could first be sent.
func SendableFrom(n *notification.Notification) time.Time {
	if n.NotBefore.After(n.AcceptedAt) {
		return n.NotBefore
	}
	return n.AcceptedAt
}

// Shares says how many of the notifications that ended within the last ten minutes were acknowledged in time. What ended
// dead or expired counts as not in time; what was canceled, or sent again by an operator, does not count at all.
type Shares struct {
	Settled uint64
	Soon    uint64 // acknowledged within SoonWithin
	InTime  uint64 // acknowledged within LateWithin
}

// Shares is a snapshot.
func (t *Tally) Shares() Shares {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.shares.sum(t.now())
	return Shares{Settled: sum[settledAll], Soon: sum[settledSoon], InTime: sum[settledInTime]}
}

// tell adds what was counted to the facts.
func (t *Tally) tell(f *Facts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	acks, dead := t.acks.sum(f.Now), t.dead.sum(f.Now)
	f.Acknowledged, f.AcknowledgedLate, f.Dead = acks[acksAll], acks[acksSlow], dead[0]
	f.Counted = f.Now.Sub(t.began)
	f.Failing, f.FailingMore = t.streaks.failing(f.Now, t.cfg.MerchantFailingFor, t.cfg.MerchantFailingAttempts)
}

// adopt goes on with a failing merchant of an earlier run: only an acknowledgement, or long silence, ends it.
func (t *Tally) adopt(merchant string, raised, seen time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.streaks.adopt(merchant, raised, seen, t.cfg.MerchantFailingAttempts)
}
