package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"notifyd/notification"
)

// claimTimeout is longer than a reservation may take: nobody waits for a retry, and a claim that is given up in the middle
// of its commit may hold, which keeps the attempt back until it lapses and puts one on record that was never made. But it
// must leave a granted claim the time for its attempt: claimed for 45 s, an attempt takes up to 30 s.
const claimTimeout = 10 * time.Second

type claimAnswer struct {
	verdict      ClaimVerdict
	claimedUntil time.Time
}

// Claim asks for one attempt: compare and set, so that of several copies, or of an attempt and a cancellation, one wins
// (P12). The time is when the claim that counts now lapses: the caller's own when granted, the other's when busy.
func (l *Postgres) Claim(ctx context.Context, c Claim) (ClaimVerdict, time.Time, error) {
	answers, err := submit(ctx, l.claims, []Claim{c})
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("claim %s: %w", c.ID, err)
	}
	return answers[0].verdict, answers[0].claimedUntil, nil
}

// claim is one group commit.
func (l *Postgres) claim(ctx context.Context, claims []Claim) ([]claimAnswer, error) {
	for tries := 1; ; tries++ {
		answers, err := l.claimOnce(ctx, claims)
		again := err != nil && (classify(err) == faultCollision || pgconn.SafeToRetry(err))
		if !again || tries == 3 {
			return answers, err
		}
	}
}

// claimable is what a claim is judged by.
type claimable struct {
	acceptedAt   time.Time
	progress     notification.Progress // state, generation and attempts
	claimedUntil time.Time
	granted      bool
}

func (l *Postgres) claimOnce(ctx context.Context, claims []Claim) ([]claimAnswer, error) {
	answers := make([]claimAnswer, len(claims))
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		rows, err := lockClaimable(ctx, tx, claims)
		if err != nil {
			return err
		}
		now := l.now() // after the rows are locked: nobody's claim can appear any more
		for i, c := range claims {
			answers[i] = judge(rows[c.ID], c, now)
		}
		return storeClaims(ctx, tx, rows)
	})
	return answers, err
}

func judge(row *claimable, c Claim, now time.Time) claimAnswer {
	if row == nil {
		return claimAnswer{verdict: ClaimNoRow}
	}
	v := verdict(row.progress, row.claimedUntil, c, now)
	if v == ClaimGranted || v == ClaimGrantedAfterLapse {
		row.claimedUntil, row.granted = microseconds(c.Until), true
	}
	return claimAnswer{v, row.claimedUntil}
}

const (
	lockStatement = `select n.id, n.accepted_at, n.state, n.generation, n.attempts, n.claimed_until
		from reservations r join notifications n on n.accepted_at = r.accepted_at and n.id = r.id
		where r.id = any($1::uuid[]) order by n.id for update of n`
	claimStatement = `update notifications n set claimed_until = c.until
		from unnest($1::timestamptz[], $2::uuid[], $3::timestamptz[]) as c(accepted_at, id, until)
		where n.accepted_at = c.accepted_at and n.id = c.id`
)

// lockClaimable locks in the order of ids, as everybody else does. The reservation knows when an id was accepted, also
// when the claimer does not: its node may have accepted it a second time while Postgres was away.
func lockClaimable(ctx context.Context, tx pgx.Tx, claims []Claim) (map[notification.ID]*claimable, error) {
	ids := idsOf(claims, func(c Claim) notification.ID { return c.ID })
	slices.SortFunc(ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	rows, err := tx.Query(ctx, lockStatement, slices.Compact(ids))
	if err != nil {
		return nil, err
	}
	out := make(map[notification.ID]*claimable, len(ids))
	var id [16]byte
	var row claimable
	var until *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &row.acceptedAt, &row.progress.State, &row.progress.Generation, &row.progress.Attempts, &until}, func() error {
		found := row
		if until != nil {
			found.claimedUntil = until.UTC()
		}
		out[id] = &found
		return nil
	})
	return out, err
}

func storeClaims(ctx context.Context, tx pgx.Tx, rows map[notification.ID]*claimable) error {
	var ids [][16]byte
	var accepted, until []time.Time
	for id, row := range rows {
		if row.granted {
			ids, accepted, until = append(ids, id), append(accepted, row.acceptedAt), append(until, row.claimedUntil)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, claimStatement, accepted, ids, until)
	return err
}
