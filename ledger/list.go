package ledger

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// MaxPage bounds a page of a list: bodies come along.
const MaxPage = 1000

// List is one page, newest first, and where the next one starts; a zero cursor after the last page. Pages are stable:
// what is accepted meanwhile does not shift them. ErrTooLong when the filter finds too little among too much, ErrBusy when others search.
func (l *Postgres) List(ctx context.Context, f Filter, pageSize int, after Cursor) ([]*notification.Notification, Cursor, error) {
	pageSize = clampPage(pageSize)
	var page []*notification.Notification
	err := l.search(ctx, func(ctx context.Context, tx pgx.Tx) error {
		named, err := namedBy(ctx, tx, f)
		if err != nil || named != nil && len(named.ids) == 0 {
			return err
		}
		sql, args := listQuery(f, named, pageSize+1, after)
		// Planned with the values in hand: a plan for any value would have to leave out the partial indexes.
		rows, err := tx.Query(ctx, sql, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...)
		if err != nil {
			return err
		}
		page, err = collectNotifications(rows)
		return err
	})
	if err != nil {
		return nil, Cursor{}, fmt.Errorf("list notifications: %w", err)
	}
	page, next := cutPage(page, pageSize)
	return page, next, nil
}

// searchGrace is the time in which Postgres says that it has ended a statement; after it Postgres is away.
const searchGrace = time.Second

// search reads in a transaction whose statements are ended when they take too long. Few search at once, so that whatever
// they read they leave connections to writers and submissions (P10). Waiting for a turn is part of the time.
func (l *Postgres) search(ctx context.Context, read func(context.Context, pgx.Tx) error) error {
	deadline := time.Now().Add(l.cfg.SearchTimeout)
	turn, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := l.searches.Acquire(turn, 1); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: no turn within %s", ErrBusy, l.cfg.SearchTimeout)
	}
	defer l.searches.Release(1)
	left := max(time.Until(deadline), time.Millisecond) // 0 would be no timeout at all
	begin := fmt.Sprintf("begin read only; set local statement_timeout = %d", left.Milliseconds())
	bound, cancelBound := context.WithTimeout(ctx, left+searchGrace)
	defer cancelBound()
	err := pgx.BeginTxFunc(bound, l.pool, pgx.TxOptions{BeginQuery: begin}, func(tx pgx.Tx) error { return read(bound, tx) })
	if hasCode(err, codeCanceled) && ctx.Err() == nil {
		ended := ErrTooLong
		if left < l.cfg.SearchTimeout/2 { // it waited for most of its time: by itself it may be quick enough
			ended = ErrBusy
		}
		return fmt.Errorf("%w: a statement was ended after %s", ended, left.Round(time.Millisecond))
	}
	return err
}

func clampPage(size int) int { return min(max(size, 1), MaxPage) }

// pageAndOne bounds a limit of somebody who reads one more than a page, to see whether more follow.
func pageAndOne(limit int) int { return min(max(limit, 1), MaxPage+1) }

// cutPage takes off the one row that was read to see whether more follow.
func cutPage(page []*notification.Notification, size int) ([]*notification.Notification, Cursor) {
	if len(page) <= size {
		return page, Cursor{}
	}
	page = page[:size]
	last := page[size-1]
	return page, Cursor{last.AcceptedAt, last.ID}
}

// rowKeys are where rows stand.
type rowKeys struct {
	accepted []time.Time
	ids      [][16]byte
}

// namedBy are the rows that a filter names by id or request id, as far as they are reserved; nil when it names none. A
// request id makes one id with each source that there is: no index on it is needed.
func namedBy(ctx context.Context, q querier, f Filter) (*rowKeys, error) {
	var ids [][16]byte
	switch {
	case !f.ID.IsZero():
		ids = [][16]byte{f.ID}
	case f.RequestID != "":
		sources, err := sourcesOf(ctx, q, f)
		if err != nil {
			return nil, err
		}
		ids = idsOf(sources, func(source string) notification.ID {
			return (&notification.Notification{Source: source, RequestID: f.RequestID}).DeriveID()
		})
	default:
		return nil, nil
	}
	named := &rowKeys{}
	err := readReservations(ctx, q, ids, func(r Reservation) {
		named.accepted, named.ids = append(named.accepted, r.AcceptedAt), append(named.ids, r.ID)
	})
	return named, err
}

