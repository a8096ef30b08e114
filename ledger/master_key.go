package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrOtherMasterKey says that what is sealed in this database cannot be opened with the master key of this process.
var ErrOtherMasterKey = errors.New("the database was written under another master key: nodes that share it share the key")

const masterKeyWord = "notifyd"

// checkMasterKey keeps a node with another key from writing secrets that the others could not read. The first node to
// come leaves the word that all others open.
func (l *Postgres) checkMasterKey(ctx context.Context) error {
	place := []byte("master key check")
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	var sealed []byte
	err := l.pool.QueryRow(ctx, `select sealed from master_key_check`).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		sealed, err = l.leaveMasterKeyWord(ctx, place)
	}
	if err != nil {
		return fmt.Errorf("check master key: %w", err)
	}
	if got, err := l.cfg.Keys.Open(sealed, place); err != nil || string(got) != masterKeyWord {
		return ErrOtherMasterKey
	}
	return nil
}

// leaveMasterKeyWord is for the first node, and for a database from before the word: its merchants must open.
func (l *Postgres) leaveMasterKeyWord(ctx context.Context, place []byte) (sealed []byte, err error) {
	if _, err := l.merchants.read(ctx, `order by id limit 1`); errors.Is(err, errNotOpened) {
		return nil, errors.Join(ErrOtherMasterKey, err)
	} else if err != nil {
		return nil, err
	}
	if sealed, err = l.cfg.Keys.Seal([]byte(masterKeyWord), place); err != nil {
		return nil, err
	}
	if _, err := l.pool.Exec(ctx, `insert into master_key_check (sealed) values ($1) on conflict do nothing`, sealed); err != nil {
		return nil, err
	}
	err = l.pool.QueryRow(ctx, `select sealed from master_key_check`).Scan(&sealed) // another node may have been first
	return sealed, err
}
