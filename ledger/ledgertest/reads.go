package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

func findReservedOnly(f *fixture) {
	n := Plain(1, Start)
	if _, _, err := f.Find(f.Context(), n.ID); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("find nothing: %v", err)
	}
	f.reserve(n)
	got, attempts, err := f.Find(f.Context(), n.ID)
	if !errors.Is(err, ledger.ErrReservedOnly) {
		f.Fatalf("find reserved: %v", err)
	}
	f.same("reserved", []any{got.ID, got.AcceptedAt, got.State, got.Reason, got.Digest, len(attempts)},
		[]any{n.ID, n.AcceptedAt, notification.StateAccepted, notification.ReasonQueued, n.Digest, 0})
	for name, err := range map[string]error{
		"cancel reserved": second(f.Cancel(f.Context(), n.ID, "alice", Start)),
		"resend reserved": second(f.Resend(f.Context(), n.ID, "alice", Start)),
	} {
		if !errors.Is(err, ledger.ErrReservedOnly) {
			f.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func findMany(f *fixture) {
	a, b, reserved := Full(1, Start), Plain(2, Start.Add(-25*time.Hour)), Plain(3, Start)
	f.accept(a)
	f.accept(b)
	f.reserve(reserved)
	found, err := f.FindMany(f.Context(), []notification.ID{a.ID, b.ID, reserved.ID, Plain(4, Start).ID})
	f.must(err)
	f.same("found", found, map[notification.ID]*notification.Notification{a.ID: a, b.ID: b})
	found, err = f.FindMany(f.Context(), nil)
	f.must(err)
	f.same("none", len(found), 0)
}

func (f *fixture) numbers(filter ledger.Filter) []string {
	f.Helper()
	list, next, err := f.List(f.Context(), filter, 100, ledger.Cursor{})
	f.must(err)
	if !next.IsZero() {
		f.Fatal("more pages than there are")
	}
	var out []string
	for _, n := range list {
		out = append(out, n.RequestID)
	}
	return out
}

func listFilters(f *fixture) {
	at := func(i int) time.Time { return Start.Add(time.Duration(i-4) * 9 * time.Hour) } // over several days
	var all []*notification.Notification
	add := func(change func(*notification.Notification)) {
		n := Plain(len(all), at(len(all)))
		n.RequestID = strconv.Itoa(len(all))
		change(n)
		all = append(all, n)
	}
	settle := func(state notification.State, reason notification.Reason) func(*notification.Notification) {
		return func(n *notification.Notification) {
			n.Settle(state, reason, notification.SettledBySchedule, n.AcceptedAt)
		}
	}
	add(func(n *notification.Notification) { n.MerchantID = "m-2" })
	add(func(n *notification.Notification) { n.OrderID = "the order" })
	add(func(n *notification.Notification) { n.Scene = "scan"; n.MerchantID = "m-2" })
	add(func(n *notification.Notification) { n.BatchID = "the batch" })
	add(func(n *notification.Notification) { n.Source = "the source" })
	add(settle(notification.StateDead, notification.ReasonGone))
	add(settle(notification.StateDelivered, notification.ReasonAcknowledged))
	add(settle(notification.StateExpired, notification.ReasonExpired))
	add(func(n *notification.Notification) {
		n.Source, n.RequestID, n.AcceptedAt = "another source", "7", at(7).Add(time.Second)
	})
	var records []ledger.Record
	for _, n := range all {
		n.ID = n.DeriveID()
		records = append(records, ledger.Record{Notification: n, New: true})
	}
	f.reserve(all...)
	f.record(records...)

	for name, c := range map[string]struct {
		filter ledger.Filter
		want   []string
	}{
		"all":      {ledger.Filter{}, []string{"7", "7", "6", "5", "4", "3", "2", "1", "0"}},
		"merchant": {ledger.Filter{MerchantID: "m-2"}, []string{"2", "0"}},
		"order":    {ledger.Filter{OrderID: "the order"}, []string{"1"}},
		"scene":    {ledger.Filter{Scene: "scan"}, []string{"2"}},
		"batch":    {ledger.Filter{BatchID: "the batch"}, []string{"3"}},
		"source":   {ledger.Filter{Source: "the source"}, []string{"4"}},
		"reason":   {ledger.Filter{Reason: notification.ReasonGone}, []string{"5"}},
		"dead":     {ledger.Filter{States: []notification.State{notification.StateDead}}, []string{"5"}},
		"final":    {ledger.Filter{States: []notification.State{notification.StateDead, notification.StateDelivered, notification.StateExpired}}, []string{"7", "6", "5"}},
		"time":     {ledger.Filter{From: at(2), To: at(5)}, []string{"4", "3", "2"}},
		"several":  {ledger.Filter{MerchantID: "m-2", Scene: "scan", From: at(0)}, []string{"2"}},
		"none":     {ledger.Filter{MerchantID: "m-2", OrderID: "the order"}, nil},

		"id":                       {ledger.Filter{ID: all[3].ID}, []string{"3"}},
		"id and what it has":       {ledger.Filter{ID: all[3].ID, BatchID: "the batch", Source: "pay", RequestID: "3"}, []string{"3"}},
		"id and what it has not":   {ledger.Filter{ID: all[3].ID, MerchantID: "m-2"}, nil},
		"id of another time":       {ledger.Filter{ID: all[3].ID, From: at(4)}, nil},
		"id of nothing":            {ledger.Filter{ID: notification.ID{1}}, nil},
		"id with another request":  {ledger.Filter{ID: all[3].ID, RequestID: "4"}, nil},
		"request of a source":      {ledger.Filter{RequestID: "4", Source: "the source"}, []string{"4"}},
		"request of any source":    {ledger.Filter{RequestID: "4"}, []string{"4"}},
		"request of another":       {ledger.Filter{RequestID: "4", Source: "pay"}, nil},
		"request of two sources":   {ledger.Filter{RequestID: "7"}, []string{"7", "7"}},
		"request, one of them":     {ledger.Filter{RequestID: "7", States: []notification.State{notification.StateExpired}}, []string{"7"}},
		"request of nothing":       {ledger.Filter{RequestID: "nothing"}, nil},
		"several states":           {ledger.Filter{States: []notification.State{notification.StateExpired, notification.StateDead}}, []string{"7", "5"}},
		"merchant and reason":      {ledger.Filter{MerchantID: "m-1", Reason: notification.ReasonExpired}, []string{"7"}},
		"source, state and reason": {ledger.Filter{Source: "pay", States: []notification.State{notification.StateDead}, Reason: notification.ReasonGone}, []string{"5"}},
		"odd text":                 {ledger.Filter{MerchantID: `' or 1=1 --`}, nil},
	} {
		f.same(name, f.numbers(c.filter), c.want)
	}
}

func listPages(f *fixture) {
	var all []*notification.Notification
	var records []ledger.Record
	for i := range 25 {
		n := Plain(i, Start.Add(time.Duration(i/5)*7*time.Hour-20*time.Hour)) // five share an instant
		all = append(all, n)
		records = append(records, ledger.Record{Notification: n, New: true})
	}
	f.reserve(all...)
	f.record(records...)
	seen := map[notification.ID]bool{}
	var last time.Time
	cursor := ledger.Cursor{}
	for page := range 9 {
		list, next, err := f.List(f.Context(), ledger.Filter{MerchantID: "m-1"}, 3, cursor)
		f.must(err)
		if page == 1 { // newer ones do not shift what is left
			f.accept(Plain(100, Start.Add(20*time.Hour)))
		}
		for _, n := range list {
			if seen[n.ID] || !last.IsZero() && n.AcceptedAt.After(last) {
				f.Fatalf("page %d: %s stands wrong", page, n.RequestID)
			}
			seen[n.ID], last = true, n.AcceptedAt
		}
		back, err := ledger.ParseToken(next.Token(ledger.Filter{MerchantID: "m-1"}), ledger.Filter{MerchantID: "m-1"})
		f.must(err)
		f.same("cursor", back, next)
		if next.IsZero() {
			break
		}
		cursor = next
	}
	f.same("seen", len(seen), 25)
}

func proof(f *fixture) {
	var want []ledger.ProofRow
	var all []*notification.Notification
	for i := range 7 {
		n := Plain(i, Start.Add(time.Duration(i/2)*time.Second))
		all = append(all, n)
		row := ledger.ProofRow{ID: n.ID, AcceptedAt: n.AcceptedAt}
		if i%3 != 0 {
			n = Tried(n, Start.Add(time.Minute), Start.Add(time.Hour))
			n.Resting = i%2 == 0
			f.record(ledger.Record{Notification: n, New: true, Unreserved: true})
			row.State, row.Resting, row.NextAt, row.Reason = n.State, n.Resting, n.NextAt, n.Reason
		}
		want = append(want, row)
	}
	f.reserve(all...)
	slices.SortFunc(want, func(a, b ledger.ProofRow) int {
		if c := a.AcceptedAt.Compare(b.AcceptedAt); c != 0 {
			return c
		}
		return slices.Compare(a.ID[:], b.ID[:])
	})
	for _, limit := range []int{1, 3, 7, 100} {
		var got []ledger.ProofRow
		cursor := ledger.ProofCursor{}
		for more := true; more; more = !cursor.IsZero() {
			page, next, err := f.Reservations(f.Context(), Start, Start.Add(time.Hour), cursor, limit)
			f.must(err)
			got, cursor = append(got, page...), next
		}
		f.same(fmt.Sprint("pages of ", limit), got, want)
	}
	page, _, err := f.Reservations(f.Context(), time.Time{}, time.Time{}, ledger.ProofCursor{}, 100)
	f.must(err)
	f.same("without bounds", page, want)
	page, _, err = f.Reservations(f.Context(), Start.Add(time.Second), Start.Add(2*time.Second), ledger.ProofCursor{}, 100)
	f.must(err)
	f.same("of one second", page, want[2:4])
	f.must(f.MarkAnswered(f.Context(), []notification.ID{want[0].ID, {1, 2, 3}})) // of an id that nobody reserved: nothing to note
	want[0].Answered = true
	page, _, err = f.Reservations(f.Context(), time.Time{}, time.Time{}, ledger.ProofCursor{}, 100)
	f.must(err)
	f.same("one answered", page, want)
}
