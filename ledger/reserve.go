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

// Reserve records that ids were accepted. Each id is fresh for exactly one caller, over all nodes and for as long as the
// ledger keeps it (P4); the others learn what the first one gave. It gives up after Config.ReserveTimeout. After an error some may have been
// reserved, or may be a little later: a reservation that nothing was published for, which the next Reserve finds.
func (l *Postgres) Reserve(ctx context.Context, wanted []Reservation) ([]Reserved, error) {
	reserved, err := submit(ctx, l.reservations, wanted)
	if err != nil {
		return nil, fmt.Errorf("reserve: %w", err)
	}
	return reserved, nil
}

// reserve is one group commit.
func (l *Postgres) reserve(ctx context.Context, wanted []Reservation) ([]Reserved, error) {
	// By id: two nodes that insert the same ids in another order would deadlock. Stable: of equals in this batch the first is fresh.
	order := make([]int, len(wanted))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return bytes.Compare(wanted[a].ID[:], wanted[b].ID[:]) })
	firsts := slices.CompactFunc(slices.Clone(order), func(a, b int) bool { return wanted[a].ID == wanted[b].ID })

	if err := faults.Before(faults.Reserve); err != nil {
		return nil, err
	}
	known, err := l.insertReservations(ctx, wanted, firsts)
	if err != nil && pgconn.SafeToRetry(err) { // nothing was sent: a connection from before a restart
		known, err = l.insertReservations(ctx, wanted, firsts)
	}
	if err == nil {
		err = faults.After(faults.Reserve)
	}
	if err != nil {
		return nil, err
	}
	out := make([]Reserved, len(wanted))
	for _, i := range order {
		r := known[wanted[i].ID]
		out[i] = *r
		r.Fresh = false // for the next equal one
	}
	return out, nil
}

// insertReservations inserts the firsts and reads what was there before.
func (l *Postgres) insertReservations(ctx context.Context, wanted []Reservation, firsts []int) (map[notification.ID]*Reserved, error) {
	ids, digests, times := make([][16]byte, len(firsts)), make([][]byte, len(firsts)), make([]time.Time, len(firsts))
	known := make(map[notification.ID]*Reserved, len(firsts))
	for at, i := range firsts {
		w := &wanted[i]
		ids[at], digests[at], times[at] = w.ID, w.Digest[:], microseconds(w.AcceptedAt)
		known[w.ID] = &Reserved{Digest: w.Digest, AcceptedAt: times[at]}
	}
	rows, err := l.pool.Query(ctx, `insert into reservations (id, digest, accepted_at)
		select * from unnest($1::uuid[], $2::bytea[], $3::timestamptz[]) on conflict (id) do nothing returning id`, ids, digests, times)
	if err != nil {
		return nil, err
	}
	fresh, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil {
		return nil, err
	}
	for _, id := range fresh {
		known[id].Fresh = true
	}
	if len(fresh) == len(firsts) {
		return known, nil
	}
	// A second statement, because the first one's snapshot may not show what it collided with.
	ids = slices.DeleteFunc(ids, func(id [16]byte) bool { return known[id].Fresh })
	return known, readReservations(ctx, l.pool, ids, func(r Reservation) {
		known[r.ID] = &Reserved{Digest: r.Digest, AcceptedAt: r.AcceptedAt}
	})
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// readReservations visits those of the ids that are reserved.
func readReservations(ctx context.Context, q querier, ids [][16]byte, visit func(Reservation)) error {
	rows, err := q.Query(ctx, `select id, digest, accepted_at from reservations where id = any($1::uuid[])`, ids)
	if err != nil {
		return err
	}
	var id [16]byte
	var digest []byte
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &digest, &at}, func() error {
		r := Reservation{ID: id, AcceptedAt: at.UTC()}
		copy(r.Digest[:], digest)
		visit(r)
		return nil
	})
	return err
}

// MarkAnswered notes of ids without a row that their callers were told of the acceptance: if no row ever comes, they are
// lost, and not merely submissions that were cut short before anybody was told.
func (l *Postgres) MarkAnswered(ctx context.Context, ids []notification.ID) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	slices.SortFunc(ids, func(a, b notification.ID) int { return bytes.Compare(a[:], b[:]) })
	_, err := l.pool.Exec(ctx, `update reservations set answered = true where id = any($1::uuid[])`, idsOf(ids, func(id notification.ID) notification.ID { return id }))
	if err != nil {
		return fmt.Errorf("mark answered: %w", err)
	}
	return nil
}
