package outage

import (
	"fmt"
	"time"
)

// Config says when a dependency counts as away, and how much may wait for one.
type Config struct {
	// ProbeEvery is the time between two looks at a dependency.
	ProbeEvery time.Duration `yaml:"probe_every"`
	// SlowAfter is how long an answer may take before its dependency counts as away. Nobody waits longer for one that
	// something else can stand in for.
	SlowAfter time.Duration `yaml:"slow_after"`
	// SpillAfter is how long a record may take while Postgres is there and lags: then it is spilled. Spilling costs more
	// than waiting, so it must not begin with the first overload.
	SpillAfter time.Duration `yaml:"spill_after"`
	// SpillBytes bounds, on disk, the records that wait for Postgres in JetStream; the journal takes what is over it.
	SpillBytes int64 `yaml:"spill_bytes"`
	// ReservedBytes bounds the ids that wait there. When it is full, nothing more is accepted until Postgres is back.
	ReservedBytes int64 `yaml:"reserved_bytes"`
	// JournalBytes bounds the file that records wait in while Postgres and JetStream are away.
	JournalBytes int64 `yaml:"journal_bytes"`
	// AttemptBound is the longest that an attempt may take: after it a copy that may be on its way has left a trace.
	AttemptBound time.Duration `yaml:"-"`
	// Replicas of each stream.
	Replicas int `yaml:"-"`
}

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{
		ProbeEvery: 250 * time.Millisecond, SlowAfter: time.Second, SpillAfter: 10 * time.Second, SpillBytes: 4 << 30, ReservedBytes: 1 << 30, JournalBytes: 256 << 20,
		AttemptBound: 30 * time.Second, Replicas: 1,
	}
}

// Validate names the first key that has a value nobody can work with.
func (c Config) Validate() error {
	switch {
	case c.ProbeEvery < 10*time.Millisecond || c.ProbeEvery > 10*time.Second:
		return fmt.Errorf("outage.probe_every: %s: must be 10ms to 10s", c.ProbeEvery)
	case c.SlowAfter < 100*time.Millisecond || c.SlowAfter > 10*time.Second:
		return fmt.Errorf("outage.slow_after: %s: must be 100ms to 10s", c.SlowAfter)
	case c.SpillAfter < c.SlowAfter || c.SpillAfter > 5*time.Minute:
		return fmt.Errorf("outage.spill_after: %s: must be slow_after (%s) to 5m", c.SpillAfter, c.SlowAfter)
	case c.SpillBytes < 1<<20:
		return fmt.Errorf("outage.spill_bytes: %d: must be at least 1 MiB", c.SpillBytes)
	case c.ReservedBytes < 1<<20:
		return fmt.Errorf("outage.reserved_bytes: %d: must be at least 1 MiB", c.ReservedBytes)
	case c.JournalBytes < 1<<20:
		return fmt.Errorf("outage.journal_bytes: %d: must be at least 1 MiB", c.JournalBytes)
	case c.AttemptBound < time.Second:
		return fmt.Errorf("outage.attempt_bound: %s: must be at least 1s", c.AttemptBound)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("outage.replicas: %d: must be 1 to 5", c.Replicas)
	}
	return nil
}
