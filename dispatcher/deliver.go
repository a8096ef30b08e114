package dispatcher

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"runtime"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/retry"
)

// Deliver is the way of every attempt; a first try, a retry and a resend differ only in the work they carry. begin, unless
// nil, is waited for between the gate's permission and the request, and not called without a request. Unless the verdict is
// Deferred, settled is called once, when what followed is durable.
func (d *Dispatcher) Deliver(ctx context.Context, w notification.Work, begin func(), settled func(error)) notification.Verdict {
	m, known := d.settings(ctx, w)
	if verdict, stopped := d.awaitTurn(ctx, w, m, settled); stopped {
		return verdict
	}
	pass, err := d.gate.Ask(ctx, w, m, known, d.now())
	if err != nil {
		return d.postpone(w, err)
	}
	if pass.kind != granted {
		return d.stop(ctx, w, pass, settled)
	}
	before, earlier := w.Notification, []notification.Attempt(nil) // nobody changes it: a copy would be for nothing
	if pass.interrupted {
		before, earlier = d.resume(w, pass)
	}
	w.Notification, w.HasRow = before, w.HasRow || w.Claim // a claim that is granted has a row
	if err := d.keepInterrupted(ctx, w, earlier); err != nil {
		pass.learn(&notification.Attempt{Reason: notification.ReasonInternal})
		return d.postpone(w, err)
	}
	if begin != nil {
		begin()
	}
	attempt := d.send(ctx, w, m)
	defer d.slowEnds.enter(&attempt)()
	pass.learn(&attempt)
	after := d.decide(before, &attempt, w, m)
	d.observer.Attempted(after, &attempt)
	if after.State.Final() && !before.State.Final() {
		d.observer.Settled(after)
	}
	w.HasRow = w.HasRow || len(earlier) > 0
	d.remember(ctx, w, after, []notification.Attempt{attempt}, settled)
	return notification.Verdict{After: after, Attempts: append(earlier, attempt)}
}

// slowEnds lets what follows from attempts that took long happen a few at a time. Thousands of requests that hang together end
// together, with the timeout: what is quick would wait for a processor behind all of them.
type slowEnds chan struct{}

// slowEnd is how long an attempt takes for whose end nobody is in a hurry.
const slowEnd = 2 * time.Second

func newSlowEnds() slowEnds { return make(slowEnds, max(1, runtime.GOMAXPROCS(0)/2)) }

// enter waits for its turn, and returns what ends it.
func (s slowEnds) enter(a *notification.Attempt) (leave func()) {
	if a.Took < slowEnd {
		return func() {}
	}
	s <- struct{}{}
	return func() { <-s }
}

