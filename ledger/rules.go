package ledger

import (
	"cmp"
	"slices"
	"time"

	"notifyd/notification"
)

// The rules of what may follow what, without I/O. Memory runs them as they stand; Postgres' upsert (store.go) and its
// sweeps (sweep.go) say the same in SQL; package ledgertest holds both to it.

// ResendLease is how long the engine has to publish what it has resent or rescued before the sweep takes it up again.
const ResendLease = 30 * time.Second

// compareProgress orders by (generation, attempts, updated at).
func compareProgress(a, b notification.Progress) int {
	return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Attempts, b.Attempts), a.UpdatedAt.Compare(b.UpdatedAt))
}

// advance is what a row says after a record came, and whether that is anything new (P12: final is final).
func advance(stored, incoming notification.Progress) (notification.Progress, bool) {
	if stored.State == notification.StateDelivered {
		// A resend of a delivered one: it counts, but it never reopens or resettles.
		if cmp.Or(cmp.Compare(incoming.Generation, stored.Generation), cmp.Compare(incoming.Attempts, stored.Attempts)) <= 0 {
			return stored, false
		}
		stored.Generation, stored.Attempts, stored.Step = incoming.Generation, incoming.Attempts, incoming.Step
		stored.WindowFrom, stored.UpdatedAt = incoming.WindowFrom, incoming.UpdatedAt
		return stored, true
	}
	if incoming.State == notification.StateDelivered && !stored.State.Final() {
		// The merchant has acknowledged it, whatever the sweep or a resend has begun meanwhile: that finds it settled.
		incoming.Generation, incoming.Attempts = max(incoming.Generation, stored.Generation), max(incoming.Attempts, stored.Attempts)
		return incoming, true
	}
	if incoming.Generation != stored.Generation {
		return pick(stored, incoming, incoming.Generation > stored.Generation)
	}
	return pick(stored, incoming, !stored.State.Final() && compareProgress(incoming, stored) >= 0)
}

func pick(stored, incoming notification.Progress, replace bool) (notification.Progress, bool) {
	if replace {
		return incoming, true
	}
	return stored, false
}

// claimed says whose a row is.
type claimed struct {
	until time.Time // zero: nobody's
	by    string    // a node's run; empty: one that did not say
	held  bool      // in hand, without an attempt: see Hold
}

// live reports whether the claim counts: its time is not over, and its run not known to have ended.
func (c claimed) live(now time.Time, gone []string) bool {
	return c.until.After(now) && !slices.Contains(gone, c.by)
}

func (c claimed) of(run string) bool { return !c.until.IsZero() && c.by == run && run != "" }

// after is the claim that a record leaves. newer says that it knows of an attempt or a generation that the row does not,
// final that its snapshot is.
func (c claimed) after(h *Hold, newer, final bool, now time.Time, gone []string) claimed {
	switch {
	case h == nil && !newer: // an outcome or a new generation ends a claim, not a row that only says where the work waits
		return c
	case h == nil:
		return claimed{}
	case !c.of(h.By) && c.live(now, gone):
		return c
	case newer, c.until.IsZero(), c.of(h.By) && (c.held || final && h.Until.IsZero()):
		return h.claimed()
	default:
		return c
	}
}

// claimed is what a hold leaves of its own.
func (h *Hold) claimed() claimed {
	if h == nil || h.Until.IsZero() {
		return claimed{}
	}
	return claimed{until: microseconds(h.Until), by: h.By, held: true}
}

// verdict says whether an attempt may be made now.
func verdict(stored notification.Progress, claim claimed, c Claim, now time.Time, gone []string) ClaimVerdict {
	switch {
	case stored.Generation > c.Generation, stored.Generation == c.Generation && stored.Attempts > c.Attempts:
		return ClaimStale
	case stored.Generation < c.Generation, stored.Attempts < c.Attempts:
		return ClaimBehind
	case stored.State.Final() && (!c.AllowFinal || stored.State != notification.StateDelivered):
		return ClaimStale
	case c.OnlyLapsed && claim.until.IsZero():
		return ClaimStale
	case claim.held && claim.of(c.By) && !c.OnlyLapsed: // nobody else had it since
		return ClaimGranted
	case claim.live(now, gone):
		return ClaimBusy
	case !claim.until.IsZero():
		return ClaimGrantedAfterLapse
	default:
		return ClaimGranted
	}
}

