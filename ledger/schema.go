package ledger

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"go.uber.org/zap"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the schema up to date. Of several nodes that start at once one does it, under an advisory lock of its
// session, while the others wait.
func (l *Postgres) migrate(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("migrate ledger: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // looks every second, for five minutes
	if err != nil {
		return fmt.Errorf("migrate ledger: %w", err)
	}
	db := stdlib.OpenDBFromPool(l.pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("migrate ledger: %w", err)
	}
	pause := newBackoff()
	for try := 1; ; try++ {
		_, err := provider.Up(ctx)
		if err == nil {
			return nil
		}
		if !isLockFault(err) || try == migrateTries {
			return fmt.Errorf("migrate ledger: %w", err)
		}
		l.log.Warn("a migration waits for nodes that are writing", zap.Int("try", try), zap.Error(err))
		if !pause.wait(ctx) {
			return fmt.Errorf("migrate ledger: %w", err)
		}
	}
}

// migrateTries is how often a migration asks for its locks: nodes that are writing come first, and a transaction that
// holds them for long may be somebody's backup.
const migrateTries = 20
