package health

import "time"

// Name is an alarm's: a closed set of snake_case words, the same in the ledger, logs, metric labels and webhooks.
type Name string

// The alarms.
const (
	NoDeliveries        Name = "no_deliveries"
	SlowAcknowledgement Name = "slow_acknowledgement"
	DeadLettersGrowing  Name = "dead_letters_growing"
	LedgerLagging       Name = "ledger_lagging"
	NATSDegraded        Name = "nats_degraded"
	PostgresDegraded    Name = "postgres_degraded"
	MerchantFailing     Name = "merchant_failing"
	KeyExpiring         Name = "key_expiring"
	CertificateExpiring Name = "certificate_expiring"
)

// Severity says how soon somebody must look.
type Severity string

// The severities.
const (
	Critical Severity = "critical" // now: notifications are not delivered, or may soon not be
	Warning  Severity = "warning"  // in working hours
)

// Kind is what is fixed about an alarm. docs/operations.md shows the same words.
type Kind struct {
	Name     Name
	Severity Severity
	Means    string // what is true while it is raised
	Raised   string // when
	Cleared  string // when
	Do       string // what to do about it

	clearAfter time.Duration // how long it must be untrue, against flapping
}

// Kinds are all alarms.
func Kinds() []Kind {
	return []Kind{
		{
			NoDeliveries, Critical,
			"Notifications wait that could be sent now, and nobody sends them.",
			"For `no_deliveries_after` work waited and no attempt was started. Work that must wait does not count: paused or missing merchants, open breakers, rate limits, attempts in flight, later due times.",
			"Attempts are started again, or nothing is left that could be sent, for 5 s.",
			"Look at /readyz and at the other alarms: a dependency that hangs is the usual cause. If all is well there, take a goroutine profile of the admin listener, then restart the node: nothing is lost.",
			5 * time.Second,
		},
		{
			SlowAcknowledgement, Warning,
			"Merchants acknowledge later than they should: money has moved and the shop does not know.",
			"Of at least `acknowledgement_samples` acknowledgements within `acknowledgement_window` more than 1 % came later than `acknowledgement_p99` after acceptance. Resends by operators do not count.",
			"Not so for 1 m.",
			"See whether one merchant or all are slow: attempts by reason, own queues, open breakers. With all of them slow look at our way out, at CPU and at the ledger's lag. After a merchant's outage its backlog makes this true for a while.",
			time.Minute,
		},
		{
			DeadLettersGrowing, Warning,
			"Notifications were given up: nobody tries them again unless somebody resends them.",
			"At least `dead_letters` notifications became dead within `dead_letters_window` on this node.",
			"Fewer within the window for 1 m.",
			"List notifications in state dead with their reasons. Once the merchant is well again, resend them.",
			time.Minute,
		},
		{
			LedgerLagging, Warning,
			"Records wait to be written to Postgres. What waits for more than a second goes to the spill stream instead.",
			"The oldest record that is not written is older than `ledger_lag`, or the writers' queue is full.",
			"Not so for 10 s.",
			"Look at Postgres: locks, disk, CPU, connections.",
			10 * time.Second,
		},
		{
			NATSDegraded, Critical,
			"NATS does not answer: submissions are accepted by the ledger, and what is due is sent from it, more slowly; what only NATS has waits for it.",
			"Checks have failed for `degraded_after`.",
			"Checks have succeeded for 5 s.",
			"The cause stands in the detail and in /readyz. When JetStream is disabled the disk failed or is full: free space. Otherwise restore NATS. Everything goes on by itself, without a restart.",
			5 * time.Second,
		},
		{
			PostgresDegraded, Critical,
			"Postgres does not answer: the queues accept submissions, attempts go on, their records wait in the spill stream; searches, cancels and resends are UNAVAILABLE.",
			"Checks have failed for `degraded_after`.",
			"Checks have succeeded for 5 s.",
			"Restore Postgres; everything goes on by itself, and the spill stream drains. Look at its size (`notifyd_spilled_records`) and at the disk of NATS meanwhile.",
			5 * time.Second,
		},
		{
			MerchantFailing, Warning,
			"A merchant acknowledges nothing. The subject is its id; without a subject: so many more merchants than the 200 that are named.",
			"For `merchant_failing_for` at least `merchant_failing_attempts` attempts failed by the merchant's fault, and none succeeded.",
			"The merchant acknowledges one, or nothing was attempted for 25 h.",
			"Look at its last attempts: reason, answer, certificate, address. Tell the merchant, or pause it. With many at once look for our own cause: network, proxy, resolver.",
			0,
		},
		{
			KeyExpiring, Warning,
			"A payment service's key ends soon; then its submissions are UNAUTHENTICATED. The subject is source/key id.",
			"The key ends within `key_expiring_within`.",
			"The key is gone or renewed, or has ended.",
			"Make a new key for the source, hand it over, and remove the old one.",
			0,
		},
		{
			CertificateExpiring, Warning,
			"The certificate of one of our keys ends soon, or has ended: what it proves or signs is refused then. The subject is name/version.",
			"The certificate ends within 30 d. The log has a line, one over all nodes, at 30, 14, 7 and 1 d before, and at the end.",
			"Another version is set to take over in time, or the version is retired.",
			"Have it renewed, and rotate: `notifyd keys rotate NAME --file new.pem`. Tell merchants that pin it before the overlap ends.",
			0,
		},
	}
}

var kinds = func() map[Name]Kind {
	all := map[Name]Kind{}
	for _, k := range Kinds() {
		all[k.Name] = k
	}
	return all
}()
