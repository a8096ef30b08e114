package ledger

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"notifyd/notification"
)

// MaxPage bounds a page of a list: bodies come along.
const MaxPage = 1000

// List is one page, newest first, and where the next one starts; a zero cursor after the last page. Pages are stable:
// what is accepted meanwhile does not shift them.
func (l *Postgres) List(ctx context.Context, f Filter, pageSize int, after Cursor) ([]*notification.Notification, Cursor, error) {
	pageSize = clampPage(pageSize)
	sql, args := listQuery(f, pageSize+1, after)
	// Planned with the values in hand: a plan for any value would have to leave out the partial indexes.
	rows, err := l.pool.Query(ctx, sql, append([]any{pgx.QueryExecModeCacheDescribe}, args...)...)
	if err != nil {
		return nil, Cursor{}, fmt.Errorf("list notifications: %w", err)
	}
	page, err := collectNotifications(rows)
	if err != nil {
		return nil, Cursor{}, fmt.Errorf("list notifications: %w", err)
	}
	page, next := cutPage(page, pageSize)
	return page, next, nil
}

func clampPage(size int) int { return min(max(size, 1), MaxPage) }

// cutPage takes off the one row that was read to see whether more follow.
func cutPage(page []*notification.Notification, size int) ([]*notification.Notification, Cursor) {
	if len(page) <= size {
		return page, Cursor{}
	}
	page = page[:size]
	last := page[size-1]
	return page, Cursor{last.AcceptedAt, last.ID}
}

// listQuery builds the statement; each value is a parameter, but states are numbers in the text: they must be seen
// to fit the partial index of the undelivered.
func listQuery(f Filter, limit int, after Cursor) (string, []any) {
	var where []string
	var args []any
	arg := func(value any) string {
		args = append(args, value)
		return "$" + strconv.Itoa(len(args))
	}
	equal := func(column, value string) {
		if value != "" {
			where = append(where, "n."+column+" = "+arg(value))
		}
	}
	equal("merchant_id", f.MerchantID)
	equal("order_id", f.OrderID)
	equal("scene", f.Scene)
	equal("batch_id", f.BatchID)
	equal("source", f.Source)
	equal("reason", string(f.Reason))
	if len(f.States) > 0 {
		var states []string
		for _, s := range f.States {
			states = append(states, strconv.Itoa(int(s)))
		}
		where = append(where, "n.state in ("+strings.Join(states, ", ")+")")
	}
	if !f.From.IsZero() {
		where = append(where, "n.accepted_at >= "+arg(f.From))
	}
	if !f.To.IsZero() {
		where = append(where, "n.accepted_at < "+arg(f.To))
	}
	if !after.IsZero() {
		at, id := arg(after.AcceptedAt), arg([16]byte(after.ID))
		where = append(where, "(n.accepted_at, n.id) < ("+at+", "+id+")", "n.accepted_at <= "+at) // the second lets whole days be left out
	}
	sql := `select ` + readNotification + ` from notifications n`
	if len(where) > 0 {
		sql += ` where ` + strings.Join(where, " and ")
	}
	return sql + ` order by n.accepted_at desc, n.id desc limit ` + strconv.Itoa(limit), args
}
