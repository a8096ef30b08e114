package async

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

var errStopping = errors.New("the lane is stopping")

// Run takes from the shards, from what has come due and from the own queues until ctx ends; then it finishes what is
// in hand, for as long as drain allows, and returns.
func (l *Lane) Run(ctx context.Context, drain time.Duration) error {
	work, stopWorking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorking()
	if err := l.resumeOwnQueues(work); err != nil {
		return err
	}
	var taking sync.WaitGroup
	for shard := range notification.Shards {
		for _, source := range []struct{ stream, durable, subject string }{
			{envelope.NotifyStream, "shard-" + strconv.Itoa(shard), envelope.NotifySubject(shard)},
			{envelope.RetryStream(shard), "due-" + strconv.Itoa(shard), envelope.DueSubject(shard)},
		} {
			c, err := l.take(work, source.stream, source.durable, source.subject)
			if err != nil {
				return err
			}
			taking.Go(func() { l.keepTaking(work, c, source.stream, source.durable, source.subject) })
		}
	}
	l.running.Go(func() { l.watch(work) })
	var holding sync.WaitGroup
	finished := make(chan struct{})
	holding.Go(func() { l.keepHold(finished) })

	<-ctx.Done()
	close(l.stopping)
	l.finish(work, stopWorking, &taking, drain)
	l.noteUnread(context.WithoutCancel(ctx))
	close(finished)
	holding.Wait()
	return nil
}

// keepTaking takes until the lane stops. A consumer that ends by itself, for example because somebody deleted it, is made again.
func (l *Lane) keepTaking(ctx context.Context, c jetstream.ConsumeContext, stream, durable, subject string) {
	for {
		select {
		case <-l.stopping:
			c.Drain() // what has been handed to this process is finished: given back, it would count as perhaps sent
			<-c.Closed()
			return
		case <-c.Closed():
		}
		l.log.Warn("consumer ended by itself and is made again", zap.String("consumer", durable))
		for {
			again, err := l.take(ctx, stream, durable, subject)
			if err == nil {
				c = again
				break
			}
			l.log.Warn("consumer cannot be made", zap.String("consumer", durable), zap.Error(err))
			timer := time.NewTimer(time.Second)
			select {
			case <-l.stopping:
				timer.Stop()
				return
			case <-timer.C:
			}
		}
	}
}

// Unread reports, after Run, that something from before a crash has not been looked up yet.
func (l *Lane) Unread() bool { return l.unread.Load() }

func (l *Lane) noteUnread(ctx context.Context) {
	before, crashed := l.suspect[envelope.NotifyStream]
	if !crashed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	stream, err := l.js.Stream(ctx, envelope.NotifyStream)
	l.unread.Store(err != nil || (stream.CachedInfo().State.Msgs > 0 && stream.CachedInfo().State.FirstSeq <= before))
}

// finish waits for what is in hand. Notifications whose turn has not come move to their own queues, where the next
// start finds them; attempts still running when drain is over are cut off and recorded as such.
func (l *Lane) finish(ctx context.Context, stopWorking context.CancelFunc, taking *sync.WaitGroup, drain time.Duration) {
	finished := make(chan struct{})
	go func() {
		taking.Wait() // the last callback has returned: nothing more comes in hand
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
					l.rest(ctx, q, notification.ReasonShutdown, time.Time{})
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

// resumeOwnQueues finds the own queues that an earlier run left.
func (l *Lane) resumeOwnQueues(ctx context.Context) error {
	info, err := l.own.Info(ctx, jetstream.WithSubjectFilter("own.*"))
	if err != nil {
		return fmt.Errorf("list own queues: %w", err)
	}
	for subject := range info.State.Subjects {
		if subject == envelope.UndecodableSubject {
			continue
		}
		first, err := l.readOwn(ctx, subject, 1)
		for err == nil && len(first) == 0 { // what could not be decoded has been set aside
			var left *jetstream.StreamInfo
			if left, err = l.own.Info(ctx, jetstream.WithSubjectFilter(subject)); err == nil && left.State.Subjects[subject] == 0 {
				break
			}
			first, err = l.readOwn(ctx, subject, 1)
		}
		if err != nil {
			return err
		}
		if len(first) > 0 {
			l.mu.Lock()
			l.rest(ctx, l.queue(first[0].work), notification.ReasonBacklog, time.Time{})
			l.mu.Unlock()
		}
	}
	return nil
}

func (l *Lane) take(ctx context.Context, stream, durable, subject string) (jetstream.ConsumeContext, error) {
	consumer, err := l.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy, AckWait: l.cfg.AckWait,
		MaxAckPending: 4096, MaxDeliver: -1, Replicas: l.cfg.Replicas,
	})
	if err != nil {
		return nil, fmt.Errorf("make consumer %s: %w", durable, err)
	}
	return consumer.Consume(func(msg jetstream.Msg) { l.open(ctx, msg) }, jetstream.PullMaxMessages(16))
}

