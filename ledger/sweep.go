package ledger

import (
	"context"
	"fmt"
	"time"

	"notifyd/notification"
)

// The rows that the sweep may look at; word for word the predicate of two partial indexes.
const sweepable = `state in (1, 2, 3) and not resting and next_at is not null`

// unclaimed are the rows that nobody's claim keeps, as claimed.live says. now and gone are parameters.
func unclaimed(now, gone string) string {
	return `(claimed_until is null or claimed_until <= ` + now + ` or (claimed_by = any(` + gone + `::text[]) and claimed_by_until = claimed_until))`
}

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
			and `+unclaimed("$2", "$5")+`
			order by next_at limit $4 for update skip locked)
		update notifications n
		set generation = n.generation + 1, reason = '%s', next_at = $3, updated_at = $2, fed = true
		from due
		where n.accepted_at = due.accepted_at and n.id = due.id
		returning %s`, notification.ReasonSweep, readNotification)

	takeDueStatement = `with due as materialized (
			select accepted_at, id from notifications where ` + sweepable + ` and next_at <= $1 and (not fed or next_at <= $2)
			and ` + unclaimed("$1", "$5") + `
			order by next_at limit $4 for update skip locked)
		update notifications n set next_at = $3, fed = true from due
		where n.accepted_at = due.accepted_at and n.id = due.id
		returning ` + readNotification

	// recallStatement says what recalled says. state <> 4 is in it for the index that leaves the delivered out.
	recallStatement = func() string {
		waits := fmt.Sprintf(`(next_at is null or (attempts = 0 and reason = '%s' and persist = %d))`, notification.ReasonQueued, notification.PersistLedger)
		return `with lost as materialized (
			select accepted_at, id, resting or ($4 and ` + waits + `) as at_once
			from notifications where state in (1, 2, 3) and state <> 4 and updated_at < $1 and ` + unclaimed("$2", "$8") + `
			and (($3 and resting) or ($4 and not resting and ` + waits + `) or ($5 and not resting and fed and next_at is not null))
			limit $7 for update skip locked)
		update notifications n
		set resting = false, next_at = case when lost.at_once then $2 else n.next_at end, fed = false, updated_at = $6
		from lost where n.accepted_at = lost.accepted_at and n.id = lost.id`
	}()
)

// recallBatch bounds one transaction of Recall.
const recallBatch = 5000

// Feed hands out what falls due until the horizon and is not known to the delay queue yet, each to one caller once.
// Whoever dies with it in hand is made good by Rescue.
func (l *Postgres) Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error) {
	return l.sweep(ctx, "feed", feedStatement, horizon, limit)
}

// Rescue finds what should have been attempted before overdueBefore, is in nobody's hands, and was forgotten: a new
// generation makes whatever still turns up of it void, and a lease of ResendLease gives the caller time to publish it. A lapsed
// claim stays, so that the next one learns of the interrupted attempt.
func (l *Postgres) Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error) {
	now = microseconds(now)
	return l.sweep(ctx, "rescue", rescueStatement, overdueBefore, now, now.Add(ResendLease), limit, l.gone())
}

// TakeDue hands out what is due now, each to one caller, while the delay queue is away: what it does not know of, and what
// it knew of and has not brought back since fedBefore, an instant before now. What somebody's claim keeps stays. The
// generation stays too, so that a copy that turns up counts for the same attempt: the caller claims before it sends.
// Should it die before that, the notification is due again after the lease.
func (l *Postgres) TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error) {
	now = microseconds(now)
	return l.sweep(ctx, "take what is due", takeDueStatement, now, fedBefore, now.Add(lease), limit, l.gone())
}

func (l *Postgres) sweep(ctx context.Context, what, statement string, args ...any) ([]*notification.Notification, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	found, err := collectNotifications(rows)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return found, nil
}

// Recall gives back to Feed and TakeDue what rested in streams whose contents are gone, and returns how many there were.
// It looks at open rows that nobody's claim keeps and that are older than before, the birth of the streams that took their
// place: what was written since is in those. From own queues (Lost.Merchant) it takes what rests, due now; from the
// shards (Lost.Notify) what no due time brings back, and what waits for its first attempt under `persist: ledger`, due
// now; from the delay queue (Lost.Retry) what was fed, due when it was. A row that somebody is writing just then is left to them.
// It may be called again, by any node: what it has found it does not find again. After an error some may have been recalled.
func (l *Postgres) Recall(ctx context.Context, lost Lost, before, now time.Time) (int, error) {
	before, now = microseconds(before), microseconds(now)
	recalled := 0
	for {
		found, err := l.recallSome(ctx, lost, before, now)
		recalled += found
		if err != nil {
			return recalled, fmt.Errorf("recall: %w", err)
		}
		if found < recallBatch {
			return recalled, nil
		}
	}
}

func (l *Postgres) recallSome(ctx context.Context, lost Lost, before, now time.Time) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	tag, err := l.pool.Exec(ctx, recallStatement, before, now, lost.Merchant, lost.Notify, lost.Retry, latest(now, before), recallBatch, l.gone())
	return int(tag.RowsAffected()), err
}
