package router

import (
	"time"

	"notifyd/notification"
)

// rule is a Rule as the hot path wants it.
type rule struct {
	name                                     string
	scenes, merchants, events, sources, apps set
	amount                                   *amountRange
	labels                                   []label
	times                                    []window
	then                                     decision
}

type decision struct {
	lane      notification.Lane
	isolation isolation
	egress    string
	schedule  string
	persist   notification.Persist
}

// set is a list as a condition; the nil set holds for everything.
type set map[string]struct{}

func (s set) holds(value string) bool {
	if s == nil {
		return true
	}
	_, ok := s[value]
	return ok
}

type label struct{ key, value string }

type amountRange struct {
	currency string
	low      int64
	high     int64
}

// holds for no notification without an amount: its currency is empty, a range's never is.
func (r *amountRange) holds(a notification.Amount) bool {
	return r == nil || (a.Currency == r.currency && r.low <= a.MinorUnits && a.MinorUnits <= r.high)
}

func (r *rule) matches(n *notification.Notification, now time.Time) bool {
	return r.scenes.holds(n.Scene) &&
		r.merchants.holds(n.MerchantID) &&
		r.events.holds(n.EventType) &&
		r.sources.holds(n.Source) &&
		r.apps.holds(n.AppID) &&
		r.amount.holds(n.Amount) &&
		r.labelsHold(n.Labels) &&
		r.timesHold(now)
}

func (r *rule) labelsHold(labels map[string]string) bool {
	for _, want := range r.labels {
		if have, ok := labels[want.key]; !ok || have != want.value {
			return false
		}
	}
	return true
}

func (r *rule) timesHold(now time.Time) bool {
	for i := range r.times {
		if r.times[i].holds(now) {
			return true
		}
	}
	return len(r.times) == 0
}

// everything reports whether no notification escapes the rule.
func (r *rule) everything() bool {
	return r.scenes == nil && r.merchants == nil && r.events == nil && r.sources == nil && r.apps == nil &&
		r.amount == nil && len(r.labels) == 0 && len(r.times) == 0
}

// window is a Window; its minutes count from the midnight of the place's clock.
type window struct {
	days     [7]bool // by time.Weekday
	from, to int
	place    *time.Location
}

func (w *window) holds(now time.Time) bool {
	local := now.In(w.place)
	minute := local.Hour()*60 + local.Minute()
	today := local.Weekday()
	if w.from < w.to {
		return w.days[today] && w.from <= minute && minute < w.to
	}
	yesterday := (today + 6) % 7
	return (w.days[today] && minute >= w.from) || (w.days[yesterday] && minute < w.to)
}
