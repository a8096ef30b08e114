package egress

import (
	"net/http"
	"testing"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
	"notifyd/notification"
)

func answered(status int) What {
	return What{Phase: PhaseDone, Fault: FaultNone, Sent: true, Status: status}
}

// wantReason is the table of HTTP statuses, said a second time in another way.
func wantReason(status int) notification.Reason {
	switch status {
	case 408, 425:
		return notification.ReasonHTTPTimeout
	case 410:
		return notification.ReasonGone
	case 429:
		return notification.ReasonTooManyRequests
	case 503:
		return notification.ReasonHTTPUnavailable
	}
	return map[int]notification.Reason{
		2: notification.ReasonAcknowledged, 3: notification.ReasonRedirect,
		4: notification.ReasonHTTPClientError, 5: notification.ReasonHTTPServerError,
	}[status/100]
}

// agreedOn is a merchant's rule; only with the last word 410 and the abort message are final.
func agreedOn(t *testing.T, a merchant.Acknowledgement, lastWord bool) *answer.Acknowledgement {
	t.Helper()
	settings := merchant.Contract{Profile: contract.Custom, Signer: merchant.Signer{Algorithm: "none"}, Acknowledgement: a}
	if lastWord {
		settings = merchant.Contract{Acknowledgement: a}
	}
	rule := contract.NewBook(keys.NewRing(), sign.NewPool(0)).Acknowledgement(&merchant.Merchant{Contract: settings, Secrets: merchant.Secrets{SigningSecret: testSecret}}, contract.Told{Notification: &notification.Notification{}})
	if rule == nil {
		t.Fatalf("%+v is refused", a)
	}
	return rule
}

var abort = http.Header{"Webhook-Delivery": {"abort-message"}}

func TestClassifyEveryStatus(t *testing.T) {
	anyOf2xx, noLastWord := agreedOn(t, merchant.Acknowledgement{}, true), agreedOn(t, merchant.Acknowledgement{}, false)
	for status := 100; status <= 599; status++ {
		want := Verdict{Outcome: notification.OutcomeRetryable, Reason: wantReason(status)}
		switch {
		case status/100 == 1:
			want.Reason = notification.ReasonHTTPUnexpected
		case status/100 == 2:
			want.Outcome = notification.OutcomeDelivered
		case status == 410:
			want.Outcome = notification.OutcomeRejected
		}
		if got := Classify(answered(status), anyOf2xx); got != want {
			t.Errorf("%d: got %v %v, want %v %v", status, got.Outcome, got.Reason, want.Outcome, want.Reason)
		}

		late := answered(status)
		late.Late = true
		want = Verdict{Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonResponseTimeout}
		if status/100 == 2 {
			want = Verdict{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonLateAcknowledgement}
		}
		if got := Classify(late, anyOf2xx); got != want {
			t.Errorf("late %d: got %v %v", status, got.Outcome, got.Reason)
		}

		// A contract that lists this status only: it is the acknowledgement, whatever the status means elsewhere.
		other := 200
		if status >= 200 && status != 410 { // which is final there
			listed := agreedOn(t, merchant.Acknowledgement{Statuses: []uint32{uint32(status)}}, true)
			if got := Classify(answered(status), listed); got.Outcome != notification.OutcomeDelivered {
				t.Errorf("listed %d: got %v", status, got.Outcome)
			}
			if status == 200 {
				other = 201
			}
		}
		// And one that lists another: nothing but that is.
		if got := Classify(answered(status), agreedOn(t, merchant.Acknowledgement{Statuses: []uint32{uint32(other)}}, true)); got.Outcome == notification.OutcomeDelivered {
			t.Errorf("unlisted %d: delivered", status)
		}
		// A contract that gives the merchant no last word is only ever tried again.
		what := answered(status)
		what.header = abort
		if got := Classify(what, noLastWord); got.Outcome == notification.OutcomeRejected {
			t.Errorf("%d rejected without the contract's leave", status)
		}
	}
}

