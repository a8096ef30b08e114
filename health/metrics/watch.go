package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"notifyd/async"
	"notifyd/cluster"
	"notifyd/dispatcher"
	"notifyd/health"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/outage"
	"notifyd/retry"
	synclane "notifyd/sync"
)

// Parts are asked for their numbers at each scrape. What is nil is not part of this node, and not shown.
type Parts struct {
	Now        func() time.Time
	Monitor    *health.Monitor
	Tally      *health.Tally
	Dispatcher func() dispatcher.Stats
	Async      func() async.Stats
	Sync       func() synclane.Stats
	Ledger     func() ledger.Stats
	Sweep      func() retry.SweepStats
	Delay      func() retry.DelayStats
	Kept       func() outage.Stats
	Queues     func() outage.QueueStats
	Cluster    func() cluster.Stats
	// Certificates are those of the engine's own keys that end soon.
	Certificates func(now time.Time) []keys.Expiring
}

// Watch shows the parts' numbers from now on. It is called once.
func (m *Metrics) Watch(p Parts) { m.registry.MustRegister(&watcher{p}) }

// watcher reads snapshots when Prometheus asks.
type watcher struct{ parts Parts }

// reading is one metric that comes from a snapshot.
type reading struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
}

func (r *reading) desc() *prometheus.Desc {
	return prometheus.NewDesc(prefix+r.name, r.help, r.labels, nil)
}

func gauge(name, help string, labels ...string) *reading {
	return &reading{name, help, prometheus.GaugeValue, labels}
}

func total(name, help string, labels ...string) *reading {
	return &reading{name, help, prometheus.CounterValue, labels}
}

var (
	ready         = gauge("ready", "1 when /readyz says so.")
	dependencyUp  = gauge("dependency_up", "1 when the last check of a dependency was answered.", "dependency")
	alarmsActive  = gauge("alarms_active", "Alarms raised now, one for each subject.", "alarm")
	alarmsRaised  = total("alarms_raised_total", "Alarms raised.", "alarm")
	webhooksLost  = total("alarm_webhooks_given_up_total", "Webhooks about alarms that nobody took; the alarms are in the ledger and the log.")
	alarmsPending = gauge("alarms_unstored", "Alarms that the ledger has not taken yet.")

	queueDepth = gauge("queue_depth", "What waits, by place. publish: notifications for their envelope. shard: envelopes in NATS, those in hand included. "+
		"due: come due, those in hand included. delay: due within the window. own_queue: in merchants' own queues. undecodable: set aside for people. "+
		"in_hand: taken from NATS and not settled. short_queue: of those, without a slot. sync_lane: callers. ledger_writer: records. "+
		"overdue: due for more than 30 s and in nobody's hands, at most 10000. shard, due, delay, own_queue, undecodable and overdue are the whole cluster's.", "place")
	queueLimit    = gauge("queue_limit", "How much may wait at most, by place.", "place")
	queueAge      = gauge("queue_oldest_age_seconds", "Age of what has waited longest, by place; 0 when nothing waits. due and overdue: since it was due. own_queue: left out while something undecodable lies beside it.", "place")
	ownQueues     = gauge("own_queues", "Own queues that hold something, of the whole cluster.")
	sampleAge     = gauge("queue_sample_age_seconds", "Age of what is known about the queues in NATS: it grows while NATS does not answer.")
	stalled       = gauge("stalled_places", "Keys and messages with work that could be sent now and that nobody sends. Above 0 for moments only, unless something is wrong.")
	ackRatio      = gauge("acknowledged_ratio", "Of the notifications that ended within the last 10 minutes on this node, the share that was acknowledged within the time; dead and expired ones count as not, canceled ones and resends by operators not at all. Left out while there are none. Over other spans: acknowledgement_delay_seconds has buckets of 13 and 100 s.", "within")
	inFlight      = gauge("attempts_in_flight", "Attempts on the wire.")
	breakersOpen  = gauge("breakers_open", "Isolation keys whose breaker lets nothing through.")
	envelopes     = total("envelopes_published_total", "Envelopes stored in NATS.")
	enveloped     = total("envelope_notifications_total", "Notifications in the envelopes stored in NATS.")
	envelopeBytes = total("envelope_bytes_total", "Bytes of the envelopes stored in NATS.")
	envelopeFails = total("envelope_publish_failures_total", "Envelopes that are not known to be stored; their callers were told to try again.")
	delays        = total("delays_published_total", "Schedules stored in NATS, works that were due at once included.")
	delayFails    = total("delay_publish_failures_total", "Schedules that are not known to be stored.")
	swept         = total("sweep_notifications_total", "Notifications that the sweep put on their way. fed: as planned. rescued: overdue and forgotten; it should stay 0 but after crashes and outages.", "work")
	sweepFails    = total("sweep_failures_total", "Sweeps that broke off; the next one goes on.")
	ledgerLag     = gauge("ledger_lag_seconds", "Age of the oldest record that waits to be written to the ledger; 0 when none does.")
	ledgerBytes   = gauge("ledger_queue_bytes", "Bytes of the records that wait to be written to the ledger.")
	ledgerLimit   = gauge("ledger_queue_limit_bytes", "Above it attempts wait for the ledger.")
	ledgerBatches = total("ledger_batches_total", "Batches written to the ledger.")
	ledgerRows    = total("ledger_records_total", "Records in the batches written to the ledger.")
	ledgerFails   = total("ledger_batch_failures_total", "Tries to write a batch that Postgres did not take; each is tried again.")
	panics        = total("panics_total", "Bugs that were contained, by place. attempt: it counts as made, with the reason internal. message: it was set aside.", "place")
	setAside      = total("set_aside_total", "Messages and notifications that could not be taken, and are kept for people.")
	away          = gauge("dependency_away", "1 while this node carries on without a dependency.", "dependency")
	spilled       = gauge("spilled_records", "Records that wait in NATS for Postgres, of all nodes. Left out while that is not known.")
	elsewhere     = gauge("reserved_elsewhere", "Ids that were accepted without Postgres and wait in NATS for it, of all nodes. Left out while that is not known.")
	journaled     = gauge("journal_records", "Records that wait in this node's journal for Postgres or NATS.")
	journalBytes  = gauge("journal_bytes", "Size of this node's journal.")
	keptNowhere   = total("records_kept_nowhere_total", "Records that neither Postgres nor NATS nor the journal took. Their messages come again.")
	queueRows     = total("rows_for_queues_total", "Notifications that NATS did not take and that became rows which are due.")
	clusterNodes  = gauge("cluster_nodes", "Living nodes, as this one sees them; 0 when it cannot tell.")
	shardsOwned   = gauge("shards_owned", "Shards that this node takes from.")
	certificates  = gauge("certificates_expiring", "Certificates of our own keys that end within so many days; 0: that have ended.", "within_days")
	quarantined   = total("ledger_quarantined_total", "Records that Postgres refused for good and that are in quarantine.")

	readings = []*reading{
		ready, dependencyUp, alarmsActive, alarmsRaised, webhooksLost, alarmsPending, queueDepth, queueLimit, queueAge, ownQueues, sampleAge, stalled,
		ackRatio, inFlight, breakersOpen, envelopes, enveloped, envelopeBytes, envelopeFails, delays, delayFails, swept, sweepFails, ledgerLag,
		ledgerBytes, ledgerLimit, ledgerBatches, ledgerRows, ledgerFails, quarantined, panics, setAside, away, spilled, elsewhere, journaled,
		journalBytes, keptNowhere, queueRows, clusterNodes, shardsOwned, certificates,
	}
	descs = func() map[*reading]*prometheus.Desc {
		all := make(map[*reading]*prometheus.Desc, len(readings))
		for _, r := range readings {
			all[r] = r.desc()
		}
		return all
	}()
)

