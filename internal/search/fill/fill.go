// Package fill puts many made-up notifications into a ledger quickly, for measuring and for tests that look at plans.
package fill

import (
	"context"
	_ "embed"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"notifyd/ledger"
)

// What only Rare notifications of all have.
const (
	Rare       = 20
	RareScene  = "rare_scene"
	RareSource = "rare-source"
	RareReason = "tls_certificate"
	// Unfailing is a large merchant that has nothing but deliveries.
	Unfailing = "merchant-0003"
)

// perStatement is how many rows one statement makes: enough to be quick, few enough to stay in memory.
const perStatement = 20_000

//go:embed fill.sql
var statement string

// Plan says what a ledger holds when it is full. The same plan makes the same notifications, but for random due times.
type Plan struct {
	URL      string
	Rows     int       // over all days, evenly
	Days     int       // that the rows are spread over
	Until    time.Time // when the last of them was accepted
	Attempts bool      // with a row for each attempt
}

// At is when the notification with a number was accepted.
func (p Plan) At(number int) time.Time { return p.from().Add(time.Duration(number) * p.gap()) }

func (p Plan) from() time.Time { return p.Until.Add(-time.Duration(p.Rows) * p.gap()) }
func (p Plan) gap() time.Duration {
	return time.Duration(p.Days) * 24 * time.Hour / time.Duration(p.Rows)
}

// Partitions makes the days: an engine makes the days around its own.
func (p Plan) Partitions(ctx context.Context, keys ledger.Cipher) error {
	for day := p.from(); day.Before(p.Until.AddDate(0, 0, 3)); day = day.AddDate(0, 0, 3) {
		l, err := ledger.Open(ctx, ledger.Config{URL: p.URL, Keys: keys, Now: func() time.Time { return day.UTC() }})
		if err != nil {
			return fmt.Errorf("make the days around %s: %w", day.Format(time.DateOnly), err)
		}
		l.Close()
	}
	return nil
}

// Fill makes the notifications numbered from (inclusive) to (exclusive), with their reservations, over several connections.
func (p Plan) Fill(ctx context.Context, from, to, connections int) error {
	var next atomic.Int64
	next.Store(int64(from))
	group, ctx := errgroup.WithContext(ctx)
	for range connections {
		group.Go(func() (err error) {
			conn, err := pgx.Connect(ctx, p.URL)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			if _, err := conn.Exec(ctx, `set synchronous_commit = off; set work_mem = '128MB'; set jit = off; set timezone = 'UTC'`); err != nil {
				return err
			}
			for {
				first := int(next.Add(perStatement)) - perStatement
				if first >= to {
					return nil
				}
				if err := p.make(ctx, conn, first, min(first+perStatement, to)); err != nil {
					return fmt.Errorf("make notifications from number %d on: %w", first, err)
				}
			}
		})
	}
	return group.Wait()
}

func (p Plan) make(ctx context.Context, conn *pgx.Conn, first, end int) error {
	if _, err := conn.Exec(ctx, `select setseed($1)`, float64(first)/float64(p.Rows)); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, statement, first, end-1, p.from(), p.gap().Microseconds(), max(p.Rows/Rare, Rare), p.Attempts, p.Until)
	return err
}
