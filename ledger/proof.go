package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const proofStatement = `select r.id, r.accepted_at, r.answered, coalesce(n.state, 0), coalesce(n.resting, false), n.next_at, coalesce(n.reason, '')
	from (select id, accepted_at, answered from reservations
		where accepted_at >= $1 and accepted_at < $2 and (accepted_at, id) > ($3, $4)
		order by accepted_at, id limit $5) r
	left join notifications n on n.accepted_at = r.accepted_at and n.id = r.id and n.accepted_at >= $1 and n.accepted_at < $2
	order by r.accepted_at, r.id`

// Reservations is one page of what was accepted in [from, to), oldest first, with what the ledger knows of each: the
// independent count behind `notifyd prove` (P2). The cursor is zero after the last page.
func (l *Postgres) Reservations(ctx context.Context, from, to time.Time, after ProofCursor, limit int) ([]ProofRow, ProofCursor, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	limit = max(limit, 1)
	if from.Year() < minYear {
		from = time.Date(minYear, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if to.IsZero() {
		to = time.Date(maxYear, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	rows, err := l.pool.Query(ctx, proofStatement, instant(from), instant(to), proofStart(from, after), [16]byte(after.ID), limit+1)
	if err != nil {
		return nil, ProofCursor{}, fmt.Errorf("list reservations: %w", err)
	}
	page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r ProofRow, err error) {
		err = row.Scan((*[16]byte)(&r.ID), timeOf(&r.AcceptedAt), &r.Answered, (*uint8)(&r.State), &r.Resting, timeOf(&r.NextAt), (*string)(&r.Reason))
		return r, err
	})
	if err != nil {
		return nil, ProofCursor{}, fmt.Errorf("list reservations: %w", err)
	}
	page, next := cutProof(page, limit)
	return page, next, nil
}

// proofStart is the instant that (accepted_at, id) must be above: a little before everything at the start.
func proofStart(from time.Time, after ProofCursor) time.Time {
	if after.IsZero() {
		return from.Add(-time.Microsecond)
	}
	return after.AcceptedAt
}

func cutProof(page []ProofRow, limit int) ([]ProofRow, ProofCursor) {
	if len(page) <= limit {
		return page, ProofCursor{}
	}
	page = page[:limit]
	last := page[limit-1]
	return page, ProofCursor{last.AcceptedAt, last.ID}
}
