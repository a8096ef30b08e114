// Package answer judges merchants' answers: whether one is the acknowledgement that was agreed on. It does no I/O; a rule
// is compiled once per merchant setting.
package answer

import (
	"slices"
	"strings"
	"unicode"
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
	Header    func(name string) []string // all values of a header, in any case of its letters; nil: it has none
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
	statuses  []int // empty: 200 to 299
	final     []int
	abort     bool
	body      body      // nil: any
	signature Signature // nil: none
}

// Signature says what is wrong with an answer's signature; empty: nothing is.
type Signature func(Answer) string

// Signed is the same rule for answers that have to be signed, too.
func (a *Acknowledgement) Signed(by Signature) *Acknowledgement {
	signed := *a
	signed.signature = by
	return &signed
}

// Judge applies the rule. What is acknowledged is so whatever else it says; a final status goes before the header. Where answers
// have to be signed, what is not signed neither acknowledges nor ends anything: whoever stands in between could have made it.
func (a *Acknowledgement) Judge(answer Answer) Judgement {
	agreed := a.agreedStatus(answer.Status)
	wrong := ""
	if agreed {
		wrong = a.disagrees(answer)
	}
	settles := a.settles(answer, agreed && wrong == "")
	if settles != 0 && a.signature != nil {
		if unsigned := a.signature(answer); unsigned != "" {
			settles = 0
			if wrong == "" {
				wrong = line(unsigned)
			}
		}
	}
	switch {
	case settles != 0:
		return Judgement{Verdict: settles}
	case agreed:
		return Judgement{WrongAnswer, wrong}
	}
	return Judgement{Verdict: NotAgreed}
}

// settles is the verdict that settles a notification, if the answer is the merchant's; 0: it goes on.
func (a *Acknowledgement) settles(answer Answer, acknowledged bool) Verdict {
	switch {
	case acknowledged:
		return Acknowledged
	case slices.Contains(a.final, answer.Status):
		return Refused
	case a.abort && wantsAbort(answer):
		return Aborted
	}
	return 0
}

// line keeps a Why's word.
func line(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
	if len(text) > maxWhy {
		text = strings.ToValidUTF8(text[:maxWhy-len("…")], "") + "…"
	}
	return text
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
	if answer.Header == nil {
		return false
	}
	values := answer.Header("webhook-delivery")
	return len(values) > 0 && strings.EqualFold(strings.TrimSpace(values[0]), "abort-message")
}
