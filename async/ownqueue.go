package async

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"notifyd/internal/faults"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// Wake makes a merchant's drains ask again at once, for example after it was resumed.
func (l *Lane) Wake(merchantID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.queues {
		if q.resting && q.merchantID == merchantID {
			q.wakeAt = time.Time{}
			q.woken++
			q.nudge()
		}
	}
}

// longestRest bounds how long a drain sleeps when nobody knows when the gate opens, as for a paused merchant: who opens it
// wakes the drain.
const longestRest = time.Minute

// drainBatch is how many notifications one read of an own queue returns.
const drainBatch = 64

// drain delivers an own queue at its merchant's pace, oldest first, until it is empty and the merchant returns to the
// shards, or its shard goes to another node, which drains it from then on. After a deferral it begins again with a single
// notification, so that a broken merchant is asked once.
func (l *Lane) drain(ctx context.Context, q *merchantQueue) {
	ramp := 1
	for l.restUntilWake(ctx, q) {
		l.mu.Lock()
		movedBefore, wokenBefore := q.moved, q.woken
		l.mu.Unlock()
		p := newPass(l, q, ramp)
		err := p.run(ctx)
		ramp = p.ramp
		switch {
		case err != nil:
			l.log.Warn("own queue cannot be read", zap.String("isolation_key", q.key), zap.Error(err))
			l.postpone(q, time.Now().Add(time.Second))
		case p.reason != "":
			ramp = 1
			l.because(q, p.reason)
			l.postponeUnlessWoken(q, p.until, wokenBefore)
		case p.found == 0:
			if l.returnToShards(q, movedBefore) {
				return
			}
			l.postpone(q, time.Now().Add(10*time.Millisecond)) // something is still on its way into the queue
		case p.left == 0:
			ramp = 1
			l.because(q, notification.ReasonInFlight)
			l.postpone(q, time.Now().Add(500*time.Millisecond))
		}
	}
	l.leaveDrain(q)
}

// restUntilWake waits until the drain may go on. False: the lane is stopping, or the own queue is another node's to drain.
func (l *Lane) restUntilWake(ctx context.Context, q *merchantQueue) bool {
	for {
		changed := l.owned.Changed()
		if ctx.Err() != nil || isClosed(l.stopping) || !l.owns(q.key) {
			return false
		}
		l.mu.Lock()
		wait := time.Until(q.wakeAt)
		l.mu.Unlock()
		if wait <= 0 {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.stopping:
		case <-changed:
		case <-timer.C:
		case <-q.wake:
		}
		timer.Stop()
	}
}

// leaveDrain ends a drain whose own queue is not empty: its owner goes on, or the next start does.
func (l *Lane) leaveDrain(q *merchantQueue) {
	if isClosed(l.stopping) {
		return // what arrives still moves there
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q.resting, q.wakeAt = false, time.Time{}
	l.forgetIdle(q)
}

// because notes why new arrivals rest.
func (l *Lane) because(q *merchantQueue, reason notification.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.reason = reason
}

func (l *Lane) postpone(q *merchantQueue, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until.IsZero() || time.Until(until) > longestRest {
		until = time.Now().Add(longestRest)
	}
	q.wakeAt = until
}

// postponeUnlessWoken is postpone after a deferral, unless somebody has said since that it is worth asking again.
func (l *Lane) postponeUnlessWoken(q *merchantQueue, until time.Time, wokenBefore uint64) {
	l.mu.Lock()
	woken := q.woken != wokenBefore
	l.mu.Unlock()
	if !woken {
		l.postpone(q, until)
	}
}

// returnToShards ends the own queue, unless something arrived meanwhile or is on its way.
func (l *Lane) returnToShards(q *merchantQueue, movedBefore uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.moving > 0 || q.moved != movedBefore {
		return false
	}
	q.resting = false
	q.wakeAt = time.Time{}
	l.logOwnQueue("merchant returns to the shards", q)
	l.forgetIdle(q)
	return true
}

// resting is one stored notification of an own queue.
type resting struct {
	seq    uint64
	stored time.Time
	work   notification.Work
}

// unreadable says that it cannot be decoded, and could not be set aside either: it stays.
func (r resting) unreadable() bool { return r.work.Notification == nil }

// readOwn reads the oldest notifications of an own queue; none only when the server says so. What cannot be decoded is
// passed over.
func (l *Lane) readOwn(ctx context.Context, subject string, limit int) ([]resting, error) {
	for from := uint64(1); ; {
		found, last, err := l.readOwnFrom(ctx, subject, from, limit)
		found = slices.DeleteFunc(found, resting.unreadable)
		if err != nil || len(found) > 0 || last == 0 {
			return found, err
		}
		from = last + 1 // nothing is known yet of what lies behind
	}
}

// readOwnFrom reads from a sequence on; last is that of the last message that was read, 0: there is none.
func (l *Lane) readOwnFrom(ctx context.Context, subject string, from uint64, limit int) (found []resting, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	messages, err := jetstreamext.GetBatch(ctx, l.js, envelope.MerchantStream, limit, jetstreamext.GetBatchSubject(subject), jetstreamext.GetBatchSeq(from))
	if err != nil {
		return nil, 0, fmt.Errorf("read own queue: %w", err)
	}
	for msg, err := range messages {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return found, 0, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("read own queue: %w", err)
		}
		last = msg.Sequence
		var works []notification.Work
		err := l.contain(func() (err error) { works, err = envelope.Decode(msg.Data); return err })
		if err != nil && !l.setAsideOwn(ctx, msg, err) {
			found = append(found, resting{seq: msg.Sequence})
		}
		for _, w := range works {
			w.Claim, w.HasRow = true, true
			found = append(found, resting{msg.Sequence, msg.Time, w})
		}
	}
	if last == 0 { // the iteration also ends when the answer does not come in time
		return nil, 0, errNoAnswer
	}
	return found, last, nil
}

