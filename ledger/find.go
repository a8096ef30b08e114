package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// Find is all that is known of an id. When only its reservation is there, it returns what that says, with ErrReservedOnly.
func (l *Postgres) Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	n, err := l.find(ctx, l.pool, id, "")
	if err != nil {
		return n, nil, fmt.Errorf("find %s: %w", id, err)
	}
	attempts, err := l.findAttempts(ctx, n)
	if err != nil {
		return nil, nil, fmt.Errorf("find %s: %w", id, err)
	}
	return n, attempts, nil
}

// find reads a reservation, then its row: the reservation knows the day. lock is empty or a locking clause; claim
// is where to put what readClaim selects, or nothing.
func (l *Postgres) find(ctx context.Context, q querier, id notification.ID, lock string, claim ...any) (*notification.Notification, error) {
	var reserved *Reservation
	if err := readReservations(ctx, q, [][16]byte{id}, func(r Reservation) { reserved = &r }); err != nil {
		return nil, err
	}
	if reserved == nil {
		return nil, ErrNotFound
	}
	columns := readNotification
	if len(claim) > 0 {
		columns += ", " + readClaim
	}
	rows, err := q.Query(ctx, `select `+columns+` from notifications n where n.accepted_at = $1 and n.id = $2 `+lock, reserved.AcceptedAt, [16]byte(id))
	if err != nil {
		return nil, err
	}
	n, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (*notification.Notification, error) {
		return scanNotification(row, claim...)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return reservedOnly(*reserved), ErrReservedOnly
	}
	return n, err
}

// reservedOnly is what can be said of an id without a row.
func reservedOnly(r Reservation) *notification.Notification {
	n := &notification.Notification{ID: r.ID, Digest: r.Digest, AcceptedAt: r.AcceptedAt}
	n.State, n.Reason, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, r.AcceptedAt
	return n
}

var findManyStatement = `select ` + readNotification + `
	from unnest($1::timestamptz[], $2::uuid[]) as k(accepted_at, id)
	join notifications n on n.accepted_at = k.accepted_at and n.id = k.id`

// FindMany reads those of the ids that have rows, for example of a redelivered envelope.
func (l *Postgres) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	found := make(map[notification.ID]*notification.Notification, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	keys := make([][16]byte, 0, len(ids))
	accepted := make([]time.Time, 0, len(ids))
	err := readReservations(ctx, l.pool, idsOf(ids, func(id notification.ID) notification.ID { return id }), func(r Reservation) {
		keys, accepted = append(keys, r.ID), append(accepted, r.AcceptedAt)
	})
	if err != nil {
		return nil, fmt.Errorf("find %d notifications: %w", len(ids), err)
	}
	rows, err := l.pool.Query(ctx, findManyStatement, accepted, keys)
	if err != nil {
		return nil, fmt.Errorf("find %d notifications: %w", len(ids), err)
	}
	list, err := collectNotifications(rows)
	if err != nil {
		return nil, fmt.Errorf("find %d notifications: %w", len(ids), err)
	}
	for _, n := range list {
		found[n.ID] = n
	}
	return found, nil
}

func collectNotifications(rows pgx.Rows) ([]*notification.Notification, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*notification.Notification, error) { return scanNotification(row) })
}
