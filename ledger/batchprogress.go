package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// BatchProgress says how far the notifications of a batch are.
type BatchProgress struct {
	Accepted                                    int64 // all of it; the others add up to it
	Delivered, Waiting, Dead, Canceled, Expired int64 // waiting: accepted, retrying or held
	FirstAcceptedAt, LastAcceptedAt             time.Time
	OldestWaiting                               Cursor    // zero when nothing waits
	SettledAt                                   time.Time // when the last of them became final; zero while one waits
}

// batchStatement is read from notifications_progress alone, but for rows that are too new to be vacuumed. It says
// batch_id <> ” so that the partial index fits whatever the value.
const batchStatement = `with batch as (select count(*) as accepted,
		count(*) filter (where state = 4) as delivered, count(*) filter (where state in (1, 2, 3)) as waiting,
		count(*) filter (where state = 5) as dead, count(*) filter (where state = 6) as canceled,
		count(*) filter (where state = 7) as expired, min(accepted_at) as first, max(accepted_at) as last,
		min(accepted_at) filter (where state in (1, 2, 3)) as oldest, max(settled_at) as settled
		from notifications where batch_id = $1 and batch_id <> '' and ($2 = '' or source = $2))
	select accepted, delivered, waiting, dead, canceled, expired, first, last, oldest, settled,
		coalesce((select n.id from notifications n where n.batch_id = $1 and n.batch_id <> '' and n.accepted_at = batch.oldest
			and n.state in (1, 2, 3) and ($2 = '' or n.source = $2) order by n.id limit 1), '00000000-0000-0000-0000-000000000000')
	from batch`

// Batch counts the notifications of a batch that have rows: those of one source, or with an empty source all.
// ErrNotFound when there is none, ErrTooLong and ErrBusy as List.
func (l *Postgres) Batch(ctx context.Context, batchID, source string) (*BatchProgress, error) {
	b := &BatchProgress{}
	var settled time.Time
	err := l.search(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, batchStatement, batchID, source).Scan(
			&b.Accepted, &b.Delivered, &b.Waiting, &b.Dead, &b.Canceled, &b.Expired,
			timeOf(&b.FirstAcceptedAt), timeOf(&b.LastAcceptedAt), timeOf(&b.OldestWaiting.AcceptedAt), timeOf(&settled),
			(*[16]byte)(&b.OldestWaiting.ID))
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("count batch %q: %w", batchID, err)
	case b.Accepted == 0:
		return nil, fmt.Errorf("count batch %q: %w", batchID, ErrNotFound)
	case b.Waiting == 0:
		b.SettledAt = settled
	}
	return b, nil
}

// add counts one more.
func (b *BatchProgress) add(n *notification.Notification) {
	b.Accepted++
	switch n.State {
	case notification.StateAccepted, notification.StateRetrying, notification.StateHeld:
		b.Waiting++
		if place := placeOf(n); b.OldestWaiting.IsZero() || place.before(b.OldestWaiting) {
			b.OldestWaiting = place
		}
	case notification.StateDelivered:
		b.Delivered++
	case notification.StateDead:
		b.Dead++
	case notification.StateCanceled:
		b.Canceled++
	case notification.StateExpired:
		b.Expired++
	}
	if b.FirstAcceptedAt.IsZero() || n.AcceptedAt.Before(b.FirstAcceptedAt) {
		b.FirstAcceptedAt = n.AcceptedAt
	}
	if n.AcceptedAt.After(b.LastAcceptedAt) {
		b.LastAcceptedAt = n.AcceptedAt
	}
	if n.SettledAt.After(b.SettledAt) {
		b.SettledAt = n.SettledAt
	}
}

// Batch does what Postgres.Batch does.
func (m *Memory) Batch(ctx context.Context, batchID, source string) (*BatchProgress, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := &BatchProgress{}
	for _, row := range m.rows {
		if batchID != "" && row.n.BatchID == batchID && (source == "" || row.n.Source == source) {
			b.add(row.n)
		}
	}
	if b.Accepted == 0 {
		return nil, fmt.Errorf("count batch %q: %w", batchID, ErrNotFound)
	}
	if b.Waiting > 0 {
		b.SettledAt = time.Time{}
	}
	return b, nil
}
