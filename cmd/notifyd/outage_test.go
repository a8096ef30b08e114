package main_test

import (
	"strings"
	"testing"
	"time"

	"notifyd/internal/chaos"
)

// brief is how long a short form leaves something hurt, beyond what it looks at meanwhile.
const brief = time.Second

// Postgres is away in every way in turn: submissions are accepted and told, and the ledger is complete afterwards.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	cfg := chaosConfig(t)
	cfg.Nodes, cfg.Rate = 1, 30
	r := chaos.Begin(t, cfg)
	for _, name := range []string{
		"postgres: stopped", "postgres: kill -9", "postgres: cut off", "postgres: 2 s a query", "postgres: no connection left", "start: postgres away",
	} {
		r.DoWith(chaos.Named(t, name), func() { r.PostgresAway(r.Nodes[0]) }, brief)
	}
	r.Do(chaos.Named(t, "start: postgres away, no settings"), brief)
	nothingLost(t, r)
}

// NATS is away in every way in turn: submissions are accepted and told, and everything is as ever afterwards.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	cfg := chaosConfig(t)
	cfg.Nodes, cfg.Rate = 1, 30
	r := chaos.Begin(t, cfg)
	for _, name := range []string{"nats: stopped", "nats: kill -9", "nats: cut off", "start: nats away"} {
		r.DoWith(chaos.Named(t, name), func() { r.NATSAway(r.Nodes[0]) }, brief)
	}
	nothingLost(t, r)
}

// Both are away: what cannot be kept is refused in time, and what was in hand is in the journal, which outlives a kill -9.
func TestBothAway(t *testing.T) {
	t.Parallel()
	cfg := chaosConfig(t)
	cfg.Nodes, cfg.Rate = 1, 30
	r := chaos.Begin(t, cfg)
	n := r.Nodes[0]
	r.InHand(n)
	r.DoWith(chaos.Named(t, "both: cut off"), func() { r.BothAway(n) }, 3*time.Second)
	r.InHand(n)
	r.DoWith(chaos.Named(t, "both: refuse"), func() {
		r.BothAway(n)
		r.Wait(3 * time.Second) // what was in hand ends
		r.Restart(n)
		if !strings.Contains(n.Engine().Output(), "the journal has records of an earlier run") {
			t.Error("the journal has not outlived the node")
		}
	}, brief)
	nothingLost(t, r)
}

// A stream that somebody deletes is made again, and nothing that a row stands for is lost.
func TestDeletedStreams(t *testing.T) {
	t.Parallel()
	chaos.LoseStreams(t, chaosConfig(t))
}
