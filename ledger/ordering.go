package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/internal/faults"
	"notifyd/notification"
)

// A line is what shares an ordering_key, or a supersede_key, of one merchant. A notification with a key has a place in its
// line from its acceptance until it is final. The place is taken in the transaction that writes its first row, so that no
// place is without a notification that comes by itself; it ends in the transaction that makes the row final, which also
// makes the next one due, if that waits. Both hold the line's lock: neither misses the other.

// Lined says what became of a notification that was lined up.
type Lined struct {
	// Row is the notification as it stands in the ledger; nil with Err.
	Row *notification.Notification
	// Waits says that one with the same ordering key was accepted earlier and is not final: Row has no due time, and is made
	// due when its turn comes.
	Waits bool
	// Superseded are older ones with the same supersede key that were not final.
	Superseded []notification.ID
	// Err is why there is no row: its content is not what was accepted under its id, or Postgres refuses it.
	Err error
}

// Turn says whether it is a notification's turn.
type Turn struct {
	// Behind says that one with the same ordering key was accepted earlier and is not final.
	Behind bool
	// BehindDead says that one with the same ordering key was accepted earlier and is dead, and none after it was delivered since.
	BehindDead bool
	// SupersededBy is a newer one with the same supersede key; zero: there is none.
	SupersededBy notification.ID
}

// LineUp gives notifications their places, in their order behind all that were lined up before, over all nodes, and
// makes their rows: each with both or with neither. One that has its place keeps it. It gives up after Config.ReserveTimeout; after an error
// some may have been lined up: rows that are due by themselves.
func (l *Postgres) LineUp(ctx context.Context, list []*notification.Notification) ([]Lined, error) {
	lined, err := submit(ctx, l.lines, list)
	if err != nil {
		return nil, fmt.Errorf("line up: %w", err)
	}
	return lined, nil
}

// lineUp is one group commit.
func (l *Postgres) lineUp(ctx context.Context, list []*notification.Notification) ([]Lined, error) {
	if err := faults.Before(faults.LineUp); err != nil {
		return nil, err
	}
	out := make([]Lined, len(list))
	batch := make([]*newcomer, 0, len(list))
	places := map[*newcomer]int{}
	for i, n := range list {
		c, storable := newNewcomer(Claim{Notification: n})
		if !storable {
			out[i].Err = &QuarantinedError{n.ID, checkRecord(&c.pending)}
			continue
		}
		places[c] = i
		batch = append(batch, c)
	}
	answer := func(c *newcomer, lined Lined) { out[places[c]] = lined }
	if err := l.lineUpSome(ctx, batch, answer); err != nil {
		return nil, err
	}
	return out, faults.After(faults.LineUp)
}

// lineUpSome answers each of a batch, in halves where Postgres refuses something in it: the neighbours are not to suffer.
func (l *Postgres) lineUpSome(ctx context.Context, batch []*newcomer, answer func(*newcomer, Lined)) error {
	for tries := 1; len(batch) > 0; tries++ {
		lined, err := l.takePlaces(ctx, batch)
		if err == nil {
			for i, c := range batch {
				answer(c, lined[i])
			}
			return nil
		}
		if other, ok := errors.AsType[*otherContentError](err); ok {
			batch = slices.DeleteFunc(slices.Clone(batch), func(c *newcomer) bool {
				why := other.ids[c.Notification.ID]
				if why != nil {
					answer(c, Lined{Err: &QuarantinedError{c.Notification.ID, why}})
				}
				return why != nil
			})
			continue
		}
		switch fault := classify(err); {
		case fault == faultPartition && tries < claimTries:
			if err := l.makePartitions(ctx, daysOf(pendingOf(batch))); err != nil {
				return err
			}
		case fault == faultData && len(batch) > 1:
			half := len(batch) / 2
			if err := l.lineUpSome(ctx, batch[:half], answer); err != nil {
				return err
			}
			return l.lineUpSome(ctx, batch[half:], answer)
		case fault == faultData:
			answer(batch[0], Lined{Err: &QuarantinedError{batch[0].Notification.ID, err}})
			return nil
		case claimAgain(err, tries):
		default:
			return err
		}
	}
	return nil
}

