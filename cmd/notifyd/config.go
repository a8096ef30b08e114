package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/egress"
	"notifyd/health"
	"notifyd/internal/faults"
	"notifyd/internal/settings"
	"notifyd/ledger"
	"notifyd/outage"
	"notifyd/retry"
	"notifyd/router"
	synclane "notifyd/sync"
)

// config is everything that a node can be told, composed of what each package owns. Precedence: flag, environment,
// file, default.
type config struct {
	// Restored says that NATS and Postgres may be of different times: what NATS holds may have been sent.
	Restored bool `yaml:"-"`
	// Node names this node in alarms, the same after a restart; empty: the machine's name, and the roles when others have
	// the rest.
	Node string `yaml:"node"`
	// Roles of this node; see role.
	Roles   roles        `yaml:"roles"`
	DataDir string       `yaml:"data_dir"`
	Intake  intakeConfig `yaml:"intake"`
	Admin   adminConfig  `yaml:"admin"`
	// DrainNotice is how long a stop goes on taking calls while /readyz says that the node is going: load balancers leave.
	DrainNotice time.Duration `yaml:"drain_notice"`
	// Drain bounds how long a stop waits for what is in hand.
	Drain time.Duration `yaml:"drain"`

	Callers  dispatcher.CallersConfig `yaml:"callers"`
	NATS     natsConfig               `yaml:"nats"`
	Postgres postgresConfig           `yaml:"postgres"`
	Ledger   ledgerConfig             `yaml:"ledger"`
	Log      logConfig                `yaml:"log"`
	Traces   tracesConfig             `yaml:"traces"`
	Alarms   health.Config            `yaml:"alarms"`

	Router     router.Config     `yaml:"router"`
	Dispatcher dispatcher.Config `yaml:"dispatcher"`
	Sync       synclane.Config   `yaml:"sync"`
	Async      async.Config      `yaml:"async"`
	Egress     egress.Config     `yaml:"egress"`
	Retry      retry.Config      `yaml:"retry"`
	Outage     outage.Config     `yaml:"outage"`
}

type adminConfig struct {
	Listen string `yaml:"listen"`
}

// postgresConfig says where the ledger is. Without a url it is a private Postgres in the data folder.
type postgresConfig struct {
	// URL in any form that libpq knows; sslmode, sslrootcert, sslcert and sslkey are its parameters.
	URL            string `yaml:"url" secret:"url"`
	MaxConnections int    `yaml:"max_connections"`
}

type ledgerConfig struct {
	Retention time.Duration `yaml:"retention"`
	// SearchTimeout bounds one search; one that takes longer is answered DEADLINE_EXCEEDED.
	SearchTimeout time.Duration `yaml:"search_timeout"`
	// MasterKeyFile seals the secrets of merchants and sources, and private keys; empty: master.key in the data folder. Nodes
	// that share a Postgres share it.
	MasterKeyFile string `yaml:"master_key_file"`
	// MasterKeyCommand prints the master key, and is run at the start instead of reading a file: a program and its arguments,
	// without a shell.
	MasterKeyCommand []string `yaml:"master_key_command"`
}

// masterKeyVariable holds the master key itself, before any file.
const masterKeyVariable = "NOTIFYD_MASTER_KEY"

// foreignVariables begin like settings and are none.
func foreignVariables() []string {
	return []string{
		masterKeyVariable, "NOTIFYD_POSTGRES_BUNDLE", "NOTIFYD_API_KEY", "NOTIFYD_HMAC_KEY", "NOTIFYD_OPERATOR_KEY", keyPasswordVariable, "NOTIFYD_CONFIG", "NOTIFYD_SERVER",
		faults.Variable, "NOTIFYD_CA_FILE", "NOTIFYD_CERT_FILE", "NOTIFYD_KEY_FILE",
	}
}

