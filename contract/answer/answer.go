// Package answer judges merchants' answers: whether one is the acknowledgement that was agreed on. It does no I/O; a rule
// is compiled once per merchant setting.
package answer

import (
	"slices"
	"strings"
)

// Verdict says what an answer is to its merchant's rule.
type Verdict uint8

// The verdicts: a closed set.
const (
	// Acknowledged is the agreed answer.
	Acknowledged Verdict = iota + 1
	// WrongAnswer has an agreed status, and not the agreed body.
	WrongAnswer
	// NotAgreed has a status that is not agreed.
	NotAgreed
	// Refused has a status that means: never again.
	Refused
	// Aborted says so in the header webhook-delivery.
	Aborted
)

// String is the word for it.
func (v Verdict) String() string {
	switch v {
	case Acknowledged:
		return "acknowledged"
	case WrongAnswer:
		return "wrong_answer"
	case NotAgreed:
		return "not_agreed"
	case Refused:
		return "refused"
	case Aborted:
		return "aborted"
	}
	return "invalid"
}

// Answer is what came from a merchant.
type Answer struct {
	Status    int
	Header    func(name string) string // nil: it has none
	Body      []byte
	Truncated bool // Body is only the beginning
}

// Judgement is what follows from it.
type Judgement struct {
	Verdict Verdict
	// Why says of a WrongAnswer what was expected and what came: one line of at most 640 bytes, with nothing
	// in it that does not print. It repeats the beginning of the answer.
	Why string
}

// Acknowledgement is a compiled Rule. It can be used by many goroutines.
type Acknowledgement struct {
	statuses []int // empty: 200 to 299
	final    []int
	abort    bool
	body     body // nil: any
}

// Judge applies the rule. What is acknowledged is so whatever else it says; a final status goes before the header.
func (a *Acknowledgement) Judge(answer Answer) Judgement {
	agreed := a.agreedStatus(answer.Status)
	var why string
	if agreed {
		if why = a.disagrees(answer); why == "" {
			return Judgement{Verdict: Acknowledged}
		}
	}
	switch {
	case slices.Contains(a.final, answer.Status):
		return Judgement{Verdict: Refused}
	case a.abort && wantsAbort(answer):
		return Judgement{Verdict: Aborted}
	case agreed:
		return Judgement{WrongAnswer, why}
	}
	return Judgement{Verdict: NotAgreed}
}

func (a *Acknowledgement) agreedStatus(status int) bool {
	if len(a.statuses) == 0 {
		return status >= 200 && status <= 299
	}
	return slices.Contains(a.statuses, status)
}

// disagrees says what is wrong with a body; nothing is.
func (a *Acknowledgement) disagrees(answer Answer) string {
	if a.body == nil {
		return ""
	}
	return a.body.disagrees(answer.Body, answer.Truncated)
}

func wantsAbort(answer Answer) bool {
	return answer.Header != nil && strings.EqualFold(strings.TrimSpace(answer.Header("webhook-delivery")), "abort-message")
}
