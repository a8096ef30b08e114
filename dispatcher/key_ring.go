package dispatcher

import (
	"context"
	"time"

	"go.uber.org/zap"

	"notifyd/keys"
	"notifyd/ledger"
)

// KeyStore keeps the keys and certificates that notifications are signed, encrypted, verified and proven with.
type KeyStore interface {
	PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error)
	KeysSince(ctx context.Context, version int64) ([]*keys.Set, error)
	KeyChanges(ctx context.Context, name string, before int64, limit int) ([]ledger.KeyChange, error)
	// NoteExpiry keeps that somebody was told, and reports whether this was the first time, over all nodes.
	NoteExpiry(ctx context.Context, e keys.Expiring, now time.Time) (first bool, err error)
}

// LearnKeys takes over what has changed since the snapshot. As for sources, only what comes this way goes into it.
func (d *Dispatcher) LearnKeys(ctx context.Context) error {
	if d.keyStore == nil {
		return nil
	}
	changed, err := d.keyStore.KeysSince(ctx, d.keys.Version())
	if err != nil {
		return err
	}
	d.keys.Learn(changed...)
	return nil
}

// expiryLook is the time between two looks at when certificates end.
const expiryLook = time.Minute

// RunKeyExpiries writes a line to the log when a certificate comes within each of keys.ExpiryDays of its end, one line over all
// nodes and restarts, until ctx ends. While the ledger is away nobody knows who has been told: the lines wait for it.
func (d *Dispatcher) RunKeyExpiries(ctx context.Context) error {
	told := map[keys.Expiring]bool{} // by anybody, as far as this process knows
	tick := time.NewTicker(expiryLook)
	defer tick.Stop()
	for {
		d.tellExpiries(ctx, told)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (d *Dispatcher) tellExpiries(ctx context.Context, told map[keys.Expiring]bool) {
	if d.keyStore == nil {
		return
	}
	now := d.now()
	for _, e := range d.keys.Expiring(now) {
		if told[e] {
			continue
		}
		first, err := d.keyStore.NoteExpiry(ctx, e, now)
		if err != nil {
			d.log.Debug("ends of certificates are told later", zap.Error(err))
			return
		}
		told[e] = true
		if !first {
			continue
		}
		fields := []zap.Field{zap.String("key", e.Name), zap.Int("version", e.Version), zap.Time("not_after", e.NotAfter), zap.Int("within_days", e.Within)}
		if e.Within == 0 {
			d.log.Error("the certificate of a key has ended", fields...)
		} else {
			d.log.Warn("the certificate of a key ends soon", fields...)
		}
	}
}
