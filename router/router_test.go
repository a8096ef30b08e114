package router

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

var (
	known  = Known{Egresses: []string{"direct", "shanghai"}, Schedules: []string{"default", "alipay"}}
	monday = time.Date(2026, 11, 9, 8, 0, 0, 0, time.UTC)
)

func mustNew(tb testing.TB, rules ...Rule) *Router {
	tb.Helper()
	r, err := New(Config{Rules: rules}, known)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func TestBuiltinRules(t *testing.T) {
	tests := []struct {
		scene     string
		requested notification.Lane
		lane      notification.Lane
		rule      string
	}{
		{"scan", 0, notification.LaneSync, RuleSyncScenes},
		{"netbank", 0, notification.LaneSync, RuleSyncScenes},
		{"withhold", 0, notification.LaneAsync, RuleAsync},
		{"payout", 0, notification.LaneAsync, RuleAsync},
		{"recharge", 0, notification.LaneAsync, RuleAsync},
		{"anything-else", 0, notification.LaneAsync, RuleAsync},
		{"scan", notification.LaneAsync, notification.LaneAsync, RuleRequested},
		{"payout", notification.LaneSync, notification.LaneSync, RuleRequested},
	}
	r := mustNew(t)
	for _, test := range tests {
		n := &notification.Notification{MerchantID: "acme", Scene: test.scene, RequestedLane: test.requested}
		want := notification.Route{
			Lane: test.lane, Rule: test.rule, IsolationKey: "m:acme", Egress: EgressDirect, Persist: notification.PersistStream,
		}
		if have := r.Route(n, nil, monday); have != want {
			t.Errorf("%s asking for %v: have %+v\nwant %+v", test.scene, test.requested, have, want)
		}
	}
}

func TestConditions(t *testing.T) {
	n := &notification.Notification{
		MerchantID: "acme", Source: "billing", AppID: "shop", Scene: "payout", EventType: "payout.done",
		Amount: notification.Amount{Currency: "CNY", MinorUnits: 1000}, Labels: map[string]string{"channel": "wx", "vip": ""},
	}
	none := *n
	none.Amount, none.Labels = notification.Amount{}, nil
	tests := []struct {
		name string
		when When
		n    *notification.Notification
		want bool
	}{
		{"scene", When{Scenes: []string{"scan", "payout"}}, n, true},
		{"other scene", When{Scenes: []string{"scan"}}, n, false},
		{"merchant", When{Merchants: []string{"acme"}}, n, true},
		{"other merchant", When{Merchants: []string{"acme2"}}, n, false},
		{"event type", When{EventTypes: []string{"payout.done"}}, n, true},
		{"other event type", When{EventTypes: []string{"payout"}}, n, false},
		{"source", When{Sources: []string{"billing"}}, n, true},
		{"other source", When{Sources: []string{"bill"}}, n, false},
		{"app", When{Apps: []string{"shop"}}, n, true},
		{"other app", When{Apps: []string{"SHOP"}}, n, false},
		{"label", When{Labels: map[string]string{"channel": "wx"}}, n, true},
		{"empty label", When{Labels: map[string]string{"vip": ""}}, n, true},
		{"both labels", When{Labels: map[string]string{"channel": "wx", "vip": ""}}, n, true},
		{"one label is other", When{Labels: map[string]string{"channel": "wx", "vip": "1"}}, n, false},
		{"missing label is not an empty one", When{Labels: map[string]string{"vip": ""}}, &none, false},
		{"any amount of the currency", When{Amount: &Amount{Currency: "CNY"}}, n, true},
		{"other currency", When{Amount: &Amount{Currency: "USD"}}, n, false},
		{"lower bound is in", When{Amount: &Amount{Currency: "CNY", MinMinorUnits: new(int64(1000))}}, n, true},
		{"below", When{Amount: &Amount{Currency: "CNY", MinMinorUnits: new(int64(1001))}}, n, false},
		{"upper bound is in", When{Amount: &Amount{Currency: "CNY", MaxMinorUnits: new(int64(1000))}}, n, true},
		{"above", When{Amount: &Amount{Currency: "CNY", MaxMinorUnits: new(int64(999))}}, n, false},
		{"no amount", When{Amount: &Amount{Currency: "CNY", MinMinorUnits: new(int64(0))}}, &none, false},
		{"all that is set has to hold", When{Scenes: []string{"payout"}, Merchants: []string{"other"}}, n, false},
		{"nothing set", When{}, n, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := mustNew(t, Rule{Name: "it", When: test.when, Then: Then{Lane: "sync"}})
			have := r.Route(test.n, nil, monday)
			if matched := have.Rule == "it"; matched != test.want || matched != (have.Lane == notification.LaneSync) {
				t.Errorf("have %+v, want match %v", have, test.want)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	const shanghai = "Asia/Shanghai" // UTC+8
	tests := []struct {
		name   string
		window Window
		at     string
		want   bool
	}{
		{"every day", Window{}, "2026-11-09T12:00:00Z", true},
		{"the day", Window{Days: []string{"mon"}}, "2026-11-09T23:59:59Z", true},
		{"another day", Window{Days: []string{"mon"}}, "2026-11-10T00:00:00Z", false},
		{"already the day there", Window{Days: []string{"tue"}, Timezone: shanghai}, "2026-11-09T16:00:00Z", true},
		{"not yet the day there", Window{Days: []string{"tue"}, Timezone: shanghai}, "2026-11-09T15:59:59Z", false},
		{"start is in", Window{From: "09:00", To: "18:00", Timezone: shanghai}, "2026-11-09T01:00:00Z", true},
		{"end is out", Window{From: "09:00", To: "18:00", Timezone: shanghai}, "2026-11-09T10:00:00Z", false},
		{"to the end of the day", Window{From: "22:00", To: "24:00"}, "2026-11-09T23:59:59Z", true},
		{"over midnight, before it", Window{Days: []string{"fri"}, From: "22:00", To: "06:00"}, "2026-11-13T22:00:00Z", true},
		{"over midnight, after it", Window{Days: []string{"fri"}, From: "22:00", To: "06:00"}, "2026-11-14T05:59:00Z", true},
		{"over midnight, its end", Window{Days: []string{"fri"}, From: "22:00", To: "06:00"}, "2026-11-14T06:00:00Z", false},
		{"over midnight, the morning of its day", Window{Days: []string{"fri"}, From: "22:00", To: "06:00"}, "2026-11-13T05:00:00Z", false},
		{"over midnight from saturday", Window{Days: []string{"sat"}, From: "22:00", To: "06:00"}, "2026-11-15T01:00:00Z", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			at, err := time.Parse(time.RFC3339, test.at)
			if err != nil {
				t.Fatal(err)
			}
			never := Window{From: "00:00", To: "00:01", Days: []string{"wed"}}
			r := mustNew(t, Rule{Name: "it", When: When{Times: []Window{never, test.window}}})
			if have := r.Route(&notification.Notification{}, nil, at).Rule == "it"; have != test.want {
				t.Errorf("at %v: %v", at, have)
			}
		})
	}
}

func TestWhoDecides(t *testing.T) {
	m := &merchant.Merchant{
		ID: "acme", Egress: "shanghai", Isolation: merchant.IsolationMerchantScene, Persist: notification.PersistLedger,
		Schedule: merchant.Schedule{Name: "alipay"},
		Scenes:   map[string]merchant.SceneSettings{"scan": {Persist: notification.PersistAfter}, "payout": {Persist: notification.PersistAfter}},
	}
	r := mustNew(t,
		Rule{Name: "all-set", When: When{Labels: map[string]string{"rule": "all-set"}}, Then: Then{
			Lane: "async", Isolation: "merchant", Egress: "direct", Schedule: "default", Persist: "stream",
		}},
		Rule{Name: "no-lane", When: When{Labels: map[string]string{"rule": "no-lane"}}, Then: Then{Persist: "after"}},
		Rule{Name: "second", When: When{Labels: map[string]string{"rule": "all-set"}}, Then: Then{Lane: "sync"}},
	)
	tests := []struct {
		name, scene, label string
		requested          notification.Lane
		want               notification.Route
	}{
		{"the merchant's settings", "refund", "", 0, notification.Route{
			Lane: notification.LaneAsync, IsolationKey: "m:acme/s:refund", Egress: "shanghai", Persist: notification.PersistLedger, Rule: RuleAsync,
		}},
		{"the scene's settings", "scan", "", 0, notification.Route{
			Lane: notification.LaneSync, IsolationKey: "m:acme/s:scan", Egress: "shanghai", Persist: notification.PersistAfter, Rule: RuleSyncScenes,
		}},
		{"after is for the sync lane", "payout", "", 0, notification.Route{
			Lane: notification.LaneAsync, IsolationKey: "m:acme/s:payout", Egress: "shanghai", Persist: notification.PersistStream, Rule: RuleAsync,
		}},
		{"a rule's values, the first match, before the caller's lane", "scan", "all-set", notification.LaneSync, notification.Route{
			Lane: notification.LaneAsync, IsolationKey: "m:acme", Egress: "direct", Schedule: "default", Persist: notification.PersistStream, Rule: "all-set",
		}},
		{"the caller's lane where the rule leaves it open", "refund", "no-lane", notification.LaneSync, notification.Route{
			Lane: notification.LaneSync, IsolationKey: "m:acme/s:refund", Egress: "shanghai", Persist: notification.PersistAfter, Rule: "no-lane",
		}},
		{"the scene's lane where nobody says", "scan", "no-lane", 0, notification.Route{
			Lane: notification.LaneSync, IsolationKey: "m:acme/s:scan", Egress: "shanghai", Persist: notification.PersistAfter, Rule: "no-lane",
		}},
		{"a rule's after in the async lane", "refund", "no-lane", 0, notification.Route{
			Lane: notification.LaneAsync, IsolationKey: "m:acme/s:refund", Egress: "shanghai", Persist: notification.PersistStream, Rule: "no-lane",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := &notification.Notification{
				MerchantID: "acme", Scene: test.scene, RequestedLane: test.requested, Labels: map[string]string{"rule": test.label},
			}
			if have := r.Route(n, m, monday); have != test.want {
				t.Errorf("have %+v\nwant %+v", have, test.want)
			}
		})
	}
}

// S1.14: the same notification has the same route and shard, on every node and however often it is asked.
func TestRouteIsDeterministic(t *testing.T) {
	rules := func() []Rule {
		return []Rule{
			{Name: "wx", When: When{Labels: map[string]string{"channel": "wx", "vip": "1"}}, Then: Then{Isolation: "{merchant}/{label:channel}", Lane: "sync"}},
			{Name: "urls", When: When{Scenes: []string{"payout", "scan"}}, Then: Then{Isolation: "merchant_url"}},
		}
	}
	one, other := mustNew(t, rules()...), mustNew(t, rules()...)
	chance := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[chance.IntN(len(from))] }
	shards := map[string]int{}
	for range 20_000 {
		n := &notification.Notification{
			MerchantID: fmt.Sprint("m", chance.IntN(300)), Scene: pick("scan", "payout", "refund"),
			NotifyURL: "https://" + pick("a", "b") + ".test/" + pick("x", "y") + "?order=" + strconv.Itoa(chance.Int()),
			Labels:    map[string]string{"channel": pick("wx", "ali"), "vip": pick("0", "1")},
		}
		route := one.Route(n, nil, monday)
		if again := other.Route(n, nil, monday.Add(time.Duration(chance.Int64N(1e15)))); again != route {
			t.Fatalf("%+v and %+v", route, again)
		}
		shard := notification.ShardOf(route.IsolationKey)
		if before, seen := shards[route.IsolationKey]; seen && before != shard {
			t.Fatalf("%s was in shard %d, is in %d", route.IsolationKey, before, shard)
		}
		shards[route.IsolationKey] = shard
	}
	used := map[int]bool{}
	for _, shard := range shards {
		used[shard] = true
	}
	if len(used) != notification.Shards {
		t.Errorf("%d keys fill %d of %d shards", len(shards), len(used), notification.Shards)
	}
}

func TestRouteAllocatesTheKeyOnly(t *testing.T) {
	r, n, m := hundredRules(t)
	if allocs := testing.AllocsPerRun(1000, func() { r.Route(n, m, monday) }); allocs > 1 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkRoute(b *testing.B) {
	r, n, m := hundredRules(b)
	b.ReportAllocs()
	for b.Loop() {
		r.Route(n, m, monday)
	}
}

// hundredRules match only in the last.
func hundredRules(tb testing.TB) (*Router, *notification.Notification, *merchant.Merchant) {
	tb.Helper()
	var rules []Rule
	for i := range 100 {
		rules = append(rules, Rule{
			Name: fmt.Sprint("rule-", i),
			When: When{
				Scenes: []string{"payout"}, Times: []Window{{From: "08:00", To: "18:00", Timezone: "Asia/Shanghai"}},
				Labels: map[string]string{"n": strconv.Itoa(i)},
			},
			Then: Then{Isolation: "merchant_url"},
		})
	}
	n := &notification.Notification{
		MerchantID: "acme", Scene: "payout", NotifyURL: "https://Pay.acme.test:443/notify?order=1", Labels: map[string]string{"n": "99"},
	}
	m := &merchant.Merchant{Scenes: map[string]merchant.SceneSettings{"payout": {Persist: notification.PersistLedger}}}
	at := time.Date(2026, 11, 9, 1, 0, 0, 0, time.UTC)
	if route := mustNew(tb, rules...).Route(n, m, at); route.Rule != "rule-99" {
		tb.Fatalf("have %+v", route)
	}
	return mustNew(tb, rules...), n, m
}
