package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/egress"
	"notifyd/retry"
	"notifyd/router"
	synclane "notifyd/sync"
)

// config is everything the engine can be told, composed of what each package owns. Precedence: flag, environment,
// file, default.
type config struct {
	Intake  listenConfig `yaml:"intake"`
	Admin   listenConfig `yaml:"admin"`
	DataDir string       `yaml:"data_dir"`
	// Drain bounds how long a stop waits for what is in hand.
	Drain time.Duration `yaml:"drain"`

	Router     router.Config     `yaml:"router"`
	Dispatcher dispatcher.Config `yaml:"dispatcher"`
	Sync       synclane.Config   `yaml:"sync"`
	Async      async.Config      `yaml:"async"`
	Egress     egress.Config     `yaml:"egress"`
	Retry      retry.Config      `yaml:"retry"`
	Ledger     ledgerConfig      `yaml:"ledger"`
	NATS       natsConfig        `yaml:"nats"`
}

type listenConfig struct {
	Listen string `yaml:"listen"`
}

type ledgerConfig struct {
	Retention time.Duration `yaml:"retention"`
}

type natsConfig struct {
	// SyncAlways writes every message to disk before it is acknowledged: survives a power cut, at a price.
	SyncAlways bool `yaml:"sync_always"`
}

func defaultConfig() config {
	return config{
		Intake: listenConfig{"127.0.0.1:8700"}, Admin: listenConfig{"127.0.0.1:8702"}, DataDir: defaultDataDir(), Drain: 25 * time.Second,
		Dispatcher: dispatcher.DefaultConfig(), Sync: synclane.DefaultConfig(), Async: async.DefaultConfig(),
		Egress: egress.DefaultConfig(), Retry: retry.DefaultConfig(), Ledger: ledgerConfig{Retention: 30 * 24 * time.Hour},
	}
}

// defaultDataDir is where the data lives when nobody says: for root a folder that Postgres' own user can reach, which
// a home folder is not.
func defaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/notifyd"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "notifyd")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "notifyd-data"
	}
	return filepath.Join(home, ".local", "share", "notifyd")
}

// load reads a YAML file over the config. A key that does not exist is an error that names it.
func (c *config) load(path string) error {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	return c.decode(path, f)
}

func (c *config) decode(name string, r io.Reader) error {
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read config %s: %w", name, err)
	}
	return nil
}

// Validate names every key that has a value nobody can work with.
func (c *config) Validate() error {
	errs := []error{
		checkListen("intake.listen", c.Intake.Listen), checkListen("admin.listen", c.Admin.Listen),
		c.Dispatcher.Validate(), c.Sync.Validate(), c.Async.Validate(), c.Egress.Validate(), c.Retry.Validate(),
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("data_dir: is empty"))
	}
	if c.Drain < time.Second {
		errs = append(errs, fmt.Errorf("drain: %s: must be at least 1s", c.Drain))
	}
	if longest := c.Egress.TotalTimeout + c.Egress.Grace; c.Dispatcher.AttemptBound <= longest {
		errs = append(errs, fmt.Errorf("dispatcher.attempt_bound: %s: must be more than egress.total_timeout and egress.grace together (%s)", c.Dispatcher.AttemptBound, longest))
	}
	if c.Dispatcher.Gate.ClaimFor <= c.Dispatcher.AttemptBound {
		errs = append(errs, fmt.Errorf("dispatcher.gate.claim_for: %s: must be more than dispatcher.attempt_bound (%s)", c.Dispatcher.Gate.ClaimFor, c.Dispatcher.AttemptBound))
	}
	if _, err := router.New(c.Router, knownNames()); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func knownNames() router.Known { return router.Known{Schedules: retry.Names()} }

func checkListen(key, addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%s: %q: must be host:port", key, addr)
	}
	return nil
}
