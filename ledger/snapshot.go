package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"notifyd/merchant"
	"notifyd/source"
)

// snapshotFormat is raised by whoever changes what a snapshot's file means.
const snapshotFormat = 1

// snapshotFile is the settings as they are in the ledger, for a start without Postgres. Seal holds the digest of Settings,
// sealed: nobody without the master key can change where merchants are told.
type snapshotFile struct {
	Format   int             `json:"format"`
	Seal     []byte          `json:"seal"`
	Settings json.RawMessage `json:"settings"`
}

type snapshotSettings struct {
	Merchants []storedSettings `json:"merchants"`
	Sources   []storedSettings `json:"sources"`
}

var snapshotPlace = []byte("settings snapshot")

// SaveSettings writes the merchants and sources, their secrets still sealed, to a file that LoadSettings reads. The file
// is replaced whole or not at all, and durable when it returns.
func (l *Postgres) SaveSettings(ctx context.Context, path string) error {
	settings, err := l.storedSettings(ctx)
	if err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	digest := sha256.Sum256(text)
	seal, err := l.cfg.Keys.Seal(digest[:], snapshotPlace)
	if err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	content, err := json.Marshal(snapshotFile{snapshotFormat, seal, text})
	if err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	if err := replaceFile(path, content); err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	return nil
}

// storedSettings reads both tables as they were at one moment.
func (l *Postgres) storedSettings(ctx context.Context) (s snapshotSettings, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if s.Merchants, err = l.merchants.stored(ctx, tx, `order by version`); err != nil {
			return err
		}
		s.Sources, err = l.sources.stored(ctx, tx, `order by version`)
		return err
	})
	return s, err
}

// LoadSettings reads what SaveSettings wrote, in the order of versions. It asks nobody. Without the file the error is
// os.ErrNotExist; one that is damaged, or was written under another master key, is refused whole.
func (l *Postgres) LoadSettings(path string) ([]*merchant.Merchant, []*source.Source, error) {
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, nil, fmt.Errorf("load settings: %w", err)
	}
	merchants, sources, err := l.openSnapshot(content)
	if err != nil {
		return nil, nil, fmt.Errorf("load settings: %s: %w", path, err)
	}
	return merchants, sources, nil
}

func (l *Postgres) openSnapshot(content []byte) ([]*merchant.Merchant, []*source.Source, error) {
	var file snapshotFile
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, nil, fmt.Errorf("damaged: %w", err)
	}
	if file.Format != snapshotFormat {
		return nil, nil, fmt.Errorf("format is %d, want %d", file.Format, snapshotFormat)
	}
	digest, err := l.cfg.Keys.Open(file.Seal, snapshotPlace)
	if err != nil {
		return nil, nil, err
	}
	if actual := sha256.Sum256(file.Settings); !bytes.Equal(digest, actual[:]) {
		return nil, nil, errors.New("damaged: the settings are not those that were sealed")
	}
	var settings snapshotSettings
	if err := json.Unmarshal(file.Settings, &settings); err != nil {
		return nil, nil, fmt.Errorf("damaged: %w", err)
	}
	merchants, err := l.merchants.openAll(settings.Merchants)
	if err != nil {
		return nil, nil, err
	}
	sources, err := l.sources.openAll(settings.Sources)
	return merchants, sources, err
}

// replaceFile makes a file appear whole and durable, in the place of the one before. Nobody but its owner may read it.
func replaceFile(path string, content []byte) (err error) {
	temp, err := writeTemp(filepath.Dir(path), ".settings-*", content)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(path))
}
