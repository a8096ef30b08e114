package metrics

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/cluster"
	"notifyd/dispatcher"
	"notifyd/health"
	"notifyd/internal/bubble"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/outage"
	"notifyd/retry"
	synclane "notifyd/sync"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func fixed() time.Time { return start }

func delivered(took time.Duration) (*notification.Notification, *notification.Attempt) {
	n := &notification.Notification{MerchantID: "m-1", Scene: "payout", AcceptedAt: start, OrderCreatedAt: start.Add(-time.Second), Route: notification.Route{Lane: notification.LaneAsync}}
	n.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, start.Add(took))
	return n, &notification.Attempt{
		Kind: notification.KindSend, Trigger: notification.TriggerAuto, Outcome: notification.OutcomeDelivered, Reason: notification.ReasonAcknowledged,
		Number: 1, StartedAt: start.Add(took - 20*time.Millisecond), Took: 20 * time.Millisecond,
	}
}

// full shows every metric at least once.
func full(t *testing.T) *Metrics {
	t.Helper()
	m := New(Build{Version: "1.2.3", Revision: "abc", GoVersion: "go1.26"})
	tally := health.NewTally(health.DefaultConfig(), fixed)
	told := dispatcher.Observers{m, tally}
	n, a := delivered(13 * time.Second)
	told.Answered(dispatcher.Answer{Notification: n, Code: dispatcher.CodeOK, Reserved: dispatcher.ReservingFresh, Took: time.Millisecond})
	told.Attempted(n, a)
	told.Settled(n)
	told.Deferred(n, notification.ReasonBreakerOpen)
	told.BreakerOpened("m-1")
	diverted := *n
	diverted.Reason = notification.ReasonSyncLaneFull
	told.Answered(dispatcher.Answer{Notification: &diverted, Code: dispatcher.CodeOK})
	told.Answered(dispatcher.Answer{Notification: n, Code: dispatcher.CodeOK, Duplicate: true, Reserved: dispatcher.ReservingDuplicate})
	told.Answered(dispatcher.Answer{Code: "invalid_argument"})

	well := func(context.Context) error { return nil }
	bubble.Test(t, func(t *testing.T) {
		monitor, err := health.New(health.DefaultConfig(), health.Parts{
			Node: "n1", Log: zap.NewNop(), Now: fixed, Tally: tally, Store: ledger.NewMemory(ledger.Config{}), NATS: well, Postgres: well,
			Backlog: func(context.Context) (async.Backlog, error) {
				return async.Backlog{Shards: async.Place{Messages: 7, Oldest: start.Add(-time.Minute)}, OwnQueues: 2}, nil
			},
			Overdue: func(context.Context, time.Time) (ledger.Overdue, error) {
				return ledger.Overdue{Notifications: 3, Oldest: start.Add(-time.Hour)}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- monitor.Run(ctx) }()
		synctest.Wait()
		m.Watch(Parts{
			Now: fixed, Monitor: monitor, Tally: tally,
			Dispatcher: func() dispatcher.Stats { return dispatcher.Stats{Sending: 4, OpenBreakers: 1, Panics: 1} },
			Async:      func() async.Stats { return async.Stats{InHand: 5, InHandLimit: 10, SetAside: 2} },
			Sync:       func() synclane.Stats { return synclane.Stats{Waiting: 2, Limit: 3} },
			Ledger:     func() ledger.Stats { return ledger.Stats{Records: 9, Oldest: start.Add(-2 * time.Second)} },
			Sweep:      func() retry.SweepStats { return retry.SweepStats{Fed: 6, Rescued: 1} },
			Delay:      func() retry.DelayStats { return retry.DelayStats{Published: 8} },
			Kept:       func() outage.Stats { return outage.Stats{PostgresAway: true, SpillWaiting: 11, SetAside: 1} },
			Queues:     func() outage.QueueStats { return outage.QueueStats{Rows: 12} },
			Cluster:    func() cluster.Stats { return cluster.Stats{Nodes: 2, Shards: 32} },
			Certificates: func(time.Time) []keys.Expiring {
				return []keys.Expiring{{Name: "a", Within: 0}, {Name: "b", Within: 7}, {Name: "c", Within: 30}}
			},
		})
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return m
}

func gather(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), prefix) {
			out[f.GetName()] = f
		}
	}
	return out
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(full(t).registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestMetricsAreDocumented holds docs/operations.md to the code: a row for each metric, with its type, labels and help.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, name := range regexp.MustCompile("(?m)^\\| `("+prefix+"[a-z_0-9]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		documented[name[1]] = true
	}
	for name, f := range gather(t, full(t)) {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), strings.Join(labels, " "), f.GetHelp())
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/operations.md lacks\n%s", row)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/operations.md has a row for %s, which is not shown", name)
	}
}

