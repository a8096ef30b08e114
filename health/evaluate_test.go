package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/source"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// night feeds an evaluator with facts, second by second.
type night struct {
	*testing.T
	judge *evaluator
	facts Facts
}

func begin(t *testing.T) *night {
	t.Helper()
	return &night{t, newEvaluator("n1", DefaultConfig()), Facts{
		Now: start, NATS: Answer{At: start}, Postgres: Answer{At: start}, Counted: time.Hour,
	}}
}

// pass lets a span go by and returns what happened in it, as words with the second at which it did.
func (n *night) pass(span time.Duration) (events []string) {
	n.Helper()
	for end := n.facts.Now.Add(span); n.facts.Now.Before(end); {
		n.facts.Now = n.facts.Now.Add(time.Second)
		raised, cleared := n.judge.evaluate(n.facts)
		for _, a := range raised {
			events = append(events, n.word("raised", a))
		}
		for _, a := range cleared {
			events = append(events, n.word("cleared", a))
		}
	}
	return events
}

func (n *night) word(what string, a ledger.Alarm) string {
	word := fmt.Sprintf("%s %s at %ds", what, a.Name, int(n.facts.Now.Sub(start).Seconds()))
	if a.Subject != "" {
		word += " of " + a.Subject
	}
	return word
}

func (n *night) want(got []string, want ...string) {
	n.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		n.Errorf("events (-want +got):\n%s", diff)
	}
}

// Each alarm is raised by its facts, stays while they hold, and is cleared after they have been untrue for long enough.
func TestEachAlarmIsRaisedAndCleared(t *testing.T) {
	expiring := []source.ExpiringKey{{SourceID: "pay", KeyID: "k1", ExpiresAt: start.Add(time.Hour)}}
	cases := map[Name]struct {
		bad, good       func(*Facts)
		raised, cleared string
	}{
		NoDeliveries: {
			func(f *Facts) { f.Sendable = 3 }, func(f *Facts) { f.Started, f.Sendable = 1, 0 },
			"raised no_deliveries at 18s", "cleared no_deliveries at 46s",
		},
		SlowAcknowledgement: {
			func(f *Facts) { f.Acknowledged, f.AcknowledgedLate = 1000, 11 }, func(f *Facts) { f.AcknowledgedLate = 10 },
			"raised slow_acknowledgement at 11s", "cleared slow_acknowledgement at 101s",
		},
		DeadLettersGrowing: {
			func(f *Facts) { f.Dead = 50 }, func(f *Facts) { f.Dead = 49 },
			"raised dead_letters_growing at 11s", "cleared dead_letters_growing at 101s",
		},
		LedgerLagging: {
			func(f *Facts) { f.LedgerBehind = 10*time.Second + 1 }, func(f *Facts) { f.LedgerBehind = 10 * time.Second },
			"raised ledger_lagging at 11s", "cleared ledger_lagging at 51s",
		},
		NATSDegraded: {
			func(f *Facts) { f.NATS.Cause = "timeout" }, func(f *Facts) { f.NATS.Cause = "" },
			"raised nats_degraded at 14s", "cleared nats_degraded at 46s",
		},
		PostgresDegraded: {
			func(f *Facts) { f.Postgres.Cause = "refused" }, func(f *Facts) { f.Postgres.Cause = "" },
			"raised postgres_degraded at 14s", "cleared postgres_degraded at 46s",
		},
		MerchantFailing: {
			func(f *Facts) { f.Failing = []Failing{{Merchant: "m-1", Since: start, Attempts: 12}} }, func(f *Facts) { f.Failing = nil },
			"raised merchant_failing at 11s of m-1", "cleared merchant_failing at 41s of m-1",
		},
		KeyExpiring: {
			func(f *Facts) { f.Expiring = expiring }, func(f *Facts) { f.Expiring = nil },
			"raised key_expiring at 11s of pay/k1", "cleared key_expiring at 41s of pay/k1",
		},
		CertificateExpiring: {
			func(f *Facts) {
				f.Certificates = []keys.Expiring{{Name: "client", Version: 2, NotAfter: start, Within: 0}}
			}, func(f *Facts) { f.Certificates = nil },
			"raised certificate_expiring at 11s of client/2", "cleared certificate_expiring at 41s of client/2",
		},
	}
	for _, kind := range Kinds() {
		t.Run(string(kind.Name), func(t *testing.T) {
			c, ok := cases[kind.Name]
			if !ok {
				t.Fatal("this alarm has no case here")
			}
			n := begin(t)
			n.want(n.pass(10 * time.Second))
			c.bad(&n.facts)
			n.want(n.pass(30*time.Second), c.raised)
			active := n.judge.active()
			if len(active) != 1 || active[0].Name != string(kind.Name) || active[0].Severity != string(kind.Severity) || active[0].Detail == "" || active[0].SeenAt != n.facts.Now {
				t.Errorf("active: %+v", active)
			}
			c.good(&n.facts)
			n.want(n.pass(100*time.Second), c.cleared)
			if active := n.judge.active(); len(active) != 0 {
				t.Errorf("still active: %+v", active)
			}
		})
	}
}

