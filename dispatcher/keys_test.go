package dispatcher

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/async"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// fakeBoard keeps what it is given, unless it is told to fail.
type fakeBoard struct {
	fail    error
	learn   func(name string, value []byte)
	entries map[string]time.Duration
}

func (b *fakeBoard) Put(_ context.Context, name string, value []byte, ttl time.Duration) error {
	if b.fail == nil {
		b.entries[name] = ttl
		b.learn(name, value)
	}
	return b.fail
}

func (b *fakeBoard) Delete(_ context.Context, name string) error {
	if b.fail == nil {
		delete(b.entries, name)
		b.learn(name, nil)
	}
	return b.fail
}

// fakeQueues are own queues as they are told.
type fakeQueues struct {
	own  map[string]async.OwnQueue
	fail error
}

func (q fakeQueues) OwnQueues(context.Context) (map[string]async.OwnQueue, error) {
	return q.own, q.fail
}
func (q fakeQueues) InFlight(key string) (n, most int) { return len(key), 8 }

func inKeys(t *testing.T, run func(t *testing.T, w *world, s *MerchantService, board *fakeBoard)) {
	t.Helper()
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		board := &fakeBoard{entries: map[string]time.Duration{}, learn: w.LearnBoard}
		w.gate.board = board
		run(t, w, NewMerchantService(w.Dispatcher, nil, nil), board)
	})
}

func list(t *testing.T, s *MerchantService, req *notifydv1.ListKeysRequest) *notifydv1.ListKeysResponse {
	t.Helper()
	res, err := s.ListKeys(t.Context(), connect.NewRequest(req))
	must(t, err)
	return res.Msg
}

func names(res *notifydv1.ListKeysResponse) []string {
	var out []string
	for _, k := range res.Keys {
		out = append(out, k.MerchantId+" "+k.IsolationKey)
	}
	return out
}

