package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func (w *world) list(ctx context.Context, f *notifydv1.NotificationFilter, token string) (*notifydv1.ListNotificationsResponse, error) {
	res, err := w.ListNotifications(ctx, connect.NewRequest(&notifydv1.ListNotificationsRequest{Filter: f, PageSize: 2, PageToken: token}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// Each bad filter or token is refused by the name of the field, with the value and the rule.
func TestListRefuses(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		for _, name := range []string{"a", "b", "c"} {
			w.due(t, name, nil)
		}
		first, err := w.list(t.Context(), &notifydv1.NotificationFilter{MerchantId: "m"}, "")
		if err != nil || len(first.Notifications) != 2 {
			t.Fatal(first, err)
		}
		at := timestamppb.New(clock())
		for want, c := range map[string]struct {
			filter *notifydv1.NotificationFilter
			token  string
		}{
			`filter.id: "42": parse id: want ntf_ and 26 characters a-z2-7`:        {filter: &notifydv1.NotificationFilter{Id: "42"}},
			`filter.id: "ntf_aaaaaaaaaaaaaaaaaaaaaaaaaa": no notification has it`:  {filter: &notifydv1.NotificationFilter{Id: notification.ID{}.String()}},
			`filter.request_id: "a\x00b": control characters are not allowed`:      {filter: &notifydv1.NotificationFilter{RequestId: "a\x00b"}},
			`filter.merchant_id: "\n": control characters are not allowed`:         {filter: &notifydv1.NotificationFilter{MerchantId: "\n"}},
			`filter.source: "\x7f": control characters are not allowed`:            {filter: &notifydv1.NotificationFilter{Source: "\x7f"}},
			`filter.state_reason: "sold_out": is not one of the reasons`:           {filter: &notifydv1.NotificationFilter{StateReason: "sold_out"}},
			`filter.states[1]: STATE_PREPARED: is reserved, nothing has it`:        {filter: &notifydv1.NotificationFilter{States: []notifydv1.State{notifydv1.State_STATE_DEAD, notifydv1.State_STATE_PREPARED}}},
			`filter.accepted_to: 2000-01-01T00:00:00Z: is not after accepted_from`: {filter: &notifydv1.NotificationFilter{AcceptedFrom: at, AcceptedTo: at}},
			`filter.accepted_from: `: {filter: &notifydv1.NotificationFilter{AcceptedFrom: &timestamppb.Timestamp{Seconds: 1 << 60}}},
			`filter.accepted_to: `:   {filter: &notifydv1.NotificationFilter{AcceptedTo: &timestamppb.Timestamp{Nanos: -1}}},
			`filter.merchant_id: `:   {filter: &notifydv1.NotificationFilter{MerchantId: strings.Repeat("m", 129)}},
			`filter.states[0]: `:     {filter: &notifydv1.NotificationFilter{States: []notifydv1.State{99}}},
			`page_token: "2": is not one of ours; take next_page_token from the answer before as it`: {token: "2"},
			`page_token: "` + first.NextPageToken + `": belongs to another filter; repeat the`:       {token: first.NextPageToken, filter: &notifydv1.NotificationFilter{MerchantId: "n"}},
			`page_token: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": was made by an earlier version; start`:  {token: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		} {
			_, err := w.list(t.Context(), c.filter, c.token)
			var refused *connect.Error
			if !errors.As(err, &refused) || refused.Code() != connect.CodeInvalidArgument || !strings.HasPrefix(refused.Message(), want) {
				t.Errorf("want %s\ngot  %v", want, err)
			}
		}
		second, err := w.list(t.Context(), &notifydv1.NotificationFilter{MerchantId: "m"}, first.NextPageToken)
		if err != nil || len(second.Notifications) != 1 || second.NextPageToken != "" {
			t.Fatal(second, err)
		}
	})
}

func TestListByName(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		id := w.due(t, "a", nil).ID
		w.due(t, "b", nil)
		for _, f := range []*notifydv1.NotificationFilter{{Id: id.String()}, {RequestId: "a"}, {RequestId: "a", Source: "pay", MerchantId: "m"}} {
			got, err := w.list(t.Context(), f, "")
			if err != nil || len(got.Notifications) != 1 || got.Notifications[0].Id != id.String() {
				t.Errorf("%v: %v, %v", f, got, err)
			}
		}
		got, err := w.list(t.Context(), &notifydv1.NotificationFilter{RequestId: "a", Source: "other"}, "")
		if err != nil || len(got.Notifications) != 0 {
			t.Errorf("another source's: %v, %v", got, err)
		}
	})
}

