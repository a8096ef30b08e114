package async

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// startMove sends an item to its key's own queue. Lane.mu is held.
func (l *Lane) startMove(ctx context.Context, q *merchantQueue, item *hand.Item) {
	q.moving++
	reason := q.reason
	l.running.Go(func() { l.move(ctx, q, item, reason) })
}

// move writes the item's row, then puts it into the own queue, then lets its message go. Dying in between leaves the
// message to be redelivered; the copy that is found second is refused by the claim.
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
	resting := asResting(w.Notification, reason, time.Now())
	remembered := make(chan error, 1)
	l.memory.Remember(ctx, resting, !w.HasRow, func(err error) { remembered <- err })
	var err error
	select {
	case err = <-remembered:
	case <-ctx.Done(): // the lane stops and the ledger does not answer: the message comes again
		err = errStopping
	}
	if err == nil {
		w.Notification = resting
		err = l.publishOwn(ctx, q.key, w)
	}
	if err != nil {
		l.log.Warn("own queue does not take a notification; its message comes again", zap.Stringer("id", w.ID), zap.Error(err))
	}
	item.Sent(resting, nil)
	l.hand.Leave(item, err)
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	if _, err := l.js.Publish(ctx, envelope.OwnQueueSubject(key), data); err != nil {
		return fmt.Errorf("publish to own queue: %w", publishError(err))
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
// shards. After a deferral it begins again with a single notification, so that a broken merchant is asked once.
func (l *Lane) drain(ctx context.Context, q *merchantQueue) {
	width := 1
	for {
		if !l.restUntilWake(ctx, q) {
			return
		}
		l.mu.Lock()
		movedBefore := q.moved
		l.mu.Unlock()
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
		if reason, until := l.drainSome(ctx, q, batch, width); reason != "" {
			width = 1
			l.because(q, reason)
			l.postpone(q, until)
		} else {
			width = min(width*2, q.cap)
			l.because(q, notification.ReasonBacklog)
		}
	}
}

// restUntilWake waits until the drain may go on. False: the lane is stopping.
func (l *Lane) restUntilWake(ctx context.Context, q *merchantQueue) bool {
	for {
		if ctx.Err() != nil || isClosed(l.stopping) {
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
		case <-timer.C:
		case <-q.wake:
		}
		timer.Stop()
	}
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

// readOwn reads the oldest notifications of an own queue; none only when the server says so.
func (l *Lane) readOwn(ctx context.Context, subject string, limit int) ([]resting, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	messages, err := jetstreamext.GetBatch(ctx, l.js, envelope.MerchantStream, limit, jetstreamext.GetBatchSubject(subject))
	if err != nil {
		return nil, fmt.Errorf("read own queue: %w", err)
	}
	var out []resting
	undecodable := 0
	for msg, err := range messages {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read own queue: %w", err)
		}
		works, err := envelope.Decode(msg.Data)
		if err != nil {
			l.log.Error("own queue holds a message that cannot be decoded; it is set aside", zap.String("from", subject), zap.String("to", envelope.UndecodableSubject), zap.Uint64("sequence", msg.Sequence), zap.Error(err))
			if _, err := l.js.Publish(ctx, envelope.UndecodableSubject, msg.Data); err != nil {
				return nil, fmt.Errorf("set aside undecodable message: %w", err)
			}
			l.deleteOwn(ctx, msg.Sequence)
			undecodable++
			continue
		}
		for _, w := range works {
			w.Claim, w.HasRow = true, true
			out = append(out, resting{seq: msg.Sequence, work: w})
		}
	}
	if len(out)+undecodable == 0 { // the iteration also ends when the answer does not come in time
		return nil, errNoAnswer
	}
	if len(out) == 0 { // nothing is known yet of what lies behind the undecodable ones
		return l.readOwn(ctx, subject, limit)
	}
	return out, nil
}

// goByLedger lets a notification that was stored before a restore go on from its row, where NATS knows of more attempts
// than the ledger: the claim would wait for ever for their record.
func (l *Lane) goByLedger(ctx context.Context, batch []resting) error {
	var ids []notification.ID
	for _, r := range batch {
		if r.seq <= l.suspect[envelope.MerchantStream] {
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

func (l *Lane) deleteOwn(ctx context.Context, seq uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	if err := l.own.DeleteMsg(ctx, seq); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		l.log.Warn("own queue keeps a settled message; the claim refuses it next time", zap.Uint64("sequence", seq), zap.Error(err))
	}
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
		if isClosed(l.stopping) || isClosed(stopped) {
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
			deferred, verdict := l.attempt(ctx, q, item)
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
