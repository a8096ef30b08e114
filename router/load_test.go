package router

import (
	"errors"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"notifyd/notification"
)

func load(tb testing.TB, text string) (Config, error) {
	tb.Helper()
	var c Config
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	err := d.Decode(&c)
	return c, err
}

func TestLoadFromYAML(t *testing.T) {
	c, err := load(t, `
rules:
  - name: big-payouts
    when:
      scenes: [payout]
      merchants: [acme]
      event_types: [payout.done]
      sources: [billing]
      apps: [shop]
      amount: {currency: CNY, min_minor_units: 100000, max_minor_units: 900000}
      labels: {channel: wx}
      times:
        - {days: [mon, tue], from: "09:00", to: "18:00", timezone: Asia/Shanghai}
    then:
      lane: sync
      isolation: "{merchant}/{label:channel}"
      egress: shanghai
      schedule: alipay
      persist: after
  - name: rest
`)
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(c, known)
	if err != nil {
		t.Fatal(err)
	}
	n := &notification.Notification{
		MerchantID: "acme", Source: "billing", AppID: "shop", Scene: "payout", EventType: "payout.done",
		Amount: notification.Amount{Currency: "CNY", MinorUnits: 100000}, Labels: map[string]string{"channel": "wx"},
	}
	want := notification.Route{
		Lane: notification.LaneSync, IsolationKey: "m:acme/l:channel=wx", Egress: "shanghai", Schedule: "alipay",
		Persist: notification.PersistAfter, Rule: "big-payouts",
	}
	if have := r.Route(n, nil, monday); have != want {
		t.Errorf("have %+v\nwant %+v", have, want)
	}
	n.Amount.MinorUnits--
	if have := r.Route(n, nil, monday); have.Rule != "rest" || have.Lane != notification.LaneAsync {
		t.Errorf("have %+v", have)
	}
}

func TestUnknownKeyIsNamed(t *testing.T) {
	if _, err := load(t, "rules: [{name: a, when: {scene: scan}}]"); err == nil || !strings.Contains(err.Error(), "scene") {
		t.Errorf("have %v", err)
	}
}

func TestBadRulesAreRefused(t *testing.T) {
	tests := []struct{ yaml, want string }{
		{`{when: {scenes: [scan]}}`, `rule #2: name: "" must be 1 to 64`},
		{`{name: Big}`, `rule Big: name: "Big" must be 1 to 64`},
		{`{name: requested}`, `rule requested: name: "requested" must not be a built-in`},
		{`{name: "builtin:async"}`, `name: "builtin:async" must be 1 to 64`},
		{`{name: first}`, `rule first: name: "first" must be no other rule's name: rule #1 has it too`},
		{`{name: x, when: {scenes: [Scan]}}`, `rule x: when.scenes: "Scan" must be a scene`},
		{`{name: x, when: {scenes: []}}`, `rule x: when.scenes: "[]" must not be empty`},
		{`{name: x, when: {merchants: [""]}}`, `when.merchants: "" must not be empty`},
		{`{name: x, when: {labels: {}}}`, `when.labels: "{}" must not be empty`},
		{`{name: x, when: {labels: {"": y}}}`, `when.labels: "" must not be an empty name`},
		{`{name: x, when: {amount: {min_minor_units: 1}}}`, `when.amount.currency: "" must be three capital letters`},
		{`{name: x, when: {amount: {currency: cny}}}`, `when.amount.currency: "cny" must be three capital`},
		{`{name: x, when: {amount: {currency: CNY, min_minor_units: 2, max_minor_units: 1}}}`, `when.amount.min_minor_units: "2" must not be above`},
		{`{name: x, when: {times: [{days: [Monday]}]}}`, `when.times[0].days: "Monday" must be one of sun mon`},
		{`{name: x, when: {times: [{from: "9:00"}]}}`, `when.times[0].from: "9:00" must be HH:MM`},
		{`{name: x, when: {times: [{}, {to: "25:00"}]}}`, `when.times[1].to: "25:00" must be HH:MM`},
		{`{name: x, when: {times: [{from: "10:00", to: "10:00"}]}}`, `when.times[0].to: "10:00" must differ`},
		{`{name: x, when: {times: [{timezone: Mars/Olympus}]}}`, `when.times[0].timezone: "Mars/Olympus" must be an IANA name`},
		{`{name: x, when: {times: [{timezone: Local}]}}`, `when.times[0].timezone: "Local" must name a place`},
		{`{name: x, then: {lane: fast}}`, `then.lane: "fast" must be sync or async`},
		{`{name: x, then: {persist: never}}`, `then.persist: "never" must be stream, ledger or after`},
		{`{name: x, then: {lane: async, persist: after}}`, `then.persist: "after" must be stream or ledger in the async lane`},
		{`{name: x, then: {isolation: scene}}`, `then.isolation: "scene" must be merchant,`},
		{`{name: x, then: {isolation: "{scene}"}}`, `then.isolation: "{scene}" must have {merchant}`},
		{`{name: x, then: {isolation: "{merchant}-{scene}"}}`, `then.isolation: "{merchant}-{scene}" must be merchant,`},
		{`{name: x, then: {isolation: "{merchant}//{scene}"}}`, `then.isolation: "{merchant}//{scene}" must be merchant,`},
		{`{name: x, then: {isolation: "{merchant}/{label:}"}}`, `then.isolation: "{merchant}/{label:}" must be merchant,`},
		{`{name: x, then: {isolation: "{merchant}/{url}/{scene}"}}`, `must have {url} as its last segment`},
		{`{name: x, then: {egress: moon}}`, `then.egress: "moon" must be a known egress: direct, shanghai; direct always is`},
		{`{name: x, then: {schedule: hourly}}`, `then.schedule: "hourly" must be a known schedule: default, alipay`},
	}
	for _, test := range tests {
		c, err := load(t, "rules: [{name: first, when: {scenes: [scan]}}, "+test.yaml+"]")
		if err != nil {
			t.Fatalf("%s: %v", test.yaml, err)
		}
		_, err = New(c, known)
		var fault *RuleError
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: have %v\nwant %s", test.yaml, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one fault: %v", test.yaml, err)
		}
	}
}

func TestRuleThatHidesOthersIsRefused(t *testing.T) {
	c := Config{Rules: []Rule{{Name: "all"}, {Name: "hidden"}}}
	if _, err := New(c, known); err == nil || !strings.Contains(err.Error(), `rule all: when: "" must have a condition`) {
		t.Errorf("have %v", err)
	}
}

func TestEveryFaultIsReported(t *testing.T) {
	_, err := New(Config{Rules: []Rule{
		{Name: "a", When: When{Scenes: []string{"A"}}, Then: Then{Lane: "x", Persist: "y"}},
		{When: When{Apps: []string{""}}},
	}}, known)
	if have := strings.Count(err.Error(), "\n") + 1; have != 5 {
		t.Errorf("%d faults, want 5:\n%v", have, err)
	}
}
