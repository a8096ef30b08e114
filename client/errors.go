package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// What an *Error Is.
var (
	// ErrConflict: the same source and request_id were submitted before with other content. Nothing was changed.
	ErrConflict = errors.New("was submitted before with other content")
	// ErrUncertain: it is not known whether the notification was accepted. Submitting the same again is safe, and tells.
	ErrUncertain = errors.New("it is not known whether it was accepted; submitting the same again is safe")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("the client is closed")
)

// Violation is one field and the rule that it breaks.
type Violation = notifydv1.Violation

// Error is why a notification was not accepted, or why a call failed. Besides the sentinels above it Is
// context.DeadlineExceeded and context.Canceled when its code says so.
type Error struct {
	Code    connect.Code
	Message string
	// Violations of INVALID_ARGUMENT.
	Violations []*Violation
	// RetryAfter is when the server asks to be tried again; 0: it does not say.
	RetryAfter time.Duration
	// Tries that were made; 0: nothing was sent.
	Tries int
	// Uncertain: the notification may have been accepted all the same. See ErrUncertain.
	Uncertain bool
	// Answered: a notifyd said this. Otherwise no answer came, or one from something else on the way.
	Answered bool
	// WholeCall: the call failed for every notification in it, not for this one alone.
	WholeCall bool

	cause error
	ended bool // the caller waits no longer
}

// Error names code, message and what is not known. It holds no secret: credentials are not part of any message.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Code.String() + ": " + e.Message)
	if e.Tries > 1 {
		fmt.Fprintf(&b, " (%d tries)", e.Tries)
	}
	if e.Uncertain {
		b.WriteString("; " + ErrUncertain.Error())
	}
	return b.String()
}

// Unwrap is the fault below: of the network, or of a context.
func (e *Error) Unwrap() error { return e.cause }

// Is matches the sentinels.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrConflict:
		return e.Code == connect.CodeAlreadyExists
	case ErrUncertain:
		return e.Uncertain
	case context.DeadlineExceeded:
		return e.Code == connect.CodeDeadlineExceeded
	case context.Canceled:
		return e.Code == connect.CodeCanceled
	}
	return false
}

// Temporary reports whether the same submission may work later. Everything else needs somebody to change something.
func (e *Error) Temporary() bool {
	switch e.Code {
	case connect.CodeUnavailable:
		return !e.untrusted()
	case connect.CodeResourceExhausted: // without an instant to come back at it is a bound: too large today is too large tomorrow
		return e.RetryAfter > 0 || !e.Answered
	case connect.CodeDeadlineExceeded:
		return true
	case connect.CodeCanceled, connect.CodeUnknown, connect.CodeAborted:
		return !e.Answered // a connection that broke
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeFailedPrecondition, connect.CodeOutOfRange, connect.CodeUnimplemented, connect.CodeInternal,
		connect.CodeDataLoss, connect.CodeUnauthenticated:
		return false
	}
	return false
}

// Unreached reports whether not even a connection came about that both sides trust.
func (e *Error) Unreached() bool {
	fault, ok := errors.AsType[*net.OpError](e.cause)
	return ok && fault.Op == "dial" || e.untrusted()
}

// untrusted reports whether one side did not accept the other's certificate.
func (e *Error) untrusted() bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](e.cause); ok {
		return true
	}
	alert, ok := errors.AsType[*net.OpError](e.cause)
	return ok && alert.Op == "remote error"
}

// ErrorOf reads the error of a generated client's call; nil stays nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Code: connect.CodeOf(err), Message: err.Error(), Answered: connect.IsWireError(err), cause: err}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		e.Message = ce.Message()
		e.readDetails(ce.Details())
	}
	e.Uncertain = e.mayHaveWorked()
	return e
}

func (e *Error) readDetails(details []*connect.ErrorDetail) {
	for _, d := range details {
		value, err := d.Value()
		if err != nil {
			continue // of a newer server
		}
		switch v := value.(type) {
		case *errdetails.BadRequest:
			for _, field := range v.FieldViolations {
				e.Violations = append(e.Violations, &Violation{Field: field.Field, Description: field.Description})
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = v.RetryDelay.AsDuration()
		}
	}
}

// itemFault is the error of one notification in a batch.
func itemFault(p *notifydv1.ItemError) *Error {
	e := &Error{Message: p.Message, Violations: p.Violations, RetryAfter: p.RetryAfter.AsDuration(), Answered: true}
	if err := e.Code.UnmarshalText([]byte(p.Code)); err != nil {
		e.Code = connect.CodeUnknown // of a newer server
	}
	e.Uncertain = e.mayHaveWorked()
	return e
}

// mayHaveWorked is false only where the server is known to have refused, or not to have heard.
func (e *Error) mayHaveWorked() bool {
	if !e.Answered {
		return !e.Unreached()
	}
	switch e.Code {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeResourceExhausted, connect.CodeFailedPrecondition, connect.CodeUnimplemented, connect.CodeUnauthenticated:
		return false
	case connect.CodeCanceled, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeAborted, connect.CodeOutOfRange,
		connect.CodeInternal, connect.CodeUnavailable, connect.CodeDataLoss:
		return true
	}
	return true
}

func invalid(field, description string) *Error {
	return &Error{
		Code: connect.CodeInvalidArgument, Message: field + ": " + description,
		Violations: []*Violation{{Field: field, Description: description}},
	}
}

// ended is why a caller waits no longer.
func ended(cause error, uncertain bool) *Error {
	code := connect.CodeCanceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = connect.CodeDeadlineExceeded
	}
	return &Error{Code: code, Message: cause.Error(), Uncertain: uncertain, cause: cause, ended: true}
}
