package client

import (
	"context"
	"iter"

	"connectrpc.com/connect"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// The answers of the calls below.
type (
	// Filter says which notifications List returns: what is given must match.
	Filter = notifydv1.NotificationFilter
	// Found is a notification with its attempts.
	Found = notifydv1.GetNotificationResponse
	// Batch counts the notifications of a batch_id by state.
	Batch = notifydv1.GetBatchResponse
	// Change is what became of one id; Error is set when it was not changed.
	Change = notifydv1.ChangeResult
)

// Get returns the notification with an id.
func (c *Client) Get(ctx context.Context, id string) (*Found, error) {
	return call(ctx, c.rpc.GetNotification, &notifydv1.GetNotificationRequest{Id: id})
}

// Find returns the notification that was submitted with a request_id by the client's source.
func (c *Client) Find(ctx context.Context, requestID string) (*Found, error) {
	return call(ctx, c.rpc.GetNotification, &notifydv1.GetNotificationRequest{Source: c.source, RequestId: requestID})
}

// GetBatch says how far the notifications of a batch_id are.
func (c *Client) GetBatch(ctx context.Context, batchID string) (*Batch, error) {
	return call(ctx, c.rpc.GetBatch, &notifydv1.GetBatchRequest{BatchId: batchID, Source: c.source})
}

// Cancel makes undelivered notifications final, at most 1000 at a time. Each id has its own answer, in order.
func (c *Client) Cancel(ctx context.Context, ids ...string) ([]*Change, error) {
	resp, err := call(ctx, c.rpc.CancelNotifications, &notifydv1.CancelNotificationsRequest{Ids: ids})
	if err != nil {
		return nil, err
	}
	return resp.Results, nil
}

// List returns notifications, newest first. Pages are fetched as they are needed; an error ends it.
func (c *Client) List(ctx context.Context, filter *Filter) iter.Seq2[*Notification, error] {
	return func(yield func(*Notification, error) bool) {
		for token := ""; ; {
			page, err := call(ctx, c.rpc.ListNotifications, &notifydv1.ListNotificationsRequest{Filter: filter, PageSize: 200, PageToken: token})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, n := range page.Notifications {
				if !yield(n, nil) {
					return
				}
			}
			if token = page.NextPageToken; token == "" {
				return
			}
		}
	}
}

// call makes one call of a generated client.
func call[Req, Resp any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) (*Resp, error) {
	resp, err := method(ctx, connect.NewRequest(req))
	if err != nil {
		e := ErrorOf(err)
		e.Uncertain = false // it is about submissions
		return nil, e
	}
	return resp.Msg, nil
}
