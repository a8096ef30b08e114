package async

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// startMove sends an item to its key's own queue. Lane.mu is held.
func (l *Lane) startMove(ctx context.Context, q *merchantQueue, e *entry) {
	q.moving++
	reason := q.reason
	l.running.Go(func() { l.move(ctx, q, e.Item, reason) })
}

// move takes an item out of hand to where it waits: its own queue, or while that cannot be reached, the ledger.
func (l *Lane) move(ctx context.Context, q *merchantQueue, item *hand.Item, reason notification.Reason) {
	defer func() {
		l.mu.Lock()
		q.moving--
		q.moved++
		l.mu.Unlock()
		q.nudge()
	}()
	w, ok := item.Move()
	if !ok {
		return
	}
	var after *notification.Notification
	var err error
	if w.HasRow && l.away() {
		after, err = l.restInLedger(ctx, w.Notification, reason, backAt(time.Now(), time.Time{}))
	} else {
		after, err = l.restInOwnQueue(ctx, q.key, w, reason)
	}
	if err != nil {
		l.log.Warn("notification cannot be put where it should wait; its message comes again", zap.Stringer("id", w.ID), zap.Error(err))
	}
	item.Sent(after, nil)
	l.hand.Leave(item, err)
}

// restInOwnQueue writes a notification's row, then puts it into its own queue; then its message may go. Dying in between
// leaves the message to be redelivered; the copy that is found second is refused by the claim. What a full own queue does
// not take is left to the ledger for a while.
func (l *Lane) restInOwnQueue(ctx context.Context, key string, w notification.Work, reason notification.Reason) (*notification.Notification, error) {
	resting := asResting(w.Notification, reason, time.Now())
	remembered := make(chan error, 1)
	l.memory.Remember(ctx, resting, !w.HasRow, func(err error) { remembered <- err })
	select {
	case err := <-remembered:
		if err != nil {
			return resting, err
		}
	case <-ctx.Done(): // the lane stops and the ledger does not answer: the message comes again
		return resting, errStopping
	}
	w.Notification = resting
	err := l.publishOwn(ctx, key, w)
	if errors.Is(err, ErrFull) {
		return l.restInLedger(ctx, resting, notification.ReasonBacklog, time.Now().Add(l.cfg.OwnQueueRest).Add(rand.N(l.cfg.OwnQueueRest/4)))
	}
	return resting, err
}

// asResting is the snapshot of a notification that waits in its own queue. It is not due: the drain asks for it.
func asResting(n *notification.Notification, reason notification.Reason, now time.Time) *notification.Notification {
	c := *n
	c.Defer(reason, now.UTC().Truncate(time.Microsecond))
	c.Resting, c.NextAt = true, time.Time{}
	return &c
}

func (l *Lane) publishOwn(ctx context.Context, key string, w notification.Work) error {
	data, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		return err
	}
	if err := l.store(context.WithoutCancel(ctx), faults.Own, envelope.OwnQueueSubject(key), data); err != nil {
		return fmt.Errorf("publish to own queue: %w", err)
	}
	return nil
}

