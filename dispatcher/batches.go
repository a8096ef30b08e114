package dispatcher

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// GetBatch says how far the notifications of a batch are.
func (d *Dispatcher) GetBatch(context.Context, *connect.Request[notifydv1.GetBatchRequest]) (*connect.Response[notifydv1.GetBatchResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("GetBatch"))
}
