package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// settingsTable is a table of what operators set: one row for each merchant, each source, each rule of access, or each name of keys. A row is JSON, with the secrets
// sealed beside it, and a version that grows with every change in the table.
type settingsTable[T any] struct {
	ledger *Postgres
	noun   string // names the table, its sequence and the place of sealed secrets
	lock   int64  // the advisory lock of changes
	fields func(*T) settingsFields
}

// settingsFields are the fields that stand in columns of their own.
type settingsFields struct {
	id        *string
	version   *int64
	updatedAt *time.Time
	secrets   any // a pointer
}

// put stores one whole. With ifVersion it does so only if that is the version in the ledger, 0 meaning none at all, else
// ErrConflict. What it returns has the new version.
func (s *settingsTable[T]) put(ctx context.Context, value *T, ifVersion *int64) (*T, error) {
	stored := *value
	f := s.fields(&stored)
	text, sealed, err := s.seal(&stored)
	if err != nil {
		return nil, fmt.Errorf("put %s %q: %w", s.noun, *f.id, err)
	}
	*f.updatedAt = microseconds(s.ledger.now())
	ctx, cancel := s.ledger.bounded(ctx)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.ledger.pool, func(tx pgx.Tx) error {
		// One change at a time, until it is visible: whoever asks for versions above the last one seen misses none.
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, s.lock); err != nil {
			return err
		}
		var version int64
		err := tx.QueryRow(ctx, `select version from `+s.noun+`s where id = $1`, *f.id).Scan(&version)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if ifVersion != nil && *ifVersion != version {
			return ErrConflict
		}
		return tx.QueryRow(ctx, `insert into `+s.noun+`s (id, version, updated_at, settings, secrets)
			values ($1, nextval('`+s.noun+`_versions'), $2, $3, $4)
			on conflict (id) do update set version = excluded.version, updated_at = excluded.updated_at,
				settings = excluded.settings, secrets = excluded.secrets
			returning version`, *f.id, *f.updatedAt, text, sealed).Scan(f.version)
	})
	if err != nil {
		return nil, fmt.Errorf("put %s %q: %w", s.noun, *f.id, err)
	}
	return &stored, nil
}

// since are those that changed after a version, in the order of their changes. It misses none.
func (s *settingsTable[T]) since(ctx context.Context, version int64) ([]*T, error) {
	return s.read(ctx, `where version > $1 order by version`, version)
}

// list is a page in the order of ids.
func (s *settingsTable[T]) list(ctx context.Context, after string, limit int) ([]*T, error) {
	return s.read(ctx, `where id collate "C" > $1 order by id collate "C" limit $2`, after, pageAndOne(limit))
}

// get is one, or ErrNotFound.
func (s *settingsTable[T]) get(ctx context.Context, id string) (*T, error) {
	found, err := s.read(ctx, `where id = $1`, id)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("get %s %q: %w", s.noun, id, ErrNotFound)
	}
	return found[0], nil
}

func (s *settingsTable[T]) read(ctx context.Context, where string, args ...any) ([]*T, error) {
	ctx, cancel := s.ledger.bounded(ctx)
	defer cancel()
	found, err := s.stored(ctx, s.ledger.pool, where, args...)
	if err != nil {
		return nil, fmt.Errorf("read %ss: %w", s.noun, err)
	}
	opened, err := s.openAll(found)
	if err != nil {
		return nil, fmt.Errorf("read %ss: %w", s.noun, err)
	}
	return opened, nil
}

// storedSettings is a row as it is, its secrets sealed.
type storedSettings struct {
	ID        string    `json:"id"`
	Version   int64     `json:"version"`
	UpdatedAt time.Time `json:"updated_at"`
	Settings  string    `json:"settings"` // JSON without secrets
	Secrets   []byte    `json:"secrets"`
}

func (s *settingsTable[T]) stored(ctx context.Context, q querier, where string, args ...any) ([]storedSettings, error) {
	rows, err := q.Query(ctx, `select id, version, updated_at, settings, secrets from `+s.noun+`s `+where, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r storedSettings, err error) {
		return r, row.Scan(&r.ID, &r.Version, timeOf(&r.UpdatedAt), &r.Settings, &r.Secrets)
	})
}

// place binds sealed secrets to their row.
func (s *settingsTable[T]) place(id string) []byte { return []byte(s.noun + "/" + id + "/secrets") }

func (s *settingsTable[T]) seal(value *T) (text string, sealed []byte, err error) {
	f := s.fields(value)
	plain, err := json.Marshal(value)
	if err != nil {
		return "", nil, err
	}
	secrets, err := json.Marshal(f.secrets)
	if err != nil {
		return "", nil, err
	}
	sealed, err = s.ledger.cfg.Keys.Seal(secrets, s.place(*f.id))
	return string(plain), sealed, err
}

func (s *settingsTable[T]) openAll(rows []storedSettings) ([]*T, error) {
	opened := make([]*T, len(rows))
	for i, r := range rows {
		value, err := s.open(r)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", s.noun, r.ID, err)
		}
		opened[i] = value
	}
	return opened, nil
}

func (s *settingsTable[T]) open(r storedSettings) (*T, error) {
	value := new(T)
	if err := json.Unmarshal([]byte(r.Settings), value); err != nil {
		return nil, err
	}
	secrets, err := s.ledger.cfg.Keys.Open(r.Secrets, s.place(r.ID))
	if err != nil {
		return nil, err
	}
	f := s.fields(value)
	if err := json.Unmarshal(secrets, f.secrets); err != nil {
		return nil, errors.New("the secrets are damaged") // the cause could quote them
	}
	*f.id, *f.version, *f.updatedAt = r.ID, r.Version, r.UpdatedAt
	return value, nil
}
