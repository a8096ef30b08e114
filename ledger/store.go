package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/internal/faults"
	"notifyd/notification"
)

// store writes a batch in one transaction. careful takes nothing for granted: everything goes through upserts.
func (l *Postgres) store(ctx context.Context, batch []*pending, careful bool) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.BatchTimeout)
	defer cancel()
	if err := faults.Before(faults.Record); err != nil {
		return err
	}
	if days := daysOf(batch); !l.knowsDays(days) {
		if err := l.makePartitions(ctx, days); err != nil {
			return err
		}
	}
	var err error
	if !careful && allNew(batch) {
		err = l.storeNew(ctx, batch)
	} else {
		err = l.storeKnown(ctx, batch, careful)
	}
	if err != nil {
		return err
	}
	return faults.After(faults.Record)
}

// allNew reports whether nothing has to be asked or changed but what the batch brings: the records come straight from
// reservations of this node's own, each has no row yet, and none stands in a line.
func allNew(batch []*pending) bool {
	seen := make(map[notification.ID]struct{}, len(batch))
	for _, p := range batch {
		seen[p.Notification.ID] = struct{}{}
		if !p.New || p.Unreserved {
			return false
		}
	}
	return len(seen) == len(batch) && len(moving(batch)) == 0
}

// storeNew is what almost every batch of a healthy day takes: one round trip.
func (l *Postgres) storeNew(ctx context.Context, batch []*pending) error {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	r := l.encode(batch, false)
	defer r.release()
	return copyIn(ctx, conn.Conn().PgConn(),
		copying{"notifications", writeColumns, r.fresh}, copying{"attempts", attemptColumns, r.attempts})
}

// storeKnown writes what is new by COPY, the rest as an upsert, attempts by COPY.
func (l *Postgres) storeKnown(ctx context.Context, batch []*pending, careful bool) error {
	inLines := moving(batch)
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := lockLines(ctx, tx, linesOf(inLines)); err != nil {
			return err
		}
		if err := settleAcceptance(ctx, tx, batch, careful); err != nil {
			return err
		}
		r := l.encode(batch, careful)
		defer r.release()
		if err := copyIn(ctx, tx.Conn().PgConn(), copying{"notifications", writeColumns, r.fresh}); err != nil {
			return err
		}
		again := false
		for _, wave := range r.known {
			if wave.count == 0 { // the first of each is new
				continue
			}
			if err := l.upsert(ctx, tx, wave, again); err != nil {
				return err
			}
			again = true
		}
		if err := l.moveLines(ctx, tx, inLines); err != nil {
			return err
		}
		if careful {
			return addAttempts(ctx, tx, r.attempts)
		}
		return copyIn(ctx, tx.Conn().PgConn(), copying{"attempts", attemptColumns, r.attempts})
	})
}

// batchRows is a batch as rows.
type batchRows struct {
	fresh    *rows   // notifications that should have no row yet
	known    []*rows // the others, in waves: a statement cannot write a row twice, and the order of records is kept
	attempts *rows
}

func (l *Postgres) encode(batch []*pending, careful bool) *batchRows {
	r := &batchRows{fresh: newRows(), attempts: newRows()}
	now := l.now()
	seen := make(map[notification.ID]int, len(batch))
	for _, p := range batch {
		n := p.Notification
		to := r.fresh
		if wave := seen[n.ID]; wave > 0 || !p.New || careful {
			for len(r.known) <= wave {
				r.known = append(r.known, newRows())
			}
			to = r.known[wave]
		}
		seen[n.ID]++
		to.notification(n, p.acceptedAt, standingOf(p.Record, now, l.cfg.Window))
		for i := range p.Attempts {
			r.attempts.attempt(n, p.acceptedAt, &p.Attempts[i])
		}
	}
	return r
}

// standingOf is what a record says beside its snapshot.
func standingOf(r Record, now time.Time, window time.Duration) standing {
	s := standing{fed: fedAtWrite(r, now, window)}
	if r.Hold != nil {
		s.claim = claimed{until: microseconds(r.Hold.Until), by: r.Hold.By, held: true}
	}
	return s
}

func (r *batchRows) release() {
	for _, spare := range append(r.known, r.fresh, r.attempts) {
		spare.release()
	}
}

// settleAcceptance finds out under which acceptance each record is kept: the reservation's, which is the same for all
// nodes. A missing reservation is made, so that whatever has a row is found by its id. It spares records that come
// straight from a reservation of this node's own.
func settleAcceptance(ctx context.Context, tx pgx.Tx, batch []*pending, careful bool) error {
	unsettled := map[notification.ID][]*pending{}
	for _, p := range batch {
		if !p.New || p.Unreserved || careful {
			unsettled[p.Notification.ID] = append(unsettled[p.Notification.ID], p)
		}
	}
	other := map[notification.ID]error{}
	settle := func(r Reservation) {
		for _, p := range unsettled[r.ID] {
			if digest := p.Notification.Digest; digest != r.Digest && digest != [32]byte{} {
				other[r.ID] = errOtherContent
			}
			p.acceptedAt = r.AcceptedAt // should that day's partition be missing, the insert says so
		}
		delete(unsettled, r.ID)
	}
	if err := readUnsettled(ctx, tx, unsettled, settle); err != nil {
		return err
	}
	if len(unsettled) > 0 {
		if err := addReservations(ctx, tx, unsettled); err != nil {
			return err
		}
		if err := readUnsettled(ctx, tx, unsettled, settle); err != nil {
			return err
		}
	}
	if len(other) > 0 {
		return &otherContentError{other}
	}
	return nil
}