// setAsideOwn keeps a message of an own queue that cannot be read, for people. When that fails it stays, and is passed over.
func (l *Lane) setAsideOwn(ctx context.Context, msg *jetstream.RawStreamMsg, cause error) bool {
	l.log.Error("own queue holds a message that cannot be decoded; it is set aside", zap.String("from", msg.Subject), zap.String("to", envelope.UndecodableSubject), zap.Uint64("sequence", msg.Sequence), zap.Error(cause))
	if err := l.keepAside(ctx, msg.Data); err != nil {
		l.log.Warn("message stays in its own queue", zap.Uint64("sequence", msg.Sequence), zap.Error(err))
		return false
	}
	l.deleteOwn(ctx, msg.Sequence)
	return true
}

// ownQueuesEvery is the time between two looks for own queues that are not drained: an earlier run left them, their shard
// came from another node, or one that had it put something into them afterwards.
const ownQueuesEvery = 5 * time.Second

// findOwnQueues begins to drain what is this node's to drain, until the lane stops.
func (l *Lane) findOwnQueues(ctx context.Context) {
	select {
	case <-l.ready:
	case <-l.stopping:
		return
	}
	tick := time.NewTicker(ownQueuesEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.stopping:
			return
		case <-tick.C:
		}
		if err := l.lookForOwnQueues(ctx, time.Now()); err != nil && !l.away() {
			l.log.Warn("own queues cannot be listed", zap.Error(err))
		}
	}
}

// ownLook is what is known of own queues.
type ownLook struct {
	sync.Mutex
	began time.Time         // the last one that ended well
	keys  map[string]string // by subject: an isolation key stands in the messages only
}

// lookForOwnQueues gives keys their own queue where NATS holds something for them that is this node's to drain. One look
// serves whoever wants one that began at an instant or later.
func (l *Lane) lookForOwnQueues(ctx context.Context, since time.Time) error {
	l.look.Lock()
	defer l.look.Unlock()
	if l.look.began.After(since) {
		return nil
	}
	began := time.Now()
	depths, err := l.ownDepths(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(l.look.keys, func(subject, _ string) bool { return depths[subject] == 0 })
	var unseen []string
	for subject := range depths {
		if key, known := l.look.keys[subject]; !known || l.owns(key) && !l.isResting(key) {
			unseen = append(unseen, subject)
		}
	}
	heads, err := l.ownHeads(ctx, unseen)
	if err != nil {
		return err
	}
	for subject, head := range heads {
		key := head.work.Route.IsolationKey
		l.look.keys[subject] = key
		if !l.owns(key) || isClosed(l.stopping) {
			continue
		}
		limits := l.limits(head.work.MerchantID)
		l.mu.Lock()
		if q := l.queue(head.work, limits); !q.resting {
			l.rest(ctx, q, notification.ReasonBacklog, time.Time{})
		}
		l.mu.Unlock()
	}
	l.look.began = began
	return nil
}

// ownDepths is how many notifications lie in each own queue, by subject.
func (l *Lane) ownDepths(ctx context.Context) (map[string]uint64, error) {
	own, err := l.ownStream()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	info, err := own.Info(ctx, jetstream.WithSubjectFilter("own.*"))
	if err != nil {
		return nil, fmt.Errorf("list own queues: %w", err)
	}
	delete(info.State.Subjects, envelope.UndecodableSubject)
	return info.State.Subjects, nil
}

// headsAtOnce is how many own queues are read from at once.
const headsAtOnce = 16

// ownHeads is the oldest notification of each own queue that holds one.
func (l *Lane) ownHeads(ctx context.Context, subjects []string) (map[string]resting, error) {
	var mu sync.Mutex
	heads := map[string]resting{}
	reading, ctx := errgroup.WithContext(ctx)
	reading.SetLimit(headsAtOnce)
	for _, subject := range subjects {
		reading.Go(func() error {
			head, found, err := l.ownHead(ctx, subject)
			if found {
				mu.Lock()
				defer mu.Unlock()
				heads[subject] = head
			}
			return err
		})
	}
	return heads, reading.Wait()
}

// ownHead is the oldest notification of an own queue that can be read. A single message is asked for at a tenth of what a
// batch of one costs.
func (l *Lane) ownHead(ctx context.Context, subject string) (head resting, found bool, err error) {
	own, err := l.ownStream()
	if err != nil {
		return head, false, err
	}
	asking, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	msg, err := own.GetMsg(asking, 1, jetstream.WithGetMsgSubject(subject))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return head, false, nil
	case err != nil:
		return head, false, fmt.Errorf("read own queue: %w", err)
	}
	var works []notification.Work
	if err := l.contain(func() (err error) { works, err = envelope.Decode(msg.Data); return err }); err == nil {
		return resting{msg.Sequence, msg.Time, works[0]}, true, nil
	}
	first, err := l.readOwn(ctx, subject, 1) // sets aside what cannot be read
	if err != nil || len(first) == 0 {
		return head, false, err
	}
	return first[0], true, nil
}

