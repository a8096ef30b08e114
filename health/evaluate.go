package health

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/source"
)

// Facts are what alarms are judged by, at one instant.
type Facts struct {
	Now      time.Time
	Draining bool // nothing new is taken: standing still is no fault

	// Sendable counts keys and messages with work that could be sent now; Started counts attempts since the start.
	Sendable uint64
	Started  uint64

	NATS, Postgres Answer // the zero Answer: not part of this node, or not asked yet

	LedgerBehind time.Duration // the age of the oldest record that is not written
	LedgerFull   bool

	Acknowledged     uint64 // within the window
	AcknowledgedLate uint64 // of them
	Dead             uint64 // within the window
	Counted          time.Duration
	Failing          []Failing
	FailingMore      int // beyond the named ones

	Expiring     []source.ExpiringKey
	Certificates []keys.Expiring
}

// Answer is a dependency's last one.
type Answer struct {
	At    time.Time // when it came, or when it was given up; zero: nobody asked
	Cause string    // why there was none; empty: it is well
}

// Failing is a merchant that acknowledges nothing.
type Failing struct {
	Merchant string
	Since    time.Time
	Attempts int
}

// evaluator turns facts into alarms. It does no I/O and is told the time.
type evaluator struct {
	node string
	cfg  Config

	open     map[alarmKey]*openAlarm
	maybe    map[alarmKey]time.Time // found true since then, not for long enough yet
	started  uint64                 // as last seen
	progress time.Time              // when an attempt was last started, or nothing waited
}

type alarmKey struct {
	name    Name
	subject string
}

// openAlarm is an alarm that is raised.
type openAlarm struct {
	ledger.Alarm
	untrueSince time.Time // zero: it is true
}

func newEvaluator(node string, cfg Config) *evaluator {
	return &evaluator{node: node, cfg: cfg, open: map[alarmKey]*openAlarm{}, maybe: map[alarmKey]time.Time{}}
}

// adopt goes on with an alarm of an earlier run; false: that one is open already, or there is no such alarm any more.
func (e *evaluator) adopt(a ledger.Alarm) bool {
	key := alarmKey{Name(a.Name), a.Subject}
	if _, known := kinds[key.name]; !known || e.open[key] != nil {
		return false
	}
	e.open[key] = &openAlarm{Alarm: a}
	return true
}

// finding is a condition that is true now.
type finding struct{ subject, detail string }

// judgement is what the facts say about one kind of alarm.
type judgement struct {
	name       Name
	known      bool // otherwise nothing is raised and nothing cleared
	found      []finding
	raiseAfter time.Duration
}

// evaluate returns what is raised and what is cleared by the facts.
func (e *evaluator) evaluate(f Facts) (raised, cleared []ledger.Alarm) {
	for _, j := range []judgement{
		e.noDeliveries(f), e.slowAcknowledgement(f), e.deadLetters(f), e.ledgerLagging(f),
		e.degraded(NATSDegraded, "nats", f.NATS), e.degraded(PostgresDegraded, "postgres", f.Postgres),
		e.merchantFailing(f), e.keyExpiring(f), e.certificateExpiring(f),
	} {
		if !j.known {
			continue
		}
		raised = append(raised, e.raise(j, f.Now)...)
		cleared = append(cleared, e.clear(j, f.Now)...)
	}
	return raised, cleared
}

func (e *evaluator) raise(j judgement, now time.Time) (raised []ledger.Alarm) {
	for _, found := range j.found {
		key := alarmKey{j.name, found.subject}
		if a := e.open[key]; a != nil {
			a.SeenAt, a.Detail, a.untrueSince = now, found.detail, time.Time{}
			continue
		}
		since, there := e.maybe[key]
		if !there {
			since = now
			e.maybe[key] = now
		}
		if now.Sub(since) < j.raiseAfter {
			continue
		}
		delete(e.maybe, key)
		a := ledger.Alarm{
			Name: string(j.name), Subject: found.subject, Node: e.node, Severity: string(kinds[j.name].Severity), Detail: found.detail,
			RaisedAt: now, SeenAt: now,
		}
		e.open[key] = &openAlarm{Alarm: a}
		raised = append(raised, a)
	}
	return raised
}

func (e *evaluator) clear(j judgement, now time.Time) (cleared []ledger.Alarm) {
	isFound := make(map[string]bool, len(j.found))
	for _, found := range j.found {
		isFound[found.subject] = true
	}
	for key := range e.maybe {
		if key.name == j.name && !isFound[key.subject] {
			delete(e.maybe, key)
		}
	}
	for key, a := range e.open {
		if key.name != j.name || isFound[key.subject] {
			continue
		}
		if a.untrueSince.IsZero() {
			a.untrueSince = now
		}
		if now.Sub(a.untrueSince) >= kinds[j.name].clearAfter {
			delete(e.open, key)
			a.ClearedAt = now
			cleared = append(cleared, a.Alarm)
		}
	}
	slices.SortFunc(cleared, func(a, b ledger.Alarm) int { return strings.Compare(a.Subject, b.Subject) })
	return cleared
}

