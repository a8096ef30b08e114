package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"notifyd/access"
	"notifyd/async"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	synclane "notifyd/sync"
)

// submission is one notification on its way in.
type submission struct {
	n         *notification.Notification
	m         *merchant.Merchant
	allowSync bool
	barred    *access.Rule // what keeps it from being sent; nil: nothing does
	trace     string       // of this one alone; empty: that of the call

	// The answer: either err, or where it stands.
	err       error
	twin      *submission           // the same id earlier in this batch; its answer is this one's
	elsewhere bool                  // Postgres is away: its reservation is in the queues
	hasRow    bool                  // the first one's, which nothing else may stand for
	known     notification.Progress // of the first one, see ledger.Reserved
	reserved  Reserving
	duplicate bool
	standing  *notification.Notification
	attempt   *notification.Attempt
}

// answered reports whether nothing is left to do.
func (s *submission) answered() bool { return s.err != nil || s.standing != nil || s.twin != nil }

// submit is the way in, for one notification and for a thousand: check, route, reserve, and give to a lane. It returns
// when each submission is answered: with an error, or with the state of a durable notification (P1).
func (d *Dispatcher) submit(ctx context.Context, subs []*submission) {
	began := d.now()
	for _, s := range subs {
		d.admit(ctx, s)
	}
	d.submitAdmitted(ctx, subs, began)
}

// submitAdmitted is submit for what has been admitted since began.
func (d *Dispatcher) submitAdmitted(ctx context.Context, subs []*submission, began time.Time) {
	d.bar(ctx, subs)
	d.meter(subs)
	defer d.makeRoom(subs)()
	d.reserve(ctx, subs)
	d.lineUp(ctx, subs)
	var answers sync.WaitGroup
	for _, s := range subs {
		if s.answered() {
			continue
		}
		answers.Add(1)
		d.enter(ctx, s, answers.Done)
	}
	answers.Wait()
	for _, s := range subs {
		if s.twin != nil { // of two equal ones the later is a duplicate, if the first was accepted
			s.err, s.standing, s.duplicate = s.twin.err, s.twin.standing, true
		}
	}
	d.tellAnswers(subs, began)
}

// admit holds a notification to what its caller may, checks it, freezes what the merchant's settings decide, and routes it.
func (d *Dispatcher) admit(ctx context.Context, s *submission) {
	if s.err != nil {
		return
	}
	n := s.n
	if s.err = d.permit(ctx, n); s.err != nil { // before the merchant is looked for: whether it exists is not for everybody
		return
	}
	m, err := d.findMerchant(ctx, n.MerchantID)
	if err != nil {
		s.err = err
		return
	}
	s.m = m.ForScene(n.Scene)
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	if n.NotifyURL == "" {
		n.NotifyURL = s.m.NotifyURL
	}
	if n.NotifyURL == "" {
		s.err = invalid("notification.notify_url", "is empty, and the merchant has none of its own")
		return
	}
	if err := d.urls.CheckURL(n.NotifyURL, s.m.URLPolicy, s.m.NotifyURL); err != nil {
		s.err = connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("notification.notify_url: %w", err))
		return
	}
	now := d.now()
	n.AcceptedAt = now // a contract may tell it
	if err := d.contracts.Check(s.m, n); err != nil {
		s.err = d.unlessAccepted(ctx, s, invalid("notification.payload", err.Error()))
		return
	}
	if !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now) {
		s.err = invalid("notification.expires_at", n.ExpiresAt.Format(time.RFC3339)+": is in the past")
		return
	}
	n.Origin = "submit"
	n.State, n.Reason, n.Generation, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, 1, now
	n.Route = d.router.Load().Route(n, s.m, now)
}

// unlessAccepted answers a submission that its merchant's contract cannot carry, now: with that, unless it was accepted
// before the contract was what it is (P4).
func (d *Dispatcher) unlessAccepted(ctx context.Context, s *submission, refused error) error {
	if held, ok := d.hand.Find(s.n.ID); ok && held.Durable && held.Notification.Digest == s.n.Digest {
		s.standing, s.duplicate = held.Notification, true
		return nil
	}
	row, _, err := d.ledger.Find(ctx, s.n.ID)
	switch {
	case row != nil && row.Digest == s.n.Digest:
		s.standing, s.duplicate = row, true
		return nil
	case row != nil:
		return alreadyExists(s.n.ID)
	case errors.Is(err, ledger.ErrNotFound):
		return refused
	case errors.Is(err, ledger.ErrReservedOnly): // it has a row within a second, if it was accepted
		return d.unavailable("look for an earlier submission", fmt.Errorf("%w: it is on its way", ledger.ErrAway))
	}
	return d.unavailable("look for an earlier submission", err)
}

