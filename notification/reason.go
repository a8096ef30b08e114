package notification

// Reason is why an attempt ended as it did, or why a notification stands where it stands: a closed set of
// snake_case words, the same in the API, the ledger, logs and metric labels.
type Reason string

// Why an attempt ended: what the merchant said.
const (
	ReasonAcknowledged        Reason = "acknowledged"         // the agreed answer, in time
	ReasonLateAcknowledgement Reason = "late_acknowledgement" // the agreed answer, after the timeout, within the grace
	ReasonWrongAnswer         Reason = "wrong_answer"         // an agreed status, but not the agreed body
	ReasonRedirect            Reason = "redirect"             // 3xx: never followed
	ReasonHTTPClientError     Reason = "http_client_error"    // 4xx but 408, 410, 425, 429
	ReasonHTTPServerError     Reason = "http_server_error"    // 5xx but 503
	ReasonHTTPUnavailable     Reason = "http_unavailable"     // 503
	ReasonTooManyRequests     Reason = "too_many_requests"    // 429
	ReasonHTTPTimeout         Reason = "http_timeout"         // 408, 425
	ReasonHTTPUnexpected      Reason = "http_unexpected"      // a status outside 200 to 599, or a 2xx that the contract does not list
	ReasonGone                Reason = "gone"                 // 410 where the contract makes it final
	ReasonAbortMessage        Reason = "abort_message"        // `webhook-delivery: abort-message`
)

// Why an attempt ended: the way to the merchant.
const (
	ReasonDNSFailure       Reason = "dns_failure"        // the name has no address: the merchant's fault
	ReasonConnectRefused   Reason = "connect_refused"    // RST on connect
	ReasonConnectTimeout   Reason = "connect_timeout"    // no answer to connect
	ReasonUnreachable      Reason = "unreachable"        // no route to host or network
	ReasonTLSTimeout       Reason = "tls_timeout"        // the handshake did not end in time
	ReasonTLSFailure       Reason = "tls_failure"        // versions, suites, alerts
	ReasonTLSCertificate   Reason = "tls_certificate"    // the merchant's certificate does not verify
	ReasonResetBeforeWrite Reason = "reset_before_write" // closed or reset before the first byte of the request
	ReasonResetAfterWrite  Reason = "reset_after_write"  // closed or reset after it: unconfirmed
	ReasonWriteTimeout     Reason = "write_timeout"      // the request could not be written in time
	ReasonResponseTimeout  Reason = "response_timeout"   // no answer within timeout and grace
	ReasonBodyTimeout      Reason = "body_timeout"       // the answer did not end in time
	ReasonBadResponse      Reason = "bad_response"       // not HTTP, or a broken body
	ReasonInterrupted      Reason = "interrupted"        // the engine died or lost the attempt in hand
	ReasonBlockedAddress   Reason = "blocked_address"    // the merchant's name leads to a private address that the operator has not allowed
	ReasonBadNotifyURL     Reason = "bad_notify_url"     // no request can be made of it
	ReasonEncodeFailure    Reason = "encode_failure"     // the contract cannot carry this notification
)

// Why an attempt ended: our own faults. They never count against the merchant.
const (
	ReasonResolverFailure Reason = "resolver_failure" // our resolver did not answer
	ReasonSigningKey      Reason = "signing_key"      // the contract's key is missing, or not in use now
	ReasonLocalPorts      Reason = "local_ports"      // no local port or file descriptor left
	ReasonShutdown        Reason = "shutdown"         // the engine is stopping
	ReasonInternal        Reason = "internal"         // a bug; contained and counted
)

