package router

import (
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

// The names of the rules that stand behind the configured ones.
const (
	RuleRequested  = "requested"           // the caller named a lane
	RuleSyncScenes = "builtin:sync-scenes" // scan, netbank: somebody waits at a till
	RuleAsync      = "builtin:async"       // everything else
)

// EgressDirect is the way out that needs no proxy.
const EgressDirect = "direct"

// Router holds checked rules. It never changes: a new configuration makes a new one.
type Router struct {
	rules []rule
}

// New checks and compiles rules. Every fault is reported, as RuleErrors joined into one error.
func New(c Config, known Known) (*Router, error) {
	l := loader{known: known, names: make(map[string]int, len(c.Rules))}
	r := &Router{rules: make([]rule, 0, len(c.Rules))}
	for i := range c.Rules {
		r.rules = append(r.rules, l.rule(i, &c.Rules[i], len(c.Rules)))
	}
	if err := l.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// Route decides for one notification of one merchant; the merchant is read only and may be nil.
func (r *Router) Route(n *notification.Notification, m *merchant.Merchant, now time.Time) notification.Route {
	if m == nil {
		m = &noSettings
	}
	name, lane := byDefault(n)
	then := &noDecision
	for i := range r.rules {
		if r.rules[i].matches(n, now) {
			name, then = r.rules[i].name, &r.rules[i].then
			break
		}
	}
	if then.lane != 0 {
		lane = then.lane
	}
	egress := then.egress
	if egress == "" {
		egress = m.Egress
	}
	if egress == "" {
		egress = EgressDirect
	}
	isolation := then.isolation
	if isolation == nil {
		isolation = isolationOf(m.Isolation)
	}
	return notification.Route{
		Lane:         lane,
		IsolationKey: isolation.key(n, m),
		Egress:       egress,
		Schedule:     then.schedule,
		Persist:      persistOf(then, m, n.Scene, lane),
		Rule:         name,
	}
}

var (
	noSettings merchant.Merchant
	noDecision decision
)

// byDefault is what holds when no configured rule says otherwise.
func byDefault(n *notification.Notification) (string, notification.Lane) {
	switch {
	case n.RequestedLane != 0:
		return RuleRequested, n.RequestedLane
	case n.Scene == "scan" || n.Scene == "netbank":
		return RuleSyncScenes, notification.LaneSync
	default:
		return RuleAsync, notification.LaneAsync
	}
}

// persistOf takes the first setting of rule, scene and merchant. The scene's is read here and not through
// Merchant.ForScene, which copies the merchant: this is the hot path.
func persistOf(then *decision, m *merchant.Merchant, scene string, lane notification.Lane) notification.Persist {
	persist := then.persist
	if persist == 0 {
		persist = m.Scenes[scene].Persist
	}
	if persist == 0 {
		persist = m.Persist
	}
	// P1: asking the merchant first is for callers that wait; with nobody waiting the stream is what makes it durable.
	if persist == 0 || (persist == notification.PersistAfter && lane != notification.LaneSync) {
		persist = notification.PersistStream
	}
	return persist
}