// active are the alarms that are raised, by name and subject.
func (e *evaluator) active() []ledger.Alarm {
	out := make([]ledger.Alarm, 0, len(e.open))
	for _, a := range e.open {
		out = append(out, a.Alarm)
	}
	slices.SortFunc(out, func(a, b ledger.Alarm) int {
		if a.Name != b.Name {
			return strings.Compare(a.Name, b.Name)
		}
		return strings.Compare(a.Subject, b.Subject)
	})
	return out
}

func (e *evaluator) noDeliveries(f Facts) judgement {
	if f.Started != e.started || f.Sendable == 0 || f.Draining || e.progress.IsZero() {
		e.started, e.progress = f.Started, f.Now
	}
	j := judgement{name: NoDeliveries, known: true}
	if idle := f.Now.Sub(e.progress); idle >= e.cfg.NoDeliveriesAfter {
		j.found = []finding{{"", fmt.Sprintf("work waits in %d places and no attempt was started for %s", f.Sendable, idle.Round(time.Second))}}
	}
	return j
}

func (e *evaluator) slowAcknowledgement(f Facts) judgement {
	enough := f.Acknowledged >= uint64(e.cfg.AcknowledgementSamples) //nolint:gosec // at least 1
	j := judgement{name: SlowAcknowledgement, known: enough || f.Counted >= e.cfg.AcknowledgementWindow}
	if enough && 100*f.AcknowledgedLate > f.Acknowledged {
		j.found = []finding{{"", fmt.Sprintf("of %d acknowledgements within %s, %.1f %% took longer than %s",
			f.Acknowledged, e.cfg.AcknowledgementWindow, 100*float64(f.AcknowledgedLate)/float64(f.Acknowledged), e.cfg.AcknowledgementP99)}}
	}
	return j
}

func (e *evaluator) deadLetters(f Facts) judgement {
	j := judgement{name: DeadLettersGrowing, known: f.Counted >= e.cfg.DeadLettersWindow}
	if f.Dead >= uint64(e.cfg.DeadLetters) { //nolint:gosec // at least 1
		j.known = true
		j.found = []finding{{"", fmt.Sprintf("%d notifications became dead within %s", f.Dead, e.cfg.DeadLettersWindow)}}
	}
	return j
}

func (e *evaluator) ledgerLagging(f Facts) judgement {
	j := judgement{name: LedgerLagging, known: true}
	switch {
	case f.LedgerFull:
		j.found = []finding{{"", fmt.Sprintf("the writers' queue is full, the oldest record in it waits for %s", f.LedgerBehind.Round(time.Second))}}
	case f.LedgerBehind > e.cfg.LedgerLag:
		j.found = []finding{{"", fmt.Sprintf("the oldest record that is not written waits for %s", f.LedgerBehind.Round(time.Second))}}
	}
	return j
}

func (e *evaluator) degraded(name Name, what string, a Answer) judgement {
	j := judgement{name: name, known: !a.At.IsZero(), raiseAfter: e.cfg.DegradedAfter}
	if a.Cause != "" {
		j.found = []finding{{"", what + " does not answer: " + a.Cause}}
	}
	return j
}

func (e *evaluator) merchantFailing(f Facts) judgement {
	j := judgement{name: MerchantFailing, known: true}
	for _, m := range f.Failing {
		j.found = append(j.found, finding{m.Merchant, fmt.Sprintf("%d attempts have failed since %s, none succeeded", m.Attempts, m.Since.UTC().Format(time.RFC3339))})
	}
	if f.FailingMore > 0 {
		j.found = append(j.found, finding{"", fmt.Sprintf("%d more merchants fail", f.FailingMore)})
	}
	return j
}

func (e *evaluator) keyExpiring(f Facts) judgement {
	j := judgement{name: KeyExpiring, known: true}
	for _, k := range f.Expiring {
		j.found = append(j.found, finding{k.SourceID + "/" + k.KeyID, "the key ends at " + k.ExpiresAt.UTC().Format(time.RFC3339)})
	}
	return j
}

func (e *evaluator) certificateExpiring(f Facts) judgement {
	j := judgement{name: CertificateExpiring, known: true}
	for _, c := range f.Certificates {
		detail := "the certificate ends at "
		if c.Within == 0 {
			detail = "the certificate has ended at "
		}
		j.found = append(j.found, finding{c.Name + "/" + strconv.Itoa(c.Version), detail + c.NotAfter.UTC().Format(time.RFC3339)})
	}
	return j
}
