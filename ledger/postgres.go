package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"notifyd/access"
	"notifyd/keys"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/source"
)

const (
	maintenanceEvery = time.Hour

	connectTimeout = 5 * time.Second
	pingTimeout    = 2 * time.Second  // of a connection that was idle, before it is used
	upkeepTimeout  = time.Minute      // of a statement that nobody waits for
	migrateTimeout = 15 * time.Minute // waiting for other nodes that migrate included
)

// Postgres is the ledger. Its methods are safe for use from many goroutines.
type Postgres struct {
	cfg  Config
	log  *zap.Logger
	now  func() time.Time
	pool *pgxpool.Pool

	merchants    settingsTable[merchant.Merchant]
	sources      settingsTable[source.Source]
	access       settingsTable[access.Rule]
	keys         settingsTable[keys.Set]
	reservations *asks[Reservation, Reserved]
	claims       *asks[Claim, claimAnswer]
	lines        *asks[*notification.Notification, Lined]
	writers      *writers
	searches     *semaphore.Weighted // those under way: the other connections are for what payments wait for

	process  string      // names this one among those that hold master keys
	prepared atomic.Bool // the schema is this version's, and the master key the right one
	answered signal      // whenever Postgres answers a Ping

	daysMu sync.Mutex
	days   map[time.Time]bool // that have a partition, as far as known
}

// Open connects, migrates the schema and makes the partitions of the coming days. With Config.LateStart it succeeds also
// while Postgres is away: until Run has caught up, records wait and everything else fails as Unavailable.
func Open(ctx context.Context, cfg Config) (*Postgres, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := CheckURL(cfg.URL); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	settings, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, errURL
	}
	settings.MaxConns = int32(cfg.MaxConns) //nolint:gosec // bounded by Validate in any sane use
	settings.ConnConfig.ConnectTimeout = or(settings.ConnConfig.ConnectTimeout, connectTimeout)
	settings.PingTimeout = or(settings.PingTimeout, pingTimeout)
	// A connection that was cut off ends by itself, whatever waits for it; and its session, with all that it has locked.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}}
	settings.ConnConfig.DialFunc = dialer.DialContext
	maps.Copy(settings.ConnConfig.RuntimeParams, map[string]string{
		"idle_in_transaction_session_timeout": "10s",
		"tcp_keepalives_idle":                 "10",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "3",
		"tcp_user_timeout":                    "30s",

		"application_name":    "notifyd",
		"timezone":            "UTC",
		"client_min_messages": "warning",
		"random_page_cost":    "1.1", // without it a few hundred lookups look dearer than reading a whole day
		"enable_seqscan":      "off", // a plan made while a day was empty must not last until it is full
		"jit":                 "off", // costs more than these short statements
	})
	l := &Postgres{cfg: cfg, log: cfg.Log, now: cfg.Now, process: rand.Text(), days: map[time.Time]bool{}}
	settings.PrepareConn = l.admit
	if l.pool, err = pgxpool.NewWithConfig(ctx, settings); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l.reservations = newAsks(cfg.BatchRows, cfg.ReserveTimeout, max(cfg.Linger, 0), l.reserve)
	l.claims = newAsks(cfg.BatchRows, claimTimeout, 0, l.claim)
	l.lines = newAsks(cfg.BatchRows, cfg.ReserveTimeout, 0, l.lineUp)
	l.searches = semaphore.NewWeighted(int64(max(1, cfg.MaxConns/4)))
	l.writers = newWriters(l)
	l.merchants = settingsTable[merchant.Merchant]{l, "merchant", lockMerchants, merchantFields}
	l.sources = settingsTable[source.Source]{l, "source", lockSources, sourceFields}
	l.access = settingsTable[access.Rule]{l, "access_rule", lockAccess, accessFields}
	l.keys = settingsTable[keys.Set]{l, "key", lockKeys, keyFields}
	if err := l.prepare(ctx); err != nil {
		if cfg.LateStart && Away(err) {
			l.log.Warn("postgres is away; starting without it", zap.Error(err))
			return l, nil
		}
		l.pool.Close()
		return nil, err
	}
	return l, nil
}

var errURL = errors.New("must be a URL or a list of settings that libpq can read; files that it names must be there")

