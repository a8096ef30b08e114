package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"notifyd/internal/settings"
)

// FuzzConfig: whatever a file, the environment and --set say is either a configuration that can be printed and started
// with, or refused with the line or the key of each fault.
func FuzzConfig(f *testing.F) {
	f.Add(operators, "async.depth=10", "8")
	f.Add("asink: {depth: 3}\n", "async.depht=1", "many")
	f.Add(operators+"router: {rules: [{name: r1, when: {scenes: [scan]}, then: {lane: slow, schedule: hourly}}]}\n", "nats.url=nats://a:4222", "")
	f.Add("roles: [intake]\nnats: {url: 'tls://u:hush-hush@h', password: x}\npostgres: {url: 'postgres://h/db'}\n"+operators, "egress.allowed_networks=10.0.0.0/8,::1/128", "0x10")
	f.Add("intake: {listen: nowhere, tls: {cert_file: a}}\ncallers: {required: false, operators: [{name: '_', key_sha256: z}]}\n", "drain=1ms", "-1")
	f.Add("traces: {endpoint: ':'}\nalarms: {webhook: {url: x, secret: y}}\nlog: {level: loud}\n", "retry.window=1s", "10")
	f.Add("a: &x {b: 1}\nc: *x\n--- \n? [1]\n: 2", "=", "1")

	keys := settings.Keys(new(defaultConfig()))
	path := filepath.Join(f.TempDir(), "notifyd.yaml")
	f.Fuzz(func(t *testing.T, file, set, depth string) {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		flags := configFlags{Config: path, Set: []string{set}}
		cfg, origins, err := flags.load(defaultConfig(), []string{"NOTIFYD_ASYNC_DEPTH=" + depth}, nil)
		if err == nil {
			if err := settings.Print(&strings.Builder{}, &cfg, origins); err != nil {
				t.Fatal(err)
			}
			return
		}
		for fault := range strings.SplitSeq(err.Error(), "\n") {
			if !namesPlace(fault, path, keys) {
				t.Fatalf("names neither line nor key: %s\nin: %v", fault, err)
			}
		}
	})
}

func namesPlace(fault, path string, keys []settings.Key) bool {
	for _, place := range []string{path + ":", "NOTIFYD_ASYNC_DEPTH", "--set"} {
		if strings.Contains(fault, place) {
			return true
		}
	}
	for _, key := range keys {
		if strings.Contains(fault, key.Path) {
			return true
		}
	}
	return strings.Contains(fault, "routing rule ")
}
