// Package metrics shows a node's numbers to Prometheus. Nothing in it has a label per merchant or source, or one that callers choose:
// those are in the ledger.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"notifyd/dispatcher"
	"notifyd/health"
	"notifyd/notification"
)

// Build says which program runs.
type Build struct{ Version, Revision, GoVersion string }

// Metrics is a node's registry. It observes the dispatcher; what else is shown comes from Watch.
type Metrics struct {
	registry *prometheus.Registry

	submissions  *prometheus.CounterVec
	answering    *prometheus.HistogramVec
	duplicates   prometheus.Counter
	reservations *prometheus.CounterVec
	diverted     *prometheus.CounterVec
	attempts     *prometheus.CounterVec
	attempting   *prometheus.HistogramVec
	deferrals    *prometheus.CounterVec
	settled      *prometheus.CounterVec
	openings     prometheus.Counter

	firstAttempt *prometheus.HistogramVec
	acknowledged *prometheus.HistogramVec
	order        *prometheus.HistogramVec
}

// The buckets of waits hold 13 s and 100 s exactly: what an order takes on average until its merchant knows, and nearly always.
var (
	waitBuckets    = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 13, 30, 60, 100, 300, 900, 3600, 6 * 3600, 24 * 3600}
	attemptBuckets = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30}
)

// New returns metrics with what observing feeds, the Go runtime's and the process'.
func New(b Build) *Metrics {
	m := &Metrics{
		registry:     prometheus.NewRegistry(),
		submissions:  counters("submissions_total", "Submissions answered, by code (ok when accepted, duplicates included), lane (none when refused) and scene (other for words of callers' own, none when it could not be read).", "code", "lane", "scene"),
		answering:    histograms("submission_duration_seconds", "Time from a call's arrival to the answer of its submissions; in the sync lane it holds the wait for the merchant.", attemptBuckets, "lane"),
		duplicates:   counter("submissions_duplicate_total", "Submissions accepted whose id was accepted before."),
		reservations: counters("reservations_total", "Ids asked for in the ledger, by result: fresh, duplicate (same content), conflict (other content), failed (the ledger did not answer).", "result"),
		diverted:     counters("sync_diverted_total", "Submissions routed to the sync lane that went async instead, by reason.", "reason"),
		attempts:     counters("attempts_total", "Attempts made, by what they were for, what triggered them, how they ended and why.", "kind", "trigger", "outcome", "reason"),
		attempting:   histograms("attempt_duration_seconds", "Time that one attempt took, timeout and grace included.", attemptBuckets, "outcome"),
		deferrals:    counters("deferrals_total", "Times that an attempt was asked for and not made, by reason. A notification that waits long is counted again and again.", "reason"),
		settled:      counters("settled_total", "Notifications that became final on this node, by state and lane.", "state", "lane"),
		openings:     counter("breaker_openings_total", "Times that a breaker opened, also again after a probe that failed."),
		firstAttempt: histograms("first_attempt_delay_seconds", "Time from acceptance, or from not_before if that is later, to the start of the first attempt.", waitBuckets, "lane"),
		acknowledged: histograms("acknowledgement_delay_seconds", "Time from acceptance, or from not_before if that is later, to the merchant's acknowledgement. Resends by operators are left out.", waitBuckets, "lane"),
		order:        histograms("order_acknowledgement_delay_seconds", "Time from the order's creation, where the caller gave it, to the merchant's acknowledgement. Resends by operators are left out.", waitBuckets, "lane"),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "notifyd_build_info", Help: "Always 1; the labels say which program runs.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "go_version": b.GoVersion},
	})
	info.Set(1)
	m.registry.MustRegister(
		m.submissions, m.answering, m.duplicates, m.reservations, m.diverted, m.attempts, m.attempting, m.deferrals, m.settled, m.openings,
		m.firstAttempt, m.acknowledged, m.order, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets}, labels)
}

const prefix = "notifyd_"

// Handler answers a scrape. It asks no dependency: a scrape never waits for one that hangs.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

const none = "none"

// Answered counts a submission.
func (m *Metrics) Answered(a dispatcher.Answer) {
	lane, scene := none, none
	n := a.Notification
	if n != nil {
		scene = sceneWord(n.Scene)
		if a.Code == dispatcher.CodeOK {
			lane = n.Route.Lane.String()
		}
	}
	m.submissions.WithLabelValues(a.Code, lane, scene).Inc()
	m.answering.WithLabelValues(lane).Observe(a.Took.Seconds())
	if a.Reserved != "" {
		m.reservations.WithLabelValues(string(a.Reserved)).Inc()
	}
	switch {
	case a.Code != dispatcher.CodeOK:
	case a.Duplicate:
		m.duplicates.Inc()
	case n.Route.Lane == notification.LaneAsync && wasDiverted(n.Reason):
		m.diverted.WithLabelValues(string(n.Reason)).Inc()
	}
}

// wasDiverted reports whether a new notification in the async lane stands there for a reason that only the sync lane gives.
func wasDiverted(reason notification.Reason) bool {
	switch reason { //nolint:exhaustive // a list; no other reason diverts
	case notification.ReasonSyncLaneFull, notification.ReasonBreakerOpen, notification.ReasonBreakerForcedOpen, notification.ReasonRateLimited, notification.ReasonMerchantPaused,
		notification.ReasonInFlight, notification.ReasonInternal:
		return true
	default:
		return false
	}
}

// sceneWord bounds the label: scenes are callers' words.
func sceneWord(scene string) string {
	switch scene {
	case "scan", "netbank", "withhold", "payout", "recharge", "refund":
		return scene
	}
	return "other"
}

// Attempted counts an attempt, and what its acknowledgement took.
func (m *Metrics) Attempted(after *notification.Notification, a *notification.Attempt) {
	m.attempts.WithLabelValues(a.Kind.String(), a.Trigger.String(), a.Outcome.String(), string(a.Reason)).Inc()
	m.attempting.WithLabelValues(a.Outcome.String()).Observe(a.Took.Seconds())
	if a.Kind != notification.KindSend {
		return
	}
	lane := after.Route.Lane.String()
	if a.Number == 1 {
		m.firstAttempt.WithLabelValues(lane).Observe(seconds(health.SendableFrom(after), a.StartedAt))
	}
	took, counts := health.AcknowledgedAfter(after, a)
	if !counts {
		return
	}
	m.acknowledged.WithLabelValues(lane).Observe(took.Seconds())
	if !after.OrderCreatedAt.IsZero() {
		m.order.WithLabelValues(lane).Observe(seconds(after.OrderCreatedAt, after.SettledAt))
	}
}

// seconds is 0 where clocks disagree.
func seconds(from, to time.Time) float64 { return max(0, to.Sub(from)).Seconds() }

// Deferred counts a deferral.
func (m *Metrics) Deferred(_ *notification.Notification, reason notification.Reason) {
	m.deferrals.WithLabelValues(string(reason)).Inc()
}

// Settled counts what became final.
func (m *Metrics) Settled(n *notification.Notification) {
	m.settled.WithLabelValues(n.State.String(), n.Route.Lane.String()).Inc()
}

// BreakerOpened counts an opening.
func (m *Metrics) BreakerOpened(string) { m.openings.Inc() }
