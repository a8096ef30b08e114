package ledger

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// Defaults of Config.
const (
	DefaultMaxConns   = 8
	DefaultWriters    = 1
	DefaultBatchRows  = 1000
	DefaultLinger     = 2 * time.Millisecond
	DefaultRetention  = 30 * 24 * time.Hour
	DefaultWindow     = 10 * time.Minute
	DefaultDrain      = 10 * time.Second
	DefaultQueueBytes = 64 << 20
	// DefaultSearchTimeout is ten times what a search over ten million notifications is meant to take.
	DefaultSearchTimeout = 3 * time.Second
	// DefaultReserveTimeout is short: a payment service waits, which must hear of an outage while it can still do something.
	DefaultReserveTimeout = 3 * time.Second
	// DefaultStatementTimeout is far above what any statement takes that somebody waits for.
	DefaultStatementTimeout = 10 * time.Second
	// DefaultBatchTimeout leaves a slow disk the time for a full batch.
	DefaultBatchTimeout = 30 * time.Second
)

// Config is what a Postgres ledger needs to know. Zero values have the defaults above.
type Config struct {
	URL       string // of the database, in any form that libpq knows
	MaxConns  int    // at least Writers + 2
	Writers   int    // goroutines that write records, each one batch at a time
	BatchRows int    // records in one batch, reservations in one statement
	// Linger is how long a small batch waits for company: if nobody waits for anything in it patientTimes as long, else only
	// while others come, too. Negative: not at all. A transaction costs as much as ten records.
	Linger    time.Duration
	Retention time.Duration // whole days older than this are dropped, unless something in them is unfinished
	// Window is how far ahead the engine itself schedules: what is due within it when it is written counts as fed.
	Window time.Duration
	// Drain is how long Run goes on writing what was submitted after its context has ended.
	Drain time.Duration
	// QueueBytes bounds the memory of submitted records; Record blocks above it.
	QueueBytes int64
	// LeaveUpkeep leaves old days and the partitions of coming ones to other nodes; writers make what they miss.
	LeaveUpkeep bool
	// SearchTimeout ends a statement of List or Batch that finds too little among too much: ErrTooLong. Waiting until
	// fewer than a quarter of MaxConns search is part of it: ErrBusy.
	SearchTimeout time.Duration
	// ReserveTimeout is the longest that a Reserve waits for Postgres. It may take effect nevertheless.
	ReserveTimeout time.Duration
	// StatementTimeout is the longest that everything else waits for Postgres which somebody waits for: a connection that was
	// cut off is given up after it.
	StatementTimeout time.Duration
	// BatchTimeout is the longest that writers wait for a batch. Then it is written again, in halves.
	BatchTimeout time.Duration
	// LateStart lets Open succeed while Postgres cannot be reached: Run migrates as soon as it can.
	LateStart bool

	// Gone names the runs of nodes that are known to have ended: their claims have lapsed. It is asked for every claim and
	// must not wait. Nil: nobody is known to have.
	Gone func() []string

	Keys Cipher // seals the merchants' secrets
	Log  *zap.Logger
	Now  func() time.Time
}

// Validate says what is wrong with the settings.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.URL == "" {
		wrong("url is empty")
	}
	if c.Writers < 1 || c.Writers > 64 {
		wrong("writers is %d, want 1 to 64", c.Writers)
	}
	if c.MaxConns < c.Writers+2 {
		wrong("max_conns is %d, want at least %d: one for each writer and two for everything else", c.MaxConns, c.Writers+2)
	}
	if c.BatchRows < 1 || c.BatchRows > 10_000 {
		wrong("batch_rows is %d, want 1 to 10000", c.BatchRows)
	}
	if c.Linger > time.Second {
		wrong("linger is %s, want at most 1s", c.Linger)
	}
	if c.Retention < 24*time.Hour {
		wrong("retention is %s, want at least 24h", c.Retention)
	}
	if c.Window < 0 {
		wrong("window is %s, want no negative one", c.Window)
	}
	if c.QueueBytes < 1<<20 {
		wrong("queue_bytes is %d, want at least 1 MiB", c.QueueBytes)
	}
	if c.SearchTimeout < time.Millisecond {
		wrong("search_timeout is %s, want at least 1ms", c.SearchTimeout)
	}
	if c.ReserveTimeout < time.Millisecond {
		wrong("reserve_timeout is %s, want at least 1ms", c.ReserveTimeout)
	}
	if c.StatementTimeout < time.Millisecond {
		wrong("statement_timeout is %s, want at least 1ms", c.StatementTimeout)
	}
	if c.BatchTimeout < time.Millisecond {
		wrong("batch_timeout is %s, want at least 1ms", c.BatchTimeout)
	}
	if !c.Keys.usable() {
		wrong("keys are missing: merchants' secrets could not be encrypted")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("check ledger settings: %w", err)
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.Writers = or(c.Writers, DefaultWriters)
	c.MaxConns = or(c.MaxConns, max(DefaultMaxConns, c.Writers+2))
	c.BatchRows = or(c.BatchRows, DefaultBatchRows)
	c.Linger = or(c.Linger, DefaultLinger)
	c.Retention = or(c.Retention, DefaultRetention)
	c.Window = or(c.Window, DefaultWindow)
	c.Drain = or(c.Drain, DefaultDrain)
	c.QueueBytes = or(c.QueueBytes, DefaultQueueBytes)
	c.SearchTimeout = or(c.SearchTimeout, DefaultSearchTimeout)
	c.ReserveTimeout = or(c.ReserveTimeout, DefaultReserveTimeout)
	c.StatementTimeout = or(c.StatementTimeout, DefaultStatementTimeout)
	c.BatchTimeout = or(c.BatchTimeout, DefaultBatchTimeout)
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Gone == nil {
		c.Gone = func() []string { return nil }
	}
	return c
}

func or[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
