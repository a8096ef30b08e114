package main

import (
	"context"
	"fmt"
	"time"

	"notifyd/internal/bench/rig"
	"notifyd/internal/search/fill"
)

// fillDays is how many days the rows are spread over that a ledger holds before.
const fillDays = 30

// fillLedger puts made-up notifications into the engine's ledger.
func fillLedger(ctx context.Context, e *rig.Engine, rows int) error {
	if rows == 0 {
		return nil
	}
	key, err := e.MasterKey()
	if err != nil {
		return err
	}
	plan := fill.Plan{URL: e.URL, Rows: rows, Days: fillDays, Until: time.Now().UTC().Truncate(time.Second), Attempts: true}
	if err := plan.Partitions(ctx, key); err != nil {
		return err
	}
	if err := plan.Fill(ctx, 0, rows, 2); err != nil {
		return err
	}
	// What waits in it shall not come due while something else is measured: its merchants do not exist.
	if _, err := e.DB.Exec(ctx, `update notifications set next_at = next_at + interval '2 days' where next_at is not null`); err != nil {
		return fmt.Errorf("put off what waits: %w", err)
	}
	_, err = e.DB.Exec(ctx, `vacuum analyze`)
	return err
}

// restingEach is how many notifications wait in each own queue that rests.
const restingEach = 10

// restBound is longer than a thousand own queues take; a notification that went out instead would be waited for for ever.
const restBound = 5 * time.Minute

// rest gives paused merchants own queues.
func (b *bench) rest(ctx context.Context) error {
	if b.Queues == 0 {
		return nil
	}
	paused := rig.Merchants{Class: "rest", Count: b.Queues, Base: b.sink.URL}
	if err := b.engine.Register(ctx, paused); err != nil {
		return err
	}
	if err := b.engine.Pause(ctx, paused); err != nil {
		return err
	}
	n := b.Queues * restingEach
	order := rig.LoadOrder{Source: "rest", Scene: "payout", Size: 256, Batch: 100, Callers: 4, N: n, Targets: []rig.Target{{Class: "rest", Count: b.Queues, Share: 1}}}
	if _, err := b.load.Order(order); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restBound)
	defer cancel()
	return rig.Until(ctx, 100*time.Millisecond, "the paused merchants' notifications rest", func() (bool, error) {
		var have int
		err := b.engine.DB.QueryRow(ctx, `select count(*) from notifications where resting and source = 'rest'`).Scan(&have)
		return have >= n, err
	})
}
