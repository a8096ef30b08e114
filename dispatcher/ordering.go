package dispatcher

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/access"
	"notifyd/internal/groupcommit"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
)

// Lines keeps the order of acceptance of what has an ordering_key or a supersede_key.
type Lines interface {
	// LineUp gives notifications their places, in their order, and makes their rows.
	LineUp(ctx context.Context, list []*notification.Notification) ([]ledger.Lined, error)
	Turn(ctx context.Context, n *notification.Notification) (ledger.Turn, error)
	// Next hands out what has become due by the end of some notifications.
	Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error)
	Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error)
}

// lines is what goes on behind those who wait for an answer.
type lines struct {
	ended      *groupcommit.Batcher[inLine] // their successors are put on their way
	superseded *groupcommit.Batcher[inLine] // and canceled
}

// inLine is a notification that has something to do with another one.
type inLine struct {
	ctx context.Context //nolint:containedctx // of whoever saw it; only its values are used
	n   *notification.Notification
	by  notification.ID // the newer one
}

// inLineBatch bounds one look for successors.
const inLineBatch = 256

func (d *Dispatcher) makeLines() lines {
	return lines{
		ended:      groupcommit.New(groupcommit.AtMost[inLine](inLineBatch), d.sendNext),
		superseded: groupcommit.New(groupcommit.AtMost[inLine](inLineBatch), d.cancelSuperseded),
	}
}

func hasLine(n *notification.Notification) bool { return n.OrderingKey != "" || n.SupersedeKey != "" }

// lineUp gives what is accepted its places in its lines, and its row with them. What is not the first of its ordering key is
// accepted by that: it goes to no lane until its turn comes. While the ledger does not answer all go on: the gate holds them back
// until it can be asked.
func (d *Dispatcher) lineUp(ctx context.Context, subs []*submission) {
	var lining []*submission
	var list []*notification.Notification
	for _, s := range subs {
		recordOnly := s.barred != nil && s.barred.Mode == access.ModeRecordOnly
		if s.answered() || s.hasRow || recordOnly || !hasLine(s.n) {
			continue
		}
		n, now := *s.n, d.now()
		n.Route.Persist, n.UpdatedAt, n.NextAt = notification.PersistLedger, now, now.Add(backstop)
		if n.NotBefore.After(now) {
			n.Reason, n.NextAt = notification.ReasonNotBefore, n.NotBefore
		}
		lining, list = append(lining, s), append(list, &n)
	}
	if len(list) == 0 {
		return
	}
	lined, err := d.ledger.LineUp(ctx, list) // not at the pace of all: a line whose lock is held refuses nobody else
	for i, s := range lining {
		switch {
		case errors.Is(err, ledger.ErrAway):
			s.elsewhere = true // whoever sends it claims it
		case err != nil:
			s.err = d.unavailable("line up", err)
		case lined[i].Err != nil:
			s.err = d.unaccepted(lined[i].Err)
		default:
			s.lined(lined[i], d.now())
			for _, older := range lined[i].Superseded {
				d.lines.superseded.Add(inLine{context.WithoutCancel(ctx), &notification.Notification{ID: older}, s.n.ID}, func(error) {})
			}
		}
	}
}

// lined takes over a submission's row: all that there is to do for what is not due now.
func (s *submission) lined(l ledger.Lined, now time.Time) {
	s.n, s.hasRow = l.Row, true
	if l.Waits || l.Row.NotBefore.After(now) {
		s.standing = l.Row
	}
}

// awaitTurn holds back what is behind another one in its line, and ends what a newer one supersedes; false: it may be
// attempted. It asks the ledger for nothing but what has a key.
func (d *Dispatcher) awaitTurn(ctx context.Context, w notification.Work, m *merchant.Merchant, settled func(error)) (notification.Verdict, bool) {
	now := d.now()
	if !hasLine(w.Notification) || w.State.Final() || expired(w, now) || m == nil {
		return notification.Verdict{}, false
	}
	turn, err := d.ledger.Turn(ctx, w.Notification)
	switch {
	case err != nil && w.Interrupted: // which no row says: the message is to come again, and others of its merchant go on
		verdict := d.postpone(w, err)
		verdict.Reason = notification.ReasonInFlight
		return verdict, true
	case err != nil: // for itself: others of its merchant go on
		return d.wait(ctx, w, now.Add(nextLook(w.Notification, now)), settled), true
	case !turn.SupersededBy.IsZero():
		return d.supersede(ctx, w, turn.SupersededBy, settled), true
	case turn.Behind:
		return d.wait(ctx, w, time.Time{}, settled), true
	case turn.BehindDead && m.Ordering.DeadPredecessor == merchant.DeadBlocks: // nothing ends that calls it, if it is the rule that changes
		return d.wait(ctx, w, now.Add(nextLook(w.Notification, now)), settled), true
	}
	return notification.Verdict{}, false
}

