package ledger

import (
	"context"

	"notifyd/merchant"
)

func merchantFields(m *merchant.Merchant) settingsFields {
	return settingsFields{id: &m.ID, version: &m.Version, updatedAt: &m.UpdatedAt, secrets: &m.Secrets}
}

// PutMerchant stores a merchant whole. With ifVersion it does so only if that is the version in the ledger, 0 meaning
// none at all, else ErrConflict. What it returns has the new version.
func (l *Postgres) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	return l.merchants.put(ctx, m, ifVersion)
}

// MerchantsSince are the merchants that changed after a version, in the order of their changes. It misses none.
func (l *Postgres) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	return l.merchants.since(ctx, version)
}

// ListMerchants is a page in the order of ids.
func (l *Postgres) ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error) {
	return l.merchants.list(ctx, after, limit)
}

// GetMerchant is one merchant, or ErrNotFound.
func (l *Postgres) GetMerchant(ctx context.Context, id string) (*merchant.Merchant, error) {
	return l.merchants.get(ctx, id)
}