func TestSearchTookTooLong(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		err := w.searchError(ledger.ErrTooLong)
		if err.Code() != connect.CodeDeadlineExceeded || !strings.Contains(err.Message(), "narrow it") {
			t.Error(err)
		}
	})
}

// Searches that are too many are refused with word of when to come again (P10).
func TestSearchGotNoTurn(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		err := w.searchError(fmt.Errorf("list notifications: %w: no turn within 3s", ledger.ErrBusy))
		if item := itemError(err); err.Code() != connect.CodeResourceExhausted || item.RetryAfter.AsDuration() != time.Second || err.Message() != "too many searches at once" {
			t.Errorf("%v, retry after %s", err, item.RetryAfter.AsDuration())
		}
	})
}

func TestGetBatch(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		ask := func(batch, source string) (*notifydv1.GetBatchResponse, error) {
			res, err := w.GetBatch(t.Context(), connect.NewRequest(&notifydv1.GetBatchRequest{BatchId: batch, Source: source}))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		}
		member := func(name string, state notification.State) *notification.Notification {
			return w.due(t, name, func(n *notification.Notification) {
				n.BatchID = "payday"
				if state.Final() {
					n.Settle(state, notification.ReasonGone, notification.SettledByMerchant, n.AcceptedAt.Add(time.Second))
				}
			}).Notification
		}
		dead := member("a", notification.StateDead)
		pass(time.Minute)
		waits := member("b", notification.StateAccepted)
		got, err := ask("payday", "")
		want := &notifydv1.GetBatchResponse{
			BatchId: "payday", Accepted: 2, Dead: 1, Waiting: 1,
			FirstAcceptedAt: toTimestamp(dead.AcceptedAt), LastAcceptedAt: toTimestamp(waits.AcceptedAt),
			OldestWaitingId: waits.ID.String(), OldestWaitingAcceptedAt: toTimestamp(waits.AcceptedAt),
		}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("got %v, %v\nwant %v", got, err, want)
		}
		settled := *waits
		settled.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, clock())
		w.put(t, &settled)
		if got, err := ask("payday", "pay"); err != nil || got.Waiting != 0 || got.OldestWaitingId != "" || !got.SettledAt.AsTime().Equal(settled.SettledAt) {
			t.Errorf("settled: %v, %v", got, err)
		}
		for _, c := range []struct {
			batch, source string
			want          connect.Code
		}{
			{"unknown", "", connect.CodeNotFound},
			{"payday", "other", connect.CodeNotFound},
			{"", "", connect.CodeInvalidArgument},
			{"a\x00", "", connect.CodeInvalidArgument},
			{"payday", "a\n", connect.CodeInvalidArgument},
			{strings.Repeat("b", 129), "", connect.CodeInvalidArgument},
		} {
			if _, err := ask(c.batch, c.source); connect.CodeOf(err) != c.want {
				t.Errorf("batch %q of %q: %v, want %s", c.batch, c.source, err, c.want)
			}
		}
	})
}

// Whatever passes the checks can be asked of the ledger, and makes a page token that fits it.
func FuzzFilter(f *testing.F) {
	seed := func(p *notifydv1.NotificationFilter) {
		raw, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(&notifydv1.NotificationFilter{})
	seed(&notifydv1.NotificationFilter{Id: notification.ID{1}.String(), RequestId: "r", MerchantId: "m", States: []notifydv1.State{notifydv1.State_STATE_DEAD}})
	seed(&notifydv1.NotificationFilter{StateReason: "gone", AcceptedFrom: timestamppb.New(time.Unix(1, 0)), AcceptedTo: &timestamppb.Timestamp{Seconds: 1 << 40}})
	memory := ledger.NewMemory(ledger.Config{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := &notifydv1.NotificationFilter{}
		if proto.Unmarshal(raw, p) != nil || checkRequest(&notifydv1.ListNotificationsRequest{Filter: p}) != nil {
			return // refused before the filter is looked at
		}
		filter, err := filterFromProto(p)
		if err != nil {
			if message := err.Error(); !strings.Contains(message, "filter.") {
				t.Fatalf("names no field: %s", message)
			}
			return
		}
		place := ledger.Cursor{AcceptedAt: time.Unix(1_800_000_000, 0).UTC(), ID: notification.ID{1}}
		if back, err := ledger.ParseToken(place.Token(filter), filter); err != nil || back != place {
			t.Fatalf("token: %v, %v", back, err)
		}
		if _, _, err := memory.List(t.Context(), filter, 10, place); err != nil {
			t.Fatal(err)
		}
	})
}
