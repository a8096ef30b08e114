package ledger

import (
	"context"
	"slices"
	"sync"
	"time"

	"notifyd/keys"
)

// memoryKeys is the keys, their changes, and who was told of ends.
type memoryKeys struct {
	sets *memorySettings[keys.Set]

	mu      sync.Mutex
	changes []KeyChange
	told    map[keys.Expiring]bool
}

func newMemoryKeys(now func() time.Time) *memoryKeys {
	return &memoryKeys{sets: newMemorySettings("key", now, keyFields), told: map[keys.Expiring]bool{}}
}

// PutKeys does what Postgres.PutKeys does.
func (m *Memory) PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error) {
	m.keys.mu.Lock()
	defer m.keys.mu.Unlock()
	stored, err := m.keys.sets.put(ctx, s, ifVersion)
	if err != nil {
		return nil, err
	}
	after := *stored
	after.Version, after.UpdatedAt, after.Keys = 0, time.Time{}, slices.Clone(stored.Keys)
	for i := range after.Keys { // what is kept of a change is what was open, without what is the set's
		k := &after.Keys[i]
		k.Name, k.Purpose, k.MerchantID, k.Material = "", "", "", keys.Material{}
	}
	m.keys.changes = append(m.keys.changes, KeyChange{Number: int64(len(m.keys.changes)) + 1, At: stored.UpdatedAt, After: after})
	return stored, nil
}

// KeysSince does what Postgres.KeysSince does.
func (m *Memory) KeysSince(ctx context.Context, version int64) ([]*keys.Set, error) {
	return m.keys.sets.since(ctx, version)
}

// KeyChanges does what Postgres.KeyChanges does.
func (m *Memory) KeyChanges(ctx context.Context, name string, before int64, limit int) ([]KeyChange, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.keys.mu.Lock()
	defer m.keys.mu.Unlock()
	var found []KeyChange
	for _, c := range slices.Backward(m.keys.changes) {
		if len(found) < clampChanges(limit) && (before == 0 || c.Number < before) && (name == "" || c.After.Name == name) {
			found = append(found, c)
		}
	}
	return found, nil
}

// NoteExpiry does what Postgres.NoteExpiry does.
func (m *Memory) NoteExpiry(ctx context.Context, e keys.Expiring, _ time.Time) (first bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.keys.mu.Lock()
	defer m.keys.mu.Unlock()
	e.NotAfter = time.Time{}
	first = !m.keys.told[e]
	m.keys.told[e] = true
	return first, nil
}
