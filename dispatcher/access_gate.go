package dispatcher

import (
	"context"
	"time"

	"notifyd/access"
	"notifyd/notification"
)

// bar asks the lists about an attempt; stop: they keep it from being made, or nobody knows what they say. It costs a look
// into the snapshot, and no more while there are no rules.
func (g *Gate) bar(ctx context.Context, w notification.Work, now time.Time) (p permission, stop bool, _ error) {
	if !g.lists.Learned() {
		return permission{kind: deferred, reason: notification.ReasonInternal, until: now.Add(time.Second)}, true, nil
	}
	rule := g.lists.Judge(w.MerchantID, w.Source, w.Scene, now)
	if rule == nil {
		return permission{}, false, nil
	}
	if w.State.Final() { // the resend of a delivered one: it stands as it is, and cannot wait
		return permission{kind: void, reason: barReason(rule)}, true, nil
	}
	p, err := g.claim(ctx, w, now) // whichever copy comes first is held or canceled; the claim refuses the others
	if err == nil && p.kind == granted {
		p.kind, p.reason, p.recordOnly = barred, barReason(rule), rule.Mode == access.ModeRecordOnly
	}
	return p, true, err
}

// barring is why the lists would keep an attempt from being made now; empty: they would not.
func (g *Gate) barring(w notification.Work, now time.Time) notification.Reason {
	if rule := g.lists.Judge(w.MerchantID, w.Source, w.Scene, now); rule != nil {
		return barReason(rule)
	}
	return ""
}

// setBarred ends a work that the lists bar: its row says that it is held, until the releases find it free or its due time
// comes, or that it is canceled. It does not rest in its key's own queue, where it would hold back what of its merchant is
// not barred, of other scenes and sources.
func (d *Dispatcher) setBarred(ctx context.Context, w notification.Work, pass permission, settled func(error)) notification.Verdict {
	after, attempts := d.resume(w, pass)
	now := d.now()
	w.HasRow = w.HasRow || w.Claim
	if pass.recordOnly {
		after.Settle(notification.StateCanceled, pass.reason, notification.SettledByOperator, now)
		d.observer.Settled(after)
	} else {
		after.Defer(pass.reason, now)
		after.Resting, after.NextAt, after.Route.Lane = false, heldUntil(after, now), notification.LaneAsync
		d.observer.Deferred(after, pass.reason)
	}
	d.remember(ctx, w, after, attempts, settled)
	return notification.Verdict{After: after, Attempts: attempts, Reason: pass.reason}
}