// defaultConfig is what `notifyd serve` does when it is told nothing.
func defaultConfig() config {
	callers := dispatcher.DefaultCallersConfig()
	callers.Required = true
	return config{
		Roles: allRoles(), DataDir: defaultDataDir(),
		Intake: intakeConfig{Listen: "127.0.0.1:8700"}, Admin: adminConfig{Listen: "127.0.0.1:8702"},
		DrainNotice: 3 * time.Second, Drain: 25 * time.Second, Callers: callers,
		NATS: natsConfig{Replicas: 1, SyncAlways: true}, Postgres: postgresConfig{MaxConnections: 8},
		Ledger: ledgerConfig{Retention: 30 * 24 * time.Hour, SearchTimeout: 3 * time.Second},
		Log:    logConfig{Level: "info", Format: "json", Attempts: true}, Traces: tracesConfig{SampleRatio: 1}, Alarms: health.DefaultConfig(),
		Dispatcher: dispatcher.DefaultConfig(), Sync: synclane.DefaultConfig(), Async: async.DefaultConfig(),
		Egress: egress.DefaultConfig(), Retry: retry.DefaultConfig(), Outage: outage.DefaultConfig(),
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

// configFlags are the flags of every command that reads the configuration.
type configFlags struct {
	Config string `help:"YAML file." type:"existingfile" short:"c" env:"NOTIFYD_CONFIG"`
	Roles  string `help:"Parts to run, separated by commas: intake, sync, async, retry, ledger." placeholder:"all"`
	Intake string `help:"Address of the intake RPC." name:"intake-listen" placeholder:"127.0.0.1:8700"`
	Admin  string `help:"Address of health checks and metrics." name:"admin-listen" placeholder:"127.0.0.1:8702"`
	// Restored is for the first start after a restore.
	Restored bool     `help:"NATS or Postgres comes from a backup: whatever NATS holds is looked up before it is sent."`
	DataDir  string   `help:"Folder for what is kept in this process: NATS, Postgres, the master key." placeholder:"${default_data_dir}"`
	Set      []string `help:"Any other key, as key=value; may be repeated." placeholder:"KEY=VALUE" sep:"none"`
}

// load applies file, environment and flags to the defaults.
func (f configFlags) load(cfg config, environ []string, more map[string]string) (config, *settings.Origins, error) {
	from := settings.Sources{Env: environ, Prefix: "NOTIFYD_", Foreign: foreignVariables(), Sets: f.Set, Flags: more}
	if from.Flags == nil {
		from.Flags = map[string]string{}
	}
	for key, value := range map[string]string{"roles": f.Roles, "intake.listen": f.Intake, "admin.listen": f.Admin, "data_dir": f.DataDir} {
		if value != "" {
			from.Flags[key] = value
		}
	}
	if f.Config != "" {
		var err error
		if from.FileName, from.File, err = readConfig(f.Config); err != nil {
			return cfg, nil, err
		}
	}
	origins, err := settings.Load(&cfg, from)
	if err != nil {
		return cfg, nil, err
	}
	cfg.Restored = f.Restored
	cfg.Async.Replicas, cfg.Retry.Replicas = cfg.NATS.Replicas, cfg.NATS.Replicas
	return cfg, origins, origins.Locate(cfg.Validate())
}

func readConfig(path string) (name string, content []byte, err error) {
	if content, err = os.ReadFile(path); err != nil { //nolint:gosec // the operator names the file
		return "", nil, fmt.Errorf("read config: %w", err)
	}
	return path, content, nil
}

// Validate names every key that has a value nobody can work with.
func (c *config) Validate() error {
	errs := []error{
		c.Roles.validate(), checkListen("intake.listen", c.Intake.Listen), checkListen("admin.listen", c.Admin.Listen), c.Intake.TLS.validate(),
		c.Callers.Validate(), c.NATS.validate(), c.Log.validate(), c.Traces.validate(), c.Alarms.Validate(),
		c.Dispatcher.Validate(), c.Sync.Validate(), c.Async.Validate(), c.Egress.Validate(), c.Retry.Validate(), c.Outage.Validate(),
	}
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		wrong("data_dir: is empty")
	}
	if c.Drain < time.Second {
		wrong("drain: %s: must be at least 1s", c.Drain)
	}
	if c.DrainNotice < 0 || c.DrainNotice > 10*time.Minute {
		wrong("drain_notice: %s: must be 0s to 10m", c.DrainNotice)
	}
	if c.Ledger.Retention < 24*time.Hour {
		wrong("ledger.retention: %s: must be at least 24h", c.Ledger.Retention)
	}
	if len(c.Ledger.MasterKeyCommand) > 0 && c.Ledger.MasterKeyFile != "" {
		wrong("ledger.master_key_command: is given together with ledger.master_key_file: give one of them")
	}
	if c.Ledger.SearchTimeout < 10*time.Millisecond {
		wrong("ledger.search_timeout: %s: must be at least 10ms", c.Ledger.SearchTimeout)
	}
	if c.Postgres.MaxConnections < 4 {
		wrong("postgres.max_connections: %d: must be at least 4: two write, two do everything else", c.Postgres.MaxConnections)
	}
	if c.Roles.validate() == nil && !c.Roles.all() && c.NATS.URL == "" {
		wrong("roles: %s: other nodes must do the rest, and cannot reach the queues of this process: set nats.url", c.Roles)
	}
	if err := ledger.CheckURL(c.Postgres.URL); c.Postgres.URL != "" && err != nil {
		wrong("postgres.url: %s: %w", redacted(c.Postgres.URL), err)
	}
	if c.NATS.URL != "" && c.Postgres.URL == "" {
		wrong("postgres.url: is empty, and nats.url is not: nodes that share queues share the ledger")
	}
	if !c.Callers.Required && checkListen("", c.Intake.Listen) == nil && !onLoopback(c.Intake.Listen) {
		wrong("callers.required: false: intake.listen %s can be reached from other machines: anybody there could submit", c.Intake.Listen)
	}
	if longest := c.Egress.TotalTimeout + c.Egress.Grace; c.Dispatcher.AttemptBound <= longest {
		wrong("dispatcher.attempt_bound: %s: must be more than egress.total_timeout and egress.grace together (%s)", c.Dispatcher.AttemptBound, longest)
	}
	if c.Dispatcher.Gate.ClaimFor <= c.Dispatcher.AttemptBound {
		wrong("dispatcher.gate.claim_for: %s: must be more than dispatcher.attempt_bound (%s)", c.Dispatcher.Gate.ClaimFor, c.Dispatcher.AttemptBound)
	}
	if _, err := router.New(c.Router, knownNames()); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *config) nodeName() string {
	if c.Node != "" {
		return c.Node
	}
	name, err := os.Hostname()
	if err != nil {
		name = "notifyd"
	}
	if !c.Roles.all() {
		name += "/" + c.Roles.String()
	}
	return name
}

// checkFiles reads what the configuration names, as a start would.
func (c *config) checkFiles(ctx context.Context) error {
	var errs []error
	if c.Intake.TLS.on() {
		_, err := c.Intake.TLS.read()
		errs = append(errs, err)
	}
	if c.NATS.TLS != (tlsConfig{}) {
		_, err := c.NATS.TLS.client("nats.tls")
		errs = append(errs, err)
	}
	if path := c.NATS.CredentialsFile; path != "" {
		if _, err := os.ReadFile(path); err != nil { //nolint:gosec // the operator names the file
			errs = append(errs, fmt.Errorf("nats.credentials_file: %w", err))
		}
	}
	return errors.Join(append(errs, c.checkMasterKey(ctx))...)
}

// checkMasterKey names where a master key comes from that cannot be used. One that the first start makes is not there yet.
func (c *config) checkMasterKey(ctx context.Context) error {
	from, raw, err := c.findMasterKey(ctx, false)
	if errors.Is(err, fs.ErrNotExist) && c.masterKeyIsMade() {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := ledger.NewCipher(raw); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

// findMasterKey reads the master key from where it comes from, and names that.
func (c *config) findMasterKey(ctx context.Context, create bool) (from string, raw []byte, err error) {
	if raw = []byte(os.Getenv(masterKeyVariable)); len(raw) > 0 {
		return masterKeyVariable, raw, nil
	}
	if len(c.Ledger.MasterKeyCommand) > 0 {
		raw, err = runMasterKeyCommand(ctx, c.Ledger.MasterKeyCommand)
		return "ledger.master_key_command: " + c.Ledger.MasterKeyCommand[0], raw, err
	}
	raw, err = c.loadMasterKey(create)
	return "ledger.master_key_file: " + c.masterKeyFile(), raw, err
}

func (c *config) masterKeyFile() string {
	if c.Ledger.MasterKeyFile != "" {
		return c.Ledger.MasterKeyFile
	}
	return filepath.Join(c.DataDir, "master.key")
}

// masterKeyIsMade reports whether the first start makes the file: beside a private Postgres, where nobody has named one.
// Nodes that share a Postgres share the key, and a name may be mistyped.
func (c *config) masterKeyIsMade() bool {
	return c.Postgres.URL == "" && c.Ledger.MasterKeyFile == "" && len(c.Ledger.MasterKeyCommand) == 0
}

func (c *config) loadMasterKey(create bool) ([]byte, error) {
	raw, err := ledger.LoadMasterKey(c.masterKeyFile(), create) // names the file
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("ledger.master_key_file: %w: take the one of the other nodes, set %s, or make the first one with notifyd keygen master", err, masterKeyVariable)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger.master_key_file: %w", err)
	}
	return raw, nil
}

func knownNames() router.Known { return router.Known{Schedules: retry.Names()} }

func checkListen(key, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%s: %q: must be host:port", key, addr)
	}
	return nil
}

// onLoopback reports whether only this machine can reach an address.
func onLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