// sourcesStatement steps from one source to the next in the index: what it costs depends on how many sources there are,
// not on how many rows. It reads rows and not the settings, since a row may have a source that has none.
const sourcesStatement = `with recursive found(source) as (
		(select source from notifications order by source limit 1)
		union all
		select (select n.source from notifications n where n.source > found.source order by n.source limit 1)
		from found where found.source is not null)
	select source from found where source is not null`

func sourcesOf(ctx context.Context, q querier, f Filter) ([]string, error) {
	if f.Source != "" {
		return []string{f.Source}, nil
	}
	rows, err := q.Query(ctx, sourcesStatement)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// conditions are a statement's where clause in the making.
type conditions struct {
	where []string
	args  []any
}

// arg is the name of a parameter.
func (c *conditions) arg(value any) string {
	c.args = append(c.args, value)
	return "$" + strconv.Itoa(len(c.args))
}

func (c *conditions) add(condition string) { c.where = append(c.where, condition) }

// equal adds nothing for an empty value.
func (c *conditions) equal(column, value string) {
	if value != "" {
		c.add("n." + column + " = " + c.arg(value))
	}
}

// states are numbers in the text: they must be seen to fit the partial indexes. They are a span and what is not in it: an
// index that has the state behind the time of acceptance keeps its order for a span, and not for a list.
func (c *conditions) states(states []notification.State) {
	if len(states) == 0 {
		return
	}
	first, last := slices.Min(states), slices.Max(states)
	c.add(fmt.Sprintf("n.state between %d and %d", first, last))
	for s := first; s < last; s++ {
		if !slices.Contains(states, s) {
			c.add(fmt.Sprintf("n.state <> %d", s))
		}
	}
}

// listQuery builds the statement; each value but states is a parameter. A batch comes in a burst: where it is half of a
// day, Postgres expects every second row by time to be one of it, and reads past all that came after the burst. So the
// batch is a span of one value and first in the order, which its own index has and none of time alone.
func listQuery(f Filter, named *rowKeys, limit int, after Cursor) (string, []any) {
	from := "notifications n"
	c := &conditions{}
	if named != nil {
		from = fmt.Sprintf("unnest(%s::timestamptz[], %s::uuid[]) as k(accepted_at, id) join notifications n on n.accepted_at = k.accepted_at and n.id = k.id",
			c.arg(named.accepted), c.arg(named.ids))
	}
	for _, column := range []struct{ name, value string }{
		{"request_id", f.RequestID},
		{"merchant_id", f.MerchantID},
		{"order_id", f.OrderID},
		{"scene", f.Scene},
		{"source", f.Source},
		{"reason", string(f.Reason)},
	} {
		c.equal(column.name, column.value)
	}
	place, placeOf := "n.accepted_at, n.id", ""
	if f.BatchID != "" {
		batch := c.arg(f.BatchID)
		c.add("n.batch_id >= " + batch + " and n.batch_id <= " + batch + " and n.batch_id <> ''")
		place, placeOf = "n.batch_id, "+place, batch+", "
	}
	c.states(f.States)
	if !f.From.IsZero() {
		c.add("n.accepted_at >= " + c.arg(f.From))
	}
	if !f.To.IsZero() {
		c.add("n.accepted_at < " + c.arg(f.To))
	}
	if !after.IsZero() {
		at, id := c.arg(after.AcceptedAt), c.arg([16]byte(after.ID))
		c.add("(" + place + ") < (" + placeOf + at + ", " + id + ")")
		c.add("n.accepted_at <= " + at) // lets whole days be left out
	}
	sql := `select ` + readNotification + ` from ` + from
	if len(c.where) > 0 {
		sql += ` where ` + strings.Join(c.where, " and ")
	}
	return sql + ` order by ` + strings.ReplaceAll(place, ",", " desc,") + ` desc limit ` + strconv.Itoa(limit), c.args
}
