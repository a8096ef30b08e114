package async

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

// Stats is what the lane has in hand right now, and what it has published since its start.
type Stats struct {
	Publishing   int       // notifications that wait for their envelope's publish
	InHand       int       // notifications taken from NATS and not settled
	InHandLimit  int       // as many may be
	OldestInHand time.Time // when the oldest message in hand was taken; zero: none is in hand
	Waiting      int       // of those in hand: in the short queues
	InFlight     int       // of those in hand: with a slot
	OwnQueues    int       // keys that have an own queue
	Slow         int       // keys whose attempts take more than a second
	Pauses       uint64    // times that one was not taken yet because the engine had too much to do
	// Stalled counts keys and messages with work that could be sent now and that nobody is sending: see
	// merchantQueue.stalled. It is above 0 for moments now and then; staying there is a fault.
	Stalled int

	Envelopes             uint64 // published
	EnvelopeNotifications uint64 // in them
	EnvelopeBytes         uint64
	PublishFailures       uint64 // envelopes that are not known to be stored
	SetAside              uint64 // messages and notifications that could not be taken and are kept for people
	Panics                uint64 // contained ones, each about one message
}

// publishCounts grow for as long as the lane lives.
type publishCounts struct{ envelopes, notifications, bytes, failures atomic.Uint64 }

func (c *publishCounts) envelope(notifications, size int) {
	c.envelopes.Add(1)
	c.notifications.Add(uint64(notifications)) //nolint:gosec // a length
	c.bytes.Add(uint64(size))                  //nolint:gosec // a length
}

const (
	// stallSlack is how late a part of the lane may be before it counts as stalled.
	stallSlack = 2 * time.Second
	// longestAttempt is how long a merchant may keep its key waiting. Longer than that an attempt does not take.
	longestAttempt = 30 * time.Second
)

// Stats is a snapshot. It asks nobody.
func (l *Lane) Stats() Stats {
	now := time.Now()
	s := Stats{
		InHand: len(l.room), InHandLimit: cap(l.room),
		Envelopes: l.published.envelopes.Load(), EnvelopeNotifications: l.published.notifications.Load(),
		EnvelopeBytes: l.published.bytes.Load(), PublishFailures: l.published.failures.Load(),
		Pauses:   l.crowd.pauses.Load(),
		SetAside: l.contained.setAside.Load(), Panics: l.contained.panics.Load(),
	}
	for _, shard := range l.publishing {
		s.Publishing += shard.Len()
	}
	l.mu.Lock()
	s.Slow = l.slowKeys
	for _, q := range l.queues {
		s.Waiting += q.waiting.len
		s.InFlight += q.inFlight
		if q.resting {
			s.OwnQueues++
		}
		if q.stalled(now, l.cfg.Patience) {
			s.Stalled++
		}
	}
	l.mu.Unlock()
	l.holding.Lock()
	for m := range l.held {
		if s.OldestInHand.IsZero() || m.taken.Before(s.OldestInHand) {
			s.OldestInHand = m.taken
		}
		if !m.opened.Load() && now.Sub(m.taken) > stallSlack { // no room, or the ledger is asked and does not answer
			s.Stalled++
		}
	}
	l.holding.Unlock()
	return s
}

// stalled reports whether the key has work that could be sent now, though nobody is sending: not while its merchant is
// being asked, and not while it has to wait (paused, missing, breaker open, over rate, another attempt in flight), as
// long as the drain comes back to look. Lane.mu is held.
func (q *merchantQueue) stalled(now time.Time, patience time.Duration) bool {
	if q.sending.Load() > 0 && now.Sub(time.Unix(0, q.began.Load())) < longestAttempt {
		return false
	}
	if !q.resting {
		return q.waiting.len > 0 && now.Sub(q.waiting.oldest()) > patience+stallSlack
	}
	switch q.reason { //nolint:exhaustive // a list of what keeps a key waiting rightly; nothing else does
	case notification.ReasonMerchantPaused, notification.ReasonMerchantMissing, notification.ReasonBreakerOpen, notification.ReasonBreakerForcedOpen,
		notification.ReasonRateLimited, notification.ReasonInFlight:
		return now.Sub(q.wakeAt) > stallSlack
	default:
		return true
	}
}

