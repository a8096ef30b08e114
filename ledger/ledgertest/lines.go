package ledgertest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/ledger"
	"notifyd/notification"
)

// ordered is a notification with an ordering key.
func ordered(number int, key string) *notification.Notification {
	n := Plain(number, Start.Add(time.Duration(number)*time.Millisecond))
	n.OrderingKey, n.Route.Persist = key, notification.PersistLedger
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	n.NextAt = n.AcceptedAt.Add(3 * time.Minute)
	return n
}

// lineUp reserves notifications and lines them up, in one call.
func (f *fixture) lineUp(list ...*notification.Notification) []ledger.Lined {
	f.Helper()
	f.reserve(list...)
	lined, err := f.LineUp(f.Context(), list)
	f.must(err)
	for i, n := range list {
		f.must(lined[i].Err)
		*n = *lined[i].Row
	}
	return lined
}

func (f *fixture) turn(n *notification.Notification) ledger.Turn {
	f.Helper()
	turn, err := f.Turn(f.Context(), n)
	f.must(err)
	return turn
}

func (f *fixture) next(ended *notification.Notification) []notification.ID {
	f.Helper()
	next, err := f.Next(f.Context(), []*notification.Notification{ended}, f.clock.now())
	f.must(err)
	var ids []notification.ID
	for _, n := range next {
		ids = append(ids, n.ID)
	}
	return ids
}

// settle makes a notification final.
func (f *fixture) settle(n *notification.Notification, state notification.State) {
	f.Helper()
	after := *n
	after.Attempts++
	after.Settle(state, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, f.clock.now())
	f.record(ledger.Record{Notification: &after})
}

func (f *fixture) isWaiting(n *notification.Notification, want bool) {
	f.Helper()
	row := f.find(n.ID)
	if waits := row.Reason == notification.ReasonAwaitingPredecessor && row.NextAt.IsZero(); waits != want {
		f.Errorf("%s waits: %t (%s, due %s), want %t", n.RequestID, waits, row.Reason, row.NextAt, want)
	}
}

func lines(f *fixture) {
	a, b, other := ordered(1, "k"), ordered(2, "k"), ordered(3, "l")
	elsewhere := ordered(4, "k")
	elsewhere.MerchantID = "m-2"
	elsewhere.Digest = elsewhere.ContentDigest()
	lined := f.lineUp(a, b, other, elsewhere)
	var waits []bool
	for _, l := range lined {
		waits = append(waits, l.Waits)
	}
	if diff := cmp.Diff([]bool{false, true, false, false}, waits); diff != "" {
		f.Errorf("who waits (-want +got):\n%s", diff)
	}
	// Accepted by a node whose clock is behind: still after those.
	late := ordered(5, "k")
	late.AcceptedAt = Start.Add(-time.Hour)
	if lined := f.lineUp(late); !lined[0].Waits {
		f.Error("one that was lined up later is first")
	}
	f.clock.advance(time.Second)
	f.settle(a, notification.StateDelivered)
	if got := f.next(a); !slices.Equal(got, []notification.ID{b.ID}) {
		f.Errorf("next is %v, want %s", got, b.ID)
	}
	if got := f.next(a); len(got) != 0 {
		f.Errorf("next is handed out twice: %v", got)
	}
	if !f.turn(late).Behind || f.turn(b).Behind || f.turn(a).Behind {
		f.Error("it is not b's turn alone")
	}
	f.isWaiting(late, true)
}

func lineEnds(f *fixture) {
	for i, state := range []notification.State{notification.StateDelivered, notification.StateDead, notification.StateExpired, notification.StateCanceled} {
		a, b, c := ordered(10*i, fmt.Sprint(state)), ordered(10*i+1, fmt.Sprint(state)), ordered(10*i+2, fmt.Sprint(state))
		f.lineUp(a, b, c)
		f.clock.advance(time.Second)
		// A failure of the first one moves nobody.
		failed := *a
		failed.State, failed.Reason, failed.Attempts, failed.NextAt = notification.StateRetrying, notification.ReasonHTTPServerError, 1, f.clock.now().Add(time.Minute)
		failed.UpdatedAt = f.clock.now()
		f.record(ledger.Record{Notification: &failed})
		f.isWaiting(b, true)
		f.settle(&failed, state)
		row := f.find(b.ID)
		if row.Reason != notification.ReasonQueued || !row.NextAt.Equal(f.clock.now()) {
			f.Errorf("after %s the next one stands at %s, due %s", state, row.Reason, row.NextAt)
		}
		f.isWaiting(c, true)
		fed, err := f.Feed(f.Context(), f.clock.now(), 10)
		f.must(err)
		if len(fed) != 1 || fed[0].ID != b.ID {
			f.Errorf("after %s the sweep feeds %d", state, len(fed))
		}
	}
}

