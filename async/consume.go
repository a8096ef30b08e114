package async

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

var errStopping = errors.New("the lane is stopping")

// Run takes from this node's shards, from what has come due in them and from their own queues until ctx ends; then it
// finishes what is in hand, for as long as drain allows, and returns.
func (l *Lane) Run(ctx context.Context, drain time.Duration) error {
	work, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorking()
	for shard := range notification.Shards {
		l.taking.Go(func() { l.keepShard(work, shard) })
	}
	l.taking.Go(func() { l.findOwnQueues(work) })
	if l.due != nil {
		l.taking.Go(func() { l.takeDue(work) })
	}
	l.running.Go(func() { l.watch(work) })
	var holding sync.WaitGroup
	finished := make(chan struct{})
	holding.Go(func() { l.keepHold(work, finished) })

	<-ctx.Done()
	l.owned.Leave()
	close(l.stopping)
	l.finish(work, stopWorking, drain)
	l.noteUnread(context.WithoutCancel(ctx))
	close(finished)
	holding.Wait()
	return nil
}

// Unread reports, after Run, that something from before a crash has not been looked up yet.
func (l *Lane) Unread() bool { return l.unread.Load() }

func (l *Lane) noteUnread(ctx context.Context) {
	if !l.crashed {
		return
	}
	if !isClosed(l.ready) {
		l.unread.Store(true)
		return
	}
	before := l.suspected(envelope.NotifyStream)
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	stream, err := l.js.Stream(ctx, envelope.NotifyStream)
	l.unread.Store(err != nil || (stream.CachedInfo().State.Msgs > 0 && stream.CachedInfo().State.FirstSeq <= before))
}

// finish waits for what is in hand. Notifications whose turn has not come move to their own queues, where the next
// start finds them; attempts still running when drain is over are cut off and recorded as such.
func (l *Lane) finish(ctx context.Context, stopWorking context.CancelFunc, drain time.Duration) {
	finished := make(chan struct{})
	go func() {
		l.taking.Wait() // the last callback has returned: nothing more comes in hand
		l.running.Wait()
		close(finished)
	}()
	patience, bound := time.NewTimer(min(drain/2, 2*time.Second)), time.NewTimer(drain)
	defer patience.Stop()
	defer bound.Stop()
	for {
		select {
		case <-finished:
			return
		case <-patience.C:
			l.mu.Lock()
			for _, q := range l.queues {
				if q.waiting.len > 0 {
					l.relieve(ctx, q, notification.ReasonShutdown)
				}
			}
			l.mu.Unlock()
		case <-bound.C:
			l.log.Warn("drain took too long; attempts in flight are cut off", zap.Duration("drain", drain))
			stopWorking()
			afterwards := time.NewTimer(5 * time.Second)
			defer afterwards.Stop()
			select {
			case <-finished:
			case <-afterwards.C:
				l.log.Warn("something in hand does not end; its messages come again at the next start")
			}
			return
		}
	}
}

// A first attempt straight from a shard is neither looked up nor claimed as long as no other copy can be on its way: both
// would make a backlog dearer than what caused it. There can be two others.
//   - The row that was written because nobody knew whether NATS had stored the message. It is there within seconds of the
//     acceptance, and due an attempt's bound later: what is taken late is looked up, and claimed if it has a row.
//   - The copy of a second submission. It waits while the shard holds anything from the time of its acceptance, see
//     firstMayCome; what was stored much later than it was accepted is claimed, because for that it does not wait.
const (
	// lookUpAfter is how long after its acceptance a notification may be taken without a look whether another copy has left
	// a trace: well below the shortest attempt's bound. claimWaited is how long that look holds for what waits in hand.
	lookUpAfter, claimWaited = time.Second, 5 * time.Second
	// claimAfter is how long after its acceptance it may be taken without a claim.
	claimAfter = 5 * time.Minute
	// A second copy looks again every secondEvery whether the first one may still come, for secondPatience after its
	// acceptance: by then the first one would be claimed, or has left a trace.
	secondEvery, secondPatience = 3 * time.Second, claimAfter + time.Minute
)

