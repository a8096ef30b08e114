// Package access is the blacklist and the whitelist of merchants and sources: what a rule says, and what the rules say
// together of one notification. It does no I/O and is told the time.
package access

import (
	"net/url"
	"time"
)

// Kind says what a rule is about.
type Kind uint8

// The kinds; the numbers are those of the API.
const (
	KindMerchant Kind = iota + 1
	KindSource
)

// String is the word for it in ids.
func (k Kind) String() string {
	switch k {
	case KindMerchant:
		return "merchant"
	case KindSource:
		return "source"
	}
	return "unknown"
}

// Effect says whether a rule blocks or lets through.
type Effect uint8

// The effects; the numbers are those of the API.
const (
	EffectBlock Effect = iota + 1
	EffectAllow
)

// String is the word for it in ids.
func (e Effect) String() string {
	switch e {
	case EffectBlock:
		return "block"
	case EffectAllow:
		return "allow"
	}
	return "unknown"
}

// Mode says what becomes of what is blocked.
type Mode uint8

// The modes; the numbers are those of the API.
const (
	// ModeReject refuses what is submitted. What was accepted before is held.
	ModeReject Mode = iota + 1
	// ModeHold accepts and does not send until the rule ends.
	ModeHold
	// ModeRecordOnly accepts, records and cancels. What was accepted before is canceled when its turn comes.
	ModeRecordOnly
)

// String is the word for it.
func (m Mode) String() string {
	switch m {
	case ModeReject:
		return "reject"
	case ModeHold:
		return "hold"
	case ModeRecordOnly:
		return "record_only"
	}
	return "none"
}

// strictness orders the modes: of two rules that block the stricter holds.
func (m Mode) strictness() int {
	switch m {
	case ModeReject:
		return 3
	case ModeRecordOnly:
		return 2
	case ModeHold:
		return 1
	}
	return 0
}

// Subject is who a rule is about.
type Subject struct {
	Kind  Kind
	ID    string // a merchant's or a source's; empty: every one of the kind, which is what the allow-only mode is about
	Scene string // empty: every scene
}

// Rule is what an operator has said of a subject. There is one for each subject and effect.
type Rule struct {
	ID        string // made of subject and effect, see RuleID
	Subject   Subject
	Effect    Effect
	Mode      Mode   // of a block; zero for an allow
	Reason    string // for people
	ExpiresAt time.Time
	// Removed says that the rule has ended, and Reason why: it stays on record, so that every node learns of it.
	Removed   bool
	CreatedAt time.Time
	CreatedBy string
	UpdatedBy string

	Version   int64     `json:"-"`
	UpdatedAt time.Time `json:"-"`
}

// RuleID names the rule of a subject and an effect, for example "merchant/tea-house/payout/block".
func RuleID(s Subject, e Effect) string {
	id := s.Kind.String()
	if s.ID != "" {
		id += "/" + url.PathEscape(s.ID)
	}
	if s.Scene != "" {
		id += "/" + url.PathEscape(s.Scene)
	}
	return id + "/" + e.String()
}

// Live reports whether the rule counts at an instant.
func (r *Rule) Live(now time.Time) bool { return !r.Removed && !r.Expired(now) }

// Expired reports whether the rule's time is over.
func (r *Rule) Expired(now time.Time) bool { return !r.ExpiresAt.IsZero() && !now.Before(r.ExpiresAt) }

// Change is what somebody has done to a rule.
type Change struct {
	Number int64
	At     time.Time
	Before *Rule // nil: there was none
	After  *Rule
}
