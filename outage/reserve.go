package outage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"notifyd/internal/faults"
	"notifyd/ledger"
	"notifyd/notification/envelope"
)

// lookupsAtOnce bounds the questions that one call has under way at a stream.
const lookupsAtOnce = 32

// Reserve is Postgres' while that is there. Else each id is a message in RESERVED that can only be created: fresh for one
// caller, and the others learn what that one gave. It answers within Config.SlowAfter. After an error some may have been
// reserved, which the next Reserve finds.
func (l *Ledger) Reserve(ctx context.Context, wanted []ledger.Reservation) ([]ledger.Reserved, error) {
	until := time.Now().Add(l.cfg.SlowAfter)
	if !l.away.Away() {
		reserved, err := l.reserveInPostgres(ctx, wanted, until)
		if !errors.Is(err, ledger.ErrAway) {
			return reserved, err
		}
	}
	ctx, cancel := context.WithDeadlineCause(ctx, until, errNoAnswer)
	defer cancel()
	return l.reserveElsewhere(ctx, wanted)
}

var errNoAnswer = errors.New("no answer in time")

func (l *Ledger) reserveInPostgres(ctx context.Context, wanted []ledger.Reservation, until time.Time) ([]ledger.Reserved, error) {
	out, rest := make([]ledger.Reserved, len(wanted)), wanted
	var places []int // of rest in out
	if l.reserved.maybe() && !l.queues.Away() {
		// First there, then Postgres: what the drainer moves meanwhile is found in the second place. If NATS does not tell, its
		// copies are looked up and claimed when they come.
		reading, cancel := context.WithDeadlineCause(ctx, until, errNoAnswer)
		found, err := l.readReserved(reading, wanted)
		cancel()
		if err == nil {
			rest = nil
			for i, w := range wanted {
				if found[i] != nil {
					out[i] = *found[i]
					continue
				}
				rest, places = append(rest, w), append(places, i)
			}
			if len(rest) == 0 {
				return out, nil
			}
		}
	}
	// A part of the time, so that the queues have some of it left.
	part := time.Now().Add(l.cfg.SlowAfter * 3 / 4)
	if until.Before(part) {
		part = until
	}
	bound, cancel := context.WithDeadlineCause(ctx, part, errNoAnswer)
	defer cancel()
	reserved, err := ask(bound, ctx, l.away, func(ctx context.Context) ([]ledger.Reserved, error) { return l.postgres.Reserve(ctx, rest) })
	if err != nil {
		return nil, err
	}
	for i, r := range reserved {
		l.recent.add(rest[i].ID, r)
		if places == nil {
			out[i] = r
		} else {
			out[places[i]] = r
		}
	}
	return out, nil
}

// reserveElsewhere is for while Postgres is away.
func (l *Ledger) reserveElsewhere(ctx context.Context, wanted []ledger.Reservation) ([]ledger.Reserved, error) {
	out := make([]ledger.Reserved, len(wanted))
	var asked []int
	for i, w := range wanted {
		var known bool
		if out[i], known = l.recent.get(w.ID); !known {
			asked = append(asked, i)
		}
	}
	refused, err := l.createReserved(ctx, wanted, asked)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w: %w", ledger.ErrAway, err)
	}
	others := make([]ledger.Reservation, len(refused))
	for at, i := range refused {
		others[at] = wanted[i]
	}
	found, err := l.readReserved(ctx, others)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w: %w", ledger.ErrAway, err)
	}
	for at, i := range refused {
		if found[at] == nil { // the drainer has just moved it: Postgres is coming back
			return nil, fmt.Errorf("reserve: %w: the id is on its way into it", ledger.ErrAway)
		}
		out[i] = *found[at]
	}
	for _, i := range asked {
		if !out[i].Elsewhere { // created now
			out[i] = ledger.Reserved{Fresh: true, Digest: wanted[i].Digest, AcceptedAt: wanted[i].AcceptedAt.UTC().Truncate(time.Microsecond), Elsewhere: true}
			l.counts.elsewhere.Add(1)
		}
		l.recent.add(wanted[i].ID, out[i])
	}
	return out, nil
}

// createReserved creates the asked ones, and returns those of them that were there before.
func (l *Ledger) createReserved(ctx context.Context, wanted []ledger.Reservation, asked []int) (refused []int, _ error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if err := faults.Before(faults.Elsewhere); err != nil {
		return nil, err
	}
	msgs := make([]*nats.Msg, len(asked))
	for at, i := range asked {
		msgs[at] = &nats.Msg{Subject: envelope.ReservedSubject(wanted[i].ID), Data: encodeReservation(wanted[i])}
	}
	errs := publishAll(ctx, l.js, l.queues, msgs, l.cfg.SlowAfter, jetstream.WithExpectLastSequencePerSubject(0))
	var failed error
	for at, err := range errs {
		switch {
		case err == nil:
			l.reserved.put()
		case isRefusedByOrder(err):
			refused = append(refused, asked[at])
		default:
			failed = err
		}
	}
	if failed == nil {
		failed = faults.After(faults.Elsewhere)
	}
	return refused, failed
}

// readReserved is what RESERVED has of the ids, each where it was asked for; nil: nothing.
func (l *Ledger) readReserved(ctx context.Context, wanted []ledger.Reservation) ([]*ledger.Reserved, error) {
	out := make([]*ledger.Reserved, len(wanted))
	if len(wanted) == 0 {
		return out, nil
	}
	stream, err := l.stream(ctx, envelope.ReservedStream)
	if err != nil {
		return nil, err
	}
	ctx, cancel := l.queues.Within(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookupsAtOnce)
	for i, w := range wanted {
		group.Go(func() error {
			msg, err := stream.GetLastMsgForSubject(ctx, envelope.ReservedSubject(w.ID))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("look up reservation: %w", err)
			}
			r, err := decodeReservation(msg.Subject, msg.Data)
			if err != nil {
				return err
			}
			out[i] = &ledger.Reserved{Digest: r.Digest, AcceptedAt: r.AcceptedAt, Elsewhere: true}
			return nil
		})
	}
	return out, group.Wait()
}
