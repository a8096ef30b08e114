package dispatcher

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"go.uber.org/zap"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/retry"
)

// Deliver is the way of every attempt; a first try, a retry and a resend differ only in the work they carry. Unless
// the verdict is Deferred, settled is called once, when what followed is durable.
func (d *Dispatcher) Deliver(ctx context.Context, w notification.Work, settled func(error)) notification.Verdict {
	m := d.settings(w)
	pass, err := d.gate.Ask(ctx, w, m, d.now())
	if err != nil {
		return d.postpone(w, err)
	}
	if pass.kind != granted {
		return d.stop(ctx, w, pass, settled)
	}
	before, attempts := d.resume(w, pass)
	w.Notification = before
	d.wire.begin(d.now())
	attempt := d.sender.Send(ctx, w, m)
	d.wire.end()
	pass.learn(&attempt)
	after := *before
	after.Progress = retry.Decide(before.Progress, attempt, d.schedule(w, m, &attempt), d.now(), mathrand.Float64())
	d.observer.Attempted(&after, &attempt)
	if after.State.Final() && !before.State.Final() {
		d.observer.Settled(&after)
	}
	attempts = append(attempts, attempt)
	d.remember(ctx, w, &after, attempts, settled)
	return notification.Verdict{After: &after, Attempts: attempts}
}

// settings are the merchant's as this work's scene sees them now; nil when there is no such merchant.
func (d *Dispatcher) settings(w notification.Work) *merchant.Merchant {
	m := d.merchants.Get(w.MerchantID)
	if m == nil {
		return nil
	}
	return m.ForScene(w.Scene)
}

// resume is the notification as its attempt begins: the deferral is over, and an attempt that left no outcome is on record.
func (d *Dispatcher) resume(w notification.Work, pass permission) (*notification.Notification, []notification.Attempt) {
	n := *w.Notification
	if !pass.interrupted {
		return &n, nil
	}
	n.Attempts++
	return &n, []notification.Attempt{{
		Key: newKey(), Number: n.Attempts, Generation: n.Generation, Kind: notification.KindSend, Trigger: w.Trigger,
		Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonInterrupted,
		Detail:    "the engine stopped while this attempt was in hand; whether it reached the merchant is not known",
		StartedAt: d.now(), Operator: w.Operator,
	}}
}

// stop ends a work without an attempt: deferred (the lane keeps it), settled (expired), or void (another copy goes on).
func (d *Dispatcher) stop(ctx context.Context, w notification.Work, pass permission, done func(error)) notification.Verdict {
	switch pass.kind {
	case deferred:
		n := *w.Notification
		n.Defer(pass.reason, d.now())
		d.observer.Deferred(&n, pass.reason)
		return notification.Verdict{After: &n, Deferred: true, Reason: pass.reason, Until: pass.until}
	case settled:
		before, attempts := d.resume(w, pass)
		before.Settle(notification.StateExpired, pass.reason, notification.SettledByExpiry, d.now())
		d.observer.Settled(before)
		d.remember(ctx, w, before, attempts, done)
		return notification.Verdict{After: before, Attempts: attempts, Reason: pass.reason}
	case void, granted:
	}
	done(nil)
	return notification.Verdict{Reason: pass.reason}
}

// postpone defers a work because the ledger could not be asked.
func (d *Dispatcher) postpone(w notification.Work, err error) notification.Verdict {
	d.log.Warn("attempt is deferred: the ledger does not answer", zap.Stringer("id", w.ID), zap.Error(err))
	d.observer.Deferred(w.Notification, notification.ReasonInternal)
	return notification.Verdict{After: w.Notification, Deferred: true, Reason: notification.ReasonInternal, Until: d.now().Add(time.Second)}
}

// remember makes what followed durable: first the ledger, then the schedule of the next attempt. Dying in between
// leaves a row that says when the next attempt is due, which the redelivered message or the sweep goes on from.
func (d *Dispatcher) remember(ctx context.Context, w notification.Work, after *notification.Notification, attempts []notification.Attempt, settled func(error)) {
	isNew := !w.HasRow && !d.hand.HasRow(w.ID)
	d.record(ctx, ledger.Record{Notification: after, Attempts: attempts, New: isNew}, func(err error) {
		next := *after
		if isQuarantined(err) { // no row will bring it back: the schedule must, as late as it can
			next.NextAt, err = d.delay.Latest(next.NextAt, d.now()), nil
		}
		if err != nil || next.State.Final() || next.NextAt.IsZero() || !d.delay.Within(next.NextAt, d.now()) {
			settled(err)
			return
		}
		d.delay.DelayThen(notification.Work{Notification: &next, Trigger: notification.TriggerAuto, Trace: w.Trace}, settled)
	})
}

// recordBound is how long a record may wait for room in the ledger's queue.
const recordBound = 30 * time.Second

// record writes to the ledger, also while the engine stops. What the ledger refuses for good is kept in its quarantine;
// its reservation is marked as answered by and by, so that the proof looks for it.
func (d *Dispatcher) record(ctx context.Context, r ledger.Record, recorded func(error)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordBound)
	defer cancel()
	id := r.Notification.ID
	d.ledger.Record(ctx, r, func(err error) {
		switch {
		case isQuarantined(err):
			d.log.Error("ledger refuses a record; it is in quarantine", zap.Stringer("id", id), zap.Error(err))
		case err == nil:
			d.owed.shown(id)
		}
		recorded(err)
	})
}

func isQuarantined(err error) bool {
	_, refused := errors.AsType[*ledger.QuarantinedError](err)
	return refused
}

// schedule is only looked at after a failure.
func (d *Dispatcher) schedule(w notification.Work, m *merchant.Merchant, a *notification.Attempt) retry.Schedule {
	if a.Outcome == notification.OutcomeDelivered {
		return retry.Schedule{}
	}
	s, err := retry.Resolve(m.Schedule, w.Route.Schedule)
	if err != nil { // PutMerchant and the rules have checked it; a default beats losing the notification
		d.log.Error("schedule cannot be resolved; the default is used", zap.Stringer("id", w.ID), zap.Error(err))
		s, _ = retry.Resolve(merchant.Schedule{}, "")
	}
	return s
}

func newKey() notification.ID {
	var key notification.ID
	_, _ = rand.Read(key[:]) // never fails: crypto/rand crashes the process instead
	return key
}
