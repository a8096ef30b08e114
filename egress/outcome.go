package egress

import (
	"slices"

	"notifyd/merchant"
	"notifyd/notification"
)

// Phase is how far an attempt came.
type Phase uint8

// The phases, in the order in which an attempt passes through them.
const (
	PhasePrepare   Phase = iota + 1 // making the request
	PhaseResolve                    // asking for the name's addresses
	PhaseConnect                    // TCP
	PhaseTLS                        // the handshake
	PhaseWrite                      // on a connection, the request has not left as a whole
	PhaseFirstByte                  // waiting for the answer's head
	PhaseRead                       // reading the answer's body
	PhaseDone                       // the answer is complete
)

// Phases are all phases in their order.
func Phases() []Phase {
	return []Phase{PhasePrepare, PhaseResolve, PhaseConnect, PhaseTLS, PhaseWrite, PhaseFirstByte, PhaseRead, PhaseDone}
}

// What happened in one attempt: a plain value.
type What struct {
	Phase Phase
	Fault Fault
	Sent  bool // at least one byte of the request left

	// The answer; only where Fault is FaultNone it is complete.
	Status    int
	Body      []byte
	Truncated bool // Body is only the beginning
	Late      bool // the answer ended after the timeout

	// Abort is the answer's `webhook-delivery: abort-message`.
	Abort bool
	// MayRefuse says that the contract makes 410 and Abort final.
	MayRefuse bool
}

// Verdict is what follows from it.
type Verdict struct {
	Outcome notification.Outcome
	Reason  notification.Reason
}

// Classify is the whole rule. P13: what is not the agreed acknowledgement, and not final by the merchant's word, is
// tried again.
func Classify(what What, agreed merchant.Acknowledgement) Verdict {
	if what.Fault != FaultNone {
		return Verdict{outcomeOfFault(what), reasonOfFault(what)}
	}
	statusAgreed := agreedStatus(agreed, what.Status)
	acknowledged := statusAgreed && agreedBody(agreed, what)
	switch {
	case acknowledged && what.Late:
		return Verdict{notification.OutcomeDelivered, notification.ReasonLateAcknowledgement}
	case acknowledged:
		return Verdict{notification.OutcomeDelivered, notification.ReasonAcknowledged}
	case what.Late: // the timeout had passed: anything else is as good as no answer
		return Verdict{notification.OutcomeUnconfirmed, notification.ReasonResponseTimeout}
	case what.MayRefuse && what.Status == 410:
		return Verdict{notification.OutcomeRejected, notification.ReasonGone}
	case what.MayRefuse && what.Abort:
		return Verdict{notification.OutcomeRejected, notification.ReasonAbortMessage}
	case statusAgreed:
		return Verdict{notification.OutcomeRetryable, notification.ReasonWrongAnswer}
	}
	return Verdict{notification.OutcomeRetryable, reasonOfStatus(what.Status)}
}

func agreedStatus(agreed merchant.Acknowledgement, status int) bool {
	if len(agreed.Statuses) == 0 {
		return status >= 200 && status <= 299
	}
	return status > 0 && slices.Contains(agreed.Statuses, uint32(status)) //nolint:gosec // positive
}

// agreedBody wants the exact bytes: white space, too, is another answer.
func agreedBody(agreed merchant.Acknowledgement, what What) bool {
	return agreed.BodyExact == "" || (!what.Truncated && string(what.Body) == agreed.BodyExact)
}

func reasonOfStatus(status int) notification.Reason {
	switch {
	case status == 408, status == 425:
		return notification.ReasonHTTPTimeout
	case status == 429:
		return notification.ReasonTooManyRequests
	case status == 503:
		return notification.ReasonHTTPUnavailable
	case status >= 300 && status <= 399:
		return notification.ReasonRedirect
	case status >= 400 && status <= 499:
		return notification.ReasonHTTPClientError
	case status >= 500 && status <= 599:
		return notification.ReasonHTTPServerError
	}
	return notification.ReasonHTTPUnexpected
}

// outcomeOfFault keeps P6: after the first byte of the request left, nobody knows what the merchant did with it.
func outcomeOfFault(what What) notification.Outcome {
	if what.Fault == FaultClientCertificate {
		// TLS 1.3 lets the client write before the server has judged the client's certificate: a server that then
		// refuses the handshake has thrown the request away unread.
		return notification.OutcomeRetryable
	}
	if what.Sent {
		return notification.OutcomeUnconfirmed
	}
	return notification.OutcomeRetryable
}

func reasonOfFault(what What) notification.Reason {
	switch what.Fault {
	case FaultNoAddress:
		return notification.ReasonDNSFailure
	case FaultResolver:
		return notification.ReasonResolverFailure
	case FaultRefused:
		return notification.ReasonConnectRefused
	case FaultUnreachable:
		return notification.ReasonUnreachable
	case FaultTimeout:
		return reasonOfTimeout(what.Phase)
	case FaultReset:
		if what.Sent {
			return notification.ReasonResetAfterWrite
		}
		return notification.ReasonResetBeforeWrite
	case FaultTLS, FaultClientCertificate:
		return notification.ReasonTLSFailure
	case FaultCertificate:
		return notification.ReasonTLSCertificate
	case FaultBadResponse:
		return notification.ReasonBadResponse
	case FaultBlocked:
		return notification.ReasonBlockedAddress
	case FaultURL:
		return notification.ReasonBadNotifyURL
	case FaultEncode:
		return notification.ReasonEncodeFailure
	case FaultLocal:
		return notification.ReasonLocalPorts
	case FaultShutdown:
		return notification.ReasonShutdown
	case FaultNone, FaultInternal:
		return notification.ReasonInternal
	}
	return notification.ReasonInternal
}

func reasonOfTimeout(phase Phase) notification.Reason {
	switch phase {
	case PhaseResolve:
		return notification.ReasonResolverFailure
	case PhaseConnect:
		return notification.ReasonConnectTimeout
	case PhaseTLS:
		return notification.ReasonTLSTimeout
	case PhaseWrite:
		return notification.ReasonWriteTimeout
	case PhaseFirstByte:
		return notification.ReasonResponseTimeout
	case PhaseRead:
		return notification.ReasonBodyTimeout
	case PhasePrepare, PhaseDone:
		return notification.ReasonInternal
	}
	return notification.ReasonInternal
}
