package notification

import "fmt"

// Lane says who waits for the merchant's answer.
type Lane uint8

// The lanes. Stored; append only.
const (
	LaneSync  Lane = 1 // the caller waits
	LaneAsync Lane = 2 // nobody waits
)

// State says where a notification stands.
type State uint8

// The states. Stored; append only.
const (
	StateAccepted  State = 1
	StateRetrying  State = 2
	StateHeld      State = 3
	StateDelivered State = 4
	StateDead      State = 5
	StateCanceled  State = 6
	StateExpired   State = 7
)

// States are all states in their stored order.
func States() []State {
	return []State{StateAccepted, StateRetrying, StateHeld, StateDelivered, StateDead, StateCanceled, StateExpired}
}

// Final reports whether no further attempt is due unless somebody resends it.
func (s State) Final() bool {
	switch s {
	case StateDelivered, StateDead, StateCanceled, StateExpired:
		return true
	case StateAccepted, StateRetrying, StateHeld:
		return false
	}
	return false
}

// Outcome says how one attempt ended.
type Outcome uint8

// The outcomes. Stored; append only.
const (
	OutcomeDelivered   Outcome = 1 // the agreed acknowledgement came
	OutcomeRejected    Outcome = 2 // final by the merchant's word
	OutcomeRetryable   Outcome = 3 // not reached, or another answer came
	OutcomeUnconfirmed Outcome = 4 // bytes may have reached the merchant, no usable answer came
)

// Kind says what a request was for.
type Kind uint8

// The kinds of attempt. Stored; append only.
const (
	KindSend  Kind = 1
	KindQuery Kind = 2
	KindTest  Kind = 3
	KindProbe Kind = 4
)

// Trigger says why an attempt is made.
type Trigger uint8

// The triggers. Stored; append only.
const (
	TriggerAuto         Trigger = 1
	TriggerSweep        Trigger = 2
	TriggerResend       Trigger = 3
	TriggerCompensation Trigger = 4
)

// Persist says what durable means before Submit answers success.
type Persist uint8

// The persist settings. Stored; append only.
const (
	PersistStream Persist = 1 // acknowledged by JetStream
	PersistLedger Persist = 2 // also a full row in Postgres
	PersistAfter  Persist = 3 // sync lane only: the outcome is durable before the answer
)

var (
	laneWords    = words[Lane]{LaneSync: "sync", LaneAsync: "async"}
	stateWords   = words[State]{StateAccepted: "accepted", StateRetrying: "retrying", StateHeld: "held", StateDelivered: "delivered", StateDead: "dead", StateCanceled: "canceled", StateExpired: "expired"}
	outcomeWords = words[Outcome]{OutcomeDelivered: "delivered", OutcomeRejected: "rejected", OutcomeRetryable: "retryable", OutcomeUnconfirmed: "unconfirmed"}
	kindWords    = words[Kind]{KindSend: "send", KindQuery: "query", KindTest: "test", KindProbe: "probe"}
	triggerWords = words[Trigger]{TriggerAuto: "auto", TriggerSweep: "sweep", TriggerResend: "resend", TriggerCompensation: "compensation"}
	persistWords = words[Persist]{PersistStream: "stream", PersistLedger: "ledger", PersistAfter: "after"}
)

func (l Lane) String() string    { return laneWords.word(l) }
func (s State) String() string   { return stateWords.word(s) }
func (o Outcome) String() string { return outcomeWords.word(o) }
func (k Kind) String() string    { return kindWords.word(k) }
func (t Trigger) String() string { return triggerWords.word(t) }
func (p Persist) String() string { return persistWords.word(p) }

// ParseLane reads a lane's word.
func ParseLane(word string) (Lane, error) { return laneWords.parse("lane", word) }

// ParseState reads a state's word.
func ParseState(word string) (State, error) { return stateWords.parse("state", word) }

// ParseOutcome reads an outcome's word.
func ParseOutcome(word string) (Outcome, error) { return outcomeWords.parse("outcome", word) }

// ParsePersist reads a persist setting's word.
func ParsePersist(word string) (Persist, error) { return persistWords.parse("persist", word) }

// words is the closed set behind an enum.
type words[E ~uint8] map[E]string

func (w words[E]) word(e E) string {
	if s, ok := w[e]; ok {
		return s
	}
	return fmt.Sprintf("invalid(%d)", uint8(e))
}

func (w words[E]) parse(what, word string) (E, error) {
	for e, s := range w {
		if s == word {
			return e, nil
		}
	}
	return 0, fmt.Errorf("parse %s: %q is not one of its words", what, word)
}
