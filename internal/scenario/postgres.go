package scenario

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"notifyd/internal/embedded/postgres"
	"notifyd/internal/proc"
)

// Postgres is a private Postgres for nodes of other processes.
type Postgres struct {
	URL string
	dir string
	pg  *postgres.Server
}

// StartPostgres runs one until the test ends.
func StartPostgres(tb testing.TB, dir string) *Postgres {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	p := &Postgres{dir: dir}
	p.Start(tb)
	tb.Cleanup(func() { p.Stop(tb) })
	return p
}

// Start runs it, also again after Stop or Kill, under the same URL.
func (p *Postgres) Start(tb testing.TB) {
	tb.Helper()
	pg, err := postgres.Start(context.WithoutCancel(tb.Context()), postgres.Config{Dir: p.dir, Log: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	p.pg, p.URL = pg, pg.URL()
}

// Stop ends it; more calls are harmless.
func (p *Postgres) Stop(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.pg.Stop(ctx); err != nil {
		tb.Error(err)
	}
}

// Kill ends all its processes with SIGKILL, as a crash of its machine does. It stays away until Start.
func (p *Postgres) Kill(tb testing.TB) {
	tb.Helper()
	leader := p.pg.PID()
	for _, pid := range append([]int{leader}, proc.Children(leader)...) {
		if pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // fails only if it has ended by now
		}
	}
	p.Stop(tb) // nothing is left to stop but who would start it again
}

// Socket is the target of a link before it.
func (p *Postgres) Socket(tb testing.TB) string {
	tb.Helper()
	query := p.query(tb)
	return filepath.Join(query.Get("host"), ".s.PGSQL."+query.Get("port"))
}

// Via is the URL over a link.
func (p *Postgres) Via(link *Link) string {
	return "postgres://notifyd@" + link.Addr() + "/notifyd?sslmode=disable"
}

func (p *Postgres) query(tb testing.TB) url.Values {
	tb.Helper()
	u, err := url.Parse(p.URL)
	if err != nil {
		tb.Fatal(err)
	}
	return u.Query()
}

// exhausting names the connections that Exhaust holds.
const exhausting = "exhausting"

// Exhaust takes every connection, those in use too, and holds them until release is called.
func (p *Postgres) Exhaust(tb testing.TB) (release func()) {
	tb.Helper()
	cfg, err := pgx.ParseConfig(p.URL)
	if err != nil {
		tb.Fatal(err)
	}
	cfg.RuntimeParams["application_name"] = exhausting
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	var held []*pgx.Conn
	full := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() { // its end is awaited by release
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			conn, err := pgx.ConnectConfig(ctx, cfg)
			if err == nil {
				held = append(held, conn)
				continue
			}
			if tooMany(err) && len(held) > 0 {
				n := dismiss(ctx, held[0])
				if n == 0 {
					select {
					case full <- struct{}{}:
					default:
					}
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	end := func() {
		cancel()
		<-done
		for _, conn := range held {
			_ = conn.Close(context.WithoutCancel(tb.Context()))
		}
	}
	select {
	case <-full:
	case <-time.After(startBound):
		end()
		tb.Fatal("postgres still had a connection after " + startBound.String())
	}
	return end
}

func tooMany(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "53300"
}

// dismiss ends the connections of everybody else, and returns how many there were.
func dismiss(ctx context.Context, conn *pgx.Conn) (n int) {
	const others = `select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = current_user and application_name <> $1`
	if err := conn.QueryRow(ctx, others, exhausting).Scan(&n); err != nil {
		return -1
	}
	return n
}
