package main_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// stack is what several nodes share: NATS over TLS with a password, and a Postgres.
type stack struct {
	t    *testing.T
	dir  string
	file string
	pg   *scenario.Postgres
}

func newStack(t *testing.T, more string) *stack {
	t.Helper()
	dir := scenario.DataDir(t)
	ca := scenario.NewCA(t, dir)
	natsURL := scenario.StartNATS(t, filepath.Join(dir, "nats"), ca)
	pg := scenario.StartPostgres(t, filepath.Join(dir, "pg"))
	key := filepath.Join(dir, "shared.key")
	if out, exit := notifyd(t, "keygen", "master", key); exit != 0 {
		t.Fatalf("keygen master: %s", out)
	}
	s := &stack{t: t, dir: dir, pg: pg}
	s.file = writeConfig(t, dir, fmt.Sprintf(`
drain_notice: 0s
callers: {required: false}
egress: {allowed_networks: [127.0.0.0/8]}
nats: {url: %q, user: %s, password: %s, tls: {ca_file: %q}}
postgres: {url: %q}
ledger: {master_key_file: %q}
%s`, natsURL, scenario.NATSUser, scenario.NATSPassword, ca.File, pg.URL, key, more))
	return s
}

// node runs a node with some roles, or all.
func (s *stack) node(name, roles string) *world {
	s.t.Helper()
	args := []string{"--config=" + s.file}
	if roles != "" {
		args = append(args, "--roles="+roles)
	}
	return serve(s.t, filepath.Join(s.dir, name), args...)
}

// One node with all roles does the main job on external NATS and Postgres, and is killed and drained like any other.
func TestServeOnExternalStores(t *testing.T) {
	t.Parallel()
	s := newStack(t, "")
	w := s.node("all", "")
	m := scenario.NewMerchant(t)
	w.merchant("tea-house", m.URL, nil)
	w.until(w.submit(draft("tea-house", "payout", "1")).Id, notifydv1.State_STATE_DELIVERED)
	if got := w.submit(draft("tea-house", "scan", "2")); got.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("scan: %v", got)
	}
	w.Kill()
	again := s.node("all", "")
	if got := again.submit(draft("tea-house", "payout", "1")); !got.Duplicate || got.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("submitted again after the kill: %v", got)
	}
	again.until(again.submit(draft("tea-house", "payout", "3")).Id, notifydv1.State_STATE_DELIVERED)
	again.Stop(t)

	// Another master key is refused before anything is written with it.
	other := filepath.Join(s.dir, "other.key")
	if out, exit := notifyd(t, "keygen", "master", other); exit != 0 {
		t.Fatal(out)
	}
	out, exit := notifyd(t, "serve", "--config="+s.file, "--data-dir="+filepath.Join(s.dir, "other"), "--set=ledger.master_key_file="+other)
	if exit == 0 || !strings.Contains(out, "another master key") {
		t.Errorf("with another master key: exit %d\n%s", exit, out)
	}
}

// Each role is a process of its own. Stopping one stops what it does and nothing else, and loses nothing.
func TestRolesApart(t *testing.T) {
	t.Parallel()
	s := newStack(t, "retry: {window: 4s, sweep_every: 200ms, grace: 1s}")
	intake := s.node("intake", "intake")
	sync := s.node("sync", "sync")
	async := s.node("async", "async")
	retry := s.node("retry", "retry")
	keeper := s.node("ledger", "ledger")
	m := scenario.NewMerchant(t)
	intake.merchant("tea-house", m.URL, nil)

	// The caller of an intake node gets the answer that the merchant gave to the sync node.
	eventually(t, "the sync node knows the merchant", func() bool {
		got := intake.submit(draft("tea-house", "scan", "warm-"+time.Now().String()))
		return got.State == notifydv1.State_STATE_DELIVERED && got.Lane == notifydv1.Lane_LANE_SYNC
	})
	got := intake.submit(draft("tea-house", "scan", "1"))
	if got.State != notifydv1.State_STATE_DELIVERED || got.Attempt.GetResponse().GetStatus() != http.StatusOK {
		t.Errorf("scan over two nodes: %v", got)
	}
	intake.until(intake.submit(draft("tea-house", "payout", "2")).Id, notifydv1.State_STATE_DELIVERED)

	// Without the sync node a scan goes async; without the async node it waits.
	sync.Stop(t)
	got = intake.submit(draft("tea-house", "scan", "3"))
	if got.Lane != notifydv1.Lane_LANE_ASYNC || got.StateReason != "sync_lane_away" {
		t.Errorf("scan without a sync node: %v", got)
	}
	intake.until(got.Id, notifydv1.State_STATE_DELIVERED)
	async.Stop(t)
	waiting := intake.submit(draft("tea-house", "payout", "4")).Id
	if n := m.Count()[waiting]; n != 0 {
		t.Errorf("sent %d times without an async node", n)
	}
	proof := intake.prove()
	if proof.Missing != 0 {
		t.Errorf("the proof misses %d", proof.Missing)
	}
	async = s.node("async", "async")
	intake.until(waiting, notifydv1.State_STATE_DELIVERED)

	// A retry that lies beyond the delay window comes back only while there is a retry node.
	retry.Stop(t)
	m.AnswerStatus(http.StatusInternalServerError)
	intake.merchant("slow-house", m.URL, func(n *notifydv1.Merchant) {
		n.Schedule = &notifydv1.Schedule{Gaps: []*durationpb.Duration{durationpb.New(5 * time.Second)}}
	})
	late := intake.submit(draft("slow-house", "payout", "5")).Id
	intake.until(late, notifydv1.State_STATE_RETRYING)
	m.AnswerStatus(http.StatusOK)
	retry = s.node("retry", "retry")
	intake.until(late, notifydv1.State_STATE_DELIVERED)

	// A merchant that is resumed at the intake is sent to by the async node.
	if _, err := intake.Merchants.PauseMerchant(intake.ctx, connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "tea-house", Reason: "test"})); err != nil {
		t.Fatal(err)
	}
	held := ""
	for i := 0; held == ""; i++ { // the async node learns of it within a second; until then it sends
		id := intake.submit(draft("tea-house", "payout", fmt.Sprintf("6-%d", i))).Id
		scenario.Within(t, 30*time.Second, "it is sent or held", func() bool {
			switch intake.get(id).Notification.State { //nolint:exhaustive // the two it may end in
			case notifydv1.State_STATE_HELD:
				held = id
				return true
			case notifydv1.State_STATE_DELIVERED:
				return true
			}
			return false
		})
	}
	if _, err := intake.Merchants.ResumeMerchant(intake.ctx, connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "tea-house"})); err != nil {
		t.Fatal(err)
	}
	intake.until(held, notifydv1.State_STATE_DELIVERED)

	for _, node := range []*world{keeper, retry, async, intake} {
		if status, text := node.page("/readyz"); status != http.StatusOK {
			t.Errorf("/readyz: %d %s", status, text)
		}
		node.Stop(t)
	}
	for id, n := range m.Count() {
		if n > 1 && id != late {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	scenario.Within(t, 30*time.Second, what, holds)
}