// takePlaces is one transaction.
func (l *Postgres) takePlaces(ctx context.Context, batch []*newcomer) (out []Lined, err error) {
	pendings := pendingOf(batch)
	if days := daysOf(pendings); !l.knowsDays(days) {
		if err := l.makePartitions(ctx, days); err != nil {
			return nil, err
		}
	}
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := lockLines(ctx, tx, linesOf(pendings)); err != nil {
			return err
		}
		if err := settleAcceptance(ctx, tx, pendings, true); err != nil {
			return err
		}
		superseded, err := addPlaces(ctx, tx, pendings, false)
		if err != nil {
			return err
		}
		waits, err := whoWaits(ctx, tx, pendings)
		if err != nil {
			return err
		}
		out = make([]Lined, len(batch))
		r := newRows()
		defer r.release()
		seen := map[notification.ID]bool{}
		for i, c := range batch {
			n := *c.Notification
			n.AcceptedAt = c.acceptedAt
			if waits[n.ID] {
				wait(&n)
			}
			out[i] = Lined{Row: &n, Waits: waits[n.ID], Superseded: superseded[n.ID]}
			if !seen[n.ID] {
				r.notification(&n, c.acceptedAt, standing{fed: n.NextAt.IsZero() || n.Reason != notification.ReasonNotBefore})
			}
			seen[n.ID] = true
		}
		if err := copyIncoming(ctx, tx, "notifications", writeColumns, r); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, insertNewcomersStatement)
		return err
	})
	return out, err
}

// wait is the snapshot of a newcomer that waits for its turn.
func wait(n *notification.Notification) {
	n.Defer(notification.ReasonAwaitingPredecessor, n.UpdatedAt)
	n.NextAt = time.Time{}
}

// Turn says whether a notification may be attempted, as far as its lines say. One that was accepted while Postgres was away,
// and is not final, gets its places now, by the time of its acceptance.
func (l *Postgres) Turn(ctx context.Context, n *notification.Notification) (Turn, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	turn, there, err := readTurn(ctx, l.pool, n)
	if err == nil && !there {
		err = l.placeLate(ctx, n)
		if err == nil {
			turn, _, err = readTurn(ctx, l.pool, n)
		}
	}
	if err != nil {
		return Turn{}, fmt.Errorf("look for the turn of %s: %w", n.ID, err)
	}
	return turn, nil
}

const (
	precedes = `p.line = o.line and (p.at, p.id) < (o.at, o.id)`

	turnStatement = `select o.line, o.superseded_by, o.standing,
			exists (select from lines p where ` + precedes + ` and p.standing = 1),
			exists (select from lines p where ` + precedes + ` and p.standing = 2)
		from lines o where o.id = $1`
)

// readTurn also says whether the notification has a place. One whose place has ended, or that is dead, waits for nobody: it
// is an operator who sends it again.
func readTurn(ctx context.Context, q querier, n *notification.Notification) (turn Turn, there bool, err error) {
	rows, err := q.Query(ctx, turnStatement, [16]byte(n.ID))
	if err != nil {
		return Turn{}, false, err
	}
	ordering := orderingLine(n)
	var line [16]byte
	var by *[16]byte
	var at int16
	var open, dead bool
	_, err = pgx.ForEachRow(rows, []any{&line, &by, &at, &open, &dead}, func() error {
		there = true
		switch {
		case place(at) != placeOpen:
		case line == ordering:
			turn.Behind, turn.BehindDead = open, dead
		case by != nil:
			turn.SupersededBy = *by
		}
		return nil
	})
	return turn, there, err
}

