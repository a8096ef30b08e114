package ledger

import (
	"context"
	"fmt"
	"time"

	"notifyd/notification"
)

// The rows that the sweep may look at; word for word the predicate of two partial indexes.
const sweepable = `state in (1, 2, 3) and not resting and next_at is not null`

var (
	// materialized: locked and counted exactly once, whatever the plan.
	feedStatement = `with due as materialized (
			select accepted_at, id from notifications where ` + sweepable + ` and not fed and next_at <= $1
			order by next_at limit $2 for update skip locked)
		update notifications n set fed = true from due
		where n.accepted_at = due.accepted_at and n.id = due.id
		returning ` + readNotification

	rescueStatement = fmt.Sprintf(`with due as materialized (
			select accepted_at, id from notifications where `+sweepable+` and next_at < $1
			and (claimed_until is null or claimed_until <= $2)
			order by next_at limit $4 for update skip locked)
		update notifications n
		set generation = n.generation + 1, reason = '%s', next_at = $3, updated_at = $2, fed = true
		from due
		where n.accepted_at = due.accepted_at and n.id = due.id
		returning %s`, notification.ReasonSweep, readNotification)
)

// Feed hands out what falls due until the horizon and is not known to the delay queue yet, each to one caller once.
// Whoever dies with it in hand is made good by Rescue.
func (l *Postgres) Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error) {
	rows, err := l.pool.Query(ctx, feedStatement, horizon, limit)
	if err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	fed, err := collectNotifications(rows)
	if err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	return fed, nil
}

// Rescue finds what should have been attempted before overdueBefore, is in nobody's hands, and was forgotten: a new
// generation makes whatever still turns up of it void, and a lease of ResendLease gives the caller time to publish it. A lapsed
// claim stays, so that the next one learns of the interrupted attempt.
func (l *Postgres) Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error) {
	now = microseconds(now)
	rows, err := l.pool.Query(ctx, rescueStatement, overdueBefore, now, now.Add(ResendLease), limit)
	if err != nil {
		return nil, fmt.Errorf("rescue: %w", err)
	}
	found, err := collectNotifications(rows)
	if err != nil {
		return nil, fmt.Errorf("rescue: %w", err)
	}
	return found, nil
}
