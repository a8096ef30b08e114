package ledger

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"notifyd/internal/faults"
	"notifyd/notification"
)

// claimTimeout is longer than a reservation may take: nobody waits for a retry, and a claim that is given up in the middle
// of its commit may hold, which keeps the attempt back until it lapses and puts one on record that was never made. But it
// must leave a granted claim the time for its attempt: claimed for 45 s, an attempt takes up to 30 s.
const claimTimeout = 10 * time.Second

type claimAnswer struct {
	verdict      ClaimVerdict
	claimedUntil time.Time
	err          error // of this claim alone
}

// Claim asks for one attempt: compare and set, so that of several copies, or of an attempt and a cancellation, one wins
// (P12). The time is when the claim that counts now lapses: the caller's own when granted, the other's when busy. After an
// error it may have been granted: whoever asks again is busy until it lapses, and then told so.
func (l *Postgres) Claim(ctx context.Context, c Claim) (ClaimVerdict, time.Time, error) {
	answers, err := submit(ctx, l.claims, []Claim{c})
	if err == nil {
		err = answers[0].err
	}
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("claim %s: %w", c.ID, err)
	}
	return answers[0].verdict, answers[0].claimedUntil, nil
}

// claim is one group commit.
func (l *Postgres) claim(ctx context.Context, claims []Claim) ([]claimAnswer, error) {
	if err := faults.Before(faults.Claim); err != nil {
		return nil, err
	}
	answers, err := l.claimRows(ctx, claims)
	if err != nil {
		return nil, err
	}
	l.claimWithoutRow(ctx, claims, answers)
	if err := faults.After(faults.Claim); err != nil {
		return nil, err
	}
	return answers, nil
}

// claimTries is how often a claim is made that met a collision, or a connection from before a restart.
const claimTries = 3

func claimAgain(err error, tries int) bool {
	return err != nil && tries < claimTries && (classify(err) == faultCollision || pgconn.SafeToRetry(err))
}

// claimRows claims the rows that are there.
func (l *Postgres) claimRows(ctx context.Context, claims []Claim) ([]claimAnswer, error) {
	for tries := 1; ; tries++ {
		answers, err := l.claimOnce(ctx, claims)
		if !claimAgain(err, tries) {
			return answers, err
		}
	}
}

// claimable is what a claim is judged by.
type claimable struct {
	acceptedAt time.Time
	progress   notification.Progress // state, generation and attempts
	claim      claimed
	granted    bool
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
			answers[i] = judge(rows[c.ID], c, now, l.gone())
		}
		return storeClaims(ctx, tx, rows)
	})
	return answers, err
}

func judge(row *claimable, c Claim, now time.Time, gone []string) claimAnswer {
	if row == nil {
		return claimAnswer{verdict: ClaimNoRow}
	}
	v := verdict(row.progress, row.claim, c, now, gone)
	if v == ClaimGranted || v == ClaimGrantedAfterLapse {
		row.claim, row.granted = claimed{until: microseconds(c.Until), by: c.By}, true
	}
	return claimAnswer{verdict: v, claimedUntil: row.claim.until}
}

const (
	lockStatement = `select n.id, n.accepted_at, n.state, n.generation, n.attempts, ` + readClaim + `
		from reservations r join notifications n on n.accepted_at = r.accepted_at and n.id = r.id
		where r.id = any($1::uuid[]) order by n.id for update of n`
	claimStatement = `update notifications n set claimed_until = c.until, claimed_by = c.by, claimed_by_until = c.until, held = false
		from unnest($1::timestamptz[], $2::uuid[], $3::timestamptz[], $4::text[]) as c(accepted_at, id, until, by)
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
	into := append([]any{&id, timeOf(&row.acceptedAt), &row.progress.State, &row.progress.Generation, &row.progress.Attempts}, row.claim.into()...)
	_, err = pgx.ForEachRow(rows, into, func() error {
		found := row
		out[id] = &found
		return nil
	})
	return out, err
}

func storeClaims(ctx context.Context, tx pgx.Tx, rows map[notification.ID]*claimable) error {
	var ids [][16]byte
	var accepted, until []time.Time
	var by []string
	for id, row := range rows {
		if row.granted {
			ids, accepted = append(ids, id), append(accepted, row.acceptedAt)
			until, by = append(until, row.claim.until), append(by, row.claim.by)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, claimStatement, accepted, ids, until, by)
	return err
}
