// Package merchant holds how each merchant wants to be told, and the live snapshot that every attempt reads.
package merchant

import (
	"time"

	"notifyd/notification"
)

// Isolation says what shares a breaker, caps and an own queue.
type Isolation string

// The isolations.
const (
	IsolationMerchant      Isolation = "merchant"
	IsolationMerchantScene Isolation = "merchant_scene"
	IsolationMerchantURL   Isolation = "merchant_url"
)

// Merchant is who is told, and how. It is stored as JSON without its secrets; those are encrypted beside it.
type Merchant struct {
	ID        string                   `json:"id"`
	Name      string                   `json:"name,omitempty"`
	NotifyURL string                   `json:"notify_url,omitempty"` // default for its notifications
	URLPolicy URLPolicy                `json:"url_policy,omitzero"`
	Contract  Contract                 `json:"contract,omitzero"`
	Egress    string                   `json:"egress,omitempty"` // "direct"
	Limits    Limits                   `json:"limits,omitzero"`
	Timeouts  Timeouts                 `json:"timeouts,omitzero"`
	Schedule  Schedule                 `json:"schedule,omitzero"`
	Isolation Isolation                `json:"isolation,omitempty"`
	Persist   notification.Persist     `json:"persist,omitempty"`
	Scenes    map[string]SceneSettings `json:"scenes,omitempty"`
	Ordering  Ordering                 `json:"ordering,omitzero"`

	// Kept by the engine.
	Paused      bool    `json:"paused,omitempty"`
	PauseReason string  `json:"pause_reason,omitempty"`
	Release     Release `json:"release,omitzero"`

	Version   int64     `json:"-"` // grows over all merchants with every change
	UpdatedAt time.Time `json:"-"`
	Secrets   Secrets   `json:"-"`
}

// URLPolicy says which notify URLs a notification may name.
type URLPolicy struct {
	Hosts     []string `json:"hosts,omitempty"` // "*.example.com" allows every name below; empty: the host of NotifyURL, or any without one
	Ports     []uint32 `json:"ports,omitempty"` // empty: any
	HTTPSOnly bool     `json:"https_only,omitempty"`
}

// Limits bound what one isolation key may use; a zero limit has the engine's default.
type Limits struct {
	RatePerSecond float64 `json:"rate_per_second,omitempty"` // 0: unlimited
	Burst         int     `json:"burst,omitempty"`
	MaxInFlight   int     `json:"max_in_flight,omitempty"`
	OwnQueue      bool    `json:"own_queue,omitempty"`          // everything goes through it
	Release       float64 `json:"release_per_second,omitempty"` // where ResumeMerchant does not say; 0: unlimited
}

// Release bounds how fast goes out what waited while the merchant was paused; the zero value does not.
type Release struct {
	PerSecond      float64   `json:"per_second,omitempty"` // of each isolation key
	AcceptedBefore time.Time `json:"accepted_before,omitzero"`
}

// Ordering is how a merchant's notifications with an ordering key follow each other.
type Ordering struct {
	DeadPredecessor DeadPredecessor `json:"dead_predecessor,omitempty"`
}

// DeadPredecessor says what a dead notification means for those behind it.
type DeadPredecessor string

// The rules for dead predecessors; none is DeadReleases.
const (
	DeadReleases DeadPredecessor = "releases" // they go on
	DeadBlocks   DeadPredecessor = "blocks"   // they wait until it is resent and delivered, or canceled, or the rule changes
)

// Timeouts of one attempt; a zero one has the engine's default.
type Timeouts struct {
	Connect   time.Duration `json:"connect,omitempty"`
	TLS       time.Duration `json:"tls,omitempty"`
	FirstByte time.Duration `json:"first_byte,omitempty"`
	Total     time.Duration `json:"total,omitempty"` // soft: the answer may still come within Grace
	Grace     time.Duration `json:"grace,omitempty"`
	NoGrace   bool          `json:"no_grace,omitempty"` // the merchant has set Grace to 0
}

// Schedule names a built-in or lists gaps.
type Schedule struct {
	Name          string          `json:"name,omitempty"`
	Gaps          []time.Duration `json:"gaps,omitempty"`
	Jitter        *float64        `json:"jitter,omitempty"` // nil: the engine's default
	Window        time.Duration   `json:"window,omitempty"`
	LeastAttempts int             `json:"least_attempts,omitempty"`
}

// SceneSettings override the merchant's own for one scene; a zero value does not.
type SceneSettings struct {
	NotifyURL       string               `json:"notify_url,omitempty"`
	Timeouts        Timeouts             `json:"timeouts,omitzero"`
	Schedule        Schedule             `json:"schedule,omitzero"`
	Persist         notification.Persist `json:"persist,omitempty"`
	Acknowledgement Acknowledgement      `json:"acknowledgement,omitzero"`
}

// Secrets are encrypted at rest, never logged and never shown again.
type Secrets struct {
	SigningSecret string `json:"signing_secret,omitempty"` // standard: whsec_ and base64
	// The one before it, and until when it signs beside it.
	PreviousSecret string    `json:"previous_secret,omitempty"`
	PreviousUntil  time.Time `json:"previous_until,omitzero"`
}

// String keeps a secret out of every log and error that formats it.
func (Secrets) String() string { return "[secrets]" }

// GoString does the same for %#v.
func (Secrets) GoString() string { return "[secrets]" }

// ForScene is the merchant's settings as one scene sees them.
func (m *Merchant) ForScene(scene string) *Merchant {
	over, ok := m.Scenes[scene]
	if !ok {
		return m
	}
	s := *m
	if over.NotifyURL != "" {
		s.NotifyURL = over.NotifyURL
	}
	if over.Persist != 0 {
		s.Persist = over.Persist
	}
	if over.Schedule.Name != "" || len(over.Schedule.Gaps) > 0 {
		s.Schedule = over.Schedule
	}
	s.Contract.Acknowledgement = m.Contract.Acknowledgement.With(over.Acknowledgement)
	s.Timeouts = over.Timeouts.Or(m.Timeouts)
	return &s
}

// Or fills each timeout that is not set from another set.
func (t Timeouts) Or(fallback Timeouts) Timeouts {
	pick := func(own, other time.Duration) time.Duration {
		if own > 0 {
			return own
		}
		return other
	}
	out := Timeouts{
		Connect:   pick(t.Connect, fallback.Connect),
		TLS:       pick(t.TLS, fallback.TLS),
		FirstByte: pick(t.FirstByte, fallback.FirstByte),
		Total:     pick(t.Total, fallback.Total),
		Grace:     pick(t.Grace, fallback.Grace),
		NoGrace:   t.NoGrace || (t.Grace == 0 && fallback.NoGrace),
	}
	if out.NoGrace {
		out.Grace = 0
	}
	return out
}
