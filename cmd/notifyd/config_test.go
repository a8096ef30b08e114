package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"notifyd/internal/settings"
)

// What is wrong in a file is said with key, value and rule, before anything starts.
func TestBrokenConfigsAreNamed(t *testing.T) {
	for name, test := range map[string]struct {
		yaml string
		says []string
	}{
		"unknown key":              {"asink: {depth: 3}", []string{"asink"}},
		"unknown key below":        {"async: {depht: 3}", []string{"depht"}},
		"wrong type":               {"async: {depth: many}", []string{"many"}},
		"out of range":             {"async: {depth: 0}", []string{"async.depth", "0", "at least 1"}},
		"duration":                 {"retry: {window: 1ms}", []string{"retry.window", "1ms", "at least 1s"}},
		"address":                  {"intake: {listen: nowhere}", []string{"intake.listen", "nowhere", "host:port"}},
		"bounds that contradict":   {"dispatcher: {attempt_bound: 12s}", []string{"dispatcher.attempt_bound", "12s", "15s"}},
		"claim below the bound":    {"dispatcher: {gate: {claim_for: 20s}}", []string{"dispatcher.gate.claim_for", "20s", "30s"}},
		"network":                  {"egress: {allowed_networks: [10.0.0.0]}", []string{"10.0.0.0"}},
		"rule with unknown lane":   {"router: {rules: [{name: r1, then: {lane: slow}}]}", []string{"r1", "lane", "slow"}},
		"rule with unknown preset": {"router: {rules: [{name: r1, then: {schedule: hourly}}]}", []string{"r1", "schedule", "hourly"}},
		"rule without a name":      {"router: {rules: [{then: {lane: sync}}]}", []string{"name"}},
		"two rules of one name":    {"router: {rules: [{name: a, when: {scenes: [x]}, then: {lane: sync}}, {name: a, then: {lane: async}}]}", []string{"a"}},
	} {
		_, _, err := load(t, test.yaml)
		if err == nil {
			t.Errorf("%s: %s is taken", name, test.yaml)
			continue
		}
		for _, word := range test.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q is not in: %v", name, word, err)
			}
		}
	}
	if _, _, err := load(t, operators); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

// operators is the least that a configuration needs.
const operators = `
callers: {operators: [{name: mei, key_sha256: a9d6602979796927518bee0c8475e8481dd8657fea3457228b3ac400bfed72d2}]}
`

// The example file holds every key, and its values are the defaults.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../deploy/notifyd.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	origins, err := settings.Load(&cfg, settings.Sources{FileName: "notifyd.example.yaml", File: text})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range settings.Keys(&cfg) {
		if origins.Of(key.Path) == "default" {
			t.Errorf("%s is not in the example", key.Path)
		}
	}
	cfg.DataDir = defaultConfig().DataDir // depends on who runs it
	defaults := defaultConfig()
	if changed := settings.Changed(&defaults, &cfg); len(changed) > 0 {
		t.Errorf("the example differs from the defaults in %v", changed)
	}
	for _, key := range live() {
		if !slices.ContainsFunc(settings.Keys(&cfg), func(k settings.Key) bool { return k.Path == key || strings.HasPrefix(k.Path, key+".") }) {
			t.Errorf("%s can be changed live, and is no key", key)
		}
	}
}

// load reads a file as a start would, in an empty environment.
func load(t *testing.T, yaml string, environ ...string) (config, *settings.Origins, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "notifyd.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return configFlags{Config: file}.load(defaultConfig(), environ, nil)
}

// What is printed says where each value comes from, and shows no secret.
func TestPrintedConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notifyd.yaml")
	text := operators + `
async: {in_flight: 4, depth: 100, in_hand: 30000}
nats: {url: "tls://engine:hidden-1@nats:4222", user: engine, password: hidden-2}
postgres: {url: "postgres://notifyd:hidden-3@pg/notifyd"}
alarms: {webhook: {url: "https://hooks.example/x?token=hidden-4", secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}}
traces: {endpoint: "http://user:hidden-5@otel:4318/v1/traces"}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := configFlags{Config: file, Set: []string{"async.depth=300"}, Intake: "127.0.0.1:9000"}
	cfg, origins, err := flags.load(defaultConfig(), []string{"NOTIFYD_ASYNC_DEPTH=200", "NOTIFYD_ASYNC_IN_HAND=40000", "NOTIFYD_ASYNK_DEPTH=1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := settings.Print(&out, &cfg, origins); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"depth: 300 # flag --set", "in_hand: 40000 # environment NOTIFYD_ASYNC_IN_HAND", "in_flight: 4 # file " + file + ":4",
		"listen: 127.0.0.1:9000 # flag --intake-listen", "patience: 500ms # default",
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("it is not printed: %s", line)
		}
	}
	for _, secret := range []string{"hidden-", "MDEyMzQ1"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%s is printed:\n%s", secret, out.String())
		}
	}
	if !slices.Equal(origins.Unused, []string{"environment NOTIFYD_ASYNK_DEPTH: sets nothing; did you mean NOTIFYD_ASYNC_DEPTH?"}) {
		t.Errorf("variables that are no keys: %v", origins.Unused)
	}
}
