package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// newcomer is a claim of an id without a row, and the row that is to be made for it.
type newcomer struct {
	pending
	claim claimed
}

// claimWithoutRow makes rows for the claims that found none and bring a notification, and answers them. Whoever
// finds at the insert that somebody else was faster is judged by the row that is there by then.
func (l *Postgres) claimWithoutRow(ctx context.Context, claims []Claim, answers []claimAnswer) {
	var late []int // that found no row
	firsts := map[notification.ID]int{}
	var newcomers []*newcomer
	for i, c := range claims {
		if answers[i].verdict != ClaimNoRow {
			continue
		}
		late = append(late, i)
		if _, known := firsts[c.ID]; known || c.Notification == nil {
			continue
		}
		n, storable := newNewcomer(c)
		if v := verdict(n.Notification.Progress, claimed{}, c, l.now(), nil); v != ClaimGranted {
			answers[i].verdict = v
		} else if storable {
			firsts[c.ID], newcomers = i, append(newcomers, n)
		}
	}
	if len(newcomers) == 0 {
		return
	}
	made := l.addNewcomers(ctx, newcomers, func(n *newcomer, err error) { answers[firsts[n.Notification.ID]] = l.refused(ctx, n, err) })
	for _, n := range made {
		answers[firsts[n.Notification.ID]] = claimAnswer{verdict: ClaimGranted, claimedUntil: n.claim.until}
	}
	l.judgeLate(ctx, claims, answers, slices.DeleteFunc(late, func(i int) bool {
		return answers[i].verdict != ClaimNoRow
	}))
}

// newNewcomer also says whether a row can be made of it at all, as far as one sees without Postgres.
func newNewcomer(c Claim) (n *newcomer, storable bool) {
	n = &newcomer{
		pending: pending{Record: Record{Notification: c.Notification, New: true, Unreserved: true}, acceptedAt: microseconds(c.Notification.AcceptedAt)},
		claim:   claimed{until: microseconds(c.Until), by: c.By},
	}
	return n, checkRecord(&n.pending) == nil
}

// judgeLate judges claims once more, by the rows that are there by now.
func (l *Postgres) judgeLate(ctx context.Context, claims []Claim, answers []claimAnswer, late []int) {
	if len(late) == 0 {
		return
	}
	again := make([]Claim, len(late))
	for at, i := range late {
		again[at] = claims[i]
	}
	judged, err := l.claimRows(ctx, again)
	for at, i := range late {
		if err != nil {
			answers[i] = claimAnswer{err: err}
		} else {
			answers[i] = judged[at]
		}
	}
}

// refused answers a claim whose row could not be made. What was accepted with other content is kept aside and not sent;
// for what Postgres cannot take there is no row, and its record will say so.
func (l *Postgres) refused(ctx context.Context, n *newcomer, err error) claimAnswer {
	switch {
	case errors.Is(err, errOtherContent):
		if err := l.addQuarantined(ctx, &n.pending, err); err != nil {
			return claimAnswer{err: err}
		}
		return claimAnswer{verdict: ClaimStale}
	case classify(err) == faultData:
		return claimAnswer{verdict: ClaimNoRow}
	default:
		return claimAnswer{err: err}
	}
}

// addNewcomers returns those whose row it made, and tells why others could not be made. Of those that it leaves out
// somebody else has made the row.
func (l *Postgres) addNewcomers(ctx context.Context, batch []*newcomer, refused func(*newcomer, error)) []*newcomer {
	for tries := 1; len(batch) > 0; tries++ {
		made, err := l.insertNewcomers(ctx, batch)
		if err == nil {
			return made
		}
		if other, ok := errors.AsType[*otherContentError](err); ok {
			batch = slices.DeleteFunc(batch, func(n *newcomer) bool {
				why := other.ids[n.Notification.ID]
				if why != nil {
					refused(n, why)
				}
				return why != nil
			})
			continue
		}
		fault := classify(err)
		switch {
		case fault == faultPartition && tries < claimTries:
			if err = l.makePartitions(ctx, daysOf(pendingOf(batch))); err == nil {
				continue
			}
		case fault == faultData && len(batch) > 1: // the neighbours of what Postgres refuses are not to suffer
			half := len(batch) / 2
			return append(l.addNewcomers(ctx, batch[:half:half], refused), l.addNewcomers(ctx, batch[half:], refused)...)
		case claimAgain(err, tries):
			continue
		}
		for _, n := range batch {
			refused(n, err)
		}
		return nil
	}
	return nil
}

var insertNewcomersStatement = fmt.Sprintf(`insert into notifications (%s) select %[1]s from incoming_notifications order by id
	on conflict (accepted_at, id) do nothing returning id`, columnList(writeColumns))

// insertNewcomers waits for whoever is inserting the same ids, and leaves theirs.
func (l *Postgres) insertNewcomers(ctx context.Context, batch []*newcomer) ([]*newcomer, error) {
	pendings := pendingOf(batch)
	if days := daysOf(pendings); !l.knowsDays(days) {
		if err := l.makePartitions(ctx, days); err != nil {
			return nil, err
		}
	}
	var made []*newcomer
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := settleAcceptance(ctx, tx, pendings, true); err != nil {
			return err
		}
		r := newRows()
		defer r.release()
		for _, n := range batch {
			r.notification(n.Notification, n.acceptedAt, standing{fed: fedAtWrite(n.Record, l.now(), l.cfg.Window), claim: n.claim})
		}
		if err := copyIncoming(ctx, tx, "notifications", writeColumns, r); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, insertNewcomersStatement)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		made = slices.DeleteFunc(slices.Clone(batch), func(n *newcomer) bool { return !slices.Contains(ids, [16]byte(n.Notification.ID)) })
		return err
	})
	return made, err
}

func pendingOf(batch []*newcomer) []*pending {
	out := make([]*pending, len(batch))
	for i, n := range batch {
		out[i] = &n.pending
	}
	return out
}
