package async

import (
	"context"
	"errors"
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
				if len(q.waiting) > 0 {
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

// lookUpAfter is how old a message of a shard may be when it is first opened and nobody looks whether another copy of its
// members has left a trace: one that a node published without knowing so, or that lay in a buffer for too long.
const lookUpAfter = time.Second

// open takes an envelope apart. One that may have been in hand before is looked up first. Whatever panics here is set
// aside: it would only do so again.
func (l *Lane) open(ctx context.Context, msg jetstream.Msg) {
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
	age := time.Since(meta.Timestamp)
	l.hold(m, age)
	defer m.opened.Store(true)

	isDue := meta.Stream != envelope.NotifyStream
	for i := range works {
		w := &works[i]
		w.HasRow = isDue || w.Route.Persist == notification.PersistLedger
		w.Claim = w.HasRow // whoever sees the row may cancel, resend or rescue it
		w.Interrupted = isDue && w.Route.Lane == notification.LaneSync && w.Attempts == 0
	}
	again := meta.NumDelivered > 1 || meta.Sequence.Stream <= l.suspected(meta.Stream)
	l.begin(ctx, m, works, again, again || age > lookUpAfter)
}

// begin takes an envelope's members in hand. again: each may have been in hand before. late: another copy of those that
// are not claimed may have been.
func (l *Lane) begin(ctx context.Context, m *message, works []notification.Work, again, late bool) {
	asked := func(w notification.Work) bool { return again || w.SecondCopy || late && !w.Claim }
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
			if row := known[w.ID]; row != nil || again || late && !w.Claim {
				l.takeUp(ctx, m, w, row, again, settled)
			} else {
				l.offer(ctx, m, w, settled)
			}
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
	switch {
	case row == nil: // no trace: it may or may not have been sent, and the other copy may leave one any moment
		w.Interrupted = w.Interrupted || (redelivered && !w.Claim)
		w.Claim = true
		l.offer(ctx, m, w, settled)
	case row.Generation > w.Generation, row.State.Final() && w.Trigger != notification.TriggerResend:
		settled(nil)
	case row.Attempts > w.Attempts && !row.Resting: // its attempt is on record; only its next one may not be scheduled
		if row.State.Final() || row.NextAt.IsZero() {
			settled(nil)
			return
		}
		settled(l.delay.Delay(ctx, notification.Work{Notification: row, Trigger: notification.TriggerAuto}))
	default:
		// An attempt that needed a claim has left the claim; a first one in a shard has left nothing.
		w.Interrupted = w.Interrupted || (redelivered && !w.Claim && !row.Resting)
		w.Notification, w.HasRow, w.Claim = row, true, true
		l.offer(ctx, m, w, settled)
	}
}
