package router

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"notifyd/merchant"
	"notifyd/notification"
)

// FuzzRules: rules are refused with the name of the rule and the field, or whatever they are asked about has a route that
// the rest of the engine can follow, and the same one twice.
func FuzzRules(f *testing.F) {
	add := func(rules string) {
		f.Add([]byte(rules), "acme", "scan", "paid", "x", "y", "CNY", int64(1050), int64(0), "merchant_url", uint8(0))
	}
	add("rules: [{name: a, when: {scenes: [scan], amount: {currency: CNY, min_minor_units: 1}}, then: {lane: sync, isolation: merchant_url}}]")
	add("rules: [{name: a, when: {times: [{days: [mon], from: \"22:00\", to: \"06:00\", timezone: Asia/Shanghai}]}, then: {isolation: \"{merchant}/{label:x}/{url}\"}}]")
	add("rules: [{name: '', then: {egress: x, schedule: default, persist: after}}]")
	add("rules: [{name: a, when: {labels: {x: y}, merchants: [acme], event_types: [paid]}, then: {schedule: alipay, persist: ledger, egress: shanghai}}, {name: b, then: {lane: async}}]")
	add("rules: [{name: a, then: {lane: fast, persist: never, isolation: scene, egress: moon, schedule: hourly}}, {when: {scenes: []}}]")
	f.Add([]byte("rules: [{name: a, then: {persist: after}}]"), "a/b", "payout", "", "", "", "", int64(0), int64(0), "", uint8(0))
	f.Add([]byte("rules: []"), "", "", "", "", "", "", int64(-1), int64(1<<40), "", uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, merchantID, scene, event, label, value, currency string, units, at int64, isolation string, lane uint8) {
		var c Config
		d := yaml.NewDecoder(bytes.NewReader(data))
		d.KnownFields(true)
		if d.Decode(&c) != nil {
			t.Skip()
		}
		r, err := New(c, known)
		if err != nil {
			checkRuleErrors(t, err)
			return
		}
		n := &notification.Notification{
			MerchantID: merchantID, Scene: scene, EventType: event, Source: value, AppID: event, NotifyURL: "https://a.test/" + value,
			Labels: map[string]string{label: value}, Amount: notification.Amount{Currency: currency, MinorUnits: units}, RequestedLane: notification.Lane(lane % 3),
		}
		m := &merchant.Merchant{ID: merchantID, Isolation: merchant.Isolation(isolation)}
		now := time.Unix(at%(1<<40), 0).UTC()
		route := r.Route(n, m, now)
		checkRoute(t, c, n, route)
		again, err := New(c, known)
		if err != nil || again.Route(n, m, now) != route {
			t.Fatalf("two answers to one question: %+v, %v", route, err)
		}
	})
}

func checkRuleErrors(t *testing.T, err error) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("not joined: %v", err)
	}
	for _, one := range joined.Unwrap() {
		fault, ok := errors.AsType[*RuleError](one)
		if !ok || fault.Rule == "" || fault.Field == "" || fault.Must == "" {
			t.Fatalf("names no rule or no field: %v", one)
		}
		if text := one.Error(); !strings.Contains(text, "rule "+fault.Rule+": "+fault.Field+": ") {
			t.Fatal(text)
		}
	}
}

func checkRoute(t *testing.T, c Config, n *notification.Notification, route notification.Route) {
	t.Helper()
	if route.Lane != notification.LaneSync && route.Lane != notification.LaneAsync {
		t.Fatalf("lane: %+v", route)
	}
	if route.Schedule != "" && !slices.Contains(known.Schedules, route.Schedule) {
		t.Fatalf("schedule: %+v", route)
	}
	if route.Egress != EgressDirect && !slices.Contains(known.Egresses, route.Egress) {
		t.Fatalf("egress: %+v", route)
	}
	if route.Persist == 0 || route.Persist == notification.PersistAfter && route.Lane != notification.LaneSync {
		t.Fatalf("persist: %+v", route)
	}
	// P8: a key is of one merchant only.
	if own := string(appendEscaped([]byte(tagMerchant), n.MerchantID)); !slices.Contains(strings.Split(route.IsolationKey, "/"), own) {
		t.Fatalf("isolation key without %q: %+v", own, route)
	}
	if builtin := []string{RuleRequested, RuleSyncScenes, RuleAsync}; !slices.Contains(builtin, route.Rule) && !slices.ContainsFunc(c.Rules, func(one Rule) bool { return one.Name == route.Rule }) {
		t.Fatalf("rule: %+v", route)
	}
}