// open takes an envelope apart that NATS handed out at the given instant, by this process' clock, or later. One that may
// have been in hand before is looked up first. Whatever panics here is set aside: it would only do so again.
func (l *Lane) open(ctx context.Context, msg jetstream.Msg, handedOut time.Time) {
	var works []notification.Work
	var meta *jetstream.MsgMetadata
	err := l.contain(func() (err error) {
		if works, err = envelope.Decode(msg.Data()); err == nil {
			meta, err = msg.Metadata()
		}
		return err
	})
	if err != nil {
		l.setAside(ctx, msg, err)
		return
	}
	m := &message{msg: msg, consumer: meta.Stream + " " + meta.Consumer}
	m.left.Store(int32(len(works))) //nolint:gosec // at most envelope.MaxWorks
	l.hold(m, handedOut, time.Since(meta.Timestamp))
	defer m.opened.Store(true)

	isDue := meta.Stream != envelope.NotifyStream
	if !isDue {
		m.shardSeq = meta.Sequence.Stream
		if meta.NumDelivered == 1 {
			defer l.fresh.come(l.shardOf(works[0]), time.Now(), meta.Timestamp)()
		}
	} else {
		l.letFreshGoFirst(ctx)
	}
	for i := range works {
		w := &works[i]
		w.HasRow = isDue || w.Route.Persist == notification.PersistLedger
		// What was accepted while Postgres was away another node may have accepted, too: the shard's owner knows best.
		w.Claim = w.HasRow || w.Unreserved || !w.SecondCopy && meta.Timestamp.Sub(w.AcceptedAt) > l.cfg.PublishTimeout // whoever sees the row may cancel, resend or rescue it
		w.Interrupted = isDue && w.Attempts == 0 && firstLeftNoTrace(*w)
	}
	again := meta.NumDelivered > 1 || meta.Sequence.Stream <= l.suspected(meta.Stream)
	l.begin(ctx, m, works, again)
}

// firstLeftNoTrace reports whether what is due, without an attempt on record, may have been sent nevertheless: by the sync
// lane, whose net it is, or straight from its shard, which the sweep waited for in vain.
func firstLeftNoTrace(w notification.Work) bool {
	return w.Route.Lane == notification.LaneSync ||
		w.Trigger == notification.TriggerSweep && w.Route.Persist != notification.PersistLedger && w.NotBefore.IsZero()
}

// begin takes an envelope's members in hand. again: each may have been in hand before.
func (l *Lane) begin(ctx context.Context, m *message, works []notification.Work, again bool) {
	now := time.Now()
	late := func(w notification.Work) bool { return !w.HasRow && now.Sub(w.AcceptedAt) > lookUpAfter }
	asked := func(w notification.Work) bool { return again || w.SecondCopy || late(w) }
	var known map[notification.ID]*notification.Notification
	err := l.contain(func() (err error) { known, err = l.lookUp(ctx, works, asked); return err })
	for _, w := range works {
		var once sync.Once // it may panic after it was settled
		settled := func(err error) { once.Do(func() { l.settle(ctx, m, err) }) }
		switch {
		case isPanic(err):
			settled(l.setAsideOne(ctx, w, err))
			continue
		case err != nil:
			settled(err)
			continue
		}
		fault := l.contain(func() error {
			if row := known[w.ID]; row != nil || again || w.SecondCopy {
				l.takeUp(ctx, m, w, row, again, settled)
				return nil
			}
			w.Claim = w.Claim || now.Sub(w.AcceptedAt) > claimAfter
			l.offer(ctx, m, w, settled)
			return nil
		})
		if fault != nil {
			settled(l.setAsideOne(ctx, w, fault))
		}
	}
}

