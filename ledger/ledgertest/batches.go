package ledgertest

import (
	"bytes"
	"errors"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

func batchProgress(f *fixture) {
	at := func(i int) time.Time { return Start.Add(time.Duration(i-3) * 9 * time.Hour) } // over several days
	settled := func(i int) time.Time { return at(i).Add(time.Duration(100-i) * time.Second) }
	member := func(i int, source string, change func(*notification.Notification)) *notification.Notification {
		n := Plain(i, at(i))
		n.Source, n.BatchID = source, "payday"
		n.ID = n.DeriveID()
		change(n)
		return f.accept(n)
	}
	settle := func(state notification.State, i int) func(*notification.Notification) {
		return func(n *notification.Notification) {
			n.Settle(state, notification.ReasonGone, notification.SettledByMerchant, settled(i))
		}
	}
	stay := func(*notification.Notification) {}
	f.accept(Plain(100, at(0))) // of no batch

	ask := func(what, source string, want *ledger.BatchProgress) {
		f.Helper()
		got, err := f.Batch(f.Context(), "payday", source)
		f.must(err)
		f.same(what, got, want)
	}
	for _, name := range []string{"payday", "", "' or ''='"} {
		if _, err := f.Batch(f.Context(), name, ""); !errors.Is(err, ledger.ErrNotFound) {
			f.Fatalf("batch %q that nobody has submitted: %v", name, err)
		}
	}

	member(1, "pay", settle(notification.StateDelivered, 1))
	ask("one, delivered", "", &ledger.BatchProgress{Accepted: 1, Delivered: 1, FirstAcceptedAt: at(1), LastAcceptedAt: at(1), SettledAt: settled(1)})

	waits := member(3, "pay", stay)
	same := member(4, "other", func(n *notification.Notification) { n.AcceptedAt = at(3) }) // the ids decide which is older
	held := member(5, "pay", func(n *notification.Notification) { n.State = notification.StateHeld })
	member(2, "other", settle(notification.StateDead, 2))
	member(6, "pay", settle(notification.StateCanceled, 6))
	member(7, "pay", settle(notification.StateExpired, 7))
	older := ledger.Cursor{AcceptedAt: at(3), ID: waits.ID}
	if bytes.Compare(same.ID[:], waits.ID[:]) < 0 {
		older.ID = same.ID
	}
	ask("all", "", &ledger.BatchProgress{
		Accepted: 7, Delivered: 1, Waiting: 3, Dead: 1, Canceled: 1, Expired: 1,
		FirstAcceptedAt: at(1), LastAcceptedAt: at(7), OldestWaiting: older,
	})
	ask("one source's", "pay", &ledger.BatchProgress{
		Accepted: 5, Delivered: 1, Waiting: 2, Canceled: 1, Expired: 1,
		FirstAcceptedAt: at(1), LastAcceptedAt: at(7), OldestWaiting: ledger.Cursor{AcceptedAt: at(3), ID: waits.ID},
	})
	if _, err := f.Batch(f.Context(), "payday", "a third"); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("another source's batch: %v", err)
	}

	last := at(9)
	for _, n := range []*notification.Notification{waits, same, held} {
		f.record(ledger.Record{Notification: Delivered(n, last)})
	}
	ask("all settled", "", &ledger.BatchProgress{
		Accepted: 7, Delivered: 4, Dead: 1, Canceled: 1, Expired: 1,
		FirstAcceptedAt: at(1), LastAcceptedAt: at(7), SettledAt: last,
	})
}
