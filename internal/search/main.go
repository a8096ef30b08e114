// Command search measures how long a full ledger takes to answer: it fills one with made-up notifications, asks it what
// operators and payment services ask, and prints how long the answers took and what a written row costs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/embedded/postgres"
	"notifyd/internal/search/fill"
	"notifyd/ledger"
)

type settings struct {
	url      string
	dir      string
	rows     int
	days     int
	rounds   int
	writes   string
	attempts bool
}

func main() {
	var s settings
	flag.StringVar(&s.url, "url", "", "an empty database to fill; without it a private Postgres is started, and gone afterwards")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "where the private Postgres has its folder: about 2.2 GB for each million rows")
	flag.IntVar(&s.rows, "rows", 1_000_000, "notifications")
	flag.IntVar(&s.days, "days", 30, "that they are spread over")
	flag.IntVar(&s.rounds, "rounds", 100, "questions of each kind, each with other values")
	flag.StringVar(&s.writes, "writes", "0,1000000,5000000,10000000", "numbers of rows at which the cost of writing is measured; only with a private Postgres")
	flag.BoolVar(&s.attempts, "attempts", true, "fill the attempts too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "search:", err)
		os.Exit(1)
	}
}

// measurement is one run.
type measurement struct {
	settings
	plan   fill.Plan
	ledger *ledger.Postgres
	server *postgres.Server // nil: somebody else's
}

func run(ctx context.Context, s settings) (err error) {
	m := &measurement{settings: s}
	if s.url == "" {
		stop, err := m.start(ctx)
		if err != nil {
			return err
		}
		defer stop()
	}
	key, err := ledger.GenerateMasterKey()
	if err != nil {
		return err
	}
	keys, err := ledger.NewCipher(key)
	if err != nil {
		return err
	}
	m.plan = fill.Plan{URL: m.url, Rows: s.rows, Days: s.days, Until: time.Now().UTC().Truncate(time.Second), Attempts: s.attempts}
	if err := m.plan.Partitions(ctx, keys); err != nil {
		return err
	}
	if m.ledger, err = ledger.Open(ctx, ledger.Config{URL: m.url, Keys: keys}); err != nil {
		return err
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- m.ledger.Run(running) }() // its end is awaited below
	defer func() {
		end()
		err = errors.Join(err, <-ended)
		m.ledger.Close()
	}()
	if err := m.fill(ctx); err != nil {
		return err
	}
	return m.ask(ctx)
}

// start runs a private Postgres that does not wait for the disk: what is measured is reading, and CPU.
func (m *measurement) start(ctx context.Context) (stop func(), err error) {
	dir, err := os.MkdirTemp(m.dir, "notifyd-search-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // its account must get through
		return nil, err
	}
	m.server, err = postgres.Start(ctx, postgres.Config{Dir: filepath.Join(dir, "pg"), Log: zap.NewNop(), Settings: map[string]string{"fsync": "off", "max_wal_size": "4GB"}})
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	m.url = m.server.URL()
	return func() {
		_ = m.server.Stop(context.WithoutCancel(ctx))
		_ = os.RemoveAll(dir)
	}, nil
}

// fill fills the ledger, and stops on the way to measure what writing costs.
func (m *measurement) fill(ctx context.Context) error {
	filled := 0
	upTo := func(rows int) error {
		began := time.Now()
		if err := m.plan.Fill(ctx, filled, rows, 2); err != nil {
			return err
		}
		if rows > filled {
			fmt.Printf("filled %d to %d in %s\n", filled, rows, time.Since(began).Round(time.Second))
		}
		filled = rows
		return nil
	}
	for text := range strings.SplitSeq(m.writes, ",") {
		rows, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || m.server == nil || rows > m.rows {
			continue
		}
		if err := upTo(rows); err != nil {
			return err
		}
		if err := m.measureWrites(ctx, rows); err != nil {
			return err
		}
	}
	return upTo(m.rows)
}
