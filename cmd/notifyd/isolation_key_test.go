package main_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/scenario"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// atOnce is long for what waits for nobody, also on a busy machine, and short for what waits behind a jam: a hanging attempt
// is given up after as long, and then the breaker lets nothing through for 10 s.
const atOnce = 5 * time.Second

// The parts of a merchant's business: no payout is ever answered, each recharge is at once.
const (
	payout   = "payout"
	recharge = "recharge"
)

// shop is a merchant whose notifications are marked as payouts or recharges, and have the isolation key of that part.
type shop struct {
	*world
	m         *scenario.Merchant
	id        string
	isolation notifydv1.Isolation
	mark      func(n *notifydv1.Notification, part string)
	key       func(id, part string) string
}

// A jam of a merchant's payouts leaves its recharges fast, in both lanes, where its isolation key tells them apart. The last
// one shows that they are slow where it does not.
func TestIsolationWithinMerchant(t *testing.T) {
	t.Parallel()
	m, hanging := scenario.NewMerchant(t), make(chan struct{})
	t.Cleanup(func() { close(hanging) })
	m.Answer(func(_ http.ResponseWriter, seen scenario.Seen) {
		if bytes.Contains(seen.Body, []byte(`"order":"`+payout)) {
			<-hanging
		}
	})
	scene := func(n *notifydv1.Notification, part string) { n.Scene = part }
	byScene := &shop{
		id: "by-scene", isolation: notifydv1.Isolation_ISOLATION_MERCHANT_SCENE, mark: scene,
		key: func(id, part string) string { return "m:" + id + "/s:" + part },
	}
	byURL := &shop{
		id: "by-url", isolation: notifydv1.Isolation_ISOLATION_MERCHANT_URL,
		mark: func(n *notifydv1.Notification, part string) { n.NotifyUrl = m.URL + "/" + part },
		key:  func(id, part string) string { return "m:" + id + "/u:" + m.URL + "/" + part },
	}
	byLabel := &shop{ // which only a rule can ask for
		id:   "by-label",
		mark: func(n *notifydv1.Notification, part string) { n.Labels = map[string]string{"business": part} },
		key:  func(id, part string) string { return "m:" + id + "/l:business=" + part },
	}
	undivided := &shop{
		id: "undivided", isolation: notifydv1.Isolation_ISOLATION_MERCHANT, mark: scene,
		key: func(id, _ string) string { return "m:" + id },
	}
	for _, s := range []*shop{byScene, byURL, byLabel} {
		s.takeIDOfOneShard()
	}
	dir := scenario.DataDir(t)
	file := writeConfig(t, dir, fmt.Sprintf(`
router:
  rules:
    - name: businesses-apart
      when: {merchants: [%s]}
      then: {isolation: "{merchant}/{label:business}"}
`, byLabel.id))
	engine := engineBinary.Start(t, dir, "--config="+file)
	for _, test := range []struct {
		name string
		shop *shop
		run  func(*shop)
	}{
		{"merchant and scene", byScene, (*shop).rechargesStayFast},
		{"merchant and notify URL", byURL, (*shop).rechargesStayFast},
		{"merchant and a label", byLabel, (*shop).rechargesStayFast},
		{"merchant alone", undivided, (*shop).rechargesWait},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := test.shop
			s.world, s.m = &world{Engine: engine, t: t, ctx: t.Context()}, m
			s.merchant(s.id, m.URL, func(m *notifydv1.Merchant) {
				m.Isolation = s.isolation
				m.Timeouts = &notifydv1.Timeouts{Total: durationpb.New(atOnce), Grace: durationpb.New(0)}
			})
			test.run(s)
		})
	}
}

// takeIDOfOneShard takes an id with which payouts and recharges share a shard: that they lie in two is not what parts them.
func (s *shop) takeIDOfOneShard() {
	name := s.id
	for i := 0; notification.ShardOf(s.key(s.id, payout)) != notification.ShardOf(s.key(s.id, recharge)); i++ {
		s.id = fmt.Sprintf("%s-%d", name, i)
	}
}

func (s *shop) rechargesStayFast() {
	var slowest time.Duration
	tell := func(from, to int, lane notifydv1.Lane) {
		for i := from; i < to; i++ {
			slowest = max(slowest, s.tellAtOnce(s.draft(recharge, i, lane)))
		}
	}
	s.jamPayouts()
	tell(0, 8, notifydv1.Lane_LANE_ASYNC)
	tell(8, 10, notifydv1.Lane_LANE_SYNC)
	s.untilPayoutsOpenTheBreaker()
	s.explained(payout, notification.ReasonBreakerOpen)
	s.explained(recharge, "")
	tell(10, 15, notifydv1.Lane_LANE_ASYNC)
	tell(15, 20, notifydv1.Lane_LANE_SYNC)
	s.t.Logf("the slowest of 20 recharges was told after %s", slowest.Round(time.Millisecond))

	keys := s.keys()
	jammed, fast := keys[s.key(s.id, payout)], keys[s.key(s.id, recharge)]
	if len(keys) != 2 || !jammed.GetOwnQueue() || jammed.GetBreaker() == notifydv1.BreakerState_BREAKER_STATE_CLOSED {
		s.t.Errorf("keys: %v", keys)
	}
	if fast.GetBreaker() != notifydv1.BreakerState_BREAKER_STATE_CLOSED || fast.GetOwnQueue() || fast.GetConsecutiveFailures() != 0 {
		s.t.Errorf("of recharges: %v", fast)
	}
	// The list says how it stands now, the log whether a recharge was ever deferred: that gives its key an own queue.
	if !s.logNames(payout) || s.logNames(recharge) {
		s.t.Errorf("own queues or breakers in the log: of payouts %t, of recharges %t", s.logNames(payout), s.logNames(recharge))
	}
}