// keepInterrupted puts an attempt that left no outcome on record before the next one is made: should this process die in
// that one too, the two are told apart.
func (d *Dispatcher) keepInterrupted(ctx context.Context, w notification.Work, interrupted []notification.Attempt) error {
	if len(interrupted) == 0 {
		return nil
	}
	n, now := *w.Notification, d.now()
	n.UpdatedAt = now
	if !n.State.Final() { // else an operator resends it
		n.State, n.Reason, n.NextAt = notification.StateRetrying, notification.ReasonInterrupted, now.Add(d.cfg.AttemptBound)
		n.Resting = false // its copy in an own queue is an attempt behind now: only the due time brings it back
	}
	kept := make(chan error, 1)
	d.record(ctx, ledger.Record{
		Notification: &n, Attempts: interrupted, New: !w.HasRow && !d.hand.HasRow(w.ID), Unreserved: w.Unreserved,
		Hold: &ledger.Hold{By: d.run, Until: now.Add(d.cfg.Gate.ClaimFor)},
	}, func(err error) { kept <- err })
	select {
	case err := <-kept:
		if isQuarantined(err) {
			return nil
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send makes the attempt. A bug ends this attempt and nothing else.
func (d *Dispatcher) send(ctx context.Context, w notification.Work, m *merchant.Merchant) (a notification.Attempt) {
	began := d.now()
	d.wire.begin(began)
	defer d.wire.end()
	defer func() {
		if fault := recover(); fault != nil {
			a = d.contained(w, began, fault)
		}
	}()
	if err := faults.Before(faults.Send); err != nil {
		return d.broken(w, began, err.Error())
	}
	a = d.sender.Send(ctx, w, m)
	if err := faults.After(faults.Send); err != nil {
		return d.broken(w, began, err.Error())
	}
	return a
}

// decide says what becomes of the notification. A bug in it ends the notification, visibly: repeating it would not help.
func (d *Dispatcher) decide(before *notification.Notification, a *notification.Attempt, w notification.Work, m *merchant.Merchant) (after *notification.Notification) {
	copied := *before
	after = &copied
	defer func() {
		if fault := recover(); fault != nil {
			*a = d.contained(w, a.StartedAt, fault)
			after.Progress = retry.Decide(before.Progress, *a, retry.Schedule{}, d.now(), 0)
		}
	}()
	_ = faults.Before(faults.Classify)
	after.Progress = retry.Decide(before.Progress, *a, d.schedule(w, m, a), d.now(), mathrand.Float64())
	_ = faults.After(faults.Classify)
	return after
}

// contained is an attempt that a panic has ended.
func (d *Dispatcher) contained(w notification.Work, began time.Time, fault any) notification.Attempt {
	d.wire.panics.Add(1)
	d.log.Error("an attempt has ended in a panic; it counts as made", zap.Stringer("id", w.ID), zap.Any("panic", fault), zap.Stack("stack"))
	return d.broken(w, began, fmt.Sprintf("panic: %v", fault))
}

// broken is an attempt that ended by a fault of the engine's own. It may have reached the merchant. It uses up a step of
// the schedule, so that it is not repeated for ever.
func (d *Dispatcher) broken(w notification.Work, began time.Time, detail string) notification.Attempt {
	return notification.Attempt{
		Key: newKey(), Number: w.Attempts + 1, Generation: w.Generation, Kind: notification.KindSend, Trigger: w.Trigger,
		Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonInternal, Detail: detail, Counted: true,
		StartedAt: began, Took: d.now().Sub(began), Operator: w.Operator,
	}
}

// settings are the merchant's as this work's scene sees them now; nil when there is no such merchant, which is known only
// if the ledger could be asked: another node may have made it a moment ago.
func (d *Dispatcher) settings(ctx context.Context, w notification.Work) (m *merchant.Merchant, known bool) {
	known = true
	if m = d.merchants.Get(w.MerchantID); m == nil {
		known = d.LearnMerchants(ctx) == nil
		m = d.merchants.Get(w.MerchantID)
	}
	if m == nil {
		return nil, known
	}
	return m.ForScene(w.Scene), true
}

// resume is a copy of the notification that an attempt, or its end, goes on from: one that left no outcome is on record.
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

// stop ends a work without an attempt: deferred (the lane keeps it), settled (expired, or its merchant is gone), barred
// by the lists, or void (another copy goes on).
func (d *Dispatcher) stop(ctx context.Context, w notification.Work, pass permission, done func(error)) notification.Verdict {
	switch pass.kind {
	case deferred:
		n := *w.Notification
		n.Defer(pass.reason, d.now())
		d.observer.Deferred(&n, pass.reason)
		return notification.Verdict{After: &n, Deferred: true, Reason: pass.reason, Until: pass.until}
	case settled:
		before, attempts := d.resume(w, pass)
		if pass.reason == notification.ReasonExpired {
			before.Settle(notification.StateExpired, pass.reason, notification.SettledByExpiry, d.now())
		} else {
			before.Settle(notification.StateDead, pass.reason, notification.SettledByEngine, d.now())
		}
		d.observer.Settled(before)
		d.remember(ctx, w, before, attempts, done)
		return notification.Verdict{After: before, Attempts: attempts, Reason: pass.reason}
	case barred:
		return d.setBarred(ctx, w, pass, done)
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
	record := ledger.Record{
		Notification: after, Attempts: attempts, New: !w.HasRow && !d.hand.HasRow(w.ID), Unreserved: w.Unreserved,
		Unfed: d.rests(after), Patient: w.Route.Lane == notification.LaneAsync,
	}
	if len(attempts) == 0 { // nothing else in it ends the claim
		record.Hold = &ledger.Hold{By: d.run}
	}
	d.record(ctx, record, func(err error) {
		next, rests := after, record.Unfed
		if isQuarantined(err) { // no row will bring it back: the schedule must, as late as it can
			late := *after
			late.NextAt = d.delay.Latest(after.NextAt, d.now())
			next, rests, err = &late, false, nil
		}
		if err != nil || next.State.Final() || next.NextAt.IsZero() || rests {
			settled(err)
			return
		}
		d.delay.DelayThen(notification.Work{Notification: next, Trigger: notification.TriggerAuto, Trace: w.Trace}, settled)
	})
}

// rests reports whether a notification's row is to bring it back when it is due, and not the delay queue.
func (d *Dispatcher) rests(n *notification.Notification) bool {
	return !n.State.Final() && !n.NextAt.IsZero() && !d.delay.Within(n.NextAt, d.now())
}

// record writes to the ledger, also while the engine stops. What the ledger refuses for good is kept in its quarantine;
// its reservation is marked as answered by and by, so that the proof looks for it.
func (d *Dispatcher) record(ctx context.Context, r ledger.Record, recorded func(error)) {
	ctx = context.WithoutCancel(ctx)
	id := r.Notification.ID
	d.ledger.Record(ctx, r, func(err error) {
		switch {
		case isQuarantined(err):
			d.log.Error("ledger refuses a record; it is in quarantine", zap.Stringer("id", id), zap.Error(err))
		case err == nil:
			d.owed.shown(id)
			d.moveUp(ctx, r.Notification)
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
