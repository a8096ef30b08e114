package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	"notifyd/access"
	"notifyd/ledger"
	"notifyd/notification"
)

// AccessRules keeps the blacklist and the whitelist.
type AccessRules interface {
	PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error)
	AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error)
	AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error)
	Barred
}

// Barred is what the lists hold: rows that say so, which rest in the ledger and nowhere else. Their due time is heldLook,
// so that the gate looks at them again whatever becomes of the releases.
type Barred interface {
	// Barred is a page of whose notifications are held, behind the last one of the page before.
	Barred(ctx context.Context, after ledger.Barred, limit int) ([]ledger.Barred, error)
	// Release gives held notifications due times one gap apart, and returns how many it has released.
	Release(ctx context.Context, b ledger.Barred, gap time.Duration, from, until time.Time) (int, error)
}

// What is held is looked at again after heldLook, spread over heldSpread, though nobody has released it.
const (
	heldLook   = time.Hour
	heldSpread = 15 * time.Minute
)

// heldUntil is when the gate looks again at what is held: never later than its expiry.
func heldUntil(n *notification.Notification, now time.Time) time.Time {
	at := now.Add(heldLook).Add(rand.N(heldSpread)).Truncate(time.Microsecond)
	if !n.ExpiresAt.IsZero() && n.ExpiresAt.Before(at) {
		return later(n.ExpiresAt, now)
	}
	return at
}

// barReason is what stands on a notification that a rule keeps from being sent.
func barReason(r *access.Rule) notification.Reason {
	if r.Subject.ID == "" {
		return notification.ReasonNotAllowed
	}
	return notification.ReasonBlocked
}

// LearnAccess takes over what has changed since the snapshot. As for sources, only what comes this way goes into it.
func (d *Dispatcher) LearnAccess(ctx context.Context) error {
	if d.accessStore == nil {
		return nil
	}
	changed, err := d.accessStore.AccessRulesSince(ctx, d.access.Version())
	if err != nil {
		return err
	}
	d.access.Learn(changed...)
	return nil
}

var errListsUnknown = errors.New("the lists of who is blocked are not known yet")

// bar asks the lists about each submission. What they reject is refused before anything is written, unless its id was
// accepted before: then its caller learns where it stands, as of every duplicate (P4).
func (d *Dispatcher) bar(ctx context.Context, subs []*submission) {
	known, now := d.access.Learned(), d.now()
	for _, s := range subs {
		if s.answered() {
			continue
		}
		if !known {
			s.err = d.unavailable("ask the lists", errListsUnknown)
			continue
		}
		s.barred = d.access.Judge(s.n.MerchantID, s.n.Source, s.n.Scene, now)
		if s.barred == nil || s.barred.Mode != access.ModeReject {
			continue
		}
		switch _, _, err := d.ledger.Find(ctx, s.n.ID); {
		case errors.Is(err, ledger.ErrNotFound):
			s.err = rejected(s.barred)
		case err != nil && !errors.Is(err, ledger.ErrReservedOnly):
			s.err = d.unavailable("look up what may be a duplicate", err)
		}
	}
}

// rejected names the rule. Its reason is for operators: a caller is told that there is one.
func rejected(r *access.Rule) *connect.Error {
	field, who := "notification.merchant_id", "merchant"
	if r.Subject.Kind == access.KindSource {
		field, who = "notification.source", "source"
	}
	what := fmt.Errorf("%s: %s %q is blocked by rule %s", field, who, r.Subject.ID, r.ID)
	switch {
	case r.Subject.ID == "":
		what = fmt.Errorf("%s: only %ss that a rule allows may be used, and none allows this one (%s)", field, who, r.ID)
	case r.Subject.Scene != "":
		what = fmt.Errorf("%s: %s %q is blocked in scene %q by rule %s", field, who, r.Subject.ID, r.Subject.Scene, r.ID)
	}
	return connect.NewError(connect.CodeFailedPrecondition, what)
}

// enterBarred makes durable what the lists hold, or record only, as a row: nothing of it goes into a queue. It is for the
// first copy of a notification; of a second one the lane has to know, and the gate bars it there.
func (d *Dispatcher) enterBarred(ctx context.Context, s *submission, w notification.Work, done func()) {
	now := d.now()
	entered := *w.Notification
	w.Notification = &entered
	if s.barred.Mode != access.ModeRecordOnly {
		entered.Defer(barReason(s.barred), now)
		d.observer.Deferred(&entered, entered.Reason)
		d.enterLater(ctx, s, w, heldUntil(&entered, now), entered.Reason, done)
		return
	}
	entered.Settle(notification.StateCanceled, barReason(s.barred), notification.SettledByOperator, now)
	d.ledger.Record(ctx, ledger.Record{Notification: &entered, New: true, Unreserved: w.Unreserved}, func(err error) {
		if err != nil {
			s.err = d.unaccepted(err)
		} else {
			s.standing = &entered
			d.observer.Settled(&entered)
			d.moveUp(ctx, &entered)
		}
		done()
	})
}

// mayResend refuses the resend of a delivered one that the lists would bar: it stands as it is, so it cannot be held until
// they do not. Any other is held, or canceled again, by the gate.
func (d *Dispatcher) mayResend(n *notification.Notification) error {
	rule := d.access.Judge(n.MerchantID, n.Source, n.Scene, d.now())
	if rule == nil || !n.State.Final() {
		return nil
	}
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: is %s, and rule %s keeps it from being sent again", n.ID, n.State, rule.ID))
}
