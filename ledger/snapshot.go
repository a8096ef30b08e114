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

	"notifyd/access"
	"notifyd/keys"
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
	Access    []storedSettings `json:"access"`
	Keys      []storedSettings `json:"keys"`
}

var snapshotPlace = []byte("settings snapshot")

// Settings are what operators have set, in the order of versions.
type Settings struct {
	Merchants []*merchant.Merchant
	Sources   []*source.Source
	Access    []*access.Rule
	Keys      []*keys.Set
}

// SaveSettings writes the merchants, the sources, the rules of access and the keys, secrets still sealed, to a file that LoadSettings reads. The file
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

// storedSettings reads the tables as they were at one moment.
func (l *Postgres) storedSettings(ctx context.Context) (s snapshotSettings, err error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if s.Merchants, err = l.merchants.stored(ctx, tx, `order by version`); err != nil {
			return err
		}
		if s.Sources, err = l.sources.stored(ctx, tx, `order by version`); err != nil {
			return err
		}
		if s.Access, err = l.access.stored(ctx, tx, `order by version`); err != nil {
			return err
		}
		s.Keys, err = l.keys.stored(ctx, tx, `order by version`)
		return err
	})
	return s, err
}

// LoadSettings reads what SaveSettings wrote. It asks nobody. Without the file the error is
// os.ErrNotExist; one that is damaged, or was written under another master key, is refused whole.
func (l *Postgres) LoadSettings(path string) (Settings, error) {
	content, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return Settings{}, fmt.Errorf("load settings: %w", err)
	}
	settings, err := l.openSnapshot(content)
	if err != nil {
		return Settings{}, fmt.Errorf("load settings: %s: %w", path, err)
	}
	return settings, nil
}

func (l *Postgres) openSnapshot(content []byte) (opened Settings, _ error) {
	var file snapshotFile
	if err := json.Unmarshal(content, &file); err != nil {
		return opened, fmt.Errorf("damaged: %w", err)
	}
	if file.Format != snapshotFormat {
		return opened, fmt.Errorf("format is %d, want %d", file.Format, snapshotFormat)
	}
	digest, err := l.cfg.Keys.Open(file.Seal, snapshotPlace)
	if err != nil {
		return opened, err
	}
	if actual := sha256.Sum256(file.Settings); !bytes.Equal(digest, actual[:]) {
		return opened, errors.New("damaged: the settings are not those that were sealed")
	}
	var settings snapshotSettings
	if err := json.Unmarshal(file.Settings, &settings); err != nil {
		return opened, fmt.Errorf("damaged: %w", err)
	}
	if opened.Merchants, err = l.merchants.openAll(settings.Merchants); err != nil {
		return opened, err
	}
	if opened.Sources, err = l.sources.openAll(settings.Sources); err != nil {
		return opened, err
	}
	if opened.Access, err = l.access.openAll(settings.Access); err != nil {
		return opened, err
	}
	opened.Keys, err = l.keys.openAll(settings.Keys)
	return opened, err
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
