package dispatcher

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/ledger"
	"notifyd/notification"
)

// owed are the notifications whose callers were told of the acceptance, and of which this process has not seen a durable
// row yet. Usually the row comes within milliseconds. For what stays longer the reservation is marked, so that the proof
// tells a loss from a submission that was cut short (P2).
type owed struct {
	mu    sync.Mutex
	since map[notification.ID]time.Time
}

// markAfter is how long a row may take before its reservation is marked. With the show interval it keeps the time in
// which a loss would look like a submission cut short to about a second.
const markAfter = 500 * time.Millisecond

func (o *owed) told(id notification.ID, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since == nil {
		o.since = map[notification.ID]time.Time{}
	}
	o.since[id] = now
}

// tell notes that a caller is told of an acceptance that no row shows yet.
func (d *Dispatcher) tell(n *notification.Notification) {
	if n.Route.Persist == notification.PersistStream {
		d.owed.told(n.ID, d.now())
	}
}

func (o *owed) shown(id notification.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.since, id)
}

func (o *owed) before(deadline time.Time) []notification.ID {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ids []notification.ID
	for id, since := range o.since {
		if !since.After(deadline) {
			ids = append(ids, id)
		}
	}
	return ids
}

// lastMark bounds the marking at a stop: what rests in the queues then waits for the next start without a row.
const lastMark = 5 * time.Second

// markOwed marks what has been owed since before an instant. What could not be marked is tried again.
func (d *Dispatcher) markOwed(ctx context.Context, before time.Time) {
	ids := d.owed.before(before)
	if len(ids) == 0 {
		return
	}
	if err := d.ledger.MarkAnswered(ctx, ids); err != nil {
		if !errors.Is(err, ledger.ErrAway) { // which its watch has said once
			d.log.Warn("reservations cannot be marked as answered; the next look tries again", zap.Int("owed", len(ids)), zap.Error(err))
		}
		return
	}
	for _, id := range ids {
		d.owed.shown(id)
	}
}