// Work that arrives now and then, attempts that start now and then, and a node that drains, are no standstill.
func TestNoDeliveriesNeedsAStandstill(t *testing.T) {
	t.Run("attempts start", func(t *testing.T) {
		n := begin(t)
		n.facts.Sendable = 7
		for range 20 {
			n.facts.Started++
			n.want(n.pass(7 * time.Second))
		}
	})
	t.Run("nothing waits for a moment", func(t *testing.T) {
		n := begin(t)
		for range 20 {
			n.facts.Sendable = 7
			n.want(n.pass(7 * time.Second))
			n.facts.Sendable = 0
			n.want(n.pass(time.Second))
		}
	})
	t.Run("draining", func(t *testing.T) {
		n := begin(t)
		n.facts.Sendable, n.facts.Draining = 7, true
		n.want(n.pass(time.Minute))
	})
	t.Run("cleared when nothing is left", func(t *testing.T) {
		n := begin(t)
		n.facts.Sendable = 7
		n.want(n.pass(20*time.Second), "raised no_deliveries at 9s")
		n.facts.Sendable = 0
		n.want(n.pass(20*time.Second), "cleared no_deliveries at 26s")
	})
}

func TestNothingFlaps(t *testing.T) {
	n := begin(t)
	for range 10 { // down for less than degraded_after
		n.facts.Postgres.Cause = "refused"
		n.want(n.pass(2 * time.Second))
		n.facts.Postgres.Cause = ""
		n.want(n.pass(time.Second))
	}
	n.facts.Postgres.Cause = "refused"
	n.pass(10 * time.Second)
	for range 10 { // back for less than it takes to clear
		n.facts.Postgres.Cause = ""
		n.want(n.pass(4 * time.Second))
		n.facts.Postgres.Cause = "refused"
		n.want(n.pass(time.Second))
	}
}

// What an earlier run left open goes on; what is not true any more is cleared; what cannot be known yet stays.
func TestAdoptedAlarmsGoOn(t *testing.T) {
	n := begin(t)
	n.facts.Counted = 0
	left := func(name Name) ledger.Alarm {
		return ledger.Alarm{Name: string(name), Node: "n1", Severity: "warning", RaisedAt: start.Add(-time.Hour), SeenAt: start.Add(-time.Minute)}
	}
	for _, name := range []Name{PostgresDegraded, NATSDegraded, SlowAcknowledgement} {
		if !n.judge.adopt(left(name)) {
			t.Fatalf("%s is not adopted", name)
		}
	}
	if n.judge.adopt(left(NATSDegraded)) || n.judge.adopt(left("of_another_version")) {
		t.Error("adopted twice, or without a kind")
	}
	n.facts.Postgres.Cause = "refused"
	n.want(n.pass(30*time.Second), "cleared nats_degraded at 6s")
	if active := n.judge.active(); len(active) != 2 || active[0].RaisedAt != start.Add(-time.Hour) || active[0].SeenAt != n.facts.Now {
		t.Errorf("active: %+v", active)
	}
	n.facts.Counted = time.Hour // a whole window without a slow one
	n.want(n.pass(70*time.Second), "cleared slow_acknowledgement at 91s")
}

func TestUnaskedDependenciesSayNothing(t *testing.T) {
	n := begin(t)
	n.facts.NATS, n.facts.Postgres = Answer{}, Answer{}
	n.judge.adopt(ledger.Alarm{Name: string(PostgresDegraded), RaisedAt: start})
	n.want(n.pass(time.Minute))
}

func TestManyFailingMerchantsAreCountedTogether(t *testing.T) {
	n := begin(t)
	n.facts.Failing, n.facts.FailingMore = []Failing{{Merchant: "m-1", Since: start, Attempts: 10}}, 9799
	n.want(n.pass(time.Second), "raised merchant_failing at 1s of m-1", "raised merchant_failing at 1s")
	n.facts.FailingMore = 0
	n.want(n.pass(time.Second), "cleared merchant_failing at 2s")
}
