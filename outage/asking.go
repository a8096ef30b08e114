package outage

import (
	"context"
	"fmt"
	"time"

	"notifyd/access"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/source"
)

// Postgres is the ledger that may be away. It is wide because everything that is asked of it must learn at once when it is.
type Postgres interface {
	Record(ctx context.Context, r ledger.Record, recorded func(error))
	Reserve(ctx context.Context, wanted []ledger.Reservation) ([]ledger.Reserved, error)
	MarkAnswered(ctx context.Context, ids []notification.ID) error
	Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error)
	Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error)
	FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error)
	List(ctx context.Context, f ledger.Filter, limit int, after ledger.Cursor) ([]*notification.Notification, ledger.Cursor, error)
	Batch(ctx context.Context, batchID, sourceID string) (*ledger.BatchProgress, error)
	LineUp(ctx context.Context, list []*notification.Notification) ([]ledger.Lined, error)
	Turn(ctx context.Context, n *notification.Notification) (ledger.Turn, error)
	Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error)
	Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error)
	Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
	Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
	Quarantine(ctx context.Context, after int64, limit int) ([]ledger.Quarantined, error)
	Reservations(ctx context.Context, from, to time.Time, after ledger.ProofCursor, limit int) ([]ledger.ProofRow, ledger.ProofCursor, error)

	PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error)
	ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error)
	MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error)
	PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error)
	ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error)
	SourcesSince(ctx context.Context, version int64) ([]*source.Source, error)
	PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error)
	AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error)
	AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error)
	PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error)
	KeysSince(ctx context.Context, version int64) ([]*keys.Set, error)
	KeyChanges(ctx context.Context, name string, before int64, limit int) ([]ledger.KeyChange, error)
	NoteExpiry(ctx context.Context, e keys.Expiring, now time.Time) (first bool, err error)
	Barred(ctx context.Context, after ledger.Barred, limit int) ([]ledger.Barred, error)
	Release(ctx context.Context, b ledger.Barred, gap time.Duration, from, until time.Time) (int, error)

	Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error)
	Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error)
	TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error)
	Recall(ctx context.Context, lost ledger.Lost, before, now time.Time) (int, error)
}

// asking is what only Postgres can answer: at once ledger.ErrAway while it is away, and nobody hangs when it goes.
type asking struct {
	postgres Postgres
	away     *Watch
	settling func() bool // see Ledger.settling
}

// ask puts a question to Postgres. caller is the context of whoever asks: when it ends, that says nothing about Postgres.
// An error that means that Postgres is away wraps ledger.ErrAway.
func ask[A any](ctx, caller context.Context, away *Watch, question func(context.Context) (A, error)) (A, error) {
	var none A
	if err := away.Err(); err != nil {
		return none, err
	}
	ctx, cancel := away.Within(ctx)
	defer cancel()
	answer, err := question(ctx)
	if err == nil || caller.Err() != nil {
		return answer, err
	}
	// That a question ran out of its own short time does not say that Postgres is away for everybody: the watch finds out.
	if ctx.Err() != nil || away.Failed(err) {
		return none, fmt.Errorf("%w: %w", ledger.ErrAway, err)
	}
	return answer, err
}

// do is ask for what has no answer but an error.
func do(ctx context.Context, away *Watch, write func(context.Context) error) error {
	_, err := ask(ctx, ctx, away, func(ctx context.Context) (struct{}, error) { return struct{}{}, write(ctx) })
	return err
}

// page is what a question for a page returns beside the place of the next.
type page[T, C any] struct {
	items []T
	next  C
}

func askPage[T, C any](ctx context.Context, away *Watch, question func(context.Context) ([]T, C, error)) ([]T, C, error) {
	p, err := ask(ctx, ctx, away, func(ctx context.Context) (page[T, C], error) {
		items, next, err := question(ctx)
		return page[T, C]{items, next}, err
	})
	return p.items, p.next, err
}

// MarkAnswered is Postgres'. It also fails while reservations are on their way into Postgres: those it would not mark.
func (a asking) MarkAnswered(ctx context.Context, ids []notification.ID) error {
	if a.settling() {
		return fmt.Errorf("mark answered: %w: reservations are on their way into it", ledger.ErrAway)
	}
	return do(ctx, a.away, func(ctx context.Context) error { return a.postgres.MarkAnswered(ctx, ids) })
}

// Quarantine is Postgres'.
func (a asking) Quarantine(ctx context.Context, after int64, limit int) ([]ledger.Quarantined, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]ledger.Quarantined, error) {
		return a.postgres.Quarantine(ctx, after, limit)
	})
}

// Reservations is Postgres'. It also fails while records and reservations are on their way into Postgres: the proof would
// miss them.
func (a asking) Reservations(ctx context.Context, from, to time.Time, after ledger.ProofCursor, limit int) ([]ledger.ProofRow, ledger.ProofCursor, error) {
	if a.settling() {
		return nil, ledger.ProofCursor{}, fmt.Errorf("list reservations: %w: what was recorded during its absence is on its way into it", ledger.ErrAway)
	}
	return askPage(ctx, a.away, func(ctx context.Context) ([]ledger.ProofRow, ledger.ProofCursor, error) {
		return a.postgres.Reservations(ctx, from, to, after, limit)
	})
}

// List is Postgres'.
func (a asking) List(ctx context.Context, f ledger.Filter, limit int, after ledger.Cursor) ([]*notification.Notification, ledger.Cursor, error) {
	return askPage(ctx, a.away, func(ctx context.Context) ([]*notification.Notification, ledger.Cursor, error) {
		return a.postgres.List(ctx, f, limit, after)
	})
}

