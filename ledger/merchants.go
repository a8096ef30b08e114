package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/merchant"
)

// PutMerchant stores a merchant whole. With ifVersion it does so only if that is the version in the ledger, 0 meaning
// none at all, else ErrConflict. What it returns has the new version.
func (l *Postgres) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	settings, sealed, err := l.sealMerchant(m)
	if err != nil {
		return nil, fmt.Errorf("put merchant %q: %w", m.ID, err)
	}
	stored := *m
	stored.UpdatedAt = microseconds(l.now())
	err = pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		// One change at a time, until it is visible: whoever asks for versions above the last one seen misses none.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lockMerchants); err != nil {
			return err
		}
		var version int64
		err := tx.QueryRow(ctx, `select version from merchants where id = $1`, m.ID).Scan(&version)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if ifVersion != nil && *ifVersion != version {
			return ErrConflict
		}
		return tx.QueryRow(ctx, `insert into merchants (id, version, updated_at, settings, secrets)
			values ($1, nextval('merchant_versions'), $2, $3, $4)
			on conflict (id) do update set version = excluded.version, updated_at = excluded.updated_at,
				settings = excluded.settings, secrets = excluded.secrets
			returning version`, m.ID, stored.UpdatedAt, settings, sealed).Scan(&stored.Version)
	})
	if err != nil {
		return nil, fmt.Errorf("put merchant %q: %w", m.ID, err)
	}
	return &stored, nil
}

// MerchantsSince are the merchants that changed after a version, in the order of their changes. It misses none.
func (l *Postgres) MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error) {
	return l.merchants(ctx, `where version > $1 order by version`, version)
}

// ListMerchants is a page in the order of ids.
func (l *Postgres) ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error) {
	return l.merchants(ctx, `where id collate "C" > $1 order by id collate "C" limit $2`, after, clampPage(limit))
}

// GetMerchant is one merchant, or ErrNotFound.
func (l *Postgres) GetMerchant(ctx context.Context, id string) (*merchant.Merchant, error) {
	found, err := l.merchants(ctx, `where id = $1`, id)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("get merchant %q: %w", id, ErrNotFound)
	}
	return found[0], nil
}

func (l *Postgres) merchants(ctx context.Context, where string, args ...any) ([]*merchant.Merchant, error) {
	rows, err := l.pool.Query(ctx, `select id, version, updated_at, settings, secrets from merchants `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read merchants: %w", err)
	}
	found, err := pgx.CollectRows(rows, l.openMerchant)
	if err != nil {
		return nil, fmt.Errorf("read merchants: %w", err)
	}
	return found, nil
}

// secretsPlace binds sealed secrets to their merchant.
func secretsPlace(id string) []byte { return []byte("merchant/" + id + "/secrets") }

func (l *Postgres) sealMerchant(m *merchant.Merchant) (settings string, sealed []byte, err error) {
	text, err := json.Marshal(m)
	if err != nil {
		return "", nil, err
	}
	secrets, err := json.Marshal(m.Secrets)
	if err != nil {
		return "", nil, err
	}
	sealed, err = l.cfg.Keys.Seal(secrets, secretsPlace(m.ID))
	return string(text), sealed, err
}

func (l *Postgres) openMerchant(row pgx.CollectableRow) (*merchant.Merchant, error) {
	var id, settings string
	var version int64
	var updatedAt time.Time
	var sealed []byte
	if err := row.Scan(&id, &version, timeOf(&updatedAt), &settings, &sealed); err != nil {
		return nil, err
	}
	m := &merchant.Merchant{}
	if err := json.Unmarshal([]byte(settings), m); err != nil {
		return nil, fmt.Errorf("merchant %q: %w", id, err)
	}
	secrets, err := l.cfg.Keys.Open(sealed, secretsPlace(id))
	if err != nil {
		return nil, fmt.Errorf("merchant %q: %w", id, err)
	}
	if err := json.Unmarshal(secrets, &m.Secrets); err != nil {
		return nil, fmt.Errorf("merchant %q: the secrets are damaged", id) // the cause could quote them
	}
	m.ID, m.Version, m.UpdatedAt = id, version, updatedAt
	return m, nil
}