// Place is what rests in one place of NATS.
type Place struct {
	Messages uint64
	Oldest   time.Time // when the oldest came; zero: none, or not known
}

// Backlog is what rests in NATS, over all nodes.
type Backlog struct {
	Shards  Place // envelopes; those in hand are among them until they are settled
	Due     Place // come due; those in hand are among them
	Delayed Place // due later; its oldest is not known
	Own     Place // in own queues; its oldest is not known while something undecodable lies beside them
	// OwnQueues is the number of own queues that hold something.
	OwnQueues uint64
	// Undecodable messages are set aside for people.
	Undecodable uint64
	// Untaken messages of shards and due subjects are in nobody's hand.
	Untaken uint64
	// Taken grows with each message that any node takes.
	Taken uint64
}

// Backlog asks JetStream.
func (l *Lane) Backlog(ctx context.Context) (Backlog, error) {
	var b Backlog
	notify, err := l.js.Stream(ctx, envelope.NotifyStream)
	if err != nil {
		return b, fmt.Errorf("look at stream %s: %w", envelope.NotifyStream, err)
	}
	b.Shards = placeOf(notify.CachedInfo().State)
	if err := b.addTaken(ctx, notify, b.Shards.Messages); err != nil {
		return b, err
	}
	for i := range envelope.RetryStreams {
		if err := l.addRetry(ctx, &b, i); err != nil {
			return b, err
		}
	}
	stream, err := l.ownStream()
	if err != nil {
		return b, err
	}
	own, err := stream.Info(ctx, jetstream.WithSubjectFilter(envelope.UndecodableSubject))
	if err != nil {
		return b, fmt.Errorf("look at stream %s: %w", envelope.MerchantStream, err)
	}
	b.Own, b.OwnQueues, b.Undecodable = placeOf(own.State), own.State.NumSubjects, own.State.Subjects[envelope.UndecodableSubject]
	if b.Undecodable > 0 {
		b.Own = Place{Messages: b.Own.Messages - b.Undecodable}
		b.OwnQueues--
	}
	return b, nil
}

// addRetry adds one retry stream: what has come due apart from what is due later.
func (l *Lane) addRetry(ctx context.Context, b *Backlog, i int) error {
	name, due := envelope.RetryStream(i), envelope.DueSubjects(i)
	stream, err := l.js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", name, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(due))
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", name, err)
	}
	var cameDue uint64
	for _, n := range info.State.Subjects {
		cameDue += n
	}
	b.Due.Messages += cameDue
	b.Delayed.Messages += info.State.Msgs - cameDue
	if cameDue > 0 {
		first, err := stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(due))
		if err == nil && (b.Due.Oldest.IsZero() || first.Time.Before(b.Due.Oldest)) { // after an error it has just been settled
			b.Due.Oldest = first.Time
		}
	}
	return b.addTaken(ctx, stream, cameDue)
}

// addTaken counts what of so many messages no consumer has handed out.
func (b *Backlog) addTaken(ctx context.Context, stream jetstream.Stream, messages uint64) error {
	consumers := stream.ListConsumers(ctx)
	var inHand uint64
	for c := range consumers.Info() {
		inHand += uint64(max(0, c.NumAckPending))
		b.Taken += c.Delivered.Consumer
	}
	if err := consumers.Err(); err != nil {
		return fmt.Errorf("list consumers: %w", err)
	}
	b.Untaken += messages - min(messages, inHand)
	return nil
}

func placeOf(s jetstream.StreamState) Place {
	if s.Msgs == 0 {
		return Place{}
	}
	return Place{Messages: s.Msgs, Oldest: s.FirstTime}
}