// Describe names what may be shown.
func (w *watcher) Describe(out chan<- *prometheus.Desc) {
	for _, r := range readings {
		out <- descs[r]
	}
}

// show sends one value.
type show func(r *reading, value float64, labels ...string)

// Collect reads the snapshots.
func (w *watcher) Collect(out chan<- prometheus.Metric) {
	show := func(r *reading, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(descs[r], r.kind, value, labels...)
	}
	now := w.parts.Now()
	if w.parts.Monitor != nil {
		w.monitor(show, now)
	}
	if w.parts.Tally != nil {
		if s := w.parts.Tally.Shares(); s.Settled > 0 {
			show(ackRatio, float64(s.Soon)/float64(s.Settled), "13s")
			show(ackRatio, float64(s.InTime)/float64(s.Settled), "100s")
		}
	}
	if w.parts.Dispatcher != nil {
		s := w.parts.Dispatcher()
		show(inFlight, float64(s.Sending))
		show(breakersOpen, float64(s.OpenBreakers))
		show(panics, float64(s.Panics), "attempt")
	}
	if w.parts.Async != nil {
		w.async(show, now)
	}
	if w.parts.Sync != nil {
		s := w.parts.Sync()
		show(queueDepth, float64(s.Waiting), "sync_lane")
		show(queueLimit, float64(s.Limit), "sync_lane")
	}
	if w.parts.Ledger != nil {
		w.ledger(show, now)
	}
	w.retry(show)
	w.carriedOn(show)
	if w.parts.Cluster != nil {
		s := w.parts.Cluster()
		show(clusterNodes, float64(s.Nodes))
		show(shardsOwned, float64(s.Shards))
	}
	if w.parts.Certificates != nil {
		expiring := w.parts.Certificates(now)
		for _, days := range keys.ExpiryDays() {
			n := 0
			for _, c := range expiring {
				if c.Within <= days {
					n++
				}
			}
			show(certificates, float64(n), strconv.Itoa(days))
		}
	}
}

