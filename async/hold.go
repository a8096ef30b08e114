package async

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/internal/groupcommit"
)

// message is one JetStream message in hand: acknowledged when every member is settled.
type message struct {
	msg      jetstream.Msg
	consumer string // who handed it out
	left     atomic.Int32
	failed   atomic.Bool
	opened   atomic.Bool // each member is in hand, or settled
	taken    time.Time
	shardSeq uint64 // its sequence in the stream of shards; 0: it is not from there

	// Guarded by Lane.holding.
	kept   time.Time // NATS has given it to nobody else at least until AckWait after it, by this process' clock
	lapsed bool      // it may have since
}

// isFresh reports whether what the message brings comes straight from its shard; what has come due, and a row, does not.
func (m *message) isFresh() bool { return m != nil && m.shardSeq > 0 }

// hold takes a message in hand that was handed out at an instant or later, and that was stored so long ago: before that
// nobody can have had it.
func (l *Lane) hold(m *message, handedOut time.Time, age time.Duration) {
	m.taken = l.clock()
	m.kept = laterOf(m.taken.Add(-max(age, 0)), handedOut)
	l.holding.Lock()
	l.held[m] = struct{}{}
	l.holding.Unlock()
	l.running.Add() // until it is acknowledged or given back
}

// lapsed reports whether NATS may have handed a message to another taker as well: this process stood still, or was cut
// off, for longer than NATS waits.
func (l *Lane) lapsed(m *message) bool {
	if m == nil {
		return false
	}
	l.holding.Lock()
	defer l.holding.Unlock()
	return m.look(l.clock(), l.cfg.AckWait)
}

// waitedLong reports whether an item has waited in hand for so long that what was found out about other copies, before it
// was taken, is out of date.
func (l *Lane) waitedLong(m *message) bool {
	return m != nil && l.clock().Sub(m.taken) > claimWaited
}

// look is also the moment in which it is noted. Lane.holding is held.
func (m *message) look(now time.Time, ackWait time.Duration) bool {
	if now.Sub(m.kept) >= ackWait-ackWait/8 {
		m.lapsed = true
	}
	return m.lapsed
}

// handedOut is how often NATS has handed the message out, as far as it knows.
func (m *message) handedOut() uint64 {
	meta, err := m.msg.Metadata()
	if err != nil {
		return 1
	}
	return meta.NumDelivered
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
	l.holding.Lock()
	delete(l.held, m)
	l.holding.Unlock()
	if m.failed.Load() {
		go func() { // whoever settles must not wait for NATS
			defer l.running.Done()
			if err := m.msg.NakWithDelay(time.Second); err != nil {
				l.log.Debug("message was not given back; it comes again by itself", zap.Error(err))
			}
		}()
		return
	}
	l.acknowledging(ctx, m.consumer).Add(m.msg, func(err error) {
		defer l.running.Done()
		if err != nil {
			l.log.Warn("acknowledgement was not confirmed; the message may come again and is looked up then", zap.Error(err))
		}
	})
}

// acknowledging is the group commit of a consumer's acknowledgements.
func (l *Lane) acknowledging(ctx context.Context, consumer string) *groupcommit.Batcher[jetstream.Msg] {
	l.holding.Lock()
	defer l.holding.Unlock()
	acks := l.acks[consumer]
	if acks == nil {
		ctx := context.WithoutCancel(ctx)
		acks = groupcommit.New(groupcommit.AtMost[jetstream.Msg](maxAcks), func(msgs []jetstream.Msg) []error { return l.acknowledge(ctx, msgs) })
		l.acks[consumer] = acks
	}
	return acks
}

// maxAcks is how many acknowledgements one confirmation stands for.
const maxAcks = 64

// acknowledge acknowledges messages of one consumer. Only the last one's is confirmed: they arrive in order, so by then all
// of them have been heard.
func (l *Lane) acknowledge(ctx context.Context, msgs []jetstream.Msg) []error {
	errs := make([]error, len(msgs))
	var last jetstream.Msg
	for i, msg := range msgs {
		if errs[i] = faults.Before(faults.Ack); errs[i] != nil {
			continue
		}
		if last != nil {
			_ = last.Ack() // what is wrong with the connection, the last one's confirmation tells
		}
		last = msg
	}
	if last == nil {
		return errs
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	confirmed := last.DoubleAck(ctx)
	for i := range errs {
		if errs[i] == nil {
			errs[i] = confirmed
		}
		if errs[i] == nil {
			errs[i] = faults.After(faults.Ack)
		}
	}
	return errs
}

// keepHold tells NATS about messages that take longer, so that it does not hand them to another taker.
func (l *Lane) keepHold(ctx context.Context, finished <-chan struct{}) {
	tick := time.NewTicker(l.cfg.AckWait / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.keepHeld(ctx)
		case <-finished:
			return
		}
	}
}

// keepHeld tells NATS once about all of them.
func (l *Lane) keepHeld(ctx context.Context) {
	now := l.clock()
	long := map[string][]*message{}
	l.holding.Lock()
	for m := range l.held {
		if now.Sub(m.kept) > l.cfg.AckWait/4 {
			long[m.consumer] = append(long[m.consumer], m)
		}
	}
	l.holding.Unlock()
	var telling sync.WaitGroup
	for _, of := range long {
		telling.Go(func() { l.keepOf(ctx, of) })
	}
	telling.Wait()
}

// inProgress is JetStream's word for a message that takes longer.
var inProgress = []byte("+WPI")

// keepOf tells NATS about messages of one consumer. Only the last one's is answered: they arrive in order, so by then
// all of them have been heard. Without an answer nobody knows, and the hold lapses by and by.
func (l *Lane) keepOf(ctx context.Context, held []*message) {
	began := l.clock()
	last := len(held) - 1
	for _, m := range held[:last] {
		if err := m.msg.InProgress(); err != nil {
			l.log.Debug("hold was not kept", zap.Error(err)) // or it has just been acknowledged
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.AckWait/4)
	defer cancel()
	if _, err := l.js.Conn().RequestWithContext(ctx, held[last].msg.Reply(), inProgress); err != nil {
		l.log.Debug("hold was not confirmed", zap.Error(err))
		return
	}
	heard := l.clock()
	l.holding.Lock()
	defer l.holding.Unlock()
	for _, m := range held {
		if !m.look(heard, l.cfg.AckWait) { // heard too late it could be another's by now
			m.kept = began
		}
	}
}