// Why a notification stands where it stands, beside the reason of its last attempt.
const (
	ReasonInFlight            Reason = "in_flight"            // being sent right now
	ReasonAwaitingAnswer      Reason = "awaiting_answer"      // sync lane: the caller's time was up first
	ReasonQueued              Reason = "queued"               // durable, its turn has not come
	ReasonNotBefore           Reason = "not_before"           // its first attempt is due later
	ReasonSyncLaneFull        Reason = "sync_lane_full"       // went async instead
	ReasonSyncLaneAway        Reason = "sync_lane_away"       // no node of the sync lane answers; went async instead
	ReasonBreakerOpen         Reason = "breaker_open"         // deferred
	ReasonBreakerForcedOpen   Reason = "breaker_forced_open"  // deferred: an operator holds the breaker open
	ReasonRateLimited         Reason = "rate_limited"         // deferred
	ReasonBacklog             Reason = "backlog"              // waits behind others of its merchant in the own queue
	ReasonMerchantPaused      Reason = "merchant_paused"      // held
	ReasonBlocked             Reason = "blocked"              // a rule of access blocks it: held, or recorded only
	ReasonNotAllowed          Reason = "not_allowed"          // the allow-only mode, and no rule allows it: held, or recorded only
	ReasonReleased            Reason = "released"             // no rule holds it any more; its turn is set
	ReasonMerchantMissing     Reason = "merchant_missing"     // its merchant was removed
	ReasonAwaitingPredecessor Reason = "awaiting_predecessor" // one with its ordering_key was accepted earlier and is not final
	ReasonSuperseded          Reason = "superseded"           // a newer one with its supersede_key was accepted
	ReasonStaleGeneration     Reason = "stale_generation"     // a newer generation goes on elsewhere
	ReasonCanceled            Reason = "canceled"             // by the caller or an operator
	ReasonExpired             Reason = "expired"              // expires_at passed
	ReasonScheduleExhausted   Reason = "schedule_exhausted"   // no attempt left
	ReasonResend              Reason = "resend"               // an operator asked for another attempt
	ReasonSweep               Reason = "sweep"                // found overdue, due again now
	ReasonUndecodable         Reason = "undecodable"          // a stored message that cannot be read
)

// Reasons is the closed set.
func Reasons() []Reason {
	return []Reason{
		ReasonAcknowledged, ReasonLateAcknowledgement, ReasonWrongAnswer, ReasonRedirect, ReasonHTTPClientError,
		ReasonHTTPServerError, ReasonHTTPUnavailable, ReasonTooManyRequests, ReasonHTTPTimeout, ReasonHTTPUnexpected,
		ReasonGone, ReasonAbortMessage,
		ReasonDNSFailure, ReasonConnectRefused, ReasonConnectTimeout, ReasonUnreachable, ReasonTLSTimeout, ReasonTLSFailure,
		ReasonTLSCertificate, ReasonResetBeforeWrite, ReasonResetAfterWrite, ReasonWriteTimeout, ReasonResponseTimeout,
		ReasonBodyTimeout, ReasonBadResponse, ReasonInterrupted, ReasonBlockedAddress, ReasonBadNotifyURL, ReasonEncodeFailure,
		ReasonResolverFailure, ReasonSigningKey, ReasonLocalPorts, ReasonShutdown, ReasonInternal,
		ReasonInFlight, ReasonAwaitingAnswer, ReasonQueued, ReasonNotBefore, ReasonSyncLaneFull, ReasonSyncLaneAway, ReasonBreakerOpen,
		ReasonBreakerForcedOpen, ReasonRateLimited, ReasonBacklog, ReasonMerchantPaused, ReasonBlocked, ReasonNotAllowed, ReasonReleased, ReasonMerchantMissing, ReasonAwaitingPredecessor, ReasonSuperseded, ReasonStaleGeneration, ReasonCanceled,
		ReasonExpired, ReasonScheduleExhausted, ReasonResend, ReasonSweep, ReasonUndecodable,
	}
}

// Counts reports whether an attempt that ended so uses up a step of the schedule. Our own faults do not (P7), but for a bug,
// which would be repeated for ever.
func (r Reason) Counts() bool { return !r.OurFault() || r == ReasonInternal }

// Barred reports whether it is the lists of merchants and sources that keep a notification from being sent.
func (r Reason) Barred() bool { return r == ReasonBlocked || r == ReasonNotAllowed }

// Permanent reports whether no later attempt can end otherwise while nobody changes anything: no request can be made.
func (r Reason) Permanent() bool { return r == ReasonEncodeFailure || r == ReasonBadNotifyURL }

// OurFault reports whether the engine's own side failed, so that neither the merchant's breaker nor its budget is touched.
func (r Reason) OurFault() bool {
	switch r { //nolint:exhaustive // a list of exceptions; every other reason is not ours
	case ReasonResolverFailure, ReasonSigningKey, ReasonLocalPorts, ReasonShutdown, ReasonInternal:
		return true
	default:
		return false
	}
}
