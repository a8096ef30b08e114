package ledger

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"notifyd/access"
)

// memoryAccess is the rules and their changes.
type memoryAccess struct {
	rules *memorySettings[access.Rule]

	mu       sync.Mutex
	changes  []access.Change
	dueUntil map[string]time.Time // by merchant
}

func newMemoryAccess(now func() time.Time) *memoryAccess {
	return &memoryAccess{rules: newMemorySettings("access_rule", now, accessFields), dueUntil: map[string]time.Time{}}
}

// PutAccessRule does what Postgres.PutAccessRule does.
func (m *Memory) PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error) {
	m.access.mu.Lock()
	defer m.access.mu.Unlock()
	before, err := m.access.rules.get(ctx, r.ID)
	if err != nil {
		before = nil
	}
	stored, err := m.access.rules.put(ctx, r, ifVersion)
	if err != nil {
		return nil, err
	}
	// What is kept of a rule in a change is what was set.
	kept := func(r *access.Rule) *access.Rule {
		if r == nil {
			return nil
		}
		c := *r
		c.Version, c.UpdatedAt = 0, time.Time{}
		return &c
	}
	m.access.changes = append(m.access.changes, access.Change{Number: int64(len(m.access.changes)) + 1, At: stored.UpdatedAt, Before: kept(before), After: kept(stored)})
	return stored, nil
}

// AccessRulesSince does what Postgres.AccessRulesSince does.
func (m *Memory) AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error) {
	return m.access.rules.since(ctx, version)
}

// AccessChanges does what Postgres.AccessChanges does.
func (m *Memory) AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.access.mu.Lock()
	defer m.access.mu.Unlock()
	var found []access.Change
	for _, c := range slices.Backward(m.access.changes) {
		if len(found) < clampChanges(limit) && (before == 0 || c.Number < before) && (ruleID == "" || c.After.ID == ruleID) {
			found = append(found, c)
		}
	}
	return found, nil
}

func (b Barred) compare(c Barred) int {
	return cmp.Or(cmp.Compare(b.MerchantID, c.MerchantID), cmp.Compare(b.Source, c.Source), cmp.Compare(b.Scene, c.Scene))
}

// Barred does what Postgres.Barred does.
func (m *Memory) Barred(ctx context.Context, after Barred, limit int) ([]Barred, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Barred
	for _, row := range m.rows {
		b := Barred{row.n.MerchantID, row.n.Source, row.n.Scene}
		if barred(row.n.Progress) && b.compare(after) > 0 && !slices.Contains(found, b) {
			found = append(found, b)
		}
	}
	slices.SortFunc(found, Barred.compare)
	return found[:min(limit, len(found))], nil
}

// Release does what Postgres.Release does.
func (m *Memory) Release(ctx context.Context, b Barred, gap time.Duration, from, until time.Time) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.access.mu.Lock()
	defer m.access.mu.Unlock()
	now := microseconds(m.now())
	var held []*memoryRow
	for _, row := range m.rows {
		if barred(row.n.Progress) && (Barred{row.n.MerchantID, row.n.Source, row.n.Scene}) == b && !row.claim.live(now, m.gone()) {
			held = append(held, row)
		}
	}
	slices.SortFunc(held, func(a, b *memoryRow) int {
		return cmp.Or(a.n.AcceptedAt.Compare(b.n.AcceptedAt), cmp.Compare(a.n.ID.String(), b.n.ID.String()))
	})
	due := latest(microseconds(from), m.access.dueUntil[b.MerchantID])
	held = held[:min(len(held), turnsBetween(due, until, gap))]
	for _, row := range held {
		row.move(released(row.n.Progress, due, now))
		row.fed = false
		due = microseconds(due.Add(gap))
	}
	m.access.dueUntil[b.MerchantID] = due
	return len(held), nil
}