func (s *shop) rechargesWait() {
	var waiting []string
	s.jamPayouts()
	for i := range 10 {
		waiting = append(waiting, s.submit(s.draft(recharge, i, notifydv1.Lane_LANE_ASYNC)).Id)
	}
	submitted := time.Now()
	s.untilPayoutsOpenTheBreaker()
	s.explained(payout, notification.ReasonBreakerOpen)
	s.explained(recharge, notification.ReasonBreakerOpen)
	for i := range 10 {
		res := s.submit(s.draft(recharge, 10+i, notifydv1.Lane_LANE_SYNC))
		if res.Lane != notifydv1.Lane_LANE_ASYNC || res.StateReason != string(notification.ReasonBreakerOpen) {
			s.t.Errorf("in the sync lane: %v", res)
		}
		waiting = append(waiting, res.Id)
	}
	after(s.ctx, atOnce-time.Since(submitted))
	told := s.m.Count()
	for _, id := range waiting {
		if told[id] > 0 {
			s.t.Errorf("%s was told, though it shares the payouts' key", id)
		}
	}
	var keys map[string]*notifydv1.KeyStatus
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("keys: %v", keys)
		}
	})
	scenario.Within(s.t, 30*time.Second, "both wait in one own queue", func() bool {
		keys = s.keys()
		return len(keys) == 1 && keys[s.key(s.id, recharge)].GetOwnQueueDepth() > jam
	})
}

// jam is how many payouts are submitted: most of them find no slot.
const jam = 60

// jamPayouts returns when payouts have every slot of their key, and its own queue.
func (s *shop) jamPayouts() {
	s.t.Helper()
	var batch []*notifydv1.Notification
	for i := range jam {
		batch = append(batch, s.draft(payout, i, notifydv1.Lane_LANE_ASYNC))
	}
	res, err := s.Notifications.SubmitBatch(s.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch}))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range res.Msg.Results {
		if r.GetError() != nil {
			s.t.Fatal(r.GetError())
		}
	}
	scenario.Within(s.t, 30*time.Second, "payouts get their own queue", func() bool { return s.keys()[s.key(s.id, payout)].GetOwnQueue() })
}

func (s *shop) untilPayoutsOpenTheBreaker() {
	s.t.Helper()
	scenario.Within(s.t, 30*time.Second, "payouts open their breaker", func() bool {
		return s.keys()[s.key(s.id, payout)].GetBreaker() == notifydv1.BreakerState_BREAKER_STATE_OPEN
	})
}

func (s *shop) draft(part string, number int, lane notifydv1.Lane) *notifydv1.Notification {
	n := draft(s.id, "transfer", fmt.Sprintf("%s-%s-%d", part, s.id, number))
	n.Lane = lane
	s.mark(n, part)
	return n
}

// tellAtOnce submits one, and holds that the merchant is told in time, in the lane that was asked for, and by the first attempt.
func (s *shop) tellAtOnce(n *notifydv1.Notification) time.Duration {
	s.t.Helper()
	began := time.Now()
	res := s.submit(n)
	scenario.Within(s.t, atOnce-time.Since(began), n.RequestId+" is told", func() bool { return s.m.Count()[res.Id] > 0 })
	took := time.Since(began)
	if res.Lane != n.Lane || n.Lane == notifydv1.Lane_LANE_SYNC && res.State != notifydv1.State_STATE_DELIVERED {
		s.t.Errorf("%s: %v", n.RequestId, res)
	}
	got := s.until(res.Id, notifydv1.State_STATE_DELIVERED)
	if got.Notification.AttemptCount != 1 || len(got.Attempts) != 1 || s.m.Count()[res.Id] != 1 {
		s.t.Errorf("%s: not by its first attempt alone: %v", n.RequestId, got)
	}
	return took
}

// explained holds which key a part has, and what its gate would say.
func (s *shop) explained(part string, gate notification.Reason) {
	s.t.Helper()
	res, err := s.Notifications.Explain(s.ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: s.draft(part, 0, notifydv1.Lane_LANE_ASYNC)}))
	if err != nil {
		s.t.Fatal(err)
	}
	if res.Msg.IsolationKey != s.key(s.id, part) || res.Msg.Gate != string(gate) {
		s.t.Errorf("%s: key %q, gate %q", part, res.Msg.IsolationKey, res.Msg.Gate)
	}
}

func (s *shop) keys() map[string]*notifydv1.KeyStatus {
	s.t.Helper()
	keys := map[string]*notifydv1.KeyStatus{}
	scenario.Within(s.t, 30*time.Second, "keys are listed with their own queues", func() bool {
		res, err := s.Merchants.ListKeys(s.ctx, connect.NewRequest(&notifydv1.ListKeysRequest{MerchantId: s.id}))
		if err != nil {
			s.t.Fatal(err)
		}
		clear(keys)
		for _, k := range res.Msg.Keys {
			keys[k.IsolationKey] = k
		}
		return !res.Msg.OwnQueuesUnavailable
	})
	return keys
}

// logNames says whether the engine has logged something of a part's key: an own queue, or a breaker that opens.
func (s *shop) logNames(part string) bool {
	return strings.Contains(s.Output(), fmt.Sprintf("%q", s.key(s.id, part)))
}
