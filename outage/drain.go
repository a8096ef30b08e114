package outage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

const (
	drainer      = "drain" // the consumer, shared by all nodes
	drainBatch   = 256
	drainAckWait = 10 * time.Second // after it another node takes up what a node died with
	drainPause   = 250 * time.Millisecond
	faultPause   = 3 * time.Second // after something that waiting may not mend
	ackBound     = 5 * time.Second
	acksAtOnce   = 32
)

// drain moves what waits in a stream into Postgres, while both are there.
func (l *Ledger) drain(ctx context.Context, stream string, there *waiting, move func(context.Context, []jetstream.Msg) error) {
	for ctx.Err() == nil {
		if !l.bothThere(ctx) {
			return
		}
		err := l.drainWhileThere(ctx, stream, there, move)
		if err != nil && ctx.Err() == nil && !l.away.Away() && !l.queues.Away() && !errors.Is(err, jetstream.ErrStreamNotFound) {
			l.log.Warn("what waits for postgres cannot be moved now; it is tried again", zap.String("stream", stream), zap.Error(err))
			pause(ctx, faultPause)
		}
		pause(ctx, drainPause)
	}
}

// bothThere waits until Postgres and NATS are there, and reports whether there is any point in going on.
func (l *Ledger) bothThere(ctx context.Context) bool {
	for l.away.Away() || l.queues.Away() {
		select {
		case <-l.away.Returned():
		case <-ctx.Done():
			return false
		}
		select {
		case <-l.queues.Returned():
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

func (l *Ledger) drainWhileThere(ctx context.Context, stream string, there *waiting, move func(context.Context, []jetstream.Msg) error) error {
	ctx, endPostgres := l.away.Within(ctx)
	defer endPostgres()
	ctx, endQueues := l.queues.Within(ctx)
	defer endQueues()
	consumer, err := l.makeDrainer(ctx, stream)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		var msgs []jetstream.Msg
		if there.maybe() {
			if msgs, err = fetch(consumer); err != nil {
				return err
			}
		}
		if len(msgs) == 0 {
			pause(ctx, drainPause)
			continue
		}
		if err := move(ctx, msgs); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) makeDrainer(ctx context.Context, stream string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, ackBound)
	defer cancel()
	consumer, err := l.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: drainer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: drainAckWait, MaxAckPending: 16 * drainBatch,
	})
	if err != nil {
		return nil, fmt.Errorf("make consumer of %s: %w", stream, err)
	}
	return consumer, nil
}

// fetch takes what is there. It is not ended by a context: what is on its way would be held back for as long as a
// drainer may take.
func fetch(consumer jetstream.Consumer) ([]jetstream.Msg, error) {
	batch, err := consumer.FetchNoWait(drainBatch)
	if err != nil {
		return nil, err
	}
	var msgs []jetstream.Msg
	for msg := range batch.Messages() {
		msgs = append(msgs, msg)
	}
	if len(msgs) > 0 { // an error, if any, comes again
		return msgs, nil
	}
	return nil, batch.Error()
}

// moveRecords writes spilled records into Postgres; each is acknowledged when it is durable there, or in its quarantine.
// What cannot be written in time goes back.
func (l *Ledger) moveRecords(ctx context.Context, msgs []jetstream.Msg) error {
	type ended struct {
		msg jetstream.Msg
		err error
	}
	results := make(chan ended, len(msgs))
	waiting := map[jetstream.Msg]bool{}
	for _, msg := range msgs {
		r, err := decodeRecord(msg.Data())
		if err != nil {
			l.setAside(ctx, msg, err)
			continue
		}
		waiting[msg] = true
		l.postgres.Record(ctx, late(r, time.Now()), func(err error) { results <- ended{msg, err} })
	}
	var group errgroup.Group
	group.SetLimit(acksAtOnce)
	var failed error
	for len(waiting) > 0 && failed == nil {
		select {
		case r := <-results:
			if !isWritten(r.err) {
				failed = r.err
				continue
			}
			delete(waiting, r.msg)
			group.Go(func() error { return l.acknowledge(ctx, r.msg) })
		case <-ctx.Done():
			failed = context.Cause(ctx)
		}
	}
	for msg := range waiting {
		_ = msg.Nak() // if that is lost it comes again later
	}
	return errors.Join(failed, group.Wait())
}

func isWritten(err error) bool {
	_, refused := errors.AsType[*ledger.QuarantinedError](err)
	return err == nil || refused
}

// late is a record as it is written some time after it was made: nothing is taken for granted of its row, and a hold that
// is over, or its release, says nothing any more, as claims have gone on.
func late(r ledger.Record, now time.Time) ledger.Record {
	r.New = false
	if r.Hold != nil && !r.Hold.Until.After(now) {
		r.Hold = nil
	}
	return r
}