// lookUp asks the ledger about members of which another copy may have been in hand, until it answers.
func (l *Lane) lookUp(ctx context.Context, works []notification.Work, asked func(notification.Work) bool) (map[notification.ID]*notification.Notification, error) {
	var ids []notification.ID
	for _, w := range works {
		if asked(w) {
			ids = append(ids, w.ID)
		}
	}
	for wait := 100 * time.Millisecond; len(ids) > 0; wait = min(2*wait, 2*time.Second) {
		known, err := l.memory.FindMany(ctx, ids)
		if err == nil {
			return known, nil
		}
		l.log.Warn("ledger does not answer; an envelope that may have been in hand before waits", zap.Error(err))
		timer := time.NewTimer(wait)
		select {
		case <-l.stopping:
			timer.Stop()
			return nil, errStopping
		case <-timer.C:
		}
	}
	return nil, nil
}

// takeUp continues with a work that may have been in hand before, from what the ledger knows of it.
func (l *Lane) takeUp(ctx context.Context, m *message, w notification.Work, row *notification.Notification, redelivered bool, settled func(error)) {
	// What needed a claim has left the claim, if Postgres was there. A first attempt straight from its shard has left nothing,
	// neither this message's, handed out before, nor the first copy's of a second one.
	untraced := redelivered && (!w.Claim || w.Unreserved) || w.SecondCopy && w.Attempts == 0 && w.Route.Persist != notification.PersistLedger
	if w.SecondCopy && untraced && (row == nil || row.Attempts == 0 && !row.Resting) {
		if come, err := l.firstMayCome(ctx, m, w); err != nil {
			settled(err)
			return
		} else if come {
			settled(l.delayBy(ctx, w, secondEvery))
			return
		}
	}
	switch {
	case row == nil: // no trace: it may or may not have been sent, and the other copy may leave one any moment
		w.Interrupted = w.Interrupted || untraced
		w.Claim = true
		l.offer(ctx, m, w, settled)
	case row.Generation > w.Generation, row.State.Final() && w.Trigger != notification.TriggerResend:
		settled(nil)
	case row.Resting && w.SecondCopy && !redelivered: // another message has brought it to its own queue, and knows what was before
		settled(nil)
	case row.Attempts > w.Attempts && !row.Resting: // its attempt is on record; only its next one may not be scheduled
		switch {
		case row.State.Final() && row.Generation == w.Generation: // an operator's resend, of which an interrupted attempt may be all that is on record
			w.Notification, w.HasRow, w.Claim, w.OnlyLapsed = row, true, true, true
			l.offer(ctx, m, w, settled)
			return
		case row.State.Final(), row.NextAt.IsZero():
			settled(nil)
			return
		}
		settled(l.delay.Delay(ctx, notification.Work{Notification: row, Trigger: notification.TriggerAuto}))
	default:
		// Who handed it on to its own queue and died made no attempt; the one before may have.
		w.Interrupted = w.Interrupted || untraced && row.Attempts == 0 && (!row.Resting || m.handedOut() > 2)
		w.Notification, w.HasRow, w.Claim = row, true, true
		l.offer(ctx, m, w, settled)
	}
}

// firstMayCome reports whether the first copy of a second one may lie untouched in their shard, or be in hand straight
// from there: then it is not claimed.
func (l *Lane) firstMayCome(ctx context.Context, m *message, w notification.Work) (bool, error) {
	if time.Since(w.AcceptedAt) > secondPatience {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	shards, err := l.js.Stream(ctx, envelope.NotifyStream)
	if err != nil {
		return false, fmt.Errorf("look for the first copy: %w", err)
	}
	oldest, err := shards.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(envelope.NotifySubject(l.shardOf(w))))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look for the first copy: %w", err)
	}
	return oldest.Sequence != m.shardSeq && !oldest.Time.After(w.AcceptedAt.Add(l.cfg.PublishTimeout)), nil
}

// delayBy brings a work back after a while, as it is.
func (l *Lane) delayBy(ctx context.Context, w notification.Work, wait time.Duration) error {
	waiting := *w.Notification
	waiting.NextAt = time.Now().UTC().Add(wait).Truncate(time.Microsecond)
	w.Notification = &waiting
	return l.delay.Delay(ctx, w)
}