func TestClassifyBodyAndWord(t *testing.T) {
	success := merchant.Acknowledgement{BodyExact: "success"}
	tests := []struct {
		name   string
		what   What
		agreed merchant.Acknowledgement
		want   Verdict
	}{
		{"exact", What{Status: 200, Body: []byte("success")}, success, Verdict{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged}},
		{"line feed", What{Status: 200, Body: []byte("success\n")}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer}},
		{"leading space", What{Status: 200, Body: []byte(" success")}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer}},
		{"upper case", What{Status: 200, Body: []byte("SUCCESS")}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer}},
		{"empty", What{Status: 200}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer}},
		{"truncated", What{Status: 200, Body: []byte("success"), Truncated: true}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonWrongAnswer}},
		{"right body, wrong status", What{Status: 500, Body: []byte("success")}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPServerError}},
		{"right body on a redirect", What{Status: 302, Body: []byte("success")}, success, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonRedirect}},
		{"abort", What{Status: 500, header: abort}, merchant.Acknowledgement{}, Verdict{Outcome: notification.OutcomeRejected, Reason: notification.ReasonAbortMessage}},
		{"abort with the acknowledgement", What{Status: 200, header: abort}, merchant.Acknowledgement{}, Verdict{Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged}},
		{"2xx not listed", What{Status: 204}, merchant.Acknowledgement{Statuses: []uint32{200}}, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPUnexpected}},
		{"no status at all", What{}, merchant.Acknowledgement{}, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPUnexpected}},
		{"negative status", What{Status: -56}, merchant.Acknowledgement{}, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPUnexpected}},
		{"over 599", What{Status: 999}, merchant.Acknowledgement{}, Verdict{Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPUnexpected}},
	}
	for _, test := range tests {
		test.what.Fault, test.what.Phase = FaultNone, PhaseDone
		got := Classify(test.what, agreedOn(t, test.agreed, true))
		if (got.Why != "") != (got.Reason == notification.ReasonWrongAnswer) {
			t.Errorf("%s: why: %q", test.name, got.Why)
		}
		if got.Why = ""; got != test.want {
			t.Errorf("%s: got %v %v, want %v %v", test.name, got.Outcome, got.Reason, test.want.Outcome, test.want.Reason)
		}
	}
}

// Every fault in every phase, before and after the first byte.
func TestClassifyEveryFault(t *testing.T) {
	reasons := map[Fault]notification.Reason{
		FaultNoAddress: notification.ReasonDNSFailure, FaultResolver: notification.ReasonResolverFailure,
		FaultRefused: notification.ReasonConnectRefused, FaultUnreachable: notification.ReasonUnreachable,
		FaultTLS: notification.ReasonTLSFailure, FaultCertificate: notification.ReasonTLSCertificate,
		FaultClientCertificate: notification.ReasonTLSFailure, FaultBadResponse: notification.ReasonBadResponse,
		FaultBlocked: notification.ReasonBlockedAddress, FaultURL: notification.ReasonBadNotifyURL,
		FaultEncode: notification.ReasonEncodeFailure, FaultKey: notification.ReasonSigningKey, FaultLocal: notification.ReasonLocalPorts,
		FaultShutdown: notification.ReasonShutdown, FaultInternal: notification.ReasonInternal,
	}
	timeouts := map[Phase]notification.Reason{
		PhasePrepare: notification.ReasonInternal, PhaseResolve: notification.ReasonResolverFailure,
		PhaseConnect: notification.ReasonConnectTimeout, PhaseTLS: notification.ReasonTLSTimeout,
		PhaseWrite: notification.ReasonWriteTimeout, PhaseFirstByte: notification.ReasonResponseTimeout,
		PhaseRead: notification.ReasonBodyTimeout, PhaseDone: notification.ReasonInternal,
	}
	anyOf2xx := agreedOn(t, merchant.Acknowledgement{}, true)
	ours := map[Fault]bool{FaultResolver: true, FaultKey: true, FaultLocal: true, FaultShutdown: true, FaultInternal: true}
	for _, fault := range Faults() {
		if fault == FaultNone {
			continue
		}
		for _, phase := range Phases() {
			for _, sent := range []bool{false, true} {
				// Status 200 must not shine through a fault.
				got := Classify(What{Phase: phase, Fault: fault, Sent: sent, Status: 200}, anyOf2xx)

				want := Verdict{Outcome: notification.OutcomeRetryable, Reason: reasons[fault]}
				if sent && fault != FaultClientCertificate {
					want.Outcome = notification.OutcomeUnconfirmed
				}
				switch {
				case fault == FaultTimeout:
					want.Reason = timeouts[phase]
				case fault == FaultReset && sent:
					want.Reason = notification.ReasonResetAfterWrite
				case fault == FaultReset:
					want.Reason = notification.ReasonResetBeforeWrite
				}
				if got != want {
					t.Errorf("fault %d phase %d sent %t: got %v %v, want %v %v", fault, phase, sent, got.Outcome, got.Reason, want.Outcome, want.Reason)
				}
				if fault != FaultTimeout && got.Reason.OurFault() != ours[fault] {
					t.Errorf("fault %d: our fault is %t", fault, got.Reason.OurFault())
				}
			}
		}
	}
}
