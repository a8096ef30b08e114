package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"notifyd/keys"
)

func keyFields(s *keys.Set) settingsFields {
	return settingsFields{id: &s.Name, version: &s.Version, updatedAt: &s.UpdatedAt, secrets: &keySecrets{s}}
}

// keySecrets are the secret parts of a set as they are sealed. Opening them also holds the open part to them: a purpose, a
// merchant or a fingerprint that somebody has changed in the database does not pass.
type keySecrets struct{ set *keys.Set }

// MarshalJSON shows everything: what comes of it is sealed at once.
func (k *keySecrets) MarshalJSON() ([]byte, error) {
	sealings, err := k.set.Sealings()
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealings)
}

// UnmarshalJSON gives the set its secret parts back.
func (k *keySecrets) UnmarshalJSON(text []byte) error {
	var sealings []keys.Sealing
	if err := json.Unmarshal(text, &sealings); err != nil {
		return err
	}
	return k.set.Restore(sealings)
}

// PutKeys stores a name's keys whole, and keeps what they were before, without what is secret. With ifVersion it does so only
// if that is the version in the ledger, 0 meaning none at all, else ErrConflict. What it returns has the new version.
func (l *Postgres) PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error) {
	return l.keys.put(ctx, s, ifVersion)
}

// KeysSince are the names whose keys changed after a version, in the order of their changes. It misses none.
func (l *Postgres) KeysSince(ctx context.Context, version int64) ([]*keys.Set, error) {
	return l.keys.since(ctx, version)
}

// KeyChange is one change of a name's keys: how they stood after it. They have no secret parts.
type KeyChange struct {
	Number int64 // grows over all names
	At     time.Time
	After  keys.Set
}

// KeyChanges is a page of the changes of a name's keys, or of all, newest first. before is the number of the last one of the
// page before; 0: the first page.
func (l *Postgres) KeyChanges(ctx context.Context, name string, before int64, limit int) ([]KeyChange, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	statement, args := `select number, changed_at, after from key_changes where ($1 = 0 or number < $1)`, []any{before, clampChanges(limit)}
	if name != "" {
		statement, args = statement+` and name = $3`, append(args, name)
	}
	rows, err := l.pool.Query(ctx, statement+` order by number desc limit $2`, args...)
	if err != nil {
		return nil, fmt.Errorf("read key changes: %w", err)
	}
	changes, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c KeyChange, err error) {
		var after string
		if err := row.Scan(&c.Number, timeOf(&c.At), &after); err != nil {
			return c, err
		}
		return c, json.Unmarshal([]byte(after), &c.After)
	})
	if err != nil {
		return nil, fmt.Errorf("read key changes: %w", err)
	}
	return changes, nil
}

// NoteExpiry keeps that somebody was told of a certificate's end so many days before it, and reports whether nobody had been:
// over all nodes and restarts one call is the first.
func (l *Postgres) NoteExpiry(ctx context.Context, e keys.Expiring, now time.Time) (first bool, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	tag, err := l.pool.Exec(ctx, `insert into key_expiries (name, version, days, noted_at) values ($1, $2, $3, $4) on conflict do nothing`,
		e.Name, e.Version, e.Within, microseconds(now))
	if err != nil {
		return false, fmt.Errorf("note expiry: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}