func (q *merchantQueue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Wake makes a merchant's drains ask again at once, for example after it was resumed.
func (l *Lane) Wake(merchantID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.queues {
		if q.resting && q.merchantID == merchantID {
			q.wakeAt = time.Time{}
			q.nudge()
		}
	}
}

// longestRest bounds how long a drain sleeps when nobody knows when the gate opens, as for a paused merchant.
const longestRest = 5 * time.Second

// drainBatch is how many notifications one read of an own queue returns.
const drainBatch = 64

// drain delivers an own queue at its merchant's pace, oldest first, until it is empty and the merchant returns to the
// shards, or its shard goes to another node, which drains it from then on. After a deferral it begins again with a single
// notification, so that a broken merchant is asked once.
func (l *Lane) drain(ctx context.Context, q *merchantQueue) {
	width := 1
	for {
		if !l.restUntilWake(ctx, q) {
			l.leaveDrain(q)
			return
		}
		l.mu.Lock()
		movedBefore, free := q.moved, q.cap-q.inFlight
		l.mu.Unlock()
		if free < 1 { // what began before the key got its own queue is under way still
			l.postpone(q, time.Now().Add(20*time.Millisecond))
			continue
		}
		batch, err := l.readOwn(ctx, envelope.OwnQueueSubject(q.key), min(drainBatch, width*8))
		if err == nil {
			err = l.goByLedger(ctx, batch)
		}
		if err != nil {
			l.log.Warn("own queue cannot be read", zap.String("isolation_key", q.key), zap.Error(err))
			l.postpone(q, time.Now().Add(time.Second))
			continue
		}
		if len(batch) == 0 {
			if l.returnToShards(q, movedBefore) {
				return
			}
			l.postpone(q, time.Now().Add(10*time.Millisecond)) // something is still on its way into the queue
			continue
		}
		if reason, until := l.drainSome(ctx, q, batch, min(width, free)); reason != "" {
			width = 1
			l.because(q, reason)
			l.postpone(q, until)
		} else {
			width = min(width*2, q.cap)
			l.because(q, notification.ReasonBacklog)
		}
	}
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

// returnToShards ends the own queue, unless something arrived meanwhile or is on its way.
func (l *Lane) returnToShards(q *merchantQueue, movedBefore uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.moving > 0 || q.moved != movedBefore {
		return false
	}
	q.resting = false
	q.wakeAt = time.Time{}
	l.forgetIdle(q)
	l.log.Info("merchant returns to the shards", zap.String("isolation_key", q.key))
	return true
}

// resting is one stored notification of an own queue.
type resting struct {
	seq  uint64
	work notification.Work
}

// readOwn reads the oldest notifications of an own queue; none only when the server says so. What cannot be decoded is
// passed over.
func (l *Lane) readOwn(ctx context.Context, subject string, limit int) ([]resting, error) {
	for from := uint64(1); ; {
		found, last, err := l.readOwnFrom(ctx, subject, from, limit)
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
		if err != nil {
			l.setAsideOwn(ctx, msg, err)
		}
		for _, w := range works {
			w.Claim, w.HasRow = true, true
			found = append(found, resting{seq: msg.Sequence, work: w})
		}
	}
	if last == 0 { // the iteration also ends when the answer does not come in time
		return nil, 0, errNoAnswer
	}
	return found, last, nil
}

// setAsideOwn keeps a message of an own queue that cannot be read, for people. When that fails it stays, and is passed over.
func (l *Lane) setAsideOwn(ctx context.Context, msg *jetstream.RawStreamMsg, cause error) {
	l.log.Error("own queue holds a message that cannot be decoded; it is set aside", zap.String("from", msg.Subject), zap.String("to", envelope.UndecodableSubject), zap.Uint64("sequence", msg.Sequence), zap.Error(cause))
	if err := l.keepAside(ctx, msg.Data); err != nil {
		l.log.Warn("message stays in its own queue", zap.Uint64("sequence", msg.Sequence), zap.Error(err))
		return
	}
	l.deleteOwn(ctx, msg.Sequence)
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
	keys := map[string]string{} // by subject: an isolation key stands in the messages only
	for {
		if err := l.lookForOwnQueues(ctx, keys); err != nil && !l.away() {
			l.log.Warn("own queues cannot be listed", zap.Error(err))
		}
		select {
		case <-l.stopping:
			return
		case <-tick.C:
		case <-l.gained:
		}
	}
}

func (l *Lane) lookForOwnQueues(ctx context.Context, keys map[string]string) error {
	own, err := l.ownStream()
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	info, err := own.Info(asking, jetstream.WithSubjectFilter("own.*"))
	if err != nil {
		return fmt.Errorf("list own queues: %w", err)
	}
	maps.DeleteFunc(keys, func(subject, _ string) bool { return info.State.Subjects[subject] == 0 })
	for subject := range info.State.Subjects {
		if isClosed(l.stopping) {
			return nil
		}
		key, known := keys[subject]
		if subject == envelope.UndecodableSubject || known && (!l.owns(key) || l.isResting(key)) {
			continue
		}
		first, err := l.readOwn(ctx, subject, 1)
		if err != nil {
			return err
		}
		if len(first) == 0 {
			continue
		}
		key = first[0].work.Route.IsolationKey
		keys[subject] = key
		if l.owns(key) {
			l.mu.Lock()
			if q := l.queue(first[0].work); !q.resting {
				l.rest(ctx, q, notification.ReasonBacklog, time.Time{})
			}
			l.mu.Unlock()
		}
	}
	return nil
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
		if r.seq <= l.suspected(envelope.MerchantStream) {
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
		row := known[w.ID]
		if row != nil && cmp.Or(cmp.Compare(row.Generation, w.Generation), cmp.Compare(row.Attempts, w.Attempts)) < 0 {
			w.Notification = row
		}
	}
	return nil
}

// deleteOwn removes what is settled from its own queue. What stays there is refused by its claim next time.
func (l *Lane) deleteOwn(ctx context.Context, seq uint64) {
	if err := l.removeOwn(context.WithoutCancel(ctx), seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		l.log.Warn("own queue keeps a settled message; the claim refuses it next time", zap.Uint64("sequence", seq), zap.Error(err))
	}
}

func (l *Lane) removeOwn(ctx context.Context, seq uint64) error {
	own, err := l.ownStream()
	if err != nil {
		return err
	}
	if err := faults.Before(faults.Unown); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	if err := own.DeleteMsg(ctx, seq); err != nil {
		return err
	}
	return faults.After(faults.Unown)
}

// drainSome delivers a batch with at most width attempts at once. It stops at the first deferral and returns its reason;
// what was deferred stays in the own queue as it is. One of which another attempt is in flight is passed over.
func (l *Lane) drainSome(ctx context.Context, q *merchantQueue, batch []resting, width int) (reason notification.Reason, until time.Time) {
	var (
		mu      sync.Mutex
		wg      sync.WaitGroup
		moved   bool // at least one has left the queue
		slots   = make(chan struct{}, width)
		stopped = make(chan struct{})
		once    sync.Once
	)
	for _, r := range batch {
		select {
		case slots <- struct{}{}:
		case <-stopped:
		case <-l.stopping:
		}
		if isClosed(l.stopping) || isClosed(stopped) || !l.owns(q.key) {
			break
		}
		durable := make(chan struct{})
		item, ok := l.hand.Enter(r.work, time.Now(), func(err error) {
			l.running.Go(func() { // not in the ledger's goroutine: NATS may be slow
				if err == nil {
					l.deleteOwn(ctx, r.seq)
				}
				close(durable)
			})
		})
		if !ok {
			<-slots
			continue
		}
		wg.Go(func() {
			deferred, verdict := l.attempt(ctx, q, &entry{Item: item})
			<-slots
			switch {
			case !deferred:
				mu.Lock()
				moved = true
				mu.Unlock()
			case verdict.Reason == notification.ReasonInFlight:
				l.hand.Leave(item, errInFlight)
			default:
				once.Do(func() { close(stopped) })
				mu.Lock()
				reason, until = verdict.Reason, laterOf(until, verdict.Until)
				mu.Unlock()
				l.hand.Leave(item, errStaysInOwnQueue)
			}
			select {
			case <-durable:
			case <-ctx.Done(): // the lane stops and the ledger does not answer
			}
		})
	}
	wg.Wait()
	if reason == "" && !moved {
		return notification.ReasonInFlight, time.Now().Add(500 * time.Millisecond)
	}
	return reason, until
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
