package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"notifyd/merchant"
	"notifyd/source"
)

// memorySettings does what settingsTable does, but encrypts nothing.
type memorySettings[T any] struct {
	noun   string
	now    func() time.Time
	fields func(*T) settingsFields

	mu      sync.Mutex
	byID    map[string]*T
	version int64 // of the last change
}

func newMemorySettings[T any](noun string, now func() time.Time, fields func(*T) settingsFields) *memorySettings[T] {
	return &memorySettings[T]{noun: noun, now: now, fields: fields, byID: map[string]*T{}}
}

func (s *memorySettings[T]) put(ctx context.Context, value *T, ifVersion *int64) (*T, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stored := *value
	f := s.fields(&stored)
	var version int64
	if known := s.byID[*f.id]; known != nil {
		version = *s.fields(known).version
	}
	if ifVersion != nil && *ifVersion != version {
		return nil, fmt.Errorf("put %s %q: %w", s.noun, *f.id, ErrConflict)
	}
	s.version++
	*f.version, *f.updatedAt = s.version, microseconds(s.now())
	s.byID[*f.id] = &stored
	answer := stored
	return &answer, nil
}

func (s *memorySettings[T]) since(ctx context.Context, version int64) ([]*T, error) {
	found, err := s.find(ctx, func(f settingsFields) bool { return *f.version > version })
	slices.SortFunc(found, func(a, b *T) int { return cmp.Compare(*s.fields(a).version, *s.fields(b).version) })
	return found, err
}

func (s *memorySettings[T]) list(ctx context.Context, after string, limit int) ([]*T, error) {
	found, err := s.find(ctx, func(f settingsFields) bool { return *f.id > after })
	slices.SortFunc(found, func(a, b *T) int { return cmp.Compare(*s.fields(a).id, *s.fields(b).id) })
	return found[:min(pageAndOne(limit), len(found))], err
}

func (s *memorySettings[T]) get(ctx context.Context, id string) (*T, error) {
	found, err := s.find(ctx, func(f settingsFields) bool { return *f.id == id })
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("get %s %q: %w", s.noun, id, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func (s *memorySettings[T]) find(ctx context.Context, match func(settingsFields) bool) ([]*T, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*T
	for _, known := range s.byID {
		if match(s.fields(known)) {
			k := *known
			found = append(found, &k)
		}
	}
	return found, nil
}

// PutMerchant does what Postgres.PutMerchant does.
func (m *Memory) PutMerchant(ctx context.Context, put *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	return m.merchants.put(ctx, put, ifVersion)
}

// MerchantsSince does what Postgres.MerchantsSince does.
func (m *Memory) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	return m.merchants.since(ctx, version)
}

// ListMerchants does what Postgres.ListMerchants does.
func (m *Memory) ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error) {
	return m.merchants.list(ctx, after, limit)
}

// GetMerchant does what Postgres.GetMerchant does.
func (m *Memory) GetMerchant(ctx context.Context, id string) (*merchant.Merchant, error) {
	return m.merchants.get(ctx, id)
}

// PutSource does what Postgres.PutSource does.
func (m *Memory) PutSource(ctx context.Context, put *source.Source, ifVersion *int64) (*source.Source, error) {
	return m.sources.put(ctx, put, ifVersion)
}

// SourcesSince does what Postgres.SourcesSince does.
func (m *Memory) SourcesSince(ctx context.Context, version int64) ([]*source.Source, error) {
	return m.sources.since(ctx, version)
}

// ListSources does what Postgres.ListSources does.
func (m *Memory) ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error) {
	return m.sources.list(ctx, after, limit)
}

// GetSource does what Postgres.GetSource does.
func (m *Memory) GetSource(ctx context.Context, id string) (*source.Source, error) {
	return m.sources.get(ctx, id)
}