// CheckURL says whether the url of a database can be read, without quoting it: it may hold a password.
func CheckURL(raw string) error {
	if _, err := pgxpool.ParseConfig(raw); err != nil {
		return errURL
	}
	return nil
}

type preparing struct{}

// admit lets nobody at the tables before they are this version's.
func (l *Postgres) admit(ctx context.Context, _ *pgx.Conn) (bool, error) {
	if l.prepared.Load() || ctx.Value(preparing{}) != nil {
		return true, nil
	}
	return true, fmt.Errorf("%w: its schema is not prepared yet", ErrAway)
}

// bounded ends what would hang with a Postgres that does not answer.
func (l *Postgres) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.cfg.StatementTimeout)
}

// gone are the runs whose claims have lapsed; never nil, which SQL takes for not knowing.
func (l *Postgres) gone() []string { return append([]string{}, l.cfg.Gone()...) }

// prepare makes the schema and the partitions that writers need.
func (l *Postgres) prepare(ctx context.Context) error {
	ctx = context.WithValue(ctx, preparing{}, true)
	if err := l.Ping(ctx); err != nil {
		return err
	}
	if err := l.migrate(ctx); err != nil {
		return err
	}
	if err := l.checkMasterKey(ctx); err != nil {
		return err
	}
	today := dayOf(l.now())
	var days []time.Time
	for offset := -1; offset <= partitionsAhead; offset++ {
		days = append(days, today.AddDate(0, 0, offset))
	}
	if err := l.makePartitions(ctx, days); err != nil {
		return err
	}
	l.prepared.Store(true)
	return nil
}

// prepareLate prepares after a late start, until it succeeds or ctx ends. With another master key it never would.
func (l *Postgres) prepareLate(ctx context.Context) error {
	backoff := newBackoff()
	for !l.prepared.Load() {
		err := l.prepare(ctx)
		if errors.Is(err, ErrOtherMasterKey) {
			return err
		}
		if err != nil {
			if ctx.Err() == nil {
				l.log.Warn("the ledger waits for postgres", zap.Error(err))
			}
			if !backoff.wait(ctx) {
				return nil
			}
		}
	}
	return nil
}

// Run writes what is recorded and maintains the partitions until ctx ends. Then it takes nothing more, writes what was
// submitted for up to Config.Drain, and returns; whatever could not be written has been told so. It fails when a late start
// finds a database of another master key.
func (l *Postgres) Run(ctx context.Context) error {
	if err := l.prepareLate(ctx); err != nil {
		return err
	}
	var group errgroup.Group
	group.Go(func() error { return l.writers.run(ctx) })
	group.Go(func() error { l.keepMasterKey(ctx); return nil })
	if !l.cfg.LeaveUpkeep {
		group.Go(func() error { l.maintain(ctx); return nil })
	}
	return group.Wait()
}

// maintain keeps the partitions and their indexes until ctx ends. Writers make what they miss, so a failure can wait an hour.
func (l *Postgres) maintain(ctx context.Context) {
	ticker := time.NewTicker(maintenanceEvery)
	defer ticker.Stop()
	for {
		if err := l.MaintainPartitions(ctx, l.now()); err != nil && ctx.Err() == nil {
			l.log.Error("partitions could not be maintained", zap.Error(err))
		}
		if err := l.BuildIndexes(ctx); err != nil && ctx.Err() == nil {
			l.log.Error("indexes could not be built; searches are slower meanwhile", zap.Error(err))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Ping reports whether Postgres answers. When it does, writers that were waiting for it try again at once.
func (l *Postgres) Ping(ctx context.Context) error {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	if err := l.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping ledger: %w", err)
	}
	l.answered.send()
	return nil
}

// Close ends the ledger after Run has returned: it waits for the group commits in hand and closes the connections.
func (l *Postgres) Close() {
	l.writers.close()
	l.reservations.Wait()
	l.claims.Wait()
	l.lines.Wait()
	l.pool.Close()
}

func idsOf[T any](items []T, id func(T) notification.ID) [][16]byte {
	out := make([][16]byte, len(items))
	for i, item := range items {
		out[i] = id(item)
	}
	return out
}
