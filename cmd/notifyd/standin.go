package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/ledger"
	"notifyd/notification/envelope"
	"notifyd/outage"
	"notifyd/retry"
)

// delayer delays in the queues, whoever stands in for them, and makes their streams.
type delayer struct {
	*outage.Queues
	window *retry.Delay
}

// Ensure makes the streams of the delay window.
func (d delayer) Ensure(ctx context.Context) (map[string]time.Time, error) {
	return d.window.Ensure(ctx)
}

// recall puts back on its way what the ledger knows to have rested in a stream that is gone.
func recall(memory *outage.Ledger, log *zap.Logger) async.Recall {
	return func(ctx context.Context, stream string, before time.Time) error {
		lost := ledger.Lost{Notify: stream == envelope.NotifyStream, Merchant: stream == envelope.MerchantStream}
		lost.Retry = !lost.Notify && !lost.Merchant
		recalled, err := memory.Recall(ctx, lost, before, now())
		if err != nil {
			return fmt.Errorf("recall: %w", err)
		}
		if recalled > 0 {
			log.Warn("a stream was made anew; what the ledger knows to have rested in it is on its way again", zap.String("stream", stream), zap.Int("recalled", recalled))
		}
		return nil
	}
}

const (
	// blindAfter is how long this node alone goes on with its shards when Postgres does not answer it: where all nodes lose
	// Postgres, they notice it within that, and no shard moves for nothing.
	blindAfter = 2 * time.Second
	blindLook  = 250 * time.Millisecond
)

// tellBlind lets the other nodes have this one's shards while they can ask Postgres and it cannot, until ctx ends: claims
// are judged by who knows best.
func (s *stores) tellBlind(ctx context.Context) error {
	tick := time.NewTicker(blindLook)
	defer tick.Stop()
	for {
		away, since := s.pgAway.Since()
		s.cluster.Blind(away && time.Since(since) >= blindAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// settingsFile keeps the settings of merchants and sources for a start without Postgres. Secrets in it are sealed.
func (e *engine) settingsFile() string { return filepath.Join(e.cfg.DataDir, "settings.snapshot") }

// adoptSettings starts with the settings of the last run, since Postgres does not give them.
func (e *engine) adoptSettings(s stores, cause error) {
	settings, err := s.memory.LoadSettings(e.settingsFile())
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.log.Warn("the ledger does not answer, and this node has no settings of an earlier run: nothing is accepted until it does", zap.Error(cause))
	case err != nil:
		e.log.Error("the ledger does not answer, and the settings of the last run cannot be read: nothing is accepted until it does", zap.Error(err))
	default:
		e.dispatch.Adopt(settings)
		e.log.Warn("the ledger does not answer; starting with the settings of the last run", zap.Int("merchants", len(settings.Merchants)), zap.Int("sources", len(settings.Sources)), zap.Int("access_rules", len(settings.Access)), zap.Int("keys", len(settings.Keys)), zap.Error(cause))
	}
}

const (
	// saveEvery bounds how often the settings are written while they change and change.
	saveEvery = 2 * time.Second
	// saveLook is the time between two looks whether they have changed.
	saveLook = 100 * time.Millisecond
)

// saveSettings keeps the file up to date until ctx ends.
func (e *engine) saveSettings(ctx context.Context, s stores, l *lanes) error {
	tick := time.NewTicker(saveLook)
	defer tick.Stop()
	type versions struct{ merchants, sources, access, keys int64 }
	var saved versions
	var last time.Time
	save := func(ctx context.Context) {
		have := versions{l.merchants.Version(), l.sources.Version(), l.access.Version(), l.keys.Version()}
		if have == saved || s.pgAway.Away() {
			return
		}
		last = time.Now()
		if err := s.memory.SaveSettings(ctx, e.settingsFile()); err != nil {
			e.log.Warn("settings are not kept for a start without postgres; it is tried again", zap.Error(err))
			return
		}
		saved = have
	}
	for {
		select {
		case <-ctx.Done():
			save(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			if time.Since(last) >= saveEvery {
				save(ctx)
			}
		}
	}
}
