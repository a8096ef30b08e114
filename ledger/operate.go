package ledger

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// Cancel makes an open notification final by an operator's word: no due item of it is sent any more (P12). ErrInFlight
// while somebody's claim is alive, ErrFinal when it is too late, ErrReservedOnly before its first row.
func (l *Postgres) Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	n, err := l.operate(ctx, id, operator, now, canceled)
	if err != nil {
		return nil, fmt.Errorf("cancel %s: %w", id, err)
	}
	return n, nil
}

// Resend starts a new generation in whatever state it is; the caller publishes it. When nobody does within ResendLease,
// Rescue does, except for a delivered one, which stays as it is. Errors as Cancel's, but ErrFinal.
func (l *Postgres) Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	n, err := l.operate(ctx, id, operator, now, resent)
	if err != nil {
		return nil, fmt.Errorf("resend %s: %w", id, err)
	}
	return n, nil
}

type step func(n *notification.Notification, inFlight bool, now time.Time) (notification.Progress, error)

var setProgress = func() string {
	var set []string
	for i, column := range progressColumns {
		set = append(set, fmt.Sprintf("%s = $%d", column, i+1))
	}
	next := len(progressColumns) + 1
	return fmt.Sprintf(`update notifications set %s, fed = true, operator = $%d where accepted_at = $%d and id = $%d`,
		strings.Join(set, ", "), next, next+1, next+2)
}()

// operate locks a row, asks the rule and stores its answer.
func (l *Postgres) operate(ctx context.Context, id notification.ID, operator string, now time.Time, rule step) (*notification.Notification, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	var n *notification.Notification
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) (err error) {
		if n, err = l.find(ctx, tx, id, ""); err != nil {
			return err
		}
		moved := []*pending{{Record: Record{Notification: n}, acceptedAt: n.AcceptedAt}}
		if err := lockLines(ctx, tx, linesOf(moved)); err != nil { // before the row's lock
			return err
		}
		var claim claimed
		if n, err = l.find(ctx, tx, id, "for update", claim.into()...); err != nil {
			return err
		}
		if n.Progress, err = rule(n, claim.live(now, l.gone()), microseconds(now)); err != nil {
			return err
		}
		args := append(progressValues(&n.Progress), visible(operator), n.AcceptedAt, [16]byte(id))
		if _, err = tx.Exec(ctx, setProgress, args...); err != nil {
			return err
		}
		moved[0].Notification = n
		return l.moveLines(ctx, tx, moving(moved))
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}
