package health

import (
	"fmt"
	"slices"
	"time"

	"notifyd/async"
	"notifyd/ledger"
)

// State is how well a dependency is.
type State string

// The states.
const (
	StateOK       State = "ok"
	StateDegraded State = "degraded" // it works, not as it should
	StateDown     State = "down"     // the node is not ready
	StateAbsent   State = "absent"   // not part of this node
)

// The dependencies, as a report names them.
const (
	dependencyPostgres = "postgres"
	dependencyNATS     = "nats"
	dependencyAsync    = "async_lane"
	dependencyLedger   = "ledger_writer"
	dependencyIntake   = "intake"
)

// Dependency is how one is, in words that say what works and what does not.
type Dependency struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	Words string `json:"words"`
	Cause string `json:"cause,omitempty"` // as the dependency said it, on one line
}

// Report says whether a node can do its work.
type Report struct {
	Node         string       `json:"node"`
	Ready        bool         `json:"ready"`
	Draining     bool         `json:"draining"`
	Dependencies []Dependency `json:"dependencies"`
}

// The words of a report. docs/operations.md shows the same.
const (
	wordsOK        = "works"
	wordsAbsent    = "is not part of this node"
	wordsUnasked   = "has not been asked yet"
	wordsPostgres  = "does not answer: the queues accept submissions, attempts go on, their records wait in the spill stream; searches, cancels, resends and changes of settings are UNAVAILABLE"
	wordsNATS      = "does not answer: the ledger accepts submissions, and what is due is sent from it, more slowly; what only nats has waits for it"
	wordsFull      = "has as much in hand as it may: it takes nothing more until something is settled"
	wordsStalled   = "stands still: work could be sent now and no attempt is started"
	wordsNoNATS    = "waits for nats: only what is due in the ledger is sent"
	wordsLagging   = "is behind: records that wait for more than a second go to the spill stream"
	wordsQueueFull = "is full: records go to the spill stream until postgres takes them again"
	wordsDraining  = "is draining: callers should go to another node; what is in hand is finished"
	wordsRefusing  = "answers UNAVAILABLE: neither nats nor postgres answers"
)

// Ready reports from what was learned last. It asks nobody, so it never waits.
func (m *Monitor) Ready() Report {
	s := m.probes.last()
	r := Report{Node: m.parts.Node, Ready: true, Draining: m.draining.Load()}
	postgres := answered(dependencyPostgres, m.parts.Postgres != nil, s.Postgres, wordsPostgres)
	nats := answered(dependencyNATS, m.parts.NATS != nil, s.NATS, wordsNATS)
	r.Dependencies = []Dependency{postgres, nats, m.asyncLane(nats), m.ledgerWriter(), m.intake(r.Draining, postgres, nats)}
	for _, d := range r.Dependencies {
		if d.State == StateDown {
			r.Ready = false
		}
	}
	r.Ready = r.Ready && !r.Draining
	return r
}

func answered(name string, here bool, a Answer, words string) Dependency {
	switch {
	case !here:
		return Dependency{Name: name, State: StateAbsent, Words: wordsAbsent}
	case a.At.IsZero():
		return Dependency{Name: name, State: StateDown, Words: wordsUnasked}
	case a.Cause != "":
		return Dependency{Name: name, State: StateDegraded, Words: words, Cause: a.Cause}
	}
	return Dependency{Name: name, State: StateOK, Words: wordsOK}
}

func (m *Monitor) asyncLane(nats Dependency) Dependency {
	d := Dependency{Name: dependencyAsync, State: StateOK, Words: wordsOK}
	if m.parts.Async == nil {
		d.State, d.Words = StateAbsent, wordsAbsent
		return d
	}
	s := m.parts.Async()
	switch {
	case nats.State == StateDegraded || nats.State == StateDown:
		d.State, d.Words = StateDegraded, wordsNoNATS
	case m.raised(NoDeliveries):
		d.State, d.Words = StateDegraded, wordsStalled
	case s.InHand >= s.InHandLimit:
		d.State, d.Words = StateDegraded, wordsFull
	}
	if s.InHand > 0 && d.State == StateDegraded {
		d.Cause = inHand(s, m.parts.Now())
	}
	return d
}

func inHand(s async.Stats, now time.Time) string {
	return fmt.Sprintf("%d of at most %d in hand, the oldest for %s", s.InHand, s.InHandLimit, now.Sub(s.OldestInHand).Round(time.Second))
}

func (m *Monitor) ledgerWriter() Dependency {
	d := Dependency{Name: dependencyLedger, State: StateOK, Words: wordsOK}
	if m.parts.Ledger == nil {
		d.State, d.Words = StateAbsent, wordsAbsent
		return d
	}
	s := m.parts.Ledger()
	m.mu.Lock()
	bound := m.cfg.LedgerLag
	m.mu.Unlock()
	behind, full := lag(s, m.parts.Now())
	switch {
	case full:
		d.State, d.Words, d.Cause = StateDegraded, wordsQueueFull, queued(s, behind)
	case behind > bound:
		d.State, d.Words, d.Cause = StateDegraded, wordsLagging, queued(s, behind)
	}
	return d
}

func queued(s ledger.Stats, behind time.Duration) string {
	return fmt.Sprintf("%d records, %d of at most %d bytes, the oldest for %s", s.Records, s.Bytes, s.BytesLimit, behind.Round(time.Second))
}

// intake needs one of what it can make a submission durable in (P9).
func (m *Monitor) intake(draining bool, needs ...Dependency) Dependency {
	d := Dependency{Name: dependencyIntake, State: StateOK, Words: wordsOK}
	switch {
	case !m.parts.Intake:
		d.State, d.Words = StateAbsent, wordsAbsent
	case draining:
		d.State, d.Words = StateDegraded, wordsDraining
	default:
		if !slices.ContainsFunc(needs, func(need Dependency) bool { return need.State == StateOK || need.State == StateAbsent }) {
			d.State, d.Words = StateDown, wordsRefusing
		}
	}
	return d
}

func (m *Monitor) raised(name Name) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.judge.open[alarmKey{name: name}] != nil
}