// OwnQueue is what rests in one key's own queue, whichever node drains it.
type OwnQueue struct {
	MerchantID string
	Depth      int64               // notifications
	Oldest     time.Time           // when the oldest came into it
	Reason     notification.Reason // why new arrivals rest, or where another node drains it, why the oldest does
	Drained    bool                // by this node
}

// OwnQueues are all own queues that hold something, by isolation key, as NATS has them. It reads the oldest notification of
// each: about a second for ten thousand of them.
func (l *Lane) OwnQueues(ctx context.Context) (map[string]OwnQueue, error) {
	depths, err := l.ownDepths(ctx)
	if err != nil {
		return nil, err
	}
	heads, err := l.ownHeads(ctx, slices.Collect(maps.Keys(depths)))
	if err != nil {
		return nil, err
	}
	out := make(map[string]OwnQueue, len(heads))
	l.mu.Lock()
	defer l.mu.Unlock()
	for subject, head := range heads {
		key := head.work.Route.IsolationKey
		of := OwnQueue{MerchantID: head.work.MerchantID, Depth: int64(depths[subject]), Oldest: head.stored, Reason: head.work.Reason} //nolint:gosec // a number of messages
		if q := l.queues[key]; q != nil && q.resting {
			of.Reason, of.Drained = q.reason, true
		}
		out[key] = of
	}
	return out, nil
}

func (l *Lane) isResting(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queues[key]
	return q != nil && q.resting
}

// goByLedger lets a notification that was stored before a restore go on from its row, where NATS knows of more attempts
// than the ledger: the claim would wait for ever for their record.
func (l *Lane) goByLedger(ctx context.Context, batch []resting) error {
	var ids []notification.ID
	for _, r := range batch {
		if !r.unreadable() && r.seq <= l.suspected(envelope.MerchantStream) {
			ids = append(ids, r.work.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	known, err := l.memory.FindMany(ctx, ids)
	if err != nil {
		return fmt.Errorf("look up own queue: %w", err)
	}
	for i := range batch {
		w := &batch[i].work
		if batch[i].unreadable() {
			continue
		}
		row := known[w.ID]
		if row != nil && cmp.Or(cmp.Compare(row.Generation, w.Generation), cmp.Compare(row.Attempts, w.Attempts)) < 0 {
			w.Notification = row
		}
	}
	return nil
}

// deleteOwn removes what is settled from its own queue. What stays there is refused by its claim next time.
func (l *Lane) deleteOwn(ctx context.Context, seq uint64) {
	l.unown(ctx, func(ctx context.Context, own jetstream.Stream) error {
		if err := own.DeleteMsg(ctx, seq); !errors.Is(err, jetstream.ErrMsgNotFound) {
			return err
		}
		return nil
	})
}

// purgeOwn removes everything before a sequence from an own queue: all of it is settled.
func (l *Lane) purgeOwn(ctx context.Context, key string, before uint64) {
	l.unown(ctx, func(ctx context.Context, own jetstream.Stream) error {
		return own.Purge(ctx, jetstream.WithPurgeSubject(envelope.OwnQueueSubject(key)), jetstream.WithPurgeSequence(before))
	})
}

func (l *Lane) unown(ctx context.Context, remove func(context.Context, jetstream.Stream) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	own, err := l.ownStream()
	if err == nil {
		err = faults.Before(faults.Unown)
	}
	if err == nil {
		err = remove(ctx, own)
	}
	if err == nil {
		err = faults.After(faults.Unown)
	}
	if err != nil {
		l.log.Warn("own queue keeps what is settled; the claim refuses it next time", zap.Error(err))
	}
}

var (
	errNoAnswer         = errors.New("read own queue: no answer in time")
	errInFlight         = errors.New("another attempt is in flight")
	errStaysInOwnQueue  = errors.New("deferred: stays in its own queue")
	errSecondCopyInHand = errors.New("another copy is in hand")
)

func laterOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
