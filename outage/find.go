package outage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// Claim is Postgres', unless something newer waits for Postgres here. While Postgres is away that is all that can refuse a
// claim; what may go wrong then stands at the package.
func (l *Ledger) Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error) {
	if l.away.Away() || l.elsewhereMaybe() {
		known, _, err := l.elsewhere(ctx, c.ID)
		if err != nil && l.away.Away() {
			return 0, time.Time{}, fmt.Errorf("claim %s: %w: %w", c.ID, ledger.ErrAway, err)
		}
		if known != nil && isStale(known.Progress, c) {
			return ledger.ClaimStale, time.Time{}, nil
		}
	}
	type answer struct {
		verdict ledger.ClaimVerdict
		until   time.Time
	}
	given, err := ask(ctx, ctx, l.away, func(ctx context.Context) (answer, error) {
		verdict, until, err := l.postgres.Claim(ctx, c)
		return answer{verdict, until}, err
	})
	if !errors.Is(err, ledger.ErrAway) {
		return given.verdict, given.until, err
	}
	here, _, err := l.elsewhere(ctx, c.ID)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("claim %s: %w: %w", c.ID, ledger.ErrAway, err)
	}
	before, _ := l.recent.get(c.ID)
	known := here != nil || before.Known.Generation > 0
	switch {
	case here != nil && isStale(here.Progress, c), before.Known.Generation > 0 && isStale(before.Known, c), c.OnlyLapsed: // of the last nobody can tell
		return ledger.ClaimStale, time.Time{}, nil
	case !known && l.mayBeOnRecord(c):
		return ledger.ClaimBehind, time.Time{}, nil
	}
	return ledger.ClaimGranted, c.Until, nil
}

// guessAfter is how long Postgres may have been away before a claim is granted of which only Postgres would know that it is
// void: another node, or this one before a crash, may have put an outcome on record there. Mostly Postgres is back by then.
const guessAfter = 15 * time.Second

// mayBeOnRecord reports whether Postgres, which has not been away for long, may have a record that voids a claim.
func (l *Ledger) mayBeOnRecord(c ledger.Claim) bool {
	away, since := l.away.Since()
	if c.Unreserved { // what was accepted while it did not answer any more, and was not called away yet, is not on record there
		since = since.Add(-2 * l.cfg.SlowAfter)
	}
	return !away || c.AcceptedAt.Before(since) && time.Since(since) < guessAfter // not away: it only did not answer just now
}

// isStale says whether a record makes a claim void: it has moved on, or is final.
func isStale(p notification.Progress, c ledger.Claim) bool {
	switch order := cmp.Or(cmp.Compare(p.Generation, c.Generation), cmp.Compare(p.Attempts, c.Attempts)); {
	case p.State == notification.StateDelivered && !c.AllowFinal: // never reopens, whatever the generation
		return true
	case order != 0:
		return order > 0
	default:
		return p.State.Final() && (!c.AllowFinal || p.State != notification.StateDelivered)
	}
}

// Find is all that is known of an id. While Postgres is away it is what SPILL and the journal have, with
// ledger.ErrIncomplete beside it; or, of an id that is only reserved in RESERVED, what ledger.ErrReservedOnly comes with.
// What waits for Postgres after its return counts.
func (l *Ledger) Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	type row struct {
		n        *notification.Notification
		attempts []notification.Attempt
	}
	found, err := ask(ctx, ctx, l.away, func(ctx context.Context) (row, error) {
		n, attempts, err := l.postgres.Find(ctx, id)
		return row{n, attempts}, err
	})
	if errors.Is(err, ledger.ErrAway) {
		return l.findElsewhere(ctx, id)
	}
	noRow := errors.Is(err, ledger.ErrNotFound) || errors.Is(err, ledger.ErrReservedOnly)
	if err != nil && !noRow {
		return nil, nil, err
	}
	if l.elsewhereMaybe() {
		n, attempts, failed := l.elsewhere(ctx, id)
		switch {
		case failed != nil || n == nil:
		case noRow:
			found, err = row{n, attempts}, nil
		default:
			found = row{newest(found.n, n), merge(found.attempts, attempts)}
		}
	}
	if errors.Is(err, ledger.ErrNotFound) && l.reserved.maybe() {
		if n := l.reservedOnly(ctx, id); n != nil {
			return n, nil, fmt.Errorf("find %s: %w", id, ledger.ErrReservedOnly)
		}
	}
	return found.n, found.attempts, err
}

// findElsewhere is Find while Postgres is away.
func (l *Ledger) findElsewhere(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.SlowAfter)
	defer cancel()
	n, attempts, err := l.elsewhere(ctx, id)
	if n != nil {
		return n, attempts, fmt.Errorf("find %s: %w", id, ledger.ErrIncomplete)
	}
	if err == nil {
		if n := l.reservedOnly(ctx, id); n != nil {
			return n, nil, fmt.Errorf("find %s: %w", id, ledger.ErrReservedOnly)
		}
	}
	return nil, nil, fmt.Errorf("find %s: %w", id, ledger.ErrAway)
}

