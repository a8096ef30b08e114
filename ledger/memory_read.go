package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"notifyd/notification"
)

// Find does what Postgres.Find does.
func (m *Memory) Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	row, err := m.row(id)
	if row == nil {
		var n *notification.Notification
		if r, reserved := m.reservations[id]; reserved {
			n = reservedOnly(r)
		}
		return n, nil, fmt.Errorf("find %s: %w", id, err)
	}
	attempts := slices.Clone(row.attempts)
	slices.SortStableFunc(attempts, func(a, b notification.Attempt) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), a.StartedAt.Compare(b.StartedAt))
	})
	return row.read(), attempts, nil
}

// FindMany does what Postgres.FindMany does.
func (m *Memory) FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	found := make(map[notification.ID]*notification.Notification, len(ids))
	for _, id := range ids {
		if row, err := m.row(id); err == nil {
			found[id] = row.read()
		}
	}
	return found, nil
}

// List does what Postgres.List does.
func (m *Memory) List(ctx context.Context, f Filter, pageSize int, after Cursor) ([]*notification.Notification, Cursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, Cursor{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []*notification.Notification
	for _, row := range m.rows {
		place := placeOf(row.n)
		if f.matches(row.n) && (after.IsZero() || place.before(after)) {
			page = append(page, row.read())
		}
	}
	slices.SortFunc(page, func(a, b *notification.Notification) int {
		if placeOf(b).before(placeOf(a)) {
			return -1
		}
		return 1
	})
	page, next := cutPage(page, clampPage(pageSize))
	return page, next, nil
}

func placeOf(n *notification.Notification) Cursor { return Cursor{n.AcceptedAt, n.ID} }

func (f Filter) matches(n *notification.Notification) bool {
	for _, want := range [][2]string{
		{f.RequestID, n.RequestID},
		{f.MerchantID, n.MerchantID},
		{f.OrderID, n.OrderID},
		{f.Scene, n.Scene},
		{f.BatchID, n.BatchID},
		{f.Source, n.Source},
		{string(f.Reason), string(n.Reason)},
	} {
		if want[0] != "" && want[0] != want[1] {
			return false
		}
	}
	return (f.ID.IsZero() || f.ID == n.ID) && (len(f.States) == 0 || slices.Contains(f.States, n.State)) &&
		(f.From.IsZero() || !n.AcceptedAt.Before(f.From)) && (f.To.IsZero() || n.AcceptedAt.Before(f.To))
}

// Feed does what Postgres.Feed does.
func (m *Memory) Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error) {
	return m.sweep(ctx, limit, func(row *memoryRow) bool { return !row.fed && due(row.n.Progress, horizon) }, func(*memoryRow) {})
}

// Rescue does what Postgres.Rescue does.
func (m *Memory) Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error) {
	gone := m.gone()
	forgotten := func(row *memoryRow) bool {
		return due(row.n.Progress, overdueBefore) && row.n.NextAt.Before(overdueBefore) && !row.claim.live(now, gone)
	}
	return m.sweep(ctx, limit, forgotten, func(row *memoryRow) { row.move(rescued(row.n.Progress, microseconds(now))) })
}

// TakeDue does what Postgres.TakeDue does.
func (m *Memory) TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error) {
	gone := m.gone()
	match := func(row *memoryRow) bool {
		return due(row.n.Progress, now) && (!row.fed || !row.n.NextAt.After(fedBefore)) && !row.claim.live(now, gone)
	}
	return m.sweep(ctx, limit, match, func(row *memoryRow) {
		p := row.n.Progress
		p.NextAt = microseconds(now).Add(lease)
		row.move(p)
	})
}

// Recall does what Postgres.Recall does.
func (m *Memory) Recall(ctx context.Context, lost Lost, before, now time.Time) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	gone, count := m.gone(), 0
	for _, row := range m.rows {
		p, was := recalled(row.n.Progress, row.n.Route.Persist, row.fed, lost, microseconds(before), microseconds(now))
		if was && !row.claim.live(now, gone) {
			row.move(p)
			row.fed = false
			count++
		}
	}
	return count, nil
}

// sweep takes the earliest of those that match and marks them fed.
func (m *Memory) sweep(ctx context.Context, limit int, match func(*memoryRow) bool, change func(*memoryRow)) ([]*notification.Notification, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*memoryRow
	for _, row := range m.rows {
		if match(row) {
			found = append(found, row)
		}
	}
	slices.SortFunc(found, func(a, b *memoryRow) int { return a.n.NextAt.Compare(b.n.NextAt) })
	var out []*notification.Notification
	for _, row := range found[:min(limit, len(found))] {
		change(row)
		row.fed = true
		out = append(out, row.read())
	}
	return out, nil
}

// Reservations does what Postgres.Reservations does.
func (m *Memory) Reservations(ctx context.Context, from, to time.Time, after ProofCursor, limit int) ([]ProofRow, ProofCursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, ProofCursor{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []ProofRow
	for _, r := range m.reservations {
		if r.AcceptedAt.Before(from) || !to.IsZero() && !r.AcceptedAt.Before(to) || !after.before(Cursor{r.AcceptedAt, r.ID}) {
			continue
		}
		row := ProofRow{ID: r.ID, AcceptedAt: r.AcceptedAt, Answered: m.answered[r.ID]}
		if known := m.rows[r.ID]; known != nil {
			row.State, row.Resting, row.NextAt, row.Reason = known.n.State, known.n.Resting, known.n.NextAt, known.n.Reason
		}
		page = append(page, row)
	}
	slices.SortFunc(page, func(a, b ProofRow) int {
		if (Cursor{a.AcceptedAt, a.ID}).before(Cursor{b.AcceptedAt, b.ID}) {
			return -1
		}
		return 1
	})
	page, next := cutProof(page, max(limit, 1))
	return page, next, nil
}

// MarkAnswered does what Postgres.MarkAnswered does.
func (m *Memory) MarkAnswered(ctx context.Context, ids []notification.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if _, there := m.reservations[id]; there {
			m.answered[id] = true
		}
	}
	return nil
}

// Quarantine does what Postgres.Quarantine does.
func (m *Memory) Quarantine(ctx context.Context, after int64, limit int) ([]Quarantined, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if after >= int64(len(m.quarantine)) {
		return nil, nil
	}
	page := m.quarantine[max(after, 0):]
	return slices.Clone(page[:min(len(page), max(limit, 1))]), nil
}