// message is one JetStream message in hand: acknowledged when every member is settled.
type message struct {
	msg    jetstream.Msg
	left   atomic.Int32
	failed atomic.Bool
	opened atomic.Bool // each member is in hand, or settled
	taken  time.Time
}

// open takes an envelope apart. An envelope that may have been in hand before is looked up first.
func (l *Lane) open(ctx context.Context, msg jetstream.Msg) {
	works, err := envelope.Decode(msg.Data())
	meta, metaErr := msg.Metadata()
	if err != nil || metaErr != nil {
		l.setAside(ctx, msg, errors.Join(err, metaErr))
		return
	}
	m := &message{msg: msg, taken: time.Now()}
	defer m.opened.Store(true)
	m.left.Store(int32(len(works))) //nolint:gosec // at most envelope.MaxWorks
	l.running.Add(1)                // until it is acknowledged or given back
	l.holding.Lock()
	l.held[m] = struct{}{}
	l.holding.Unlock()

	isDue := meta.Stream != envelope.NotifyStream
	for i := range works {
		w := &works[i]
		w.HasRow = isDue || w.Route.Persist == notification.PersistLedger
		w.Claim = w.HasRow // whoever sees the row may cancel, resend or rescue it
		w.Interrupted = isDue && w.Route.Lane == notification.LaneSync && w.Attempts == 0
	}
	again := meta.NumDelivered > 1 || meta.Sequence.Stream <= l.suspect[meta.Stream]
	known, err := l.lookUp(ctx, works, again)
	for _, w := range works {
		settled := func(err error) { l.settle(ctx, m, err) }
		if err != nil {
			settled(err)
			continue
		}
		if row := known[w.ID]; row != nil || again {
			l.takeUp(ctx, w, row, again, settled)
			continue
		}
		l.Offer(ctx, w, settled)
	}
}

// setAside keeps a message that cannot be read, for people, and ends it in its queue.
func (l *Lane) setAside(ctx context.Context, msg jetstream.Msg, cause error) {
	l.log.Error("message cannot be decoded; it is set aside", zap.String("from", msg.Subject()), zap.String("to", envelope.UndecodableSubject), zap.Error(cause))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	_, err := l.js.Publish(ctx, envelope.UndecodableSubject, msg.Data())
	if err == nil {
		err = msg.TermWithReason(string(notification.ReasonUndecodable))
	} else {
		err = errors.Join(err, msg.NakWithDelay(time.Second))
	}
	if err != nil {
		l.log.Warn("message comes again", zap.Error(err))
	}
}

// lookUp asks the ledger about members of which another copy may have been in hand, until it answers.
func (l *Lane) lookUp(ctx context.Context, works []notification.Work, redelivered bool) (map[notification.ID]*notification.Notification, error) {
	var ids []notification.ID
	for _, w := range works {
		if redelivered || w.SecondCopy {
			ids = append(ids, w.ID)
		}
	}
	for wait := 100 * time.Millisecond; len(ids) > 0; wait = min(2*wait, 2*time.Second) {
		known, err := l.memory.FindMany(ctx, ids)
		if err == nil {
			return known, nil
		}
		l.log.Warn("ledger does not answer; a redelivered envelope waits", zap.Error(err))
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
func (l *Lane) takeUp(ctx context.Context, w notification.Work, row *notification.Notification, redelivered bool, settled func(error)) {
	switch {
	case row == nil: // no trace: it may or may not have been sent, and the other copy may leave one any moment
		w.Interrupted = w.Interrupted || (redelivered && !w.Claim)
		w.Claim = true
		l.Offer(ctx, w, settled)
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
		l.Offer(ctx, w, settled)
	}
}

// settle counts a member as settled. After the last one the message is acknowledged for good (double ack: a plain one
// can be forgotten by a crash), or given back when a member could not be settled.
func (l *Lane) settle(ctx context.Context, m *message, err error) {
	if err != nil {
		m.failed.Store(true)
	}
	if m.left.Add(-1) > 0 {
		return
	}
	go func() {
		defer l.running.Done()
		l.holding.Lock()
		delete(l.held, m)
		l.holding.Unlock()
		if m.failed.Load() {
			if err := m.msg.NakWithDelay(time.Second); err != nil {
				l.log.Debug("message was not given back; it comes again by itself", zap.Error(err))
			}
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
		defer cancel()
		if err := m.msg.DoubleAck(ctx); err != nil {
			l.log.Warn("acknowledgement was not confirmed; the message may come again and is looked up then", zap.Error(err))
		}
	}()
}

// keepHold tells NATS about messages that take longer, so that it does not hand them to another taker.
func (l *Lane) keepHold(finished <-chan struct{}) {
	tick := time.NewTicker(l.cfg.AckWait / 4)
	defer tick.Stop()
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-finished:
			return
		}
		var long []*message
		l.holding.Lock()
		for m := range l.held {
			if now.Sub(m.taken) > l.cfg.AckWait/4 {
				long = append(long, m)
			}
		}
		l.holding.Unlock()
		for _, m := range long {
			if err := m.msg.InProgress(); err != nil {
				l.log.Debug("hold was not kept", zap.Error(err))
			}
		}
	}
}
