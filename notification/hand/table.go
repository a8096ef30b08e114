// Package hand knows what this process has in hand: notifications that are durable elsewhere, whose next attempt is
// queued or running here, and whose outcome is not yet durable.
package hand

import (
	"context"
	"sync"
	"time"

	"notifyd/notification"
)

const stripes = 64

// Table is safe for concurrent use. The zero value is not ready; call NewTable.
type Table struct {
	stripes [stripes]stripe
}

type stripe struct {
	sync.Mutex
	held map[notification.ID]*Item
}

// Item is one notification in hand.
type Item struct {
	since time.Time

	mu       sync.Mutex
	work     notification.Work
	attempts []notification.Attempt // made and not yet durable
	phase    phase
	durable  bool
	rowAt    time.Time // when the ledger was last shown it; zero: never
	settled  func(error)
	left     chan struct{} // closed by Leave; nil while nobody waits for it
}

type phase uint8

const (
	queued  phase = iota // waits for its turn; may be taken back
	sending              // an attempt is running
	sent                 // the attempt has ended, its outcome is not durable yet
	gone                 // taken back
)

// NewTable returns an empty table.
func NewTable() *Table {
	t := &Table{}
	for i := range t.stripes {
		t.stripes[i].held = map[notification.ID]*Item{}
	}
	return t
}

func (t *Table) stripe(id notification.ID) *stripe { return &t.stripes[id[0]%stripes] }

// Enter takes a work in hand that comes from a durable place; settled is called by Leave. False: another copy of it is in hand already.
func (t *Table) Enter(w notification.Work, now time.Time, settled func(error)) (*Item, bool) {
	s := t.stripe(w.ID)
	s.Lock()
	defer s.Unlock()
	if _, ok := s.held[w.ID]; ok {
		return nil, false
	}
	item := &Item{since: now, work: w, settled: settled, durable: true}
	s.held[w.ID] = item
	return item, true
}

// Leave gives an item out of hand and calls its settled. Only the first call counts.
func (t *Table) Leave(item *Item, err error) {
	id := item.Work().ID
	s := t.stripe(id)
	s.Lock()
	if s.held[id] == item {
		delete(s.held, id)
	}
	s.Unlock()
	item.mu.Lock()
	settled := item.settled
	item.settled = nil
	if item.left != nil {
		close(item.left)
		item.left = nil
	}
	item.mu.Unlock()
	if settled != nil {
		settled(err)
	}
}

// Held is what is known of a notification in hand before the ledger knows it.
type Held struct {
	Notification *notification.Notification
	Attempts     []notification.Attempt // made here and not yet durable
	Durable      bool                   // it would come again if this process died now
}

// Find returns a notification that is in hand, as it stands.
func (t *Table) Find(id notification.ID) (Held, bool) {
	item := t.find(id)
	if item == nil {
		return Held{}, false
	}
	item.mu.Lock()
	defer item.mu.Unlock()
	return Held{item.work.Notification, item.attempts, item.durable}, true
}

func (t *Table) find(id notification.ID) *Item {
	s := t.stripe(id)
	s.Lock()
	defer s.Unlock()
	return s.held[id]
}

// Settle waits until a notification whose attempt has ended is durable and out of hand. False: it is in hand still,
// because its turn has not come, it is being sent, or ctx has ended.
func (t *Table) Settle(ctx context.Context, id notification.ID) bool {
	item := t.find(id)
	if item == nil {
		return true
	}
	item.mu.Lock()
	if item.settled == nil || item.phase != sent {
		ledgers := item.settled == nil || item.work.Claim // the ledger, which grants its attempt, knows best
		item.mu.Unlock()
		return ledgers
	}
	if item.left == nil {
		item.left = make(chan struct{})
	}
	left := item.left
	item.mu.Unlock()
	select {
	case <-left:
		return true
	case <-ctx.Done():
		return false
	}
}

// HasRow reports whether the ledger has been shown a notification that is in hand.
func (t *Table) HasRow(id notification.ID) bool {
	item := t.find(id)
	if item == nil {
		return false
	}
	item.mu.Lock()
	defer item.mu.Unlock()
	return item.work.HasRow
}

// TakeBack removes a queued notification from its lane: nobody will send it. One whose attempt the ledger must grant is
// not taken back: canceling it in the ledger is enough. The caller settles it and then calls Leave.
func (t *Table) TakeBack(id notification.ID) (*Item, bool) {
	item := t.find(id)
	if item == nil {
		return nil, false
	}
	item.mu.Lock()
	defer item.mu.Unlock()
	if item.phase != queued || item.work.Claim {
		return nil, false
	}
	item.phase = gone
	return item, true
}

// Len counts what is in hand.
func (t *Table) Len() int {
	n := 0
	for i := range t.stripes {
		t.stripes[i].Lock()
		n += len(t.stripes[i].held)
		t.stripes[i].Unlock()
	}
	return n
}

// Unseen returns items that came in hand before the given instant and of which the ledger shows nothing, or has shown
// nothing new since refresh; their works' HasRow says which. It marks them as shown. A work that is claimed before it is
// sent has a row, which the claim keeps from the sweep.
func (t *Table) Unseen(before, refresh, now time.Time) []notification.Work {
	var out []notification.Work
	for i := range t.stripes {
		t.stripes[i].Lock()
		for _, item := range t.stripes[i].held {
			if item.since.After(before) {
				continue
			}
			item.mu.Lock()
			if (item.phase == queued || item.phase == sending) && !item.work.Claim && (!item.work.HasRow || item.shownAt().Before(refresh)) {
				w := item.work
				if item.phase == sending {
					w.Notification = withReason(w.Notification, notification.ReasonInFlight)
				} else {
					w.Notification = withReason(w.Notification, notification.ReasonQueued)
				}
				item.rowAt, item.work.HasRow = now, true
				out = append(out, w)
			}
			item.mu.Unlock()
		}
		t.stripes[i].Unlock()
	}
	return out
}

// shownAt is when the ledger last heard of an item that has a row.
func (i *Item) shownAt() time.Time {
	if i.rowAt.IsZero() {
		return i.since
	}
	return i.rowAt
}

func withReason(n *notification.Notification, reason notification.Reason) *notification.Notification {
	c := *n
	c.Reason = reason
	return &c
}

// SetDurable says whether the notification would come again if this process died now.
func (i *Item) SetDurable(durable bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.durable = durable
}

// Since is when the item came in hand.
func (i *Item) Since() time.Time { return i.since }

// Work is the item's work as it stands.
func (i *Item) Work() notification.Work {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.work
}

// Send marks the beginning of an attempt. False: it has been taken back, and is not to be sent.
func (i *Item) Send() (notification.Work, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.phase != queued {
		return i.work, false
	}
	i.phase = sending
	return i.work, true
}

// Move marks that the item goes to another durable place. False: it has been taken back.
func (i *Item) Move() (notification.Work, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.phase != queued {
		return i.work, false
	}
	i.phase = sent
	return i.work, true
}

// Sent shows the notification as it stands after the attempt, or in its new place.
func (i *Item) Sent(after *notification.Notification, attempts []notification.Attempt) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.phase = sent
	i.attempts = attempts
	if after != nil {
		i.work.Notification = after
	}
}

// Requeue puts an item back that was deferred.
func (i *Item) Requeue(after *notification.Notification) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.phase = queued
	if after != nil {
		i.work.Notification = after
	}
}
