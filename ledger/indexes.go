package ledger

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// superseded indexes are dropped when those that replace them are complete (migrations/00003_search.sql).
var superseded = []string{"notifications_merchant", "notifications_undelivered", "notifications_batch"}

// missingIndexes are the days that a new index does not have yet, newest day first. A name that is given is what an
// earlier try has left.
const missingIndexes = `select p.relname, d.relname, split_part(pg_get_indexdef(p.oid), ' USING ', 2), coalesce(left_over.relname, '')
	from pg_index i join pg_class p on p.oid = i.indexrelid
	join pg_inherits days on days.inhparent = i.indrelid join pg_class d on d.oid = days.inhrelid
	left join pg_class left_over on left_over.relname = p.relname || right(d.relname, 10) and left_over.relnamespace = d.relnamespace
	where i.indrelid = 'notifications'::regclass and not i.indisvalid
	and not exists (select from pg_inherits built join pg_index b on b.indexrelid = built.inhrelid
		where built.inhparent = p.oid and b.indrelid = d.oid)
	order by d.relname desc, p.relname`

type missingIndex struct{ index, table, definition, leftOver string }

// BuildIndexes makes new indexes on the days that were there before them, one at a time and without holding up readers or
// writers, then drops those that they replace. Of several nodes one does it. Dying in between leaves an index that the
// next try begins anew.
func (l *Postgres) BuildIndexes(ctx context.Context) error {
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("build indexes: %w", err)
	}
	defer conn.Release()
	var mine bool
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock($1)`, lockIndexes).Scan(&mine); err != nil {
		return fmt.Errorf("build indexes: %w", err)
	}
	if !mine {
		return nil
	}
	defer func() { // with the connection the lock would outlive its use
		ctx, cancel := l.bounded(context.WithoutCancel(ctx))
		defer cancel()
		if _, err := conn.Exec(ctx, `select pg_advisory_unlock($1)`, lockIndexes); err != nil {
			_ = conn.Conn().Close(ctx)
		}
	}()
	if err := l.buildMissing(ctx, conn); err != nil {
		return fmt.Errorf("build indexes: %w", err)
	}
	if err := dropSuperseded(ctx, conn); err != nil {
		return fmt.Errorf("drop superseded indexes: %w", err)
	}
	return nil
}

func (l *Postgres) buildMissing(ctx context.Context, conn *pgxpool.Conn) error {
	rows, err := conn.Query(ctx, missingIndexes)
	if err != nil {
		return err
	}
	missing, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m missingIndex, err error) {
		return m, row.Scan(&m.index, &m.table, &m.definition, &m.leftOver)
	})
	if err != nil || len(missing) == 0 {
		return err
	}
	l.log.Info("building indexes beside the work", zap.Int("missing", len(missing)))
	for _, m := range missing {
		if err := m.build(ctx, conn); isUndefinedTable(err) {
			continue // the day was dropped meanwhile
		} else if err != nil {
			return fmt.Errorf("%s on %s: %w", m.index, m.table, err)
		}
	}
	l.log.Info("the indexes are complete")
	return nil
}

// build cannot be a transaction: building concurrently is several.
func (m missingIndex) build(ctx context.Context, conn *pgxpool.Conn) error {
	name := m.index + m.table[strings.LastIndexByte(m.table, '_'):]
	statements := []string{
		fmt.Sprintf(`create index concurrently %s on %s using %s`, name, m.table, m.definition),
		fmt.Sprintf(`alter index %s attach partition %s`, m.index, name),
	}
	if m.leftOver != "" {
		statements = append([]string{`drop index concurrently ` + name}, statements...)
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	return nil
}

// dropSuperseded takes each index off in a moment, or leaves it for the next time.
func dropSuperseded(ctx context.Context, conn *pgxpool.Conn) error {
	var unfinished, there bool
	err := conn.QueryRow(ctx, `select exists (select from pg_index where indrelid = 'notifications'::regclass and not indisvalid),
		exists (select from pg_class where relname = any($1) and relnamespace = (select relnamespace from pg_class where oid = 'notifications'::regclass))`,
		superseded).Scan(&unfinished, &there)
	if err != nil || unfinished || !there {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `set local lock_timeout = '`+dropLockTimeout+`'; drop index if exists `+strings.Join(superseded, ", "), pgx.QueryExecModeSimpleProtocol)
		return err
	})
}