// placeLate gives a notification its places that has none, unless it is final.
func (l *Postgres) placeLate(ctx context.Context, n *notification.Notification) error {
	p := &pending{Record: Record{Notification: n, Unreserved: true}, acceptedAt: microseconds(n.AcceptedAt)}
	batch := []*pending{p}
	return pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if err := lockLines(ctx, tx, linesOf(batch)); err != nil {
			return err
		}
		if err := settleAcceptance(ctx, tx, batch, true); err != nil {
			return err
		}
		var final bool
		err := tx.QueryRow(ctx, `select exists (select from notifications where accepted_at = $1 and id = $2 and state > 3)`, p.acceptedAt, [16]byte(n.ID)).Scan(&final)
		if err != nil || final {
			return err
		}
		_, err = addPlaces(ctx, tx, batch, true)
		return err
	})
}

// Next makes the next ones in the lines of some notifications go: it returns those that have become due by their
// predecessors' end, each to one caller once. Whoever dies with one in hand is made good by Rescue; what nobody asks for
// comes by Feed.
func (l *Postgres) Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error) {
	var lines [][16]byte
	for _, n := range ended {
		if n.OrderingKey != "" {
			lines = append(lines, orderingLine(n))
		}
	}
	if len(lines) == 0 {
		return nil, nil
	}
	slices.SortFunc(lines, compareLines)
	return l.sweep(ctx, "find the next in line", nextStatement, slices.Compact(lines), microseconds(now))
}

// firstInLine is who is first in each of the lines $1.
const firstInLine = `unnest($1::uuid[]) as k(line)
	cross join lateral (select o.accepted_at, o.id from lines o where o.line = k.line and o.standing = 1 order by o.at, o.id limit 1) o
	join notifications n on n.accepted_at = o.accepted_at and n.id = o.id`

var (
	nextStatement = `with due as materialized (select n.accepted_at, n.id from ` + firstInLine + `
			where n.state in (1, 2, 3) and not n.resting and not n.fed and n.next_at <= $2 for update of n skip locked)
		update notifications n set fed = true from due
		where n.accepted_at = due.accepted_at and n.id = due.id
		returning ` + readNotification

	// What waits without a due time, or looks now and then whether somebody has helped a dead one.
	turnComesStatement = fmt.Sprintf(`with turn as materialized (select n.accepted_at, n.id from %s
			where n.state in (1, 2, 3) and not n.resting and n.reason = '%s' and (n.next_at is null or n.next_at > $2)
			order by n.id for update of n)
		update notifications n set reason = '%s', next_at = greatest($2, n.not_before), fed = false, updated_at = greatest($2, n.updated_at)
		from turn where n.accepted_at = turn.accepted_at and n.id = turn.id`,
		firstInLine, notification.ReasonAwaitingPredecessor, notification.ReasonQueued)
)

// Supersede cancels an open notification because of a newer one. Errors as Cancel's.
func (l *Postgres) Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error) {
	n, err := l.operate(ctx, id, "", now, supersededBy(by))
	if err != nil {
		return nil, fmt.Errorf("supersede %s: %w", id, err)
	}
	return n, nil
}

// place is how a notification stands in a line.
type place int16

const (
	placeOpen  place = 1
	placeDead  place = 2 // in a line of an ordering key: whether it blocks is the merchant's rule
	placeEnded place = 3
)

// orderingLine and supersedeLine are zero without a key.
func orderingLine(n *notification.Notification) [16]byte {
	return lineOf("ordering", n.MerchantID, n.OrderingKey)
}

func supersedeLine(n *notification.Notification) [16]byte {
	return lineOf("supersede", n.MerchantID, n.SupersedeKey)
}

func lineOf(what, merchantID, key string) (line [16]byte) {
	if key == "" {
		return line
	}
	h := sha256.New()
	for _, part := range []string{what, merchantID, key} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write([]byte(part))
	}
	copy(line[:], h.Sum(nil))
	return line
}