func lineDead(f *fixture) {
	a, b, c := ordered(1, "k"), ordered(2, "k"), ordered(3, "k")
	f.lineUp(a, b, c)
	f.clock.advance(time.Second)
	f.settle(a, notification.StateDead)
	if got := f.turn(b); got != (ledger.Turn{BehindDead: true}) {
		f.Errorf("behind a dead one: %+v", got)
	}
	// What looks now and then whether the dead one was helped is due when it was.
	waits := *f.find(b.ID)
	waits.Defer(notification.ReasonAwaitingPredecessor, f.clock.now())
	f.clock.advance(time.Second)
	waits.UpdatedAt, waits.NextAt = f.clock.now(), f.clock.now().Add(time.Hour)
	f.record(ledger.Record{Notification: &waits})
	if row := f.find(b.ID); !row.NextAt.Equal(waits.NextAt) {
		f.Errorf("it is due %s, want %s", row.NextAt, waits.NextAt)
	}
	f.clock.advance(time.Second)
	resent, err := f.Resend(f.Context(), a.ID, "alice", f.clock.now())
	f.must(err)
	if turn := f.turn(resent); turn.Behind || turn.BehindDead {
		f.Errorf("the resent one waits: %+v", turn)
	}
	if got := f.turn(b); !got.BehindDead {
		f.Errorf("while the dead one is resent: %+v", got)
	}
	f.settle(resent, notification.StateDelivered)
	if got := f.turn(b); got != (ledger.Turn{}) {
		f.Errorf("after the dead one was delivered: %+v", got)
	}
	if row := f.find(b.ID); !row.NextAt.Equal(f.clock.now()) {
		f.Errorf("it is due %s, want now", row.NextAt)
	}
	// One that was let past a dead one: it blocks nobody behind it either.
	f.settle(b, notification.StateDead)
	f.settle(c, notification.StateDelivered)
	d := ordered(4, "k")
	f.lineUp(d)
	if got := f.turn(d); got != (ledger.Turn{}) {
		f.Errorf("behind one that was let past: %+v", got)
	}
}

func lineOperated(f *fixture) {
	a, b, c := ordered(1, "k"), ordered(2, "k"), ordered(3, "k")
	f.lineUp(a, b, c)
	// In the middle of a line: nobody's turn has come.
	if _, err := f.Cancel(f.Context(), b.ID, "alice", f.clock.now()); err != nil {
		f.Fatal(err)
	}
	f.isWaiting(c, true)
	f.settle(a, notification.StateDead)
	f.isWaiting(c, false)
	if got := f.turn(c); !got.BehindDead {
		f.Errorf("behind a dead one: %+v", got)
	}
	// A dead one that others may wait for can be canceled.
	canceled, err := f.Cancel(f.Context(), a.ID, "alice", f.clock.now())
	f.must(err)
	if canceled.State != notification.StateCanceled {
		f.Errorf("canceled is %s", canceled.State)
	}
	if got := f.turn(c); got != (ledger.Turn{}) {
		f.Errorf("after the dead one was canceled: %+v", got)
	}
	// What an operator resends after its end neither waits nor blocks.
	resent, err := f.Resend(f.Context(), b.ID, "alice", f.clock.now())
	f.must(err)
	if got := f.turn(resent); got != (ledger.Turn{}) {
		f.Errorf("resent: %+v", got)
	}
	if got := f.turn(c); got != (ledger.Turn{}) {
		f.Errorf("beside a resent one: %+v", got)
	}
}

