package main

import (
	"strings"
	"testing"
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
		cfg := defaultConfig()
		err := cfg.decode("test.yaml", strings.NewReader(test.yaml))
		if err == nil {
			err = cfg.Validate()
		}
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
	cfg := defaultConfig()
	if err := cfg.decode("empty.yaml", strings.NewReader("")); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}
