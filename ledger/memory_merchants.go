package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"notifyd/merchant"
)

// PutMerchant does what Postgres.PutMerchant does, but encrypts nothing.
func (m *Memory) PutMerchant(ctx context.Context, put *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var version int64
	if known := m.merchants[put.ID]; known != nil {
		version = known.Version
	}
	if ifVersion != nil && *ifVersion != version {
		return nil, fmt.Errorf("put merchant %q: %w", put.ID, ErrConflict)
	}
	m.version++
	stored := *put
	stored.Version, stored.UpdatedAt = m.version, microseconds(m.now())
	m.merchants[put.ID] = &stored
	answer := stored
	return &answer, nil
}

// MerchantsSince does what Postgres.MerchantsSince does.
func (m *Memory) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	found, err := m.findMerchants(ctx, func(k *merchant.Merchant) bool { return k.Version > version })
	slices.SortFunc(found, func(a, b *merchant.Merchant) int { return cmp.Compare(a.Version, b.Version) })
	return found, err
}

// ListMerchants does what Postgres.ListMerchants does.
func (m *Memory) ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error) {
	found, err := m.findMerchants(ctx, func(k *merchant.Merchant) bool { return k.ID > after })
	slices.SortFunc(found, func(a, b *merchant.Merchant) int { return cmp.Compare(a.ID, b.ID) })
	return found[:min(clampPage(limit), len(found))], err
}

// GetMerchant does what Postgres.GetMerchant does.
func (m *Memory) GetMerchant(ctx context.Context, id string) (*merchant.Merchant, error) {
	found, err := m.findMerchants(ctx, func(k *merchant.Merchant) bool { return k.ID == id })
	if err == nil && len(found) == 0 {
		return nil, fmt.Errorf("get merchant %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func (m *Memory) findMerchants(ctx context.Context, match func(*merchant.Merchant) bool) ([]*merchant.Merchant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*merchant.Merchant
	for _, known := range m.merchants {
		if match(known) {
			k := *known
			found = append(found, &k)
		}
	}
	return found, nil
}
