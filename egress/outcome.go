package egress

import (
	"net/http"

	"notifyd/contract/answer"
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

	header http.Header
}

// Verdict is what follows from it.
type Verdict struct {
	Outcome notification.Outcome
	Reason  notification.Reason
	Why     string // of a wrong answer: what was expected, and what came
}

// Classify is the whole rule. P13: what is not the agreed acknowledgement, and not final by the merchant's word, is
// tried again. Nothing is agreed where no request could be made.
func Classify(what What, agreed *answer.Acknowledgement) Verdict {
	if what.Fault != FaultNone || agreed == nil {
		return Verdict{Outcome: outcomeOfFault(what), Reason: reasonOfFault(what)}
	}
	judged := agreed.Judge(answer.Answer{Status: what.Status, Header: what.header.Values, Body: what.Body, Truncated: what.Truncated})
	switch {
	case judged.Verdict == answer.Acknowledged && what.Late:
		return Verdict{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonLateAcknowledgement}
	case judged.Verdict == answer.Acknowledged:
		return Verdict{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged}
	case what.Late: // the timeout had passed: anything else is as good as no answer
		return Verdict{Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonResponseTimeout}
	case judged.Verdict == answer.Refused:
		return Verdict{Outcome: notification.OutcomeRejected, Reason: notification.ReasonGone}
	case judged.Verdict == answer.Aborted:
		return Verdict{Outcome: notification.OutcomeRejected, Reason: notification.ReasonAbortMessage}
	case judged.Verdict == answer.WrongAnswer:
		return Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer, Why: judged.Why}
	}
	return Verdict{Outcome: notification.OutcomeRetryable, Reason: reasonOfStatus(what.Status)}
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
	case FaultKey:
		return notification.ReasonSigningKey
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