var errOtherContent = errors.New("other content was accepted under the same id")

func readUnsettled(ctx context.Context, tx pgx.Tx, unsettled map[notification.ID][]*pending, settle func(Reservation)) error {
	if len(unsettled) == 0 {
		return nil
	}
	return readReservations(ctx, tx, idsOf(slices.Collect(maps.Keys(unsettled)), func(id notification.ID) notification.ID { return id }), settle)
}

// addReservations makes one for each id, by the first of its records.
func addReservations(ctx context.Context, tx pgx.Tx, missing map[notification.ID][]*pending) error {
	var ids [][16]byte
	var digests [][]byte
	var times []time.Time
	for id, records := range missing {
		ids = append(ids, id)
		digests = append(digests, records[0].Notification.Digest[:])
		times = append(times, records[0].acceptedAt)
	}
	_, err := tx.Exec(ctx, `insert into reservations (id, digest, accepted_at)
		select * from unnest($1::uuid[], $2::bytea[], $3::timestamptz[]) as r(id, digest, accepted_at) order by r.id
		on conflict (id) do nothing`, ids, digests, times)
	return err
}

// upsertStatement says in SQL what advance and claimed.after say in Go (P12). What was frozen at acceptance never changes. Rows are
// locked in the order of ids, as by everybody.
var upsertStatement = func() string {
	const (
		newer = `(excluded.generation, excluded.attempts) > (n.generation, n.attempts)`
		told  = `n.claimed_by_until is not distinct from n.claimed_until`
		own   = `(n.claimed_by = excluded.claimed_by and n.claimed_by <> '' and ` + told + `)`
		live  = `(n.claimed_until > $1 and not (n.claimed_by = any($2::text[]) and ` + told + `))`
		// Null, which is as good as false, when there is no claim.
		keep = `case when not excluded.held then not ` + newer + `
			else (` + live + ` and not ` + own + `) or not (` + newer + ` or n.claimed_until is null
				or (` + own + ` and (n.held or (excluded.state > 3 and excluded.claimed_until is null)))) end`
	)
	// A delivered one counts its resends but stays as it was settled.
	counts := map[string]bool{"generation": true, "attempts": true, "step": true, "window_from": true, "updated_at": true}
	var set []string
	for _, column := range []string{"claimed_until", "claimed_by", "claimed_by_until", "held"} {
		set = append(set, fmt.Sprintf(`%s = case when %s then n.%[1]s else excluded.%[1]s end`, column, keep))
	}
	for _, column := range append([]string{"fed"}, progressColumns...) {
		if column == "generation" || column == "attempts" { // an acknowledgement that comes after the sweep has gone on keeps the sweep's
			set = append(set, fmt.Sprintf(`%s = case when excluded.state = %d then greatest(n.%[1]s, excluded.%[1]s) else excluded.%[1]s end`, column, notification.StateDelivered))
		} else if counts[column] {
			set = append(set, fmt.Sprintf(`%s = excluded.%[1]s`, column))
		} else {
			set = append(set, fmt.Sprintf(`%s = case when n.state = %d then n.%[1]s else excluded.%[1]s end`, column, notification.StateDelivered))
		}
	}
	columns := columnList(writeColumns)
	return fmt.Sprintf(`insert into notifications as n (%s) select %[1]s from incoming_notifications order by id
		on conflict (accepted_at, id) do update set %s
		where (n.state = %d and (excluded.generation, excluded.attempts) > (n.generation, n.attempts))
		or (n.state in (1, 2, 3) and excluded.state = %[3]d)
		or (n.state <> %[3]d and (excluded.generation > n.generation or (excluded.generation = n.generation
			and n.state in (1, 2, 3) and (excluded.attempts, excluded.updated_at) >= (n.attempts, n.updated_at))))`,
		columns, strings.Join(set, ", "), notification.StateDelivered)
}()

// upsert writes a wave. It goes through a table of the session: COPY carries rows cheaper than arrays do, and encodes them the same way.
func (l *Postgres) upsert(ctx context.Context, tx pgx.Tx, r *rows, again bool) error {
	if again { // the wave before is still in it
		if _, err := tx.Exec(ctx, `delete from incoming_notifications`); err != nil {
			return err
		}
	}
	if err := copyIncoming(ctx, tx, "notifications", writeColumns, r); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, upsertStatement, l.now(), l.gone())
	return err
}

func addAttempts(ctx context.Context, tx pgx.Tx, r *rows) error {
	if r.count == 0 {
		return nil
	}
	if err := copyIncoming(ctx, tx, "attempts", attemptColumns, r); err != nil {
		return err
	}
	columns := columnList(attemptColumns)
	_, err := tx.Exec(ctx, `insert into attempts (`+columns+`) select `+columns+` from incoming_attempts on conflict do nothing`)
	return err
}

// copyIncoming fills a table that is this session's own and empty again after each transaction.
func copyIncoming(ctx context.Context, tx pgx.Tx, table string, columns []string, r *rows) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`create temporary table if not exists incoming_%s (like %[1]s including defaults) on commit delete rows`, table))
	if err != nil {
		return err
	}
	return copyIn(ctx, tx.Conn().PgConn(), copying{"incoming_" + table, columns, r})
}
