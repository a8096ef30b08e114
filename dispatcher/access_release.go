package dispatcher

import (
	"context"
	"time"

	"go.uber.org/zap"

	"notifyd/ledger"
	"notifyd/merchant"
)

const (
	// releasePerSecond is how many of a merchant's held notifications come due in a second, unless its limits say otherwise.
	releasePerSecond = 100

	// releaseEvery is the time between two looks while something is being released, or may have to be: for releaseAfter after
	// a rule has ended, since another node may not know of it yet and hold still more. Otherwise they are releaseIdle apart,
	// for what was held by rules that ended while nobody looked, and for what an outage has brought into the ledger late.
	releaseEvery, releaseAfter, releaseIdle = time.Second, 10 * time.Second, 30 * time.Second

	// What is released is due no sooner than releaseLead from now, when the sweep has fed it into the delay window, and due
	// times are given no further ahead than releaseAhead: a new block finds little under way, which the gate holds again.
	releaseLead, releaseAhead = 2 * time.Second, 12 * time.Second

	barredPage = 1000
)

// releases knows when to look for what is not held any more.
type releases struct {
	version int64     // of the rules at the last look
	last    time.Time // look
	until   time.Time // to look often
}

// due reports whether to look now.
func (r *releases) due(version int64, expired func(after, until time.Time) bool, now time.Time) bool {
	if r.last.IsZero() || version != r.version || expired(r.last, now) {
		r.until = now.Add(releaseAfter)
	}
	if now.After(r.until) && now.Sub(r.last) < releaseIdle {
		return false
	}
	r.version, r.last = version, now
	return true
}

// RunReleases lets go what no rule holds any more, at each merchant's release rate, until ctx ends. Any number of nodes may
// do it at once: the ledger hands out the turns.
func (d *Dispatcher) RunReleases(ctx context.Context) error {
	if d.accessStore == nil {
		return nil
	}
	tick := time.NewTicker(releaseEvery)
	defer tick.Stop()
	var looks releases
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := d.now()
		if !d.access.Learned() || !looks.due(d.access.Version(), d.access.ExpiredBetween, now) {
			continue
		}
		released, err := d.release(ctx, now)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			d.log.Warn("held notifications are not released; it is tried again", zap.Error(err))
		case err == nil && failing:
			d.log.Info("held notifications are released again")
		}
		if failing = err != nil; failing || released > 0 {
			looks.until = now.Add(releaseAfter)
		}
		if released > 0 {
			d.log.Info("held notifications are released", zap.Int("released", released))
		}
	}
}

// release looks once, at everybody of whom something is held.
func (d *Dispatcher) release(ctx context.Context, now time.Time) (released int, _ error) {
	for after := (ledger.Barred{}); ; {
		page, err := d.accessStore.Barred(ctx, after, barredPage)
		if err != nil {
			return released, err
		}
		for _, b := range page {
			if d.access.Judge(b.MerchantID, b.Source, b.Scene, now) != nil {
				continue
			}
			some, err := d.accessStore.Release(ctx, b, releaseGap(d.merchants.Get(b.MerchantID)), now.Add(releaseLead), now.Add(releaseAhead))
			released += some
			if err != nil {
				return released, err
			}
		}
		if len(page) < barredPage {
			return released, nil
		}
		after = page[len(page)-1]
	}
}

// releaseGap is the time between two of a merchant's turns.
func releaseGap(m *merchant.Merchant) time.Duration {
	perSecond := float64(releasePerSecond)
	if m != nil && m.Limits.Release > 0 {
		perSecond = m.Limits.Release
	}
	return max(time.Duration(float64(time.Second)/perSecond), time.Microsecond)
}
