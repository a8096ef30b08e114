package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
)

const (
	partitionsAhead = 3 // days that are there before they are needed
	// How long maintenance waits for readers of a day that it drops; they queue behind it meanwhile.
	dropLockTimeout = "1s"
	reservationsPer = 5000 // deleted in one statement
	// Acceptances outside of these years are mistakes; no partition is made for them.
	minYear, maxYear = 2000, 2200
)

// Keys of the advisory locks that this package takes, beside goose's own.
const (
	lockPartitions = 7_017_001
	lockMerchants  = 7_017_002
	lockSources    = 7_017_003
	lockIndexes    = 7_017_004
	lockAccess     = 7_017_005
	lockKeys       = 7_017_006
	lockMasterKey  = 7_017_007
)

// dayOf is the UTC day that a partition is for.
func dayOf(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

func partition(table string, day time.Time) string { return table + "_p" + day.Format("20060102") }

// MaintainPartitions makes the coming days and drops those older than the retention in which everything is final, with
// their reservations.
func (l *Postgres) MaintainPartitions(ctx context.Context, now time.Time) error {
	var days []time.Time
	for ahead := range partitionsAhead + 1 {
		days = append(days, dayOf(now).AddDate(0, 0, ahead))
	}
	if err := l.makePartitions(ctx, days); err != nil {
		return err
	}
	cutoff := dayOf(now.Add(-l.cfg.Retention))
	there, err := l.partitionDays(ctx)
	if err != nil {
		return err
	}
	var kept []time.Time
	for _, day := range there {
		if !day.Before(cutoff) {
			break
		}
		dropped, err := l.dropDay(ctx, day)
		if err != nil {
			return err
		}
		if !dropped {
			l.log.Warn("a day is older than the retention, but something in it is unfinished", zap.Time("day", day))
			kept = append(kept, day)
		}
	}
	if err := l.deleteEndedPlaces(ctx, cutoff); err != nil {
		return err
	}
	return l.deleteReservations(ctx, cutoff, kept)
}

// knows reports whether all days have their partitions, as far as this process has seen.
func (l *Postgres) knowsDays(days []time.Time) bool {
	l.daysMu.Lock()
	defer l.daysMu.Unlock()
	return !slices.ContainsFunc(days, func(day time.Time) bool { return !l.days[day] })
}

func (l *Postgres) learnDay(day time.Time, there bool) {
	l.daysMu.Lock()
	defer l.daysMu.Unlock()
	l.days[day] = there
}

// makePartitions makes what is missing of some days. It neither waits for nor blocks readers and writers: a table is
// made beside, then attached.
func (l *Postgres) makePartitions(ctx context.Context, days []time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	slices.SortFunc(days, time.Time.Compare)
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lockPartitions); err != nil {
			return err
		}
		for _, day := range slices.Compact(days) {
			for _, table := range []string{"notifications", "attempts"} {
				if err := makePartition(ctx, tx, table, day); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make partitions: %w", err)
	}
	for _, day := range days {
		l.learnDay(day, true)
	}
	return nil
}

func makePartition(ctx context.Context, tx pgx.Tx, table string, day time.Time) error {
	name := partition(table, day)
	var there bool
	if err := tx.QueryRow(ctx, `select to_regclass($1) is not null`, name).Scan(&there); err != nil || there {
		return err
	}
	fill := ""
	if table == "notifications" {
		fill = " with (fillfactor = 85)" // room for HOT updates: claims
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`create table %s (like %s including all)%s`, name, table, fill))
	if err != nil {
		return err
	}
	const bound = "2006-01-02 00:00:00+00"
	_, err = tx.Exec(ctx, fmt.Sprintf(`alter table %s attach partition %s for values from ('%s') to ('%s')`,
		table, name, day.Format(bound), day.AddDate(0, 0, 1).Format(bound)))
	return err
}

// partitionDays are the days that have a partition, oldest first.
func (l *Postgres) partitionDays(ctx context.Context) ([]time.Time, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
		where i.inhparent = 'notifications'::regclass order by c.relname`)
	if err != nil {
		return nil, fmt.Errorf("list partitions: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list partitions: %w", err)
	}
	var days []time.Time
	for _, name := range names {
		// A partition with another name is somebody else's: it is not dropped.
		if day, err := time.Parse("20060102", strings.TrimPrefix(name, "notifications_p")); err == nil {
			days = append(days, day)
		}
	}
	return days, nil
}

var errUnfinished = errors.New("unfinished")

// dropDay drops a day's partitions unless a notification in it is open. It holds the tables for itself from before it
// looks until they are gone, so no resend can slip in between.
func (l *Postgres) dropDay(ctx context.Context, day time.Time) (dropped bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	notifications, attempts := partition("notifications", day), partition("attempts", day)
	unfinished := fmt.Sprintf(`select exists (select from %s where state in (1, 2, 3))`, notifications)

	// A look without locks first: a day that stays must not hold up anybody each hour.
	var open bool
	if err := l.pool.QueryRow(ctx, unfinished).Scan(&open); err != nil {
		if isUndefinedTable(err) {
			return true, nil // another node was faster
		}
		return false, fmt.Errorf("drop %s: %w", notifications, err)
	}
	if open {
		return false, nil
	}
	l.learnDay(day, false) // before it goes: a batch for that day makes it anew
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		// The parents first, in the order in which everybody locks them.
		setup := `set local lock_timeout = '` + dropLockTimeout + `';
			lock table only notifications, only attempts, only ` + notifications + ` in access exclusive mode`
		if _, err := tx.Exec(ctx, setup, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, unfinished).Scan(&open); err != nil {
			return err
		}
		if open {
			return errUnfinished
		}
		_, err := tx.Exec(ctx, fmt.Sprintf(`drop table %s; drop table if exists %s`, notifications, attempts), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	switch {
	case err == nil:
		l.log.Info("dropped a day that is older than the retention", zap.Time("day", day))
		return true, nil
	case errors.Is(err, errUnfinished):
		return false, nil
	case isUndefinedTable(err):
		return true, nil
	default:
		return false, fmt.Errorf("drop %s: %w", notifications, err)
	}
}

// deleteReservations deletes what was reserved before the cutoff, but on the days that were kept, in small statements.
func (l *Postgres) deleteReservations(ctx context.Context, cutoff time.Time, kept []time.Time) error {
	for {
		deleted, err := l.deleteSomeReservations(ctx, cutoff, kept)
		if err != nil {
			return fmt.Errorf("delete reservations: %w", err)
		}
		if deleted < reservationsPer {
			return nil
		}
	}
}

func (l *Postgres) deleteSomeReservations(ctx context.Context, cutoff time.Time, kept []time.Time) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, upkeepTimeout)
	defer cancel()
	tag, err := l.pool.Exec(ctx, `delete from reservations where id in (
		select id from reservations r where r.accepted_at < $1
		and not exists (select from unnest($2::timestamptz[]) as kept(day)
			where r.accepted_at >= kept.day and r.accepted_at < kept.day + interval '24 hours')
		order by r.accepted_at limit $3)`, cutoff, kept, reservationsPer)
	return tag.RowsAffected(), err
}