// The predecessor ended between the look for it and the record that says that it is waited for.
func lineLateWait(f *fixture) {
	a, b := ordered(1, "k"), ordered(2, "k")
	f.lineUp(a, b)
	resent, err := f.Resend(f.Context(), b.ID, "alice", f.clock.now())
	f.must(err)
	f.settle(a, notification.StateDelivered)
	resent.Defer(notification.ReasonAwaitingPredecessor, f.clock.now())
	resent.NextAt = time.Time{}
	f.record(ledger.Record{Notification: resent})
	f.isWaiting(b, false)
	if got := f.next(b); !slices.Equal(got, []notification.ID{b.ID}) {
		f.Errorf("next is %v", got)
	}
}

func lineNotBefore(f *fixture) {
	a, b := ordered(1, "k"), ordered(2, "k")
	a.NotBefore, a.NextAt, a.Reason = Start.Add(time.Hour), Start.Add(time.Hour), notification.ReasonNotBefore
	b.NotBefore = Start.Add(2 * time.Hour)
	f.lineUp(a, b)
	f.isWaiting(b, true)
	fed, err := f.Feed(f.Context(), Start.Add(3*time.Hour), 10)
	f.must(err)
	if len(fed) != 1 || fed[0].ID != a.ID {
		f.Errorf("the sweep feeds %d", len(fed))
	}
	f.settle(a, notification.StateDelivered)
	if row := f.find(b.ID); !row.NextAt.Equal(b.NotBefore) {
		f.Errorf("due %s, want %s", row.NextAt, b.NotBefore)
	}
}

// What was accepted while Postgres was away has its place from when it is first asked about, by its acceptance.
func lineLate(f *fixture) {
	a, b, c := ordered(1, "k"), ordered(2, "k"), ordered(3, "k")
	f.reserve(a, b, c)
	if got := f.turn(b); got != (ledger.Turn{}) {
		f.Errorf("b: %+v", got)
	}
	if got := f.turn(a); got != (ledger.Turn{}) {
		f.Errorf("a, accepted before b: %+v", got)
	}
	if got := f.turn(b); !got.Behind {
		f.Errorf("b, behind a: %+v", got)
	}
	f.record(ledger.Record{Notification: c, New: true})
	f.settle(c, notification.StateDelivered)
	if got := f.turn(c); got.Behind {
		f.Errorf("a final one was given a place: %+v", got)
	}
	f.settle(a, notification.StateDelivered)
	if got := f.turn(b); got != (ledger.Turn{}) {
		f.Errorf("b, after a: %+v", got)
	}
}

func lineTwice(f *fixture) {
	a, b := ordered(1, "k"), ordered(2, "k")
	f.lineUp(a, b)
	for range 2 { // its place, and what its row says, stay
		if lined := f.lineUp(b); !lined[0].Waits {
			f.Error("lined up again, it does not wait")
		}
	}
	f.settle(a, notification.StateDelivered)
	if lined := f.lineUp(b); lined[0].Waits {
		f.Error("it waits for nobody")
	}
	changed := *a
	changed.Body = []byte("{}")
	changed.Digest = changed.ContentDigest()
	fine := ordered(3, "k")
	lined, err := f.LineUp(f.Context(), []*notification.Notification{&changed, fine})
	f.must(err)
	if lined[0].Err == nil || lined[0].Row != nil {
		f.Errorf("other content: %+v", lined[0])
	}
	if lined[1].Err != nil || !lined[1].Waits {
		f.Errorf("its neighbour: %+v", lined[1])
	}
}

// Lined up and delivered at the same time, by many: whoever is first is always due or in somebody's hands.
func lineRace(f *fixture) {
	const submitters, each = 4, 25
	going := make(chan *notification.Notification, submitters*each)
	var submitting sync.WaitGroup
	for s := range submitters {
		submitting.Go(func() {
			for i := range each {
				n := ordered(100*s+i, "k")
				f.reserve(n)
				lined, err := f.LineUp(f.Context(), []*notification.Notification{n})
				if err != nil {
					f.Error(err)
					return
				}
				if !lined[0].Waits {
					going <- lined[0].Row
				}
			}
		})
	}
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for delivered := 0; delivered < submitters*each; {
		select {
		case n := <-going:
			if turn := f.turn(n); turn.Behind {
				f.Fatalf("%s is on its way, and it is not its turn", n.RequestID)
			}
			f.settle(n, notification.StateDelivered)
			delivered++
			next, err := f.Next(f.Context(), []*notification.Notification{n}, f.clock.now())
			f.must(err)
			if len(next) > 1 {
				f.Fatalf("%d at once", len(next))
			}
			for _, n := range next {
				going <- n
			}
		case <-deadline.C:
			f.Fatalf("%d of %d were delivered, and nobody's turn comes", delivered, submitters*each)
		}
	}
	submitting.Wait()
}

