package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/async"
	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// retryAfter is what a caller is asked to wait when the engine cannot take more, or cannot take it now.
const retryAfter = time.Second

func invalid(field, description string) *connect.Error {
	return invalidAll([]*errdetails.BadRequest_FieldViolation{{Field: field, Description: description}})
}

// invalidAll names every field that is wrong, by name, so that the same mistake has the same answer; the message repeats
// the first.
func invalidAll(violations []*errdetails.BadRequest_FieldViolation) *connect.Error {
	slices.SortStableFunc(violations, func(a, b *errdetails.BadRequest_FieldViolation) int { return strings.Compare(a.Field, b.Field) })
	text := fmt.Sprintf("%s: %s", violations[0].Field, violations[0].Description)
	if len(violations) > 1 {
		text = fmt.Sprintf("%s (and %d more)", text, len(violations)-1)
	}
	return withDetail(connect.NewError(connect.CodeInvalidArgument, errors.New(text)), &errdetails.BadRequest{FieldViolations: violations})
}

func notFound(what, name string) *connect.Error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("%s %q: not found", what, name))
}

func alreadyExists(id notification.ID) *connect.Error {
	return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("%s: was submitted before with other content; nothing is changed", id))
}

// unavailable says what could not be done for now. Why is for the log: it may name hosts, folders and users.
func (d *Dispatcher) unavailable(doing string, err error) *connect.Error {
	switch {
	case errors.Is(err, context.Canceled): // of a caller that is gone
	case d.outage.Allow():
		d.log.Warn("a call is answered UNAVAILABLE", zap.String("doing", doing), zap.Error(err), zap.Int64("not_logged", d.unlogged.Swap(0)))
	default:
		d.unlogged.Add(1)
	}
	what := "not possible right now; try again"
	if errors.Is(err, ledger.ErrAway) || errors.Is(err, ledger.ErrIncomplete) {
		what = ledger.ErrAway.Error() + "; try again"
	}
	return withDetail(connect.NewError(connect.CodeUnavailable, errors.New(doing+": "+what)), retryInfo())
}

// unaccepted says that a notification is not known to be durable: submitting it again is safe and right.
func (d *Dispatcher) unaccepted(err error) *connect.Error {
	if errors.Is(err, async.ErrFull) {
		return busy(async.ErrFull)
	}
	if _, refused := errors.AsType[*ledger.QuarantinedError](err); refused {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	return d.unavailable("make durable", err)
}

// busy says that there is too much to do right now (P10).
func busy(err error) *connect.Error {
	return withDetail(connect.NewError(connect.CodeResourceExhausted, err), retryInfo())
}

func retryInfo() *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}
}

func withDetail(err *connect.Error, detail proto.Message) *connect.Error {
	if d, derr := connect.NewErrorDetail(detail); derr == nil {
		err.AddDetail(d)
	}
	return err
}

// itemError is what one item of a list would have failed with on its own.
func itemError(err error) *notifydv1.ItemError {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		ce = connect.NewError(connect.CodeUnknown, err)
	}
	out := &notifydv1.ItemError{Code: ce.Code().String(), Message: ce.Message()}
	for _, d := range ce.Details() {
		value, err := d.Value()
		if err != nil {
			continue
		}
		switch v := value.(type) {
		case *errdetails.BadRequest:
			for _, f := range v.FieldViolations {
				out.Violations = append(out.Violations, &notifydv1.Violation{Field: f.Field, Description: f.Description})
			}
		case *errdetails.RetryInfo:
			out.RetryAfter = v.RetryDelay
		}
	}
	return out
}

// changeError says why a cancel or a resend was refused.
func (d *Dispatcher) changeError(id string, err error) *connect.Error {
	if answer, ok := errors.AsType[*connect.Error](err); ok {
		return answer
	}
	switch {
	case errors.Is(err, ledger.ErrNotFound):
		return notFound("notification", id)
	case errors.Is(err, ledger.ErrFinal), errors.Is(err, ledger.ErrInFlight), errors.Is(err, ledger.ErrReservedOnly):
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: %w", id, err))
	}
	return d.unavailable("ask the ledger", err)
}