func TestWaitsHaveTheBucketsOfThePromise(t *testing.T) {
	families := gather(t, full(t))
	for _, name := range []string{"first_attempt_delay_seconds", "acknowledgement_delay_seconds", "order_acknowledgement_delay_seconds"} {
		counts := map[float64]uint64{}
		for _, b := range families[prefix+name].GetMetric()[0].GetHistogram().GetBucket() {
			counts[b.GetUpperBound()] = b.GetCumulativeCount()
		}
		at13, has13 := counts[13]
		if _, has100 := counts[100]; !has13 || !has100 {
			t.Errorf("%s: buckets %v", name, counts)
		}
		if want := uint64(1); name == "acknowledgement_delay_seconds" && at13 != want { // 13 s are within 13 s
			t.Errorf("%s: %d within 13 s, want %d", name, at13, want)
		}
	}
	ratios := map[string]float64{}
	for _, r := range families[prefix+"acknowledged_ratio"].GetMetric() {
		ratios[r.GetLabel()[0].GetValue()] = r.GetGauge().GetValue()
	}
	if diff := cmp.Diff(map[string]float64{"13s": 1, "100s": 1}, ratios); diff != "" {
		t.Errorf("ratios (-want +got):\n%s", diff)
	}
}

// Callers choose scenes, merchants and sources: none of these may become a label's value.
func TestLabelsAreBounded(t *testing.T) {
	m := full(t)
	n, a := delivered(time.Second)
	for i := range 100 {
		one := *n
		one.Scene, one.MerchantID, one.Source = fmt.Sprintf("scene-%d", i), fmt.Sprintf("merchant-%d", i), fmt.Sprintf("source-%d", i)
		one.Route.IsolationKey = one.MerchantID
		m.Answered(dispatcher.Answer{Notification: &one, Code: dispatcher.CodeOK})
		m.Attempted(&one, a)
		m.Settled(&one)
		m.Deferred(&one, notification.ReasonRateLimited)
		m.BreakerOpened(one.MerchantID)
	}
	for name, f := range gather(t, m) {
		if len(f.GetMetric()) > 12 {
			t.Errorf("%s has %d series", name, len(f.GetMetric()))
		}
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				if slices.Contains([]string{"merchant", "source", "subject", "isolation_key"}, l.GetName()) || strings.ContainsAny(l.GetValue(), "-") {
					t.Errorf("%s: %s=%q", name, l.GetName(), l.GetValue())
				}
			}
		}
	}
}

func TestScrape(t *testing.T) {
	rec := httptest.NewRecorder()
	full(t).Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	body := rec.Body.String()
	for _, line := range []string{
		`notifyd_submissions_total{code="ok",lane="async",scene="payout"} 3`,
		`notifyd_submissions_total{code="invalid_argument",lane="none",scene="none"} 1`,
		`notifyd_submissions_duplicate_total 1`,
		`notifyd_sync_diverted_total{reason="sync_lane_full"} 1`,
		`notifyd_reservations_total{result="duplicate"} 1`,
		`notifyd_attempts_total{kind="send",outcome="delivered",reason="acknowledged",trigger="auto"} 1`,
		`notifyd_settled_total{lane="async",state="delivered"} 1`,
		`notifyd_deferrals_total{reason="breaker_open"} 1`,
		`notifyd_breaker_openings_total 1`,
		`notifyd_queue_depth{place="shard"} 7`,
		`notifyd_queue_depth{place="overdue"} 3`,
		`notifyd_queue_oldest_age_seconds{place="due"} 0`,
		`notifyd_sweep_notifications_total{work="rescued"} 1`,
		`notifyd_panics_total{place="attempt"} 1`,
		`notifyd_set_aside_total 3`,
		`notifyd_dependency_away{dependency="postgres"} 1`,
		`notifyd_spilled_records 11`,
		`notifyd_rows_for_queues_total 12`,
		`notifyd_shards_owned 32`,
		`notifyd_alarms_active{alarm="no_deliveries"} 0`,
		`notifyd_certificates_expiring{within_days="30"} 3`, `notifyd_certificates_expiring{within_days="7"} 2`, `notifyd_certificates_expiring{within_days="1"} 1`,
		`notifyd_dependency_up{dependency="nats"} 1`,
		`notifyd_build_info{go_version="go1.26",revision="abc",version="1.2.3"} 1`,
		`go_goroutines `, `process_open_fds `,
	} {
		if !strings.Contains(body, "\n"+line) {
			t.Errorf("no line %s", line)
		}
	}
	if rec.Code != http.StatusOK {
		t.Errorf("status %d", rec.Code)
	}
}

func BenchmarkObserve(b *testing.B) {
	m := New(Build{})
	n, a := delivered(time.Second)
	answer := dispatcher.Answer{Notification: n, Code: dispatcher.CodeOK, Reserved: dispatcher.ReservingFresh}
	b.ReportAllocs()
	for b.Loop() {
		m.Answered(answer)
		m.Attempted(n, a)
		m.Settled(n)
	}
}
