package notification

import "time"

// Amount is money in minor units of its currency, for example {CNY 1050} for CNY 10.50. The zero value is none.
type Amount struct {
	Currency   string
	MinorUnits int64
}

// Notification is one payment event owed to one merchant. Instants are UTC with microseconds; a zero instant is not given.
type Notification struct {
	ID     ID
	Digest [32]byte // of the content the caller gave, see ContentDigest

	// What the caller gave; frozen at acceptance.
	Source, RequestID, MerchantID, AppID string
	Scene, EventType                     string
	OrderID, OrderStatus                 string
	Terminal                             bool
	StatusVersion                        int64
	BatchID                              string
	NotifyURL                            string // as accepted: the notification's own, else the merchant's at that time
	Body                                 []byte // kept and sent byte for byte
	ContentType                          string // empty: Body is a payload of JSON text
	Amount                               Amount
	OccurredAt, OrderCreatedAt           time.Time
	NotBefore, ExpiresAt                 time.Time
	OrderingKey, SupersedeKey            string
	Labels                               map[string]string
	RequestedLane                        Lane // zero: the router decides

	// What the router decided; frozen at acceptance.
	Route Route

	AcceptedAt time.Time
	Origin     string // how it came in: "submit"

	// Where it stands now.
	Progress
}

// Route is the router's decision.
type Route struct {
	Lane         Lane
	IsolationKey string // shares a breaker, caps and an own queue
	Egress       string // the way out; "direct"
	Schedule     string // a built-in's name; empty: the merchant's own
	Persist      Persist
	Rule         string // the name of the rule that decided
}

// Progress is what changes while a notification is on its way. The ledger keeps the newest by
// (Generation, Attempts, UpdatedAt), and a final state of a generation never changes within it.
type Progress struct {
	State      State
	Reason     Reason
	Generation int64     // counts what made older due items void
	Attempts   int       // made so far, all generations
	Step       int       // counted attempts of this generation: the position in the schedule
	NextAt     time.Time // when the next attempt is due; zero: none is scheduled
	WindowFrom time.Time // start of this generation's first attempt; zero before it
	// Resting says that the notification waits in its merchant's own queue, which the sweep leaves alone.
	Resting bool
	// DeferredFor is the time spent deferred in this generation; it does not eat the window.
	DeferredFor   time.Duration
	DeferredSince time.Time // start of the present deferral; zero: not deferred
	SettledAt     time.Time
	SettledBy     string
	UpdatedAt     time.Time
}

// How a notification became final (SettledBy).
const (
	SettledByAcknowledgement     = "acknowledgement"
	SettledByLateAcknowledgement = "late_acknowledgement"
	SettledBySchedule            = "schedule"
	SettledByMerchant            = "merchant"
	SettledByOperator            = "operator"
	SettledByExpiry              = "expiry"
	SettledByEngine              = "engine"     // no request can be made of it
	SettledBySupersede           = "supersede:" // and the id of the newer one
)

// Settle makes the notification final.
func (p *Progress) Settle(state State, reason Reason, by string, at time.Time) {
	p.State, p.Reason, p.SettledBy, p.SettledAt, p.UpdatedAt = state, reason, by, at, at
	p.NextAt, p.DeferredSince, p.Resting = time.Time{}, time.Time{}, false
}

// Supersede makes the notification final because of a newer one.
func (p *Progress) Supersede(newer ID, at time.Time) {
	p.Settle(StateCanceled, ReasonSuperseded, SettledBySupersede+newer.String(), at)
}

// Defer says that the notification waits for the gate, since now unless it waits already. A paused merchant's is held, and
// so is what the lists bar.
func (p *Progress) Defer(reason Reason, now time.Time) {
	if p.DeferredSince.IsZero() {
		p.DeferredSince = now
	}
	p.Reason, p.UpdatedAt = reason, now
	switch {
	case p.State.Final(): // a resend of a delivered one
	case reason == ReasonMerchantPaused, reason.Barred():
		p.State = StateHeld
	case p.Attempts > 0:
		p.State = StateRetrying
	default:
		p.State = StateAccepted
	}
}

// Work is a notification together with why its next attempt is made.
type Work struct {
	*Notification
	Trigger  Trigger
	Operator string // who resent it
	// SecondCopy says that another copy of the same acceptance may be on its way.
	SecondCopy bool
	// Claim says that the ledger must grant this attempt: the work was retried, re-injected, resent or redelivered,
	// so another copy may exist and somebody may have canceled it meanwhile.
	Claim bool
	// OnlyLapsed says that the row has moved on since this work was stored: it goes on only where a claim has lapsed.
	OnlyLapsed bool
	// Interrupted says that an attempt may have been made of which nothing is on record: the engine died with it in hand.
	Interrupted bool
	// HasRow says that the ledger has a row of this notification already.
	HasRow bool
	// Unreserved says that it was accepted while Postgres was away: its first record makes the reservation.
	Unreserved bool
	// FromLedger says that no message stands for this work, only its row, which is due again by itself: NATS is away.
	FromLedger bool
	// Trace is the W3C traceparent of what caused this work; empty: it is not traced.
	Trace string
}

// Header is one HTTP header; secrets are masked before it is kept.
type Header struct {
	Name  string `json:"n"`
	Value string `json:"v"`
}

// Request is what was sent.
type Request struct {
	Method  string
	URL     string
	Headers []Header
	Body    []byte
}

// Response is what came back.
type Response struct {
	Status    int
	Headers   []Header
	Body      []byte // at most 64 KiB
	Truncated bool
}

// Phases are what an attempt's time went into; a zero phase did not happen.
type Phases struct {
	DNS, Connect, TLS, Write, FirstByte, Read time.Duration
}

// Attempt is one request on the wire.
type Attempt struct {
	Key             ID  // random; tells two attempts with the same number apart
	Number          int // from 1
	Generation      int64
	Kind            Kind
	Trigger         Trigger
	Outcome         Outcome
	Reason          Reason
	Detail          string // the fault in words, without secrets and query strings
	Counted         bool   // used up a step of the schedule
	StartedAt       time.Time
	Took            time.Duration
	Phases          Phases
	Connects        int // connections tried; 0: one was reused
	LocalAddr       string
	RemoteAddr      string
	TLS             string
	Egress          string
	KeyIDs          []string
	SettingsVersion int64
	Request         Request
	Response        *Response // nil: no answer
	LateAt          time.Time // the answer came after the timeout, within the grace; it is in Response
	Operator        string
	RetryAfter      time.Duration // what the merchant asked for; 0: nothing
}