func lineRefused(f *fixture) {
	a, b := ordered(1, "k"), ordered(2, "k")
	f.lineUp(a, b)
	broken := *a
	broken.Attempts, broken.UpdatedAt = 1<<40, f.clock.now()
	if errs := f.tryRecord(ledger.Record{Notification: &broken}); errs[0] == nil {
		f.Fatal("it was taken")
	}
	if got := f.turn(b); got != (ledger.Turn{}) {
		f.Errorf("behind one that the ledger refuses: %+v", got)
	}
	f.isWaiting(b, false)
}

func lineRetention(f *fixture) {
	a, b := ordered(1, "k"), ordered(2, "k")
	f.lineUp(a, b)
	f.settle(a, notification.StateDead)
	f.must(f.MaintainPartitions(f.Context(), Start.AddDate(1, 0, 0)))
	if got := f.turn(b); got.Behind {
		f.Errorf("an open one has lost its place: %+v", got)
	}
	c := ordered(3, "k")
	if lined := f.lineUp(c); !lined[0].Waits {
		f.Error("the open one is passed by")
	}
}

func supersede(f *fixture) {
	old := func(number int) *notification.Notification {
		n := ordered(number, "")
		n.SupersedeKey = "s"
		n.Digest = n.ContentDigest()
		return n
	}
	a, b, c := old(1), old(2), old(3)
	a.OrderingKey = "k"
	a.Digest = a.ContentDigest()
	behind := ordered(9, "k")
	f.lineUp(a, behind)
	if lined := f.lineUp(b); lined[0].Waits || !slices.Equal(lined[0].Superseded, []notification.ID{a.ID}) {
		f.Errorf("the newer one: %+v", lined[0])
	}
	if got := f.turn(a); got.SupersededBy != b.ID {
		f.Errorf("the older one: %+v", got)
	}
	// In flight it is left alone.
	if v, _ := f.claim(a, f.clock.now().Add(time.Minute)); v != ledger.ClaimGranted {
		f.Fatalf("claim: %d", v)
	}
	if _, err := f.Supersede(f.Context(), a.ID, b.ID, f.clock.now()); err == nil {
		f.Error("one in flight was canceled")
	}
	failed := *a
	failed.State, failed.Reason, failed.Attempts, failed.UpdatedAt = notification.StateRetrying, notification.ReasonHTTPServerError, 1, f.clock.now()
	f.record(ledger.Record{Notification: &failed})
	canceled, err := f.Supersede(f.Context(), a.ID, b.ID, f.clock.now())
	f.must(err)
	if canceled.State != notification.StateCanceled || canceled.Reason != notification.ReasonSuperseded || canceled.SettledBy != notification.SettledBySupersede+b.ID.String() || canceled.Generation != a.Generation+1 {
		f.Errorf("the older one: %+v", canceled.Progress)
	}
	f.isWaiting(behind, false)
	if got := f.turn(f.find(a.ID)); got != (ledger.Turn{}) {
		f.Errorf("after its end: %+v", got)
	}
	f.settle(b, notification.StateDelivered)
	if lined := f.lineUp(c); len(lined[0].Superseded) != 0 {
		f.Errorf("a delivered one is superseded: %+v", lined[0])
	}
	d, e := old(4), old(5)
	lined := f.lineUp(d, e)
	if f.turn(c).SupersededBy.IsZero() || f.turn(d).SupersededBy != e.ID || !f.turn(e).SupersededBy.IsZero() {
		f.Errorf("two newer ones at once: %+v", lined)
	}
}