// staleAfter is how long the snapshot of merchants is good for saying that there is none: it is renewed every second.
const staleAfter = 3 * time.Second

// findMerchant looks into the snapshot. Of a merchant that is not in it the ledger is asked, now and then: another node may
// have made it a moment ago. While the ledger does not answer nobody can say that there is none.
func (d *Dispatcher) findMerchant(ctx context.Context, id string) (*merchant.Merchant, error) {
	if m := d.merchants.Get(id); m != nil {
		return m, nil
	}
	stale := d.now().Sub(time.Unix(0, d.learned.Load())) > staleAfter
	if d.lookups.Allow() || stale {
		if err := d.LearnMerchants(ctx); err != nil {
			return nil, d.unavailable("look up merchant", err)
		}
	}
	if m := d.merchants.Get(id); m != nil {
		return m, nil
	}
	return nil, notFound("merchant", id)
}

// makeRoom counts what is being accepted right now. What there is no room for is refused before anything is written (P10):
// so it is when NATS or the ledger are slower than the callers, and when the queues are full.
func (d *Dispatcher) makeRoom(subs []*submission) (giveBack func()) {
	var taken int64
	full, late := d.async.Full(), d.pace.late(d.now())
	for _, s := range subs {
		if s.answered() {
			continue
		}
		size := min(int64(len(s.n.Body)+roomOverhead), d.cfg.IntakeBytes)
		switch {
		case full:
			s.err = busy(errQueuesFull)
		case late:
			s.err = busy(errLate)
		case !d.room.TryAcquire(size):
			s.err = busy(errNoRoom)
		default:
			taken += size
		}
	}
	return func() { d.room.Release(taken) }
}

// roomOverhead is what a submission takes beside its body, in bytes.
const roomOverhead = 4 << 10

var (
	errNoRoom     = errors.New("too much is being accepted at once")
	errQueuesFull = errors.New("the queues are full, or the engine is behind with what they hold")
	errLate       = errors.New("more is submitted than the ledger keeps up with")
)

// reserve takes the ids, all in one write, and answers those that were there before (P4).
func (d *Dispatcher) reserve(ctx context.Context, subs []*submission) {
	first := map[notification.ID]*submission{}
	var taken []*submission
	var rs []ledger.Reservation
	for _, s := range subs {
		if s.answered() {
			continue
		}
		if twin := first[s.n.ID]; twin != nil { // twice in one batch
			s.twinOf(twin)
			continue
		}
		first[s.n.ID] = s
		taken = append(taken, s)
		rs = append(rs, ledger.Reservation{ID: s.n.ID, Digest: s.n.Digest, AcceptedAt: s.n.AcceptedAt})
	}
	if len(rs) == 0 {
		return
	}
	end := d.pace.begin(d.now())
	reserved, err := d.ledger.Reserve(ctx, rs)
	end()
	if err != nil {
		for _, s := range taken {
			s.reserved, s.err = ReservingFailed, d.unavailable("reserve id", err)
		}
		return
	}
	var known []*submission
	for i, s := range taken {
		switch {
		case reserved[i].Fresh:
			s.reserved, s.elsewhere = ReservingFresh, reserved[i].Elsewhere
		case reserved[i].Digest != s.n.Digest:
			s.reserved, s.err = ReservingConflict, alreadyExists(s.n.ID)
		default:
			s.reserved, s.duplicate, s.elsewhere = ReservingDuplicate, true, reserved[i].Elsewhere
			s.n.AcceptedAt, s.known = reserved[i].AcceptedAt, reserved[i].Known
			known = append(known, s)
		}
	}
	d.recognise(ctx, known)
}

// twinOf answers the later of two submissions of one id in one batch.
func (s *submission) twinOf(first *submission) {
	if first.n.Digest != s.n.Digest {
		s.err = alreadyExists(s.n.ID)
		return
	}
	s.twin = first
}

