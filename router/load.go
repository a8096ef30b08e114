package router

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/notification"
)

// RuleError is one fault of one rule.
type RuleError struct {
	Rule  string // its name, else its position: "#1" is the first
	Field string // as in the file: "when.amount.currency"
	Value string
	Must  string // what the value has to be
}

// Error names rule, field, value and what the value has to be.
func (e *RuleError) Error() string {
	return fmt.Sprintf("load routing rule %s: %s: %q %s", e.Rule, e.Field, e.Value, e.Must)
}

// loader turns Rules into rules and collects what is wrong with them.
type loader struct {
	known  Known
	names  map[string]int // position of each name
	errs   []error
	called string // the rule in hand
}

func (l *loader) err() error { return errors.Join(l.errs...) }

func (l *loader) refuse(field, value, must string) {
	l.errs = append(l.errs, &RuleError{Rule: l.called, Field: field, Value: value, Must: must})
}

func (l *loader) rule(at int, in *Rule, count int) rule {
	l.called = in.Name
	if in.Name == "" {
		l.called = "#" + strconv.Itoa(at+1)
	}
	l.name(at, in.Name)
	out := rule{
		name:      in.Name,
		scenes:    l.set("when.scenes", in.When.Scenes, isWord, "must be a scene: a-z, 0-9, _ . and -, 64 at most"),
		merchants: l.set("when.merchants", in.When.Merchants, isGiven, mustBeGiven),
		events:    l.set("when.event_types", in.When.EventTypes, isGiven, mustBeGiven),
		sources:   l.set("when.sources", in.When.Sources, isGiven, mustBeGiven),
		apps:      l.set("when.apps", in.When.Apps, isGiven, mustBeGiven),
		amount:    l.amount(in.When.Amount),
		labels:    l.labels(in.When.Labels),
		then:      l.then(&in.Then),
	}
	for i, w := range in.When.Times {
		out.times = append(out.times, l.window("when.times["+strconv.Itoa(i)+"].", w))
	}
	if at < count-1 && out.everything() {
		l.refuse("when", "", "must have a condition: as it matches everything, the rules after it are never asked")
	}
	return out
}

func (l *loader) name(at int, name string) {
	switch before, seen := l.names[name]; {
	case name == RuleRequested:
		l.refuse("name", name, "must not be a built-in rule's name")
	case !isWord(name):
		l.refuse("name", name, "must be 1 to 64 of a-z, 0-9, _ . and -, and start with a letter or digit")
	case seen:
		l.refuse("name", name, "must be no other rule's name: rule #"+strconv.Itoa(before+1)+" has it too")
	default:
		l.names[name] = at
	}
}

const mustBeGiven = "must not be empty: leave the whole field out to match any"

func isGiven(value string) bool { return value != "" }

// isWord holds for scenes, which intake checks the same way, and for rules' names, which are metric labels.
func isWord(value string) bool {
	for i := range len(value) {
		c := value[i]
		alnum := ('a' <= c && c <= 'z') || ('0' <= c && c <= '9')
		if !alnum && (i == 0 || (c != '_' && c != '.' && c != '-')) {
			return false
		}
	}
	return value != "" && len(value) <= 64
}

// set refuses a list that is there but empty: it would match nothing, or was meant to match all.
func (l *loader) set(field string, values []string, valid func(string) bool, must string) set {
	if values == nil {
		return nil
	}
	if len(values) == 0 {
		l.refuse(field, "[]", mustBeGiven)
	}
	out := make(set, len(values))
	for _, v := range values {
		if !valid(v) {
			l.refuse(field, v, must)
		}
		out[v] = struct{}{}
	}
	return out
}