// How long who is first in line waits between two looks whether it may go on.
const (
	firstLook = 5 * time.Second
	lastLook  = time.Minute
)

// nextLook doubles, with what has been waited so far.
func nextLook(n *notification.Notification, now time.Time) time.Duration {
	wait := firstLook
	if !n.DeferredSince.IsZero() {
		wait = min(max(wait, now.Sub(n.DeferredSince)), lastLook)
	}
	return wait + rand.N(wait/4).Truncate(time.Microsecond)
}

// wait puts a notification to rest in the ledger until its predecessor's end makes it due, or until an instant. It does not
// rest in its key's own queue, where it would hold back what of its merchant has another ordering key, or none.
func (d *Dispatcher) wait(ctx context.Context, w notification.Work, until time.Time, settled func(error)) notification.Verdict {
	n := *w.Notification
	n.Defer(notification.ReasonAwaitingPredecessor, d.now())
	n.Resting, n.NextAt, n.Route.Lane = false, until, notification.LaneAsync
	d.observer.Deferred(&n, n.Reason)
	if until.IsZero() && w.Route.Lane == notification.LaneSync { // its net would bring it back as one that may have been sent
		_ = d.delay.Cancel(context.WithoutCancel(ctx), w)
	}
	d.remember(ctx, w, &n, nil, settled)
	return notification.Verdict{After: &n, Reason: n.Reason}
}

// supersede ends a notification at the gate, where no attempt of it is in flight.
func (d *Dispatcher) supersede(ctx context.Context, w notification.Work, newer notification.ID, settled func(error)) notification.Verdict {
	pass, err := d.gate.claim(ctx, w, d.now())
	if err != nil {
		return d.postpone(w, err)
	}
	if pass.kind != granted {
		return d.stop(ctx, w, pass, settled)
	}
	after, attempts := d.resume(w, pass)
	w.HasRow = w.HasRow || w.Claim
	after.Supersede(newer, d.now())
	d.observer.Settled(after)
	d.remember(ctx, w, after, attempts, settled)
	return notification.Verdict{After: after, Attempts: attempts, Reason: after.Reason}
}

// moveUp puts the successor of a notification on its way, if a record may have made its turn come. Should that fail, or
// this process die, the sweep feeds it.
func (d *Dispatcher) moveUp(ctx context.Context, n *notification.Notification) {
	waits := n.Reason == notification.ReasonAwaitingPredecessor && n.NextAt.IsZero()
	if n.OrderingKey == "" || !n.State.Final() && !waits {
		return
	}
	d.lines.ended.Add(inLine{ctx: context.WithoutCancel(ctx), n: n}, func(error) {})
}

// lineBound is how long one look at the lines of those that ended may take.
const lineBound = 30 * time.Second

func (d *Dispatcher) sendNext(batch []inLine) []error {
	ctx, cancel := context.WithTimeout(batch[0].ctx, lineBound)
	defer cancel()
	ended := make([]*notification.Notification, len(batch))
	for i, b := range batch {
		ended[i] = b.n
	}
	next, err := d.ledger.Next(ctx, ended, d.now())
	if err != nil {
		d.log.Debug("the sweep looks for the next in line", zap.Int("ended", len(ended)), zap.Error(err))
		return nil
	}
	var sending sync.WaitGroup
	for _, n := range next {
		sending.Go(func() {
			w := notification.Work{Notification: n, Trigger: notification.TriggerAuto, HasRow: true}
			if err := d.delay.Now(ctx, w); err != nil {
				d.log.Warn("the next in line is not on its way yet; the sweep sends it", zap.Stringer("id", n.ID), zap.Error(err))
			}
		})
	}
	sending.Wait()
	return nil
}

// cancelSuperseded cancels what a newer one supersedes and is not in flight. What is missed here the gate ends when it is due.
func (d *Dispatcher) cancelSuperseded(batch []inLine) []error {
	ctx, cancel := context.WithTimeout(batch[0].ctx, lineBound)
	defer cancel()
	for _, b := range batch {
		_, err := d.withdraw(ctx, b.n.ID, func(p *notification.Progress) { p.Supersede(b.by, d.now()) }, func() (*notification.Notification, error) {
			return d.ledger.Supersede(ctx, b.n.ID, b.by, d.now())
		})
		if err != nil && !errors.Is(err, ledger.ErrFinal) {
			d.log.Debug("a superseded notification goes on; the gate ends it", zap.Stringer("id", b.n.ID), zap.Error(err))
		}
	}
	return nil
}