// carriedOn shows what is kept and done while a dependency is away.
func (w *watcher) carriedOn(show show) {
	var aside uint64
	if w.parts.Async != nil {
		aside = w.parts.Async().SetAside
	}
	if w.parts.Kept != nil {
		s := w.parts.Kept()
		aside += s.SetAside
		show(away, oneIf(s.PostgresAway), "postgres")
		show(away, oneIf(s.NATSAway), "nats")
		if s.SpillWaiting >= 0 {
			show(spilled, float64(s.SpillWaiting))
		}
		if s.ReservedWaiting >= 0 {
			show(elsewhere, float64(s.ReservedWaiting))
		}
		show(journaled, float64(s.JournalWaiting))
		show(journalBytes, float64(s.JournalBytes))
		show(keptNowhere, float64(s.Lost))
	}
	show(setAside, float64(aside))
	if w.parts.Queues != nil {
		show(queueRows, float64(w.parts.Queues().Rows))
	}
}

func (w *watcher) monitor(show show, now time.Time) {
	m := w.parts.Monitor
	show(ready, oneIf(m.Ready().Ready))
	for name, c := range m.Counts() {
		show(alarmsActive, float64(c.Active), string(name))
		show(alarmsRaised, float64(c.Raised), string(name))
	}
	webhooks, unstored := m.Unsent()
	show(webhooksLost, float64(webhooks))
	show(alarmsPending, float64(unstored))
	s := m.Sample()
	for name, answer := range map[string]health.Answer{"nats": s.NATS, "postgres": s.Postgres} {
		if !answer.At.IsZero() {
			show(dependencyUp, oneIf(answer.Cause == ""), name)
		}
	}
	if !s.BacklogAt.IsZero() {
		backlog(show, s.Backlog, now)
		show(sampleAge, age(s.BacklogAt, now))
	}
	if !s.OverdueAt.IsZero() {
		show(queueDepth, float64(s.Overdue.Notifications), "overdue")
		show(queueAge, age(s.Overdue.Oldest, now), "overdue")
	}
}

func backlog(show show, b async.Backlog, now time.Time) {
	for place, p := range map[string]async.Place{"shard": b.Shards, "due": b.Due, "delay": b.Delayed, "own_queue": b.Own} {
		show(queueDepth, float64(p.Messages), place)
		if place != "delay" && (p.Messages == 0 || !p.Oldest.IsZero()) {
			show(queueAge, age(p.Oldest, now), place)
		}
	}
	show(queueDepth, float64(b.Undecodable), "undecodable")
	show(ownQueues, float64(b.OwnQueues))
}

func (w *watcher) async(show show, now time.Time) {
	s := w.parts.Async()
	show(queueDepth, float64(s.Publishing), "publish")
	show(queueDepth, float64(s.InHand), "in_hand")
	show(queueLimit, float64(s.InHandLimit), "in_hand")
	show(queueAge, age(s.OldestInHand, now), "in_hand")
	show(queueDepth, float64(s.Waiting), "short_queue")
	places := float64(s.Stalled)
	if w.parts.Monitor != nil {
		places += float64(w.parts.Monitor.Sample().Untaken)
	}
	show(stalled, places)
	show(envelopes, float64(s.Envelopes))
	show(enveloped, float64(s.EnvelopeNotifications))
	show(envelopeBytes, float64(s.EnvelopeBytes))
	show(envelopeFails, float64(s.PublishFailures))
	show(panics, float64(s.Panics), "message")
}

func (w *watcher) ledger(show show, now time.Time) {
	s := w.parts.Ledger()
	show(queueDepth, float64(s.Records), "ledger_writer")
	show(ledgerLag, age(s.Oldest, now))
	show(ledgerBytes, float64(s.Bytes))
	show(ledgerLimit, float64(s.BytesLimit))
	show(ledgerBatches, float64(s.Batches))
	show(ledgerRows, float64(s.Rows))
	show(ledgerFails, float64(s.Failures))
	show(quarantined, float64(s.Quarantined))
}

func (w *watcher) retry(show show) {
	if w.parts.Delay != nil {
		s := w.parts.Delay()
		show(delays, float64(s.Published))
		show(delayFails, float64(s.Failures))
	}
	if w.parts.Sweep != nil {
		s := w.parts.Sweep()
		show(swept, float64(s.Fed), "fed")
		show(swept, float64(s.Rescued), "rescued")
		show(sweepFails, float64(s.Failures))
	}
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// age is 0 of an instant that is not known.
func age(since, now time.Time) float64 {
	if since.IsZero() {
		return 0
	}
	return max(0, now.Sub(since)).Seconds()
}