func compareLines(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

// linesOf are the lines of some notifications, each once, in the order in which everybody locks them.
func linesOf(batch []*pending) [][16]byte {
	var lines [][16]byte
	for _, p := range batch {
		for _, line := range [][16]byte{orderingLine(p.Notification), supersedeLine(p.Notification)} {
			if line != [16]byte{} {
				lines = append(lines, line)
			}
		}
	}
	slices.SortFunc(lines, compareLines)
	return slices.Compact(lines)
}

// lockLines keeps others from taking or ending places in some lines until the transaction ends. It comes before any lock on
// a row. Two lines that share a lock only wait for each other.
func lockLines(ctx context.Context, tx pgx.Tx, lines [][16]byte) error {
	if len(lines) == 0 {
		return nil
	}
	locks := make([]int64, len(lines))
	for i, line := range lines {
		locks[i] = int64(binary.BigEndian.Uint64(line[:8])) //nolint:gosec // every bit pattern is wanted
	}
	slices.Sort(locks)
	_, err := tx.Exec(ctx, `select pg_advisory_xact_lock(k.lock) from unnest($1::bigint[]) with ordinality as k(lock, n) order by k.n`, slices.Compact(locks))
	return err
}

// addPlaces gives places to those that have none, in their order; late ones by the time of their acceptance. It returns
// which open ones each supersedes. The lines are locked.
func addPlaces(ctx context.Context, tx pgx.Tx, batch []*pending, late bool) (map[notification.ID][]notification.ID, error) {
	last := map[[16]byte]time.Time{} // of the open ones in each line
	if !late {
		rows, err := tx.Query(ctx, `select k.line, o.at from unnest($1::uuid[]) as k(line)
			cross join lateral (select at from lines o where o.line = k.line and o.standing = 1 order by at desc limit 1) o`, linesOf(batch))
		if err != nil {
			return nil, err
		}
		var line [16]byte
		var at time.Time
		if _, err := pgx.ForEachRow(rows, []any{&line, timeOf(&at)}, func() error { last[line] = at; return nil }); err != nil {
			return nil, err
		}
	}
	var lines, ids [][16]byte
	var ats, accepted []time.Time
	var in, by [][16]byte // lines of supersede keys, and whose place
	for _, p := range batch {
		for _, line := range [][16]byte{orderingLine(p.Notification), supersedeLine(p.Notification)} {
			if line == [16]byte{} {
				continue
			}
			at := p.acceptedAt
			if before, some := last[line]; some && !at.After(before) {
				at = before.Add(time.Microsecond)
			}
			last[line] = at
			if line == supersedeLine(p.Notification) {
				in, by = append(in, line), append(by, p.Notification.ID)
			}
			lines, ids, ats, accepted = append(lines, line), append(ids, p.Notification.ID), append(ats, at), append(accepted, p.acceptedAt)
		}
	}
	_, err := tx.Exec(ctx, `insert into lines (line, at, id, accepted_at, standing)
		select k.line, k.at, k.id, k.accepted_at, 1 from unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::timestamptz[]) as k(line, at, id, accepted_at)
		on conflict (id, line) do nothing`, lines, ats, ids, accepted)
	if err != nil || len(in) == 0 {
		return nil, err
	}
	return markSuperseded(ctx, tx, in, by)
}

// markSuperseded marks the open ones in some lines that are older than one of each.
func markSuperseded(ctx context.Context, tx pgx.Tx, lines, by [][16]byte) (map[notification.ID][]notification.ID, error) {
	rows, err := tx.Query(ctx, `update lines p set superseded_by = o.id
		from unnest($1::uuid[], $2::uuid[]) as k(line, id) join lines o on o.id = k.id and o.line = k.line
		where `+precedes+` and p.standing = 1 and p.superseded_by is null returning o.id, p.id`, lines, by)
	if err != nil {
		return nil, err
	}
	out := map[notification.ID][]notification.ID{}
	var newer, older [16]byte
	_, err = pgx.ForEachRow(rows, []any{&newer, &older}, func() error {
		out[newer] = append(out[newer], older)
		return nil
	})
	return out, err
}

// whoWaits says which notifications have an open predecessor in their ordering line.
func whoWaits(ctx context.Context, tx pgx.Tx, batch []*pending) (map[notification.ID]bool, error) {
	var lines, ids [][16]byte
	for _, p := range batch {
		if p.Notification.OrderingKey != "" {
			lines, ids = append(lines, orderingLine(p.Notification)), append(ids, p.Notification.ID)
		}
	}
	waits := map[notification.ID]bool{}
	if len(ids) == 0 {
		return waits, nil
	}
	rows, err := tx.Query(ctx, `select o.id from unnest($1::uuid[], $2::uuid[]) as k(line, id) join lines o on o.id = k.id and o.line = k.line
		where o.standing = 1 and exists (select from lines p where `+precedes+` and p.standing = 1)`, lines, ids)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error { waits[id] = true; return nil })
	return waits, err
}