// recognise answers duplicates with the first one's state. One of which no trace is found, or only a row that no attempt
// has touched, goes on like a new one, marked as a possible second copy: its reservation, and its row, may stand without a
// publish that worked.
func (d *Dispatcher) recognise(ctx context.Context, known []*submission) {
	if len(known) == 0 {
		return
	}
	var ids []notification.ID
	for _, s := range known {
		if held, ok := d.hand.Find(s.n.ID); ok && held.Durable {
			s.standing = held.Notification
			continue
		}
		ids = append(ids, s.n.ID)
	}
	rows, err := d.ledger.FindMany(ctx, ids)
	for _, s := range known {
		switch {
		case s.answered():
		case err != nil:
			s.err = d.unavailable("look up duplicate", err)
		case rows[s.n.ID] == nil && (s.known.State.Final() || s.known.Attempts > 0):
			first := *s.n
			first.Progress = s.known
			s.standing = &first
		case rows[s.n.ID] == nil:
		case isUntouched(rows[s.n.ID], d.now()):
			first := *rows[s.n.ID]
			s.n, s.hasRow = &first, true
		default:
			s.standing = rows[s.n.ID]
		}
	}
}

// isUntouched reports whether a row may be all that is left of a submission that was cut short. Its due time would bring it
// back, much later than a caller that asks again.
func isUntouched(row *notification.Notification, now time.Time) bool {
	waits := row.Reason == notification.ReasonAwaitingPredecessor && row.NextAt.IsZero() // its predecessor's end brings it
	return row.State == notification.StateAccepted && row.Attempts == 0 && !row.Resting && !row.NotBefore.After(now) && !waits &&
		row.Reason != notification.ReasonReleased // it has its turn
}

// enter makes one notification durable in its lane. done is called when it is answered.
//
// A second copy waits until the first one must have left a trace if it is alive: its caller's node may have published it a
// moment ago, or be asking the merchant right now (P4).
func (d *Dispatcher) enter(ctx context.Context, s *submission, done func()) {
	w := notification.Work{
		Notification: s.n, Trigger: notification.TriggerAuto, SecondCopy: s.duplicate, HasRow: s.hasRow, Unreserved: s.elsewhere, Trace: cmp.Or(s.trace, traceparent(ctx)),
	}
	isSync := s.n.Route.Lane == notification.LaneSync && s.allowSync
	switch {
	case s.barred != nil && !s.duplicate && (s.barred.Mode == access.ModeRecordOnly || !s.n.NotBefore.After(d.now())):
		d.enterBarred(ctx, s, w, done)
	case s.n.NotBefore.After(d.now()):
		d.enterLater(ctx, s, w, s.n.NotBefore, notification.ReasonNotBefore, done)
	case isSync && s.duplicate:
		d.enterLater(ctx, s, w, s.n.AcceptedAt.Add(d.cfg.AttemptBound), notification.ReasonAwaitingAnswer, done)
	case s.duplicate && d.now().Before(s.n.AcceptedAt.Add(d.cfg.TraceAfter)):
		d.enterLater(ctx, s, w, s.n.AcceptedAt.Add(d.cfg.TraceAfter), notification.ReasonQueued, done)
	case isSync:
		d.crew.Go(func() {
			defer done()
			d.enterSync(ctx, s, w)
		})
	default:
		d.enterAsync(ctx, s, w, notification.ReasonQueued, done)
	}
}

// enterAsync gives a work to the asynchronous lane.
func (d *Dispatcher) enterAsync(ctx context.Context, s *submission, w notification.Work, reason notification.Reason, done func()) {
	n := w.Notification
	if n.Route.Lane == notification.LaneSync { // readers may have the one that the sync lane had in hand
		routed := *n
		n = &routed
		w.Notification = n
	}
	n.Route.Lane, n.Reason = notification.LaneAsync, reason
	if n.Route.Persist == notification.PersistAfter {
		n.Route.Persist = notification.PersistStream
	}
	accepted := func(err error) {
		if err != nil {
			s.err = d.unaccepted(err)
		} else {
			s.standing = n
			d.tell(n)
		}
		done()
	}
	if n.Route.Persist != notification.PersistLedger {
		d.async.Accept(w, accepted)
		return
	}
	enter := func() {
		d.async.Accept(w, func(err error) {
			if errors.Is(err, async.ErrFull) { // the row stands for it, and its due time brings it: refused it would be sent nevertheless
				err = nil
			}
			accepted(err)
		})
	}
	if s.hasRow {
		enter()
		return
	}
	released := &ledger.Hold{By: d.run} // the sync lane may have held it: whoever has the shard takes it now
	d.withRow(ctx, w, released, func(err error) {
		if err != nil {
			accepted(err)
			return
		}
		enter()
	})
}