// Batch is Postgres'.
func (a asking) Batch(ctx context.Context, batchID, sourceID string) (*ledger.BatchProgress, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*ledger.BatchProgress, error) {
		return a.postgres.Batch(ctx, batchID, sourceID)
	})
}

// LineUp is Postgres'.
func (a asking) LineUp(ctx context.Context, list []*notification.Notification) ([]ledger.Lined, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]ledger.Lined, error) { return a.postgres.LineUp(ctx, list) })
}

// Turn is Postgres'.
func (a asking) Turn(ctx context.Context, n *notification.Notification) (ledger.Turn, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (ledger.Turn, error) { return a.postgres.Turn(ctx, n) })
}

// Next is Postgres'.
func (a asking) Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*notification.Notification, error) {
		return a.postgres.Next(ctx, ended, now)
	})
}

// Supersede is Postgres'.
func (a asking) Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*notification.Notification, error) {
		return a.postgres.Supersede(ctx, id, by, now)
	})
}

// Cancel is Postgres'.
func (a asking) Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*notification.Notification, error) {
		return a.postgres.Cancel(ctx, id, operator, now)
	})
}

// Resend is Postgres'.
func (a asking) Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*notification.Notification, error) {
		return a.postgres.Resend(ctx, id, operator, now)
	})
}

// PutMerchant is Postgres'.
func (a asking) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*merchant.Merchant, error) {
		return a.postgres.PutMerchant(ctx, m, ifVersion)
	})
}

// ListMerchants is Postgres'.
func (a asking) ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*merchant.Merchant, error) {
		return a.postgres.ListMerchants(ctx, after, limit)
	})
}

// MerchantsSince is Postgres'.
func (a asking) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*merchant.Merchant, error) {
		return a.postgres.MerchantsSince(ctx, version)
	})
}

// PutSource is Postgres'.
func (a asking) PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*source.Source, error) { return a.postgres.PutSource(ctx, s, ifVersion) })
}

// ListSources is Postgres'.
func (a asking) ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*source.Source, error) { return a.postgres.ListSources(ctx, after, limit) })
}

// SourcesSince is Postgres'.
func (a asking) SourcesSince(ctx context.Context, version int64) ([]*source.Source, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*source.Source, error) { return a.postgres.SourcesSince(ctx, version) })
}

// PutAccessRule is Postgres'.
func (a asking) PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*access.Rule, error) { return a.postgres.PutAccessRule(ctx, r, ifVersion) })
}

// AccessRulesSince is Postgres'.
func (a asking) AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*access.Rule, error) { return a.postgres.AccessRulesSince(ctx, version) })
}

// AccessChanges is Postgres'.
func (a asking) AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]access.Change, error) {
		return a.postgres.AccessChanges(ctx, ruleID, before, limit)
	})
}

// PutKeys is Postgres'.
func (a asking) PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (*keys.Set, error) { return a.postgres.PutKeys(ctx, s, ifVersion) })
}

// KeysSince is Postgres'.
func (a asking) KeysSince(ctx context.Context, version int64) ([]*keys.Set, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]*keys.Set, error) { return a.postgres.KeysSince(ctx, version) })
}

// KeyChanges is Postgres'.
func (a asking) KeyChanges(ctx context.Context, name string, before int64, limit int) ([]ledger.KeyChange, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]ledger.KeyChange, error) {
		return a.postgres.KeyChanges(ctx, name, before, limit)
	})
}

// NoteExpiry is Postgres'.
func (a asking) NoteExpiry(ctx context.Context, e keys.Expiring, now time.Time) (first bool, err error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (bool, error) { return a.postgres.NoteExpiry(ctx, e, now) })
}

// Barred is Postgres'.
func (a asking) Barred(ctx context.Context, after ledger.Barred, limit int) ([]ledger.Barred, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) ([]ledger.Barred, error) { return a.postgres.Barred(ctx, after, limit) })
}

// Release is Postgres'.
func (a asking) Release(ctx context.Context, b ledger.Barred, gap time.Duration, from, until time.Time) (int, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (int, error) { return a.postgres.Release(ctx, b, gap, from, until) })
}

// Feed is Postgres', but finds nothing until Postgres has what was recorded during its absence.
func (a asking) Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error) {
	return a.due(ctx, func(ctx context.Context) ([]*notification.Notification, error) {
		return a.postgres.Feed(ctx, horizon, limit)
	})
}

// Rescue is Postgres', but finds nothing until Postgres has what was recorded during its absence.
func (a asking) Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error) {
	return a.due(ctx, func(ctx context.Context) ([]*notification.Notification, error) {
		return a.postgres.Rescue(ctx, overdueBefore, now, limit)
	})
}

// TakeDue is Postgres', but finds nothing until Postgres has what was recorded during its absence.
func (a asking) TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error) {
	return a.due(ctx, func(ctx context.Context) ([]*notification.Notification, error) {
		return a.postgres.TakeDue(ctx, now, fedBefore, lease, limit)
	})
}

// Recall is Postgres'.
func (a asking) Recall(ctx context.Context, lost ledger.Lost, before, now time.Time) (int, error) {
	return ask(ctx, ctx, a.away, func(ctx context.Context) (int, error) { return a.postgres.Recall(ctx, lost, before, now) })
}

func (a asking) due(ctx context.Context, look func(context.Context) ([]*notification.Notification, error)) ([]*notification.Notification, error) {
	if err := a.away.Err(); err != nil {
		return nil, err
	}
	if a.settling() {
		return nil, nil
	}
	return ask(ctx, ctx, a.away, look)
}