// canceled is the progress after a cancellation. A dead one that others may wait for can be canceled, so that they go on.
func canceled(n *notification.Notification, inFlight bool, now time.Time) (notification.Progress, error) {
	blocks := n.State == notification.StateDead && n.OrderingKey != ""
	if n.State.Final() && !blocks {
		return n.Progress, ErrFinal
	}
	if inFlight {
		return n.Progress, ErrInFlight
	}
	p := n.Progress
	p.Settle(notification.StateCanceled, notification.ReasonCanceled, notification.SettledByOperator, now)
	p.Generation++
	return p, nil
}

// supersededBy is the progress after a newer one was accepted.
func supersededBy(newer notification.ID) step {
	return func(n *notification.Notification, inFlight bool, now time.Time) (notification.Progress, error) {
		switch {
		case n.State.Final():
			return n.Progress, ErrFinal
		case inFlight:
			return n.Progress, ErrInFlight
		}
		p := n.Progress
		p.Supersede(newer, now)
		p.Generation++
		return p, nil
	}
}

// resent is the progress after an operator asked for another attempt. A lapsed claim stays: its attempt is still to be
// recorded as interrupted.
func resent(n *notification.Notification, inFlight bool, now time.Time) (notification.Progress, error) {
	p := n.Progress
	if inFlight {
		return p, ErrInFlight
	}
	p.Generation++
	p.Step, p.WindowFrom = 0, time.Time{}
	p.DeferredFor, p.DeferredSince, p.Resting = 0, time.Time{}, false
	p.UpdatedAt = now
	if p.State == notification.StateDelivered {
		return p, nil
	}
	p.State, p.Reason, p.NextAt = notification.StateRetrying, notification.ReasonResend, now.Add(ResendLease)
	p.SettledAt, p.SettledBy = time.Time{}, ""
	return p, nil
}

// rescued is the progress of what the sweep found overdue; its place in the schedule stays.
func rescued(p notification.Progress, now time.Time) notification.Progress {
	p.Generation++
	p.Reason, p.NextAt, p.UpdatedAt = notification.ReasonSweep, now.Add(ResendLease), now
	return p
}

// recalled is the progress of what rested in streams whose contents are gone; the second result says whether it did.
func recalled(p notification.Progress, persist notification.Persist, fed bool, lost Lost, before, now time.Time) (notification.Progress, bool) {
	if p.State.Final() || !p.UpdatedAt.Before(before) {
		return p, false
	}
	waits := p.NextAt.IsZero() || p.Attempts == 0 && p.Reason == notification.ReasonQueued && persist == notification.PersistLedger
	switch {
	case lost.Merchant && p.Resting, lost.Notify && !p.Resting && waits:
		p.Resting, p.NextAt = false, now
	case lost.Retry && !p.Resting && fed && !p.NextAt.IsZero():
	default:
		return p, false
	}
	p.UpdatedAt = latest(now, before) // found once
	return p, true
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// due reports whether the sweep may look at it at all.
func due(p notification.Progress, horizon time.Time) bool {
	return !p.State.Final() && !p.Resting && !p.NextAt.IsZero() && !p.NextAt.After(horizon)
}

// fedAtWrite says whether the engine publishes the due time itself, so that Feed leaves the row alone.
func fedAtWrite(r Record, now time.Time, window time.Duration) bool {
	next := r.Notification.NextAt
	return next.IsZero() || !r.Unfed && !next.After(now.Add(window))
}

// microseconds is an instant as the ledger keeps it: in UTC, without what Postgres cannot hold.
func microseconds(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}
