package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"notifyd/client"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func (s *server) GetNotification(_ context.Context, req *connect.Request[notifydv1.GetNotificationRequest]) (*connect.Response[notifydv1.GetNotificationResponse], error) {
	if req.Msg.Id == "ntf_none" {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("notification %q: not found", req.Msg.Id))
	}
	return connect.NewResponse(&notifydv1.GetNotificationResponse{Notification: &client.Notification{Id: req.Msg.Id, Source: req.Msg.Source, RequestId: req.Msg.RequestId}}), nil
}

func (s *server) GetBatch(_ context.Context, req *connect.Request[notifydv1.GetBatchRequest]) (*connect.Response[notifydv1.GetBatchResponse], error) {
	return connect.NewResponse(&notifydv1.GetBatchResponse{BatchId: req.Msg.Source + "/" + req.Msg.BatchId, Accepted: 3}), nil
}

func (s *server) CancelNotifications(_ context.Context, req *connect.Request[notifydv1.CancelNotificationsRequest]) (*connect.Response[notifydv1.CancelNotificationsResponse], error) {
	out := &notifydv1.CancelNotificationsResponse{}
	for _, id := range req.Msg.Ids {
		out.Results = append(out.Results, &notifydv1.ChangeResult{Id: id})
	}
	return connect.NewResponse(out), nil
}

// ListNotifications has three pages; the fourth does not work.
func (s *server) ListNotifications(_ context.Context, req *connect.Request[notifydv1.ListNotificationsRequest]) (*connect.Response[notifydv1.ListNotificationsResponse], error) {
	page := len(req.Msg.PageToken)
	if page == 3 {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("no postgres"))
	}
	out := &notifydv1.ListNotificationsResponse{NextPageToken: req.Msg.PageToken + "x"}
	for i := range 2 {
		out.Notifications = append(out.Notifications, &client.Notification{Id: fmt.Sprintf("%s-%d-%d", req.Msg.Filter.MerchantId, page, i)})
	}
	if req.Msg.Filter.MerchantId == "short" {
		out.NextPageToken = ""
	}
	return connect.NewResponse(out), nil
}

func TestReading(t *testing.T) {
	c := (&server{}).start(t)
	ctx := t.Context()
	if got, err := c.Get(ctx, "ntf_1"); err != nil || got.Notification.Id != "ntf_1" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := c.Find(ctx, "r1"); err != nil || got.Notification.Source != "billing" || got.Notification.RequestId != "r1" {
		t.Errorf("%v, %v", got, err)
	}
	_, err := c.Get(ctx, "ntf_none")
	if e := errorOf(t, err); e.Code != connect.CodeNotFound || e.Uncertain {
		t.Errorf("%+v", e)
	}
	if got, err := c.GetBatch(ctx, "b1"); err != nil || got.BatchId != "billing/b1" || got.Accepted != 3 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := c.Cancel(ctx, "ntf_1", "ntf_2"); err != nil || len(got) != 2 || got[1].Id != "ntf_2" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestListFetchesPagesAsTheyAreNeeded(t *testing.T) {
	c := (&server{}).start(t)
	for merchant, test := range map[string]struct {
		stop int
		want []string
		fail bool
	}{
		"short": {stop: 99, want: []string{"short-0-0", "short-0-1"}},
		"long":  {stop: 99, want: []string{"long-0-0", "long-0-1", "long-1-0", "long-1-1", "long-2-0", "long-2-1"}, fail: true},
		"early": {stop: 3, want: []string{"early-0-0", "early-0-1", "early-1-0"}},
	} {
		var got []string
		var failure error
		for n, err := range c.List(t.Context(), &client.Filter{MerchantId: merchant}) {
			if err != nil {
				failure = err
				continue
			}
			if got = append(got, n.Id); len(got) == test.stop {
				break
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" || (failure != nil) != test.fail {
			t.Errorf("%s: %v %s", merchant, failure, diff)
		}
	}
}