func TestListKeys(t *testing.T) {
	inKeys(t, func(t *testing.T, w *world, s *MerchantService, _ *fakeBoard) {
		w.merchant(&merchant.Merchant{ID: "n"})
		w.gate.sends(t, "m:m/s:a", acked, refused)
		w.gate.sends(t, "m:m/s:b", repeat(5, refused)...)
		opened := clock()
		oldest := clock().Add(-time.Hour)
		s.Queues = fakeQueues{own: map[string]async.OwnQueue{"m:n": {MerchantID: "n", Depth: 7, Oldest: oldest, Reason: notification.ReasonBacklog}}}
		w.gate.setForced(boardName(onBoardForcedMerchant, "n"), &forced{Merchant: "n", Open: true, Reason: "drill", By: "alice", At: opened, Until: opened.Add(time.Minute)})

		want := []*notifydv1.KeyStatus{
			{
				MerchantId: "n", Breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, Forced: notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN, ForcedBy: "alice", ForcedReason: "drill",
				ForcedAt: timestamppb.New(opened), ForcedUntil: timestamppb.New(opened.Add(time.Minute)),
			},
			{
				IsolationKey: "m:m/s:a", MerchantId: "m", Breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, Forced: notifydv1.ForcedBreaker_FORCED_BREAKER_NONE,
				WindowAttempts: 2, WindowFailures: 1, ConsecutiveFailures: 1, InFlight: 7, InFlightCap: 8,
			},
			{
				IsolationKey: "m:m/s:b", MerchantId: "m", Breaker: notifydv1.BreakerState_BREAKER_STATE_OPEN, Forced: notifydv1.ForcedBreaker_FORCED_BREAKER_NONE,
				OpenedAt: timestamppb.New(opened), ProbeAt: timestamppb.New(opened.Add(10 * time.Second)), Openings: 1, Cause: notifydv1.BreakerCause_BREAKER_CAUSE_CONSECUTIVE_FAILURES,
				ConsecutiveFailures: 5, InFlight: 7, InFlightCap: 8,
			},
			{
				IsolationKey: "m:n", MerchantId: "n", Breaker: notifydv1.BreakerState_BREAKER_STATE_CLOSED, Forced: notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN, ForcedBy: "alice", ForcedReason: "drill",
				ForcedAt: timestamppb.New(opened), ForcedUntil: timestamppb.New(opened.Add(time.Minute)), InFlight: 3, InFlightCap: 8, OwnQueue: true, OwnQueueDepth: 7, OwnQueueOldest: timestamppb.New(oldest), OwnQueueReason: "backlog",
			},
		}
		if diff := cmp.Diff(want, list(t, s, &notifydv1.ListKeysRequest{}).Keys, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		for name, c := range map[string]struct {
			req  *notifydv1.ListKeysRequest
			want []string
		}{
			"of one merchant": {&notifydv1.ListKeysRequest{MerchantId: "n"}, []string{"n ", "n m:n"}},
			"troubled":        {&notifydv1.ListKeysRequest{OnlyTroubled: true}, []string{"n ", "m m:m/s:b", "n m:n"}},
			"of nobody":       {&notifydv1.ListKeysRequest{MerchantId: "x"}, nil},
		} {
			if got := names(list(t, s, c.req)); !slices.Equal(got, c.want) {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
		var paged []string
		for req := (&notifydv1.ListKeysRequest{PageSize: 1}); ; {
			res := list(t, s, req)
			paged = append(paged, names(res)...)
			if req.PageToken = res.NextPageToken; req.PageToken == "" {
				break
			}
		}
		if want := []string{"n ", "m m:m/s:a", "m m:m/s:b", "n m:n"}; !slices.Equal(paged, want) {
			t.Errorf("by pages: %q", paged)
		}
		pass(10 * time.Second)
		s.Queues = fakeQueues{fail: errDown}
		res := list(t, s, &notifydv1.ListKeysRequest{MerchantId: "m", OnlyTroubled: true})
		if !res.OwnQueuesUnavailable || len(res.Keys) != 1 || res.Keys[0].Breaker != notifydv1.BreakerState_BREAKER_STATE_HALF_OPEN {
			t.Errorf("without own queues: %v", res)
		}
	})
}

func TestForceBreaker(t *testing.T) {
	inKeys(t, func(t *testing.T, w *world, s *MerchantService, board *fakeBoard) {
		ctx := context.WithValue(t.Context(), callerKey{}, Caller{Operator: "alice"})
		force := func(req *notifydv1.ForceBreakerRequest) (*notifydv1.ForceBreakerResponse, error) {
			res, err := s.ForceBreaker(ctx, connect.NewRequest(req))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		}
		openBreaker(t, w)
		res, err := force(&notifydv1.ForceBreakerRequest{MerchantId: "m", State: notifydv1.ForcedBreaker_FORCED_BREAKER_CLOSED, Reason: "they are well", ExpiresAt: timestamppb.New(clock().Add(time.Hour)), Operator: "bob"})
		must(t, err)
		for _, k := range res.Keys { // the merchant's, and the one key that is known
			if len(res.Keys) != 2 || k.ForcedBy != "alice/bob" || k.Forced != notifydv1.ForcedBreaker_FORCED_BREAKER_CLOSED || k.Breaker != notifydv1.BreakerState_BREAKER_STATE_CLOSED {
				t.Errorf("%v", res)
			}
		}
		if ttl := board.entries[boardName(onBoardForcedMerchant, "m")]; ttl != time.Hour {
			t.Errorf("kept for %s", ttl)
		}
		w.sends.answers(failed(refused))
		for i := range 10 {
			if v, _ := w.deliver(t, w.accepted(t, strings.Repeat("x", i+1))); v.Deferred {
				t.Fatalf("attempt %d: %+v", i, v)
			}
		}
		_, err = force(&notifydv1.ForceBreakerRequest{IsolationKey: "m:m", State: notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN, Reason: "drill"})
		must(t, err)
		if v, _ := w.deliver(t, w.accepted(t, "held")); !v.Deferred || v.Reason != notification.ReasonBreakerForcedOpen || v.After.State != notification.StateAccepted {
			t.Errorf("%+v", v)
		}
		board.fail = errDown
		if _, err = force(&notifydv1.ForceBreakerRequest{IsolationKey: "m:m", State: notifydv1.ForcedBreaker_FORCED_BREAKER_NONE}); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("while nobody keeps it: %v", err)
		}
		if v, _ := w.deliver(t, w.accepted(t, "held still")); !v.Deferred {
			t.Error("it was lifted though nobody keeps it")
		}
		board.fail = nil
		for _, req := range []*notifydv1.ForceBreakerRequest{{IsolationKey: "m:m"}, {MerchantId: "m"}, {MerchantId: "m"}} { // lifting is safe to repeat
			req.State = notifydv1.ForcedBreaker_FORCED_BREAKER_NONE
			_, err = force(req)
			must(t, err)
		}
		if len(list(t, s, &notifydv1.ListKeysRequest{}).Keys) != 1 || w.gate.forced.Load() != nil {
			t.Error("something is forced still")
		}
	})
}

func TestForceBreakerNamesTheFault(t *testing.T) {
	const open, none = notifydv1.ForcedBreaker_FORCED_BREAKER_OPEN, notifydv1.ForcedBreaker_FORCED_BREAKER_NONE
	inKeys(t, func(t *testing.T, _ *world, s *MerchantService, board *fakeBoard) {
		for want, req := range map[string]*notifydv1.ForceBreakerRequest{
			"isolation_key: give isolation_key or merchant_id":       {State: open, Reason: "x"},
			"isolation_key: give isolation_key or merchant_id, and":  {State: open, Reason: "x", MerchantId: "m", IsolationKey: "m:m"},
			`isolation_key: "acme": has no segment`:                  {State: open, Reason: "x", IsolationKey: "acme"},
			"reason: is empty":                                       {State: open, MerchantId: "m"},
			"state: ":                                                {Reason: "x", MerchantId: "m"},
			"state: FORCED_BREAKER_NONE: has no reason":              {State: none, MerchantId: "m", Reason: "x"},
			"expires_at: 2000-01-01T00:00:00Z: is not in the future": {State: open, MerchantId: "m", Reason: "x", ExpiresAt: timestamppb.New(time.Now())},
			"expires_at: 0 seconds and -1 nanoseconds: must be":      {State: open, MerchantId: "m", Reason: "x", ExpiresAt: &timestamppb.Timestamp{Nanos: -1}},
			`merchant "nobody": not found`:                           {State: open, MerchantId: "nobody", Reason: "x"},
			`merchant "no/body": not found`:                          {State: open, IsolationKey: "m:no%2Fbody/s:x", Reason: "x"},
		} {
			_, err := s.ForceBreaker(t.Context(), connect.NewRequest(req))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		if len(board.entries) != 0 {
			t.Errorf("kept: %v", board.entries)
		}
	})
}