// reservedOnly is what can be said of an id of which RESERVED has nothing but its reservation; nil: not even that.
func (l *Ledger) reservedOnly(ctx context.Context, id notification.ID) *notification.Notification {
	found, err := l.readReserved(ctx, []ledger.Reservation{{ID: id}})
	if err != nil || found[0] == nil {
		return nil
	}
	n := &notification.Notification{ID: id, Digest: found[0].Digest, AcceptedAt: found[0].AcceptedAt}
	n.State, n.Reason, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, n.AcceptedAt
	return n
}

// FindMany returns what is known of the ids: while Postgres is away only what SPILL and the journal have. It fails when
// neither Postgres nor SPILL can be asked.
func (l *Ledger) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	found, err := ask(ctx, ctx, l.away, func(ctx context.Context) (map[notification.ID]*notification.Notification, error) {
		return l.postgres.FindMany(ctx, ids)
	})
	isAway := errors.Is(err, ledger.ErrAway)
	if err != nil && !isAway || !isAway && !l.elsewhereMaybe() {
		return found, err
	}
	if found == nil {
		found = make(map[notification.ID]*notification.Notification, len(ids))
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.SlowAfter)
	defer cancel()
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(lookupsAtOnce)
	for _, id := range ids {
		group.Go(func() error {
			n, _, err := l.elsewhere(ctx, id)
			if n != nil {
				mu.Lock()
				found[id] = newest(found[id], n)
				mu.Unlock()
			}
			return err
		})
	}
	if err := group.Wait(); err != nil && isAway {
		return nil, fmt.Errorf("find %d notifications: %w: %w", len(ids), ledger.ErrAway, err)
	}
	return found, nil
}

// elsewhereMaybe reports whether something may wait for Postgres.
func (l *Ledger) elsewhereMaybe() bool {
	return l.journal.entries.Load() > 0 || l.spilled.maybe() && !l.queues.Away()
}

// elsewhere is what this process, the journal and SPILL know of an id that Postgres may not know: the newest snapshot and
// all attempts. An error comes with what is known without SPILL.
func (l *Ledger) elsewhere(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	records := l.pending.of(id)
	journaled, journalErr := l.journal.find(id)
	spilled, spillErr := l.readSpilled(ctx, id)
	var n *notification.Notification
	var attempts []notification.Attempt
	for _, r := range slices.Concat(records, journaled, spilled) {
		n, attempts = newest(n, r.Notification), merge(attempts, r.Attempts)
	}
	return n, attempts, errors.Join(journalErr, spillErr)
}

// readSpilled is what SPILL has of an id.
func (l *Ledger) readSpilled(ctx context.Context, id notification.ID) ([]ledger.Record, error) {
	if err := l.queues.Err(); err != nil {
		return nil, err
	}
	if !l.spilled.maybe() {
		return nil, nil
	}
	stream, err := l.stream(ctx, envelope.SpillStream)
	if err != nil {
		return nil, err
	}
	ctx, cancel := l.queues.Within(ctx)
	defer cancel()
	var found []ledger.Record
	for next := uint64(1); ; {
		msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(envelope.SpillSubject(id)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return found, nil
		}
		if err != nil {
			return found, fmt.Errorf("look into %s: %w", envelope.SpillStream, err)
		}
		if r, err := decodeRecord(msg.Data); err == nil { // the drainer sets the others aside
			found = append(found, r)
		}
		next = msg.Sequence + 1
	}
}

// stream is a handle, which outlives its stream: it is only a name and how to ask.
func (l *Ledger) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	if handle, ok := l.handles.Load(name); ok {
		return handle.(jetstream.Stream), nil //nolint:errcheck // nothing else is stored
	}
	if err := l.queues.Err(); err != nil {
		return nil, err
	}
	handle, err := l.js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", name, err)
	}
	l.handles.Store(name, handle)
	return handle, nil
}

// newest is the snapshot that the ledger will keep of two; a nil one is older than any.
func newest(a, b *notification.Notification) *notification.Notification {
	if a == nil || b != nil && follows(b.Progress, a.Progress) {
		return b
	}
	return a
}

// merge joins attempts, each once, in the order of their numbers.
func merge(a, b []notification.Attempt) []notification.Attempt {
	known := map[notification.ID]bool{}
	var out []notification.Attempt
	for _, attempt := range slices.Concat(a, b) {
		if !known[attempt.Key] {
			known[attempt.Key] = true
			out = append(out, attempt)
		}
	}
	slices.SortStableFunc(out, func(a, b notification.Attempt) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// follows says whether a snapshot replaces another, as the ledger's own rule does: delivered stays, final stays within its
// generation, and else the newer (generation, attempts, updated at) counts.
func follows(next, before notification.Progress) bool {
	switch {
	case before.State == notification.StateDelivered || next.State == notification.StateDelivered:
		return before.State != notification.StateDelivered
	case next.Generation != before.Generation:
		return next.Generation > before.Generation
	case before.State.Final() != next.State.Final():
		return next.State.Final()
	default:
		return cmp.Or(cmp.Compare(next.Attempts, before.Attempts), next.UpdatedAt.Compare(before.UpdatedAt)) >= 0
	}
}
