package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	readyPoll = 10 * time.Millisecond

	// SQLSTATEs of a server that answers.
	noSuchRole     = "28000"
	noSuchDatabase = "3D000"
)

// connectionURL is for pgx. The host goes into the query: a path is no host name.
func connectionURL(user, database, socketFolder string) string {
	query := url.Values{"host": {socketFolder}, "port": {port}, "sslmode": {"disable"}}
	// pgx takes a plus sign for itself, not for a space.
	encoded := strings.ReplaceAll(query.Encode(), "+", "%20")
	u := url.URL{Scheme: "postgres", User: url.User(user), Path: "/" + database, RawQuery: encoded}
	return u.String()
}

// awaitReady returns when the engine's own role has reached its own database,
// both of which it makes when they are missing. It ends early with the process.
func awaitReady(ctx context.Context, p *process, socketFolder string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready within %s", limit))
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := tryConnect(ctx, connectionURL(roleName, databaseName, socketFolder))
		var answer *pgconn.PgError
		if errors.As(err, &answer) && (answer.Code == noSuchRole || answer.Code == noSuchDatabase) {
			if err := createDatabase(ctx, socketFolder); err != nil {
				return err
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("await postgres: the postmaster ended: %w", asError(p.err))
		case <-ctx.Done():
			return fmt.Errorf("await postgres: %w: last answer: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func tryConnect(ctx context.Context, target string) error {
	conn, err := pgx.Connect(ctx, target)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// createDatabase makes what is missing, so that it can be repeated after a crash
// in its midst. The role is no superuser: what a forged statement could reach is
// the engine's own tables, not files and programs.
func createDatabase(ctx context.Context, socketFolder string) (err error) {
	conn, err := pgx.Connect(ctx, connectionURL(adminName, adminName, socketFolder))
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	steps := []struct{ missing, create string }{
		{
			`SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '` + roleName + `')`,
			`BEGIN; CREATE ROLE ` + roleName + ` LOGIN CREATEDB; GRANT pg_monitor TO ` + roleName + `; COMMIT`,
		},
		{
			`SELECT NOT EXISTS (SELECT FROM pg_database WHERE datname = '` + databaseName + `')`,
			`CREATE DATABASE ` + databaseName + ` OWNER ` + roleName,
		},
	}
	for _, step := range steps {
		var missing bool
		if err := conn.QueryRow(ctx, step.missing).Scan(&missing); err != nil {
			return fmt.Errorf("create database: %w", err)
		}
		if !missing {
			continue
		}
		if _, err := conn.Exec(ctx, step.create); err != nil {
			return fmt.Errorf("create database: %w", err)
		}
	}
	return nil
}

// asError gives an end without an error (exit status 0) a name.
func asError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// failure adds what the postmaster itself said to an error.
func failure(err error, log *os.File, offset int64) error {
	if said := quoted(logSince(log, offset)); said != "" {
		return fmt.Errorf("%w: postgres says%s", err, said)
	}
	return err
}
