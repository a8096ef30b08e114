package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/access"
	"notifyd/notification"
)

func accessFields(r *access.Rule) settingsFields {
	return settingsFields{id: &r.ID, version: &r.Version, updatedAt: &r.UpdatedAt, secrets: &struct{}{}}
}

// PutAccessRule stores a rule of the lists whole, and keeps what it was before. With ifVersion it does so only if that is the
// version in the ledger, 0 meaning none at all, else ErrConflict. What it returns has the new version.
func (l *Postgres) PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error) {
	return l.access.put(ctx, r, ifVersion)
}

// AccessRulesSince are the rules that changed after a version, the removed ones too, in the order of their changes. It
// misses none.
func (l *Postgres) AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error) {
	return l.access.since(ctx, version)
}

// AccessChanges is a page of the changes of a rule, or of all, newest first. before is the number of the last one of the
// page before; 0: the first page.
func (l *Postgres) AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	statement, args := `select number, changed_at, before, after from access_changes where ($1 = 0 or number < $1)`, []any{before, clampChanges(limit)}
	if ruleID != "" {
		statement, args = statement+` and rule_id = $3`, append(args, ruleID)
	}
	rows, err := l.pool.Query(ctx, statement+` order by number desc limit $2`, args...)
	if err != nil {
		return nil, fmt.Errorf("read access changes: %w", err)
	}
	changes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c access.Change, err error) {
		var was *string
		var is string
		if err := row.Scan(&c.Number, timeOf(&c.At), &was, &is); err != nil {
			return c, err
		}
		if was != nil {
			if err := json.Unmarshal([]byte(*was), &c.Before); err != nil {
				return c, err
			}
		}
		return c, json.Unmarshal([]byte(is), &c.After)
	})
	if err != nil {
		return nil, fmt.Errorf("read access changes: %w", err)
	}
	return changes, nil
}

// clampChanges allows a page and one more, which says that there are more.
func clampChanges(limit int) int { return min(max(limit, 1), MaxPage+1) }

// Barred is whose notifications the lists hold: what their rules are about.
type Barred struct{ MerchantID, Source, Scene string }

// isBarred is word for word the predicate of a partial index.
const isBarred = `state = 3 and reason in ('blocked', 'not_allowed')`

var (
	barredStatement = `select distinct merchant_id, source, scene from notifications where ` + isBarred + `
		and (merchant_id, source, scene) > ($1, $2, $3) order by merchant_id, source, scene limit $4`

	releaseStatement = fmt.Sprintf(`with freed as materialized (
			select accepted_at, id from notifications where `+isBarred+` and merchant_id = $1 and source = $2 and scene = $3
			and `+unclaimed("$4", "$8")+`
			order by accepted_at limit $5 for update skip locked),
		turns as (select accepted_at, id, row_number() over (order by accepted_at, id) - 1 as turn from freed)
		update notifications n
		set state = case when n.attempts > 0 then %d else %d end, reason = '%s', next_at = $6::timestamptz + turns.turn * $7::interval, updated_at = $4,
			fed = false, resting = false
		from turns where n.accepted_at = turns.accepted_at and n.id = turns.id`,
		notification.StateRetrying, notification.StateAccepted, notification.ReasonReleased)
)

// Barred is a page of whose notifications the lists hold, behind the last one of the page before, in an order that the ledger
// knows.
func (l *Postgres) Barred(ctx context.Context, after Barred, limit int) ([]Barred, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, barredStatement, after.MerchantID, after.Source, after.Scene, limit)
	if err != nil {
		return nil, fmt.Errorf("find what is held: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Barred])
	if err != nil {
		return nil, fmt.Errorf("find what is held: %w", err)
	}
	return found, nil
}

// Release gives what the lists hold of somebody due times, the oldest first and one gap apart, from `from` on and until
// `until` at most, and returns how many it has released: Feed and TakeDue find them. A merchant's turns go on where the last
// call, of any node and whichever source and scene it was about, has left off. What somebody has claimed is left to them.
func (l *Postgres) Release(ctx context.Context, b Barred, gap time.Duration, from, until time.Time) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	released := 0
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		var first time.Time
		err := tx.QueryRow(ctx, `insert into access_releases as r (merchant_id, due_until) values ($1, $2)
			on conflict (merchant_id) do update set due_until = greatest(r.due_until, $2) returning due_until`,
			b.MerchantID, microseconds(from)).Scan(timeOf(&first))
		if err != nil {
			return err
		}
		turns := turnsBetween(first, until, gap)
		if turns == 0 {
			return nil
		}
		tag, err := tx.Exec(ctx, releaseStatement, b.MerchantID, b.Source, b.Scene, microseconds(l.now()), turns, first, gap, l.gone())
		if err != nil {
			return err
		}
		released = int(tag.RowsAffected())
		_, err = tx.Exec(ctx, `update access_releases set due_until = $2 where merchant_id = $1`, b.MerchantID, microseconds(first.Add(time.Duration(released)*gap)))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("release what is held: %w", err)
	}
	return released, nil
}

// releasedAtOnce bounds one transaction of Release.
const releasedAtOnce = 1000

// turnsBetween is how many due times one gap apart there are from one instant to before another.
func turnsBetween(from, until time.Time, gap time.Duration) int {
	if gap <= 0 || !from.Before(until) {
		return 0
	}
	return int(min((until.Sub(from)+gap-1)/gap, releasedAtOnce))
}

// barred reports whether the lists hold it.
func barred(p notification.Progress) bool {
	return p.State == notification.StateHeld && p.Reason.Barred()
}

// released is the progress of what the lists do not hold any more, due at its turn.
func released(p notification.Progress, due, now time.Time) notification.Progress {
	p.State = notification.StateAccepted
	if p.Attempts > 0 {
		p.State = notification.StateRetrying
	}
	p.Reason, p.NextAt, p.UpdatedAt, p.Resting = notification.ReasonReleased, due, now, false
	return p
}