// moveReservations makes the ledger's reservations. Where Postgres has the id with other content, the later acceptance is
// put into quarantine, so that it is found.
func (l *Ledger) moveReservations(ctx context.Context, msgs []jetstream.Msg) error {
	var moving []jetstream.Msg
	var wanted []ledger.Reservation
	for _, msg := range msgs {
		r, err := decodeReservation(msg.Subject(), msg.Data())
		if err != nil {
			l.setAside(ctx, msg, err)
			continue
		}
		moving, wanted = append(moving, msg), append(wanted, r)
	}
	if len(moving) == 0 {
		return nil
	}
	reserved, err := ask(ctx, ctx, l.away, func(ctx context.Context) ([]ledger.Reserved, error) { return l.postgres.Reserve(ctx, wanted) })
	if err != nil {
		for _, msg := range moving {
			_ = msg.Nak()
		}
		return err
	}
	var group errgroup.Group
	group.SetLimit(acksAtOnce)
	for i, msg := range moving {
		conflict := reserved[i].Digest != wanted[i].Digest
		group.Go(func() error {
			if conflict {
				if err := l.quarantine(ctx, wanted[i]); err != nil {
					return errors.Join(err, msg.Nak())
				}
			}
			return l.acknowledge(ctx, msg)
		})
	}
	return group.Wait()
}

// quarantine records an acceptance of other content, which Postgres refuses.
func (l *Ledger) quarantine(ctx context.Context, r ledger.Reservation) error {
	n := &notification.Notification{ID: r.ID, Digest: r.Digest, AcceptedAt: r.AcceptedAt}
	n.State, n.Reason, n.Generation, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, 1, r.AcceptedAt
	return l.writeAll(ctx, []ledger.Record{{Notification: n, Unreserved: true}})
}

// writeAll writes into Postgres and waits for all.
func (l *Ledger) writeAll(ctx context.Context, records []ledger.Record) error {
	ctx, cancel := l.away.Within(ctx)
	defer cancel()
	results := make(chan error, len(records))
	for _, r := range records {
		l.postgres.Record(ctx, r, func(err error) { results <- err })
	}
	for range records {
		select {
		case err := <-results:
			if !isWritten(err) {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// acknowledge takes a message out of its stream, surely.
func (l *Ledger) acknowledge(ctx context.Context, msg jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackBound)
	defer cancel()
	if err := msg.DoubleAck(ctx); err != nil { // it comes again, which is harmless
		return fmt.Errorf("acknowledge: %w", err)
	}
	l.counts.drained.Add(1)
	return nil
}

// setAside keeps a message that cannot be read, for people, and ends it in its stream.
func (l *Ledger) setAside(ctx context.Context, msg jetstream.Msg, cause error) {
	ctx, cancel := context.WithTimeout(ctx, ackBound)
	defer cancel()
	kept := &nats.Msg{Subject: envelope.UndecodableSubject, Data: msg.Data()}
	var once []jetstream.PublishOpt // should only the end be lost, it is not kept twice
	if meta, err := msg.Metadata(); err == nil {
		once = append(once, jetstream.WithMsgID(fmt.Sprintf("%s.%d.%d", meta.Stream, meta.Sequence.Stream, meta.Timestamp.UnixNano())))
	}
	_, err := l.js.PublishMsg(ctx, kept, once...)
	if err == nil {
		err = msg.TermWithReason(string(notification.ReasonUndecodable))
	} else {
		err = errors.Join(err, msg.NakWithDelay(drainAckWait))
	}
	if err != nil {
		l.log.Warn("message comes again", zap.String("from", msg.Subject()), zap.Error(err))
		return
	}
	l.counts.setAside.Add(1)
	l.log.Error("message cannot be decoded; it is set aside", zap.String("from", msg.Subject()), zap.String("to", envelope.UndecodableSubject), zap.Error(cause))
}

// replay moves the journal into Postgres, or into SPILL while only NATS is there: then all nodes know of it.
func (l *Ledger) replay(ctx context.Context) {
	ticker := time.NewTicker(2 * l.cfg.ProbeEvery)
	defer ticker.Stop()
	for {
		var err error
		switch {
		case l.journal.entries.Load() == 0:
		case !l.away.Away():
			err = l.journal.replay(ctx, func(ctx context.Context, records []ledger.Record) error { return l.writeAll(ctx, unfed(records)) })
		case !l.queues.Away():
			err = l.journal.replay(ctx, func(ctx context.Context, records []ledger.Record) error { return l.spillAll(ctx, unfed(records)) })
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, ledger.ErrAway) && !errors.Is(err, ErrQueuesAway) {
			l.log.Warn("the journal cannot be replayed now; it is tried again", zap.Error(err))
			pause(ctx, faultPause)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// unfed makes records of the time when NATS was away what they are: nobody has scheduled their next attempts.
func unfed(records []ledger.Record) []ledger.Record {
	out := make([]ledger.Record, len(records))
	for i, r := range records {
		out[i] = late(r, time.Now())
		out[i].Unfed = !r.Notification.State.Final() && !r.Notification.NextAt.IsZero()
	}
	return out
}

func (l *Ledger) spillAll(ctx context.Context, records []ledger.Record) error {
	msgs := make([]*nats.Msg, len(records))
	for i, r := range records {
		data, err := encodeRecord(r)
		if err != nil {
			return err
		}
		msgs[i] = &nats.Msg{Subject: envelope.SpillSubject(r.Notification.ID), Data: data}
	}
	err := errors.Join(publishAll(ctx, l.js, l.queues, msgs, l.cfg.SlowAfter)...)
	if err == nil {
		l.spilled.put()
	}
	return err
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