// enterLater makes a work durable whose attempt is due at a later instant.
func (d *Dispatcher) enterLater(ctx context.Context, s *submission, w notification.Work, at time.Time, reason notification.Reason, done func()) {
	waiting := *w.Notification
	n := &waiting
	w.Notification = n
	if n.Route.Lane == notification.LaneSync && reason != notification.ReasonAwaitingAnswer {
		n.Route.Lane = notification.LaneAsync
	}
	n.NextAt, n.Reason = later(at, d.now()), reason
	answer := func(err error) {
		if err != nil {
			s.err = d.unaccepted(err)
		} else {
			s.standing = n
			if reason == notification.ReasonAwaitingAnswer {
				d.owed.told(n.ID, d.now())
			}
		}
		done()
	}
	if reason == notification.ReasonAwaitingAnswer || s.hasRow { // a row would hide that the first copy has none
		d.delay.DelayThen(w, answer)
		return
	}
	rests := d.rests(n)
	d.ledger.Record(ctx, ledger.Record{Notification: n, New: true, Unreserved: w.Unreserved, Unfed: rests}, func(err error) {
		if err != nil || rests {
			answer(err)
			return
		}
		d.delay.DelayThen(w, answer)
	})
}

// withRow writes the full row that PersistLedger asks for. It says that it is due some time after the stream's own way
// must have brought it: the sweep finds it even if all of NATS is lost.
func (d *Dispatcher) withRow(ctx context.Context, w notification.Work, hold *ledger.Hold, written func(error)) {
	row := *w.Notification
	row.NextAt = d.now().Add(backstop)
	d.ledger.Record(ctx, ledger.Record{Notification: &row, New: !w.HasRow, Unreserved: w.Unreserved, Hold: hold}, written)
}

// enterSync asks the merchant while the caller waits. A full lane, or a gate that would not let the attempt through,
// sends the work to the asynchronous lane instead.
func (d *Dispatcher) enterSync(ctx context.Context, s *submission, w notification.Work) {
	n := w.Notification
	goAsync := func(reason notification.Reason) {
		var answered sync.WaitGroup
		answered.Add(1)
		d.enterAsync(ctx, s, w, reason, answered.Done)
		answered.Wait()
	}
	if reason := d.gate.Peek(w, s.m, d.now()); reason != "" {
		goAsync(reason)
		return
	}
	place, err := d.sync.Enter(n.Route.IsolationKey)
	if err != nil {
		goAsync(notification.ReasonSyncLaneFull)
		return
	}
	if n.Route.Persist == notification.PersistLedger {
		row := make(chan error, 1)
		d.withRow(ctx, w, d.holdNow(), func(err error) { row <- err }) // nobody changes it while the merchant is asked
		if err := <-row; err != nil {
			place.Release()
			s.err = d.unaccepted(err)
			return
		}
		w.HasRow = true
	}
	answer, err := d.sync.Ask(ctx, place, w, n.AcceptedAt.Add(d.cfg.AttemptBound))
	switch {
	case errors.Is(err, synclane.ErrInHand):
		s.duplicate = true
		var answered sync.WaitGroup
		answered.Add(1)
		d.enterLater(ctx, s, w, n.AcceptedAt.Add(d.cfg.AttemptBound), notification.ReasonAwaitingAnswer, answered.Done)
		answered.Wait()
	case errors.Is(err, synclane.ErrFull):
		goAsync(notification.ReasonSyncLaneFull)
	case errors.Is(err, synclane.ErrAway):
		goAsync(notification.ReasonSyncLaneAway)
	case err != nil:
		s.err = d.unaccepted(err)
	case answer.Verdict.Deferred:
		goAsync(answer.Verdict.Reason)
		if s.err == nil {
			answer.TakeNetAway(context.WithoutCancel(ctx))
		}
	case answer.TimedOut:
		d.owed.told(n.ID, d.now())
		waiting := *n
		waiting.Reason = notification.ReasonAwaitingAnswer
		s.standing = &waiting
	case answer.Verdict.After != nil: // on record: the lane has waited for that
		s.standing, s.attempt = answer.Verdict.After, answer.Verdict.Attempt()
	default:
		s.standing = n
	}
}