func (l *loader) amount(in *Amount) *amountRange {
	if in == nil {
		return nil
	}
	out := &amountRange{currency: in.Currency, low: math.MinInt64, high: math.MaxInt64}
	if in.MinMinorUnits != nil {
		out.low = *in.MinMinorUnits
	}
	if in.MaxMinorUnits != nil {
		out.high = *in.MaxMinorUnits
	}
	if len(in.Currency) != 3 || strings.Trim(in.Currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		l.refuse("when.amount.currency", in.Currency, "must be three capital letters: minor units mean nothing without a currency")
	}
	if out.low > out.high {
		l.refuse("when.amount.min_minor_units", strconv.FormatInt(out.low, 10), "must not be above max_minor_units")
	}
	return out
}

func (l *loader) labels(in map[string]string) []label {
	if in != nil && len(in) == 0 {
		l.refuse("when.labels", "{}", mustBeGiven)
	}
	var out []label
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if key == "" {
			l.refuse("when.labels", key, "must not be an empty name")
		}
		out = append(out, label{key, in[key]})
	}
	return out
}

func (l *loader) window(field string, in Window) window {
	out := window{to: 24 * 60, place: time.UTC}
	for _, word := range in.Days {
		day := slices.Index(weekdays, word)
		if day < 0 {
			l.refuse(field+"days", word, "must be one of "+strings.Join(weekdays, " "))
			continue
		}
		out.days[day] = true
	}
	if len(in.Days) == 0 {
		out.days = [7]bool{true, true, true, true, true, true, true}
	}
	if in.From != "" {
		out.from = l.minute(field+"from", in.From)
	}
	if in.To != "" {
		out.to = l.minute(field+"to", in.To)
	}
	if out.from == out.to && out.from >= 0 {
		l.refuse(field+"to", in.To, "must differ from the time it starts at")
	}
	switch place, err := time.LoadLocation(in.Timezone); {
	case in.Timezone == "Local":
		l.refuse(field+"timezone", in.Timezone, "must name a place: the machine's own differs from node to node")
	case err != nil:
		l.refuse(field+"timezone", in.Timezone, "must be an IANA name such as Asia/Shanghai; empty is UTC")
	default:
		out.place = place
	}
	return out
}

// weekdays are in the order of time.Weekday.
var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// minute reads "HH:MM" as minutes from midnight; 24:00 is the end of the day. What it refuses is -1.
func (l *loader) minute(field, text string) int {
	if text == "24:00" {
		return 24 * 60
	}
	at, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		l.refuse(field, text, "must be HH:MM between 00:00 and 24:00")
		return -1
	}
	return at.Hour()*60 + at.Minute()
}

func (l *loader) then(in *Then) decision {
	out := decision{egress: in.Egress, schedule: in.Schedule}
	var err error
	if in.Lane != "" {
		if out.lane, err = notification.ParseLane(in.Lane); err != nil {
			l.refuse("then.lane", in.Lane, "must be sync or async")
		}
	}
	if in.Persist != "" {
		if out.persist, err = notification.ParsePersist(in.Persist); err != nil {
			l.refuse("then.persist", in.Persist, "must be stream, ledger or after")
		}
	}
	if out.persist == notification.PersistAfter && out.lane == notification.LaneAsync {
		l.refuse("then.persist", in.Persist, "must be stream or ledger in the async lane: nobody waits for the outcome")
	}
	if in.Isolation != "" {
		if out.isolation, err = parseIsolation(in.Isolation); err != nil {
			l.refuse("then.isolation", in.Isolation, err.Error())
		}
	}
	if in.Egress != "" && in.Egress != EgressDirect && !slices.Contains(l.known.Egresses, in.Egress) {
		l.refuse("then.egress", in.Egress, mustBeOneOf("egress", l.known.Egresses)+"; "+EgressDirect+" always is")
	}
	if in.Schedule != "" && !slices.Contains(l.known.Schedules, in.Schedule) {
		l.refuse("then.schedule", in.Schedule, mustBeOneOf("schedule", l.known.Schedules))
	}
	return out
}

func mustBeOneOf(what string, names []string) string {
	return "must be a known " + what + ": " + strings.Join(names, ", ")
}
