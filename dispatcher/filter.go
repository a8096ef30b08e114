package dispatcher

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// filterFromProto checks what the proto files' rules cannot say.
func filterFromProto(p *notifydv1.NotificationFilter) (ledger.Filter, error) {
	if p == nil {
		return ledger.Filter{}, nil
	}
	for _, text := range []struct{ field, value string }{
		{"merchant_id", p.MerchantId},
		{"order_id", p.OrderId},
		{"scene", p.Scene},
		{"batch_id", p.BatchId},
		{"source", p.Source},
		{"request_id", p.RequestId},
	} {
		if !printable(text.value) {
			return ledger.Filter{}, invalid("filter."+text.field, fmt.Sprintf("%q: control characters are not allowed", text.value))
		}
	}
	if fault := timeFault(p.AcceptedFrom); fault != "" {
		return ledger.Filter{}, invalid("filter.accepted_from", fault)
	}
	if fault := timeFault(p.AcceptedTo); fault != "" {
		return ledger.Filter{}, invalid("filter.accepted_to", fault)
	}
	f := ledger.Filter{
		RequestID: p.RequestId, MerchantID: p.MerchantId, OrderID: p.OrderId, Scene: p.Scene, BatchID: p.BatchId, Source: p.Source,
		Reason: notification.Reason(p.StateReason), From: fromTimestamp(p.AcceptedFrom), To: fromTimestamp(p.AcceptedTo),
	}
	if p.Id != "" {
		var err error
		if f.ID, err = notification.ParseID(p.Id); err != nil {
			return ledger.Filter{}, invalid("filter.id", fmt.Sprintf("%q: %s", p.Id, err))
		}
		if f.ID.IsZero() {
			return ledger.Filter{}, invalid("filter.id", fmt.Sprintf("%q: no notification has it", p.Id))
		}
	}
	if f.Reason != "" && !slices.Contains(notification.Reasons(), f.Reason) {
		return ledger.Filter{}, invalid("filter.state_reason", fmt.Sprintf("%q: is not one of the reasons", p.StateReason))
	}
	if !f.From.IsZero() && !f.To.IsZero() && !f.From.Before(f.To) {
		return ledger.Filter{}, invalid("filter.accepted_to", f.To.Format(time.RFC3339)+": is not after accepted_from")
	}
	for i, s := range p.States {
		if s == notifydv1.State_STATE_PREPARED {
			return ledger.Filter{}, invalid("filter.states["+strconv.Itoa(i)+"]", "STATE_PREPARED: is reserved, nothing has it")
		}
		f.States = append(f.States, notification.State(s)) //nolint:gosec // the numbers are the same, and validated
	}
	return f, nil
}

// searchError says why a list or a count failed. One that took too long does so again: it is not to be repeated as it is.
func (d *Dispatcher) searchError(err error) *connect.Error {
	if errors.Is(err, ledger.ErrTooLong) {
		return connect.NewError(connect.CodeDeadlineExceeded,
			errors.New("the search was ended: too much had to be read for it; narrow it, for example with accepted_from and accepted_to, or merchant_id"))
	}
	if errors.Is(err, ledger.ErrBusy) {
		return busy(ledger.ErrBusy)
	}
	return d.unavailable("ask the ledger", err)
}