// movesLine says whether a record may make somebody's turn come: it is final; or it waits for its predecessor, which
// may have ended since it was looked for.
func movesLine(n *notification.Notification) bool {
	if n.OrderingKey == "" && n.SupersedeKey == "" {
		return false
	}
	return n.State.Final() || isWaiting(n.Progress)
}

// isWaiting says whether only the end of its predecessor makes a notification due.
func isWaiting(p notification.Progress) bool {
	return p.Reason == notification.ReasonAwaitingPredecessor && p.NextAt.IsZero() && !p.State.Final()
}

// moving are those records of a batch that may make somebody's turn come.
func moving(batch []*pending) []*pending {
	var out []*pending
	for _, p := range batch {
		if movesLine(p.Notification) {
			out = append(out, p)
		}
	}
	return out
}

// moveLines ends the places of what is final now, by its row, and makes due who is first and waits. The lines are locked.
func (l *Postgres) moveLines(ctx context.Context, tx pgx.Tx, batch []*pending) error {
	if len(batch) == 0 {
		return nil
	}
	ids, accepted := make([][16]byte, len(batch)), make([]time.Time, len(batch))
	var ordering [][16]byte
	for i, p := range batch {
		ids[i], accepted[i] = p.Notification.ID, p.acceptedAt
		if p.Notification.OrderingKey != "" {
			ordering = append(ordering, orderingLine(p.Notification))
		}
	}
	slices.SortFunc(ordering, compareLines)
	ordering = slices.Compact(ordering)
	// What was delivered behind a dead one has been let past it: the dead one blocks nobody any more, whatever the rule becomes.
	_, err := tx.Exec(ctx, `with ended as (
			update lines o set standing = case when n.state = 5 and o.line = any($3::uuid[]) then 2 else 3 end
			from unnest($1::timestamptz[], $2::uuid[]) as k(accepted_at, id) join notifications n on n.accepted_at = k.accepted_at and n.id = k.id
			where o.id = k.id and o.standing < 3 and n.state > 3 returning o.line, o.at, o.id, n.state)
		update lines p set standing = 3 from ended o where `+precedes+` and p.standing = 2 and o.state = 4`,
		accepted, ids, append([][16]byte{}, ordering...))
	if err != nil || len(ordering) == 0 {
		return err
	}
	_, err = tx.Exec(ctx, turnComesStatement, ordering, microseconds(l.now()))
	return err
}

// leaveLines ends the places of what the ledger refuses, whatever its row says: nobody is to wait for what may never be
// recorded.
func (l *Postgres) leaveLines(ctx context.Context, tx pgx.Tx, p *pending) error {
	if _, err := tx.Exec(ctx, `update lines set standing = 3 where id = $1 and standing < 3`, [16]byte(p.Notification.ID)); err != nil {
		return err
	}
	return l.moveLines(ctx, tx, []*pending{p})
}

// deleteEndedPlaces deletes the places of what was accepted before the cutoff and waits no more, in small statements.
func (l *Postgres) deleteEndedPlaces(ctx context.Context, cutoff time.Time) error {
	for {
		ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
		tag, err := l.pool.Exec(ctx, `delete from lines where (id, line) in (
			select id, line from lines where accepted_at < $1 and standing > 1 order by accepted_at limit $2)`, cutoff, reservationsPer)
		cancel()
		if err != nil {
			return fmt.Errorf("delete places in lines: %w", err)
		}
		if tag.RowsAffected() < reservationsPer {
			return nil
		}
	}
}
