package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Alarm is one time that an alarm was raised on a node. It is named by RaisedAt, Name, Subject and Node.
type Alarm struct {
	Name, Subject, Node string
	Severity, Detail    string
	RaisedAt            time.Time
	SeenAt              time.Time // when it was last found true
	ClearedAt           time.Time // zero: it is open
}

// PutAlarms stores alarms as they stand now. Storing one again is harmless: the newest SeenAt decides, and what is
// cleared stays cleared. What was cleared longer than the retention ago is dropped on the way.
func (l *Postgres) PutAlarms(ctx context.Context, alarms []Alarm) error {
	if len(alarms) == 0 {
		return nil
	}
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	batch := &pgx.Batch{}
	for _, a := range inOrder(alarms) {
		batch.Queue(`insert into alarms (raised_at, name, subject, node, severity, detail, seen_at, cleared_at)
			values ($1, $2, $3, $4, $5, $6, $7, $8)
			on conflict (raised_at, name, subject, node) do update set
				detail = case when excluded.seen_at >= alarms.seen_at then excluded.detail else alarms.detail end,
				seen_at = greatest(alarms.seen_at, excluded.seen_at), cleared_at = coalesce(alarms.cleared_at, excluded.cleared_at)`,
			microseconds(a.RaisedAt), a.Name, visible(a.Subject), a.Node, a.Severity, visible(a.Detail), microseconds(a.SeenAt), nullable(a.ClearedAt))
	}
	batch.Queue(`delete from alarms where raised_at < $1 and cleared_at < $1`, l.now().Add(-l.cfg.Retention))
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	if err != nil {
		return fmt.Errorf("put alarms: %w", err)
	}
	return nil
}

// OpenAlarms are a node's alarms that are not cleared, oldest first.
func (l *Postgres) OpenAlarms(ctx context.Context, node string) ([]Alarm, error) {
	return l.readAlarms(ctx, `where node = $1 and cleared_at is null order by raised_at, name, subject`, node)
}

// RecentAlarms are those of all nodes that were raised last, newest first.
func (l *Postgres) RecentAlarms(ctx context.Context, limit int) ([]Alarm, error) {
	return l.readAlarms(ctx, `order by raised_at desc, name desc, subject desc, node desc limit $1`, limit)
}

func (l *Postgres) readAlarms(ctx context.Context, which string, arg any) ([]Alarm, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select name, subject, node, severity, detail, raised_at, seen_at, cleared_at from alarms `+which, arg)
	if err != nil {
		return nil, fmt.Errorf("read alarms: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (a Alarm, err error) {
		return a, row.Scan(&a.Name, &a.Subject, &a.Node, &a.Severity, &a.Detail, timeOf(&a.RaisedAt), timeOf(&a.SeenAt), timeOf(&a.ClearedAt))
	})
	if err != nil {
		return nil, fmt.Errorf("read alarms: %w", err)
	}
	return found, nil
}

// inOrder sorts by key: two nodes that write the same rows lock them in one order.
func inOrder(alarms []Alarm) []Alarm { return slices.SortedFunc(slices.Values(alarms), compareAlarms) }

func compareAlarms(a, b Alarm) int {
	return cmp.Or(a.RaisedAt.Compare(b.RaisedAt), strings.Compare(a.Name, b.Name), strings.Compare(a.Subject, b.Subject), strings.Compare(a.Node, b.Node))
}

func nullable(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = microseconds(t)
	return &t
}

// memoryAlarms are the alarms of a Memory.
type memoryAlarms struct {
	mu  sync.Mutex
	all map[alarmKey]Alarm
}

type alarmKey struct {
	raisedAt            time.Time
	name, subject, node string
}

// PutAlarms does what Postgres.PutAlarms does, but drops nothing.
func (m *Memory) PutAlarms(ctx context.Context, alarms []Alarm) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.alarms.mu.Lock()
	defer m.alarms.mu.Unlock()
	if m.alarms.all == nil {
		m.alarms.all = map[alarmKey]Alarm{}
	}
	for _, a := range alarms {
		a.RaisedAt, a.SeenAt, a.ClearedAt = microseconds(a.RaisedAt), microseconds(a.SeenAt), microseconds(a.ClearedAt)
		key := alarmKey{a.RaisedAt, a.Name, a.Subject, a.Node}
		if known, there := m.alarms.all[key]; there {
			if known.SeenAt.After(a.SeenAt) {
				a.SeenAt, a.Detail = known.SeenAt, known.Detail
			}
			if !known.ClearedAt.IsZero() {
				a.ClearedAt = known.ClearedAt
			}
			a.Severity = known.Severity
		}
		m.alarms.all[key] = a
	}
	return nil
}

// OpenAlarms does what Postgres.OpenAlarms does.
func (m *Memory) OpenAlarms(ctx context.Context, node string) ([]Alarm, error) {
	return m.readAlarms(ctx, func(a Alarm) bool { return a.Node == node && a.ClearedAt.IsZero() })
}

// RecentAlarms does what Postgres.RecentAlarms does.
func (m *Memory) RecentAlarms(ctx context.Context, limit int) ([]Alarm, error) {
	all, err := m.readAlarms(ctx, func(Alarm) bool { return true })
	slices.Reverse(all)
	return all[:min(limit, len(all))], err
}

func (m *Memory) readAlarms(ctx context.Context, wanted func(Alarm) bool) ([]Alarm, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.alarms.mu.Lock()
	defer m.alarms.mu.Unlock()
	var found []Alarm
	for _, a := range m.alarms.all {
		if wanted(a) {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, compareAlarms)
	return found, nil
}
