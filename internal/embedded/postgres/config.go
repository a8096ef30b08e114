package postgres

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"go.uber.org/zap"
)

const (
	// DefaultStartTimeout leaves room for the recovery of two gigabytes of write-ahead log.
	DefaultStartTimeout = 2 * time.Minute
	// DefaultStopGrace is how long the last checkpoint may take on a slow disk.
	DefaultStopGrace = 30 * time.Second

	// EnvBin names a folder with postgres and initdb; no other is then looked at.
	EnvBin = "NOTIFYD_POSTGRES_BIN"
	// EnvBundle names an npm bundle, or a node_modules folder with one in it. It is
	// preferred to what is installed, unless the data demand another version.
	EnvBundle = "NOTIFYD_POSTGRES_BUNDLE"

	port         = "5432" // only names the socket file
	roleName     = "notifyd"
	databaseName = "notifyd"
	adminName    = "postgres"
)

// Config says where the private Postgres lives and how it runs. Dir and Log are needed.
type Config struct {
	// Dir holds everything of this Postgres: data, socket, log, lock. It is made if missing.
	Dir string
	Log *zap.Logger
	// Bin and Bundle stand for EnvBin and EnvBundle, and win over them.
	Bin    string
	Bundle string
	// User is who Postgres runs as when the engine is root. Empty means the owner
	// of the existing data, else postgres, else nobody.
	User string
	// Settings are put over this package's own; see SHOW ALL for names and values.
	Settings map[string]string
	// StartTimeout bounds one start, crash recovery included.
	StartTimeout time.Duration
	// StopGrace is what a fast shutdown gets before the immediate one.
	StopGrace time.Duration
	// GiveUpAfter is the number of restarts in a row that may fail before Done is
	// closed. Zero means never: a full disk may be freed tomorrow.
	GiveUpAfter int
}

func (c Config) withDefaults() Config {
	if c.StartTimeout == 0 {
		c.StartTimeout = DefaultStartTimeout
	}
	if c.StopGrace == 0 {
		c.StopGrace = DefaultStopGrace
	}
	return c
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("postgres: dir is empty")
	case c.Log == nil:
		return errors.New("postgres: log is missing")
	case c.StartTimeout < 0 || c.StopGrace < 0:
		return errors.New("postgres: start timeout and stop grace must not be negative")
	case c.GiveUpAfter < 0:
		return fmt.Errorf("postgres: give up after is %d, must not be negative", c.GiveUpAfter)
	}
	name := regexp.MustCompile(`^[a-z_][a-z0-9_.]*$`)
	owned := ownedSettings("")
	for _, key := range slices.Sorted(maps.Keys(c.Settings)) {
		if !name.MatchString(key) {
			return fmt.Errorf("postgres: setting %q is not a name", key)
		}
		if _, ours := owned[key]; ours {
			return fmt.Errorf("postgres: setting %q cannot be changed: the engine's access depends on it", key)
		}
	}
	return nil
}

// defaultSettings suit a machine with two cores that does other work too.
// Everything that makes a commit durable stays on.
func defaultSettings() map[string]string {
	return map[string]string{
		"shared_buffers":     "256MB",
		"max_connections":    "100",
		"fsync":              "on",
		"synchronous_commit": "on",
		"full_page_writes":   "on",
		"wal_level":          "minimal", // nobody replicates a private server
		"max_wal_senders":    "0",       // minimal demands it
		"max_wal_size":       "2GB",
		"checkpoint_timeout": "15min",
		"autovacuum":         "on",
		"jit":                "off",
		"random_page_cost":   "1.1",
		"timezone":           "UTC",
		"log_timezone":       "UTC",
		"log_min_messages":   "warning",
		"log_checkpoints":    "off",
		"log_line_prefix":    "%m [%p] ",
		// Details and contexts quote rows, and rows hold payments.
		"log_error_verbosity": "terse",
		"cluster_name":        "notifyd",
	}
}

// ownedSettings are what the way in depends on: one socket in a folder that only
// the account of Postgres (and root) can enter. Where no password is asked for,
// that folder is the only door.
func ownedSettings(socketFolder string) map[string]string {
	return map[string]string{
		"listen_addresses":        "",
		"port":                    port,
		"unix_socket_directories": socketFolder,
		"unix_socket_permissions": "0700",
		"logging_collector":       "off", // the engine hands over the log file
		"log_destination":         "stderr",
		"lc_messages":             "C",
		"data_directory":          "",
		"hba_file":                "",
		"ident_file":              "",
		"config_file":             "",
	}
}

// serverArgs is the postmaster's command line. Settings go there and not into a
// file of the data folder, so that the next start forgets what is no longer set.
func serverArgs(data, socketFolder string, extra map[string]string) []string {
	settings := defaultSettings()
	maps.Copy(settings, extra)
	for key, value := range ownedSettings(socketFolder) {
		if value != "" || key == "listen_addresses" {
			settings[key] = value
		}
	}
	args := []string{"-D", filepath.Clean(data)}
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", key+"="+settings[key])
	}
	return args
}
