package dispatcher

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// GetBatch says how far the notifications of a batch are.
func (d *Dispatcher) GetBatch(ctx context.Context, req *connect.Request[notifydv1.GetBatchRequest]) (*connect.Response[notifydv1.GetBatchResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	if !printable(req.Msg.BatchId) {
		return nil, invalid("batch_id", fmt.Sprintf("%q: control characters are not allowed", req.Msg.BatchId))
	}
	if !printable(req.Msg.Source) {
		return nil, invalid("source", fmt.Sprintf("%q: control characters are not allowed", req.Msg.Source))
	}
	source, err := ownSource(ctx, "source", req.Msg.Source)
	if err != nil {
		return nil, err
	}
	b, err := d.ledger.Batch(ctx, req.Msg.BatchId, source)
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return nil, notFound("batch", req.Msg.BatchId)
	case err != nil:
		return nil, d.searchError(err)
	}
	out := &notifydv1.GetBatchResponse{
		BatchId: req.Msg.BatchId, Accepted: b.Accepted, Delivered: b.Delivered, Waiting: b.Waiting,
		Dead: b.Dead, Canceled: b.Canceled, Expired: b.Expired,
		FirstAcceptedAt: toTimestamp(b.FirstAcceptedAt), LastAcceptedAt: toTimestamp(b.LastAcceptedAt), SettledAt: toTimestamp(b.SettledAt),
	}
	if !b.OldestWaiting.IsZero() {
		out.OldestWaitingId = b.OldestWaiting.ID.String()
		out.OldestWaitingAcceptedAt = toTimestamp(b.OldestWaiting.AcceptedAt)
	}
	return connect.NewResponse(out), nil
}
