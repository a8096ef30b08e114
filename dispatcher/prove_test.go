package dispatcher

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// inProcess answers requests without a socket.
type inProcess struct{ handler http.Handler }

func (p inProcess) Do(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	p.handler.ServeHTTP(rec, req)
	return rec.Result(), nil
}

func (w *world) prove(t *testing.T, before time.Time) *notifydv1.ProveResponse {
	t.Helper()
	_, handler := notifydv1connect.NewNotificationServiceHandler(w.Dispatcher)
	client := notifydv1connect.NewNotificationServiceClient(inProcess{handler}, "http://notifyd")
	stream, err := client.Prove(t.Context(), connect.NewRequest(&notifydv1.ProveRequest{AcceptedBefore: timestamppb.New(before)}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var last *notifydv1.ProveResponse
	var missing []string
	for stream.Receive() {
		last = stream.Msg()
		missing = append(missing, last.MissingIds...)
	}
	if err := stream.Err(); err != nil || last == nil || !last.Done {
		t.Fatalf("the proof ended with %v, %v", last, err)
	}
	last.MissingIds = missing
	return last
}

// rest files a notification as resting in its own queue.
func (w *world) rest(t *testing.T, name string) notification.ID {
	t.Helper()
	return w.due(t, name, func(n *notification.Notification) { n.Resting = true }).ID
}

// The proof's counts add up, and what was lost on purpose is listed by its id (P2).
func TestProofFindsALoss(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		delivered := w.accepted(t, "delivered")
		w.deliver(t, delivered)
		canceled := w.due(t, "canceled", nil)
		if _, err := w.memory.Cancel(t.Context(), canceled.ID, "", clock()); err != nil {
			t.Fatal(err)
		}
		w.due(t, "due in an hour", func(n *notification.Notification) {
			n.State, n.NextAt = notification.StateRetrying, clock().Add(time.Hour)
		})
		w.where[w.accepted(t, "in its shard").ID] = "shard"
		w.where[w.rest(t, "in its own queue")] = "own_queue"
		w.hand.Enter(w.accepted(t, "in hand"), time.Now(), func(error) {})
		w.accepted(t, "cut short") // reserved, nobody was told

		lostRow := w.rest(t, "its own queue has lost it")
		lostTold := w.accepted(t, "answered and lost")
		if err := w.memory.Memory.MarkAnswered(t.Context(), []notification.ID{lostTold.ID}); err != nil {
			t.Fatal(err)
		}
		notDue := w.due(t, "open without a due time", nil)

		before := clock().Add(time.Second)
		pass(2 * time.Second)
		w.accepted(t, "after the cut-off")

		p := w.prove(t, before)
		if p.Accepted != 10 || p.Missing != 3 || p.Unanswered != 1 {
			t.Errorf("%d accepted, %d missing, %d cut short: want 10, 3 and 1", p.Accepted, p.Missing, p.Unanswered)
		}
		if want := map[string]int64{"delivered": 1, "canceled": 1}; !maps.Equal(p.Final, want) {
			t.Errorf("final %v, want %v", p.Final, want)
		}
		if want := map[string]int64{"due_index": 1, "shard": 1, "own_queue": 1, "in_hand": 1}; !maps.Equal(p.Waiting, want) {
			t.Errorf("waiting %v, want %v", p.Waiting, want)
		}
		want := []string{lostRow.String(), lostTold.ID.String(), notDue.ID.String()}
		slices.Sort(want)
		slices.Sort(p.MissingIds)
		if !slices.Equal(p.MissingIds, want) {
			t.Errorf("missing %v, want %v", p.MissingIds, want)
		}
		sum := p.Missing + p.Unanswered
		for _, counts := range []map[string]int64{p.Final, p.Waiting} {
			for _, n := range counts {
				sum += n
			}
		}
		if sum != p.Accepted {
			t.Errorf("the counts add up to %d, want %d", sum, p.Accepted)
		}
	})
}

// What an answer was given for is on the proof's books within about a second, row or no row.
func TestLossOfAnAcceptedOneIsNoCutShort(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		res, err := w.submitOne(t.Context(), payment("a")) // the fake lane takes it, and forgets it
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		w.markOwed(t.Context(), w.now().Add(-markAfter))
		p := w.prove(t, clock())
		if p.Missing != 1 || p.Unanswered != 0 || !slices.Equal(p.MissingIds, []string{res.Id}) {
			t.Errorf("%+v", p)
		}
	})
}

// More missing than one answer holds, over more than one page of reservations.
func TestProofListsEveryLoss(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		want := map[string]bool{}
		var ids []notification.ID
		var rs []ledger.Reservation
		for i := range proofPage + 1500 {
			n := &notification.Notification{Source: "pay", RequestID: strconv.Itoa(i)}
			n.ID = n.DeriveID()
			rs = append(rs, ledger.Reservation{ID: n.ID, AcceptedAt: clock()})
			ids = append(ids, n.ID)
			want[n.ID.String()] = true
		}
		if _, err := w.memory.Reserve(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		if err := w.memory.Memory.MarkAnswered(t.Context(), ids); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		p := w.prove(t, clock())
		got := map[string]bool{}
		for _, id := range p.MissingIds {
			got[id] = true
		}
		if p.Missing != int64(len(want)) || !maps.Equal(got, want) {
			t.Errorf("%d missing, %d listed, want %d", p.Missing, len(got), len(want))
		}
	})
}
