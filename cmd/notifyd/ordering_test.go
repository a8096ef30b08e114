package main_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// inOrder is a notification of a line: a submitter's number-th with a key.
func inOrder(scene, key, submitter string, number int) *notifydv1.Notification {
	n := draft("shop", scene, fmt.Sprintf("%s-%s-%d", key, submitter, number))
	n.OrderingKey = key
	n.Payload = fmt.Sprintf(`{"key":%q,"submitter":%q,"number":%d}`, key, submitter, number)
	return n
}

// retriesSoon retries soon and for long.
func retriesSoon(m *notifydv1.Merchant) {
	jitter := 0.0
	m.Schedule = &notifydv1.Schedule{Jitter: &jitter}
	for range 20 {
		m.Schedule.Gaps = append(m.Schedule.Gaps, durationpb.New(50*time.Millisecond))
	}
}

// step is one request as the merchant saw and answered it.
type step struct {
	key, submitter string
	number         int
	delivered      bool
}

// flaky is a merchant that refuses every third request, and keeps what it has seen in order.
type flaky struct {
	mu    sync.Mutex
	steps []step
}

func (f *flaky) answer(w http.ResponseWriter, seen scenario.Seen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := stepOf(seen)
	s.delivered = len(f.steps)%3 != 2
	f.steps = append(f.steps, s)
	if !s.delivered {
		w.WriteHeader(http.StatusBadRequest) // which opens no breaker
	}
}

func stepOf(seen scenario.Seen) (s step) {
	body := strings.NewReplacer(`{"key":"`, "", `","submitter":"`, " ", `","number":`, " ", "}", "").Replace(string(bytes.TrimSpace(seen.Body)))
	fields := strings.Fields(body)
	if len(fields) == 3 {
		s.key, s.submitter = fields[0], fields[1]
		s.number, _ = strconv.Atoi(fields[2])
	}
	return s
}

func (f *flaky) all() []step {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]step(nil), f.steps...)
}

func (f *flaky) delivered() map[string]int {
	out := map[string]int{}
	for _, s := range f.all() {
		if s.delivered {
			out[fmt.Sprint(s.key, " ", s.submitter, " ", s.number)]++
		}
	}
	return out
}

// checkOrder: for each key, whoever begins has the merchant to itself until it is delivered, and each submitter's come in the
// order in which it was told of them. repeats: an attempt may have been cut off, and be made again.
func checkOrder(t *testing.T, steps []step, repeats bool) {
	t.Helper()
	type line struct {
		open *step
		last map[string]int
	}
	lines := map[string]*line{}
	for i, s := range steps {
		l := lines[s.key]
		if l == nil {
			l = &line{last: map[string]int{}}
			lines[s.key] = l
		}
		again := s.number == l.last[s.submitter]
		switch {
		case l.open != nil && (l.open.submitter != s.submitter || l.open.number != s.number):
			t.Errorf("step %d: %+v overtakes %+v", i, s, *l.open)
		case again && l.open == nil && !repeats:
			t.Errorf("step %d: %+v comes again", i, s)
		case !again && s.number != l.last[s.submitter]+1:
			t.Errorf("step %d: %+v comes after number %d", i, s, l.last[s.submitter])
		}
		l.last[s.submitter] = s.number
		l.open = nil
		if !s.delivered {
			l.open = &s
		}
	}
}

// insist submits until it is accepted: on a slow machine some are refused for a while.
func (w *world) insist(accepted func() bool) {
	for w.ctx.Err() == nil && !accepted() {
		after(w.ctx, 50*time.Millisecond)
	}
}

func orderedWorld(t *testing.T, dir string, m *scenario.Merchant) *world {
	t.Helper()
	w := start(t, dir)
	w.merchant("shop", m.URL, retriesSoon)
	return w
}

// Three keys, two submitters at once, one in batches and one singly through the sync lane too, at a merchant that refuses
// every third request.
func TestOrderIsKeptOverRetries(t *testing.T) {
	const each = 25
	m, seen := scenario.NewMerchant(t), &flaky{}
	m.Answer(seen.answer)
	w := orderedWorld(t, scenario.DataDir(t), m)
	var submitting sync.WaitGroup
	for _, key := range []string{"a", "b", "c"} {
		submitting.Go(func() {
			for number := 1; number <= each; number += 5 {
				var batch []*notifydv1.Notification
				for i := range 5 {
					batch = append(batch, inOrder("payout", key, "batch", number+i))
				}
				w.insist(func() bool {
					res, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch}))
					return err == nil && !slices.ContainsFunc(res.Msg.Results, func(r *notifydv1.SubmitResult) bool { return r.GetError() != nil })
				})
			}
		})
		submitting.Go(func() {
			for number := 1; number <= each; number++ {
				scene := []string{"payout", "scan"}[number%2]
				w.insist(func() bool { _, err := w.trySubmit(inOrder(scene, key, "single", number)); return err == nil })
			}
		})
	}
	submitting.Wait()
	began := time.Now()
	scenario.Within(t, 60*time.Second, "all are delivered", func() bool { return len(seen.delivered()) == 3*2*each })
	t.Logf("%d requests for %d notifications, %s after the last submission", len(seen.all()), 6*each, time.Since(began).Round(time.Millisecond))
	checkOrder(t, seen.all(), false)
	w.Stop(t)
}

func TestOrderIsKeptOverKill9(t *testing.T) {
	const each = 60
	dir := scenario.DataDir(t)
	m, seen := scenario.NewMerchant(t), &flaky{}
	m.Answer(seen.answer)
	w := orderedWorld(t, dir, m)
	keys := []string{"a", "b", "c"}
	for number := 1; number <= each; number++ {
		for _, key := range keys {
			w.insist(func() bool { _, err := w.trySubmit(inOrder("payout", key, "one", number)); return err == nil })
		}
	}
	scenario.Within(t, 30*time.Second, "some are delivered", func() bool { return len(seen.delivered()) > 20 })
	w.Kill()
	again := start(t, dir)
	scenario.Within(t, 90*time.Second, "all are delivered", func() bool { return len(seen.delivered()) == len(keys)*each })
	checkOrder(t, seen.all(), true)
	scenario.Within(t, 30*time.Second, "the proof finds everything final", func() bool {
		proof := again.prove()
		return proof.Missing == 0 && len(proof.Waiting) == 0
	})
	again.Stop(t)
}

func TestWaitingInLine(t *testing.T) {
	m := scenario.NewMerchant(t)
	w := orderedWorld(t, scenario.DataDir(t), m)
	sent := func(id string) int { return m.Count()[id] }

	t.Run("dead releases", func(t *testing.T) {
		w := *w
		w.t = t
		m.AnswerStatus(http.StatusGone)
		first := w.submit(inOrder("payout", "releases", "one", 1))
		w.until(first.Id, notifydv1.State_STATE_DEAD)
		m.AnswerStatus(http.StatusOK)
		second := w.submit(inOrder("payout", "releases", "one", 2))
		w.until(second.Id, notifydv1.State_STATE_DELIVERED)
	})
	t.Run("dead blocks", func(t *testing.T) {
		w := *w
		w.t = t
		w.merchant("shop", m.URL, func(p *notifydv1.Merchant) {
			retriesSoon(p)
			p.Ordering = &notifydv1.Ordering{DeadPredecessor: notifydv1.DeadPredecessor_DEAD_PREDECESSOR_BLOCKS}
		})
		m.AnswerStatus(http.StatusGone)
		first := w.submit(inOrder("payout", "blocks", "one", 1))
		w.until(first.Id, notifydv1.State_STATE_DEAD)
		m.AnswerStatus(http.StatusOK)
		second := w.submit(inOrder("scan", "blocks", "one", 2))
		if second.State != notifydv1.State_STATE_ACCEPTED || second.StateReason != "awaiting_predecessor" {
			t.Errorf("behind a dead one: %v", second)
		}
		third := w.submit(inOrder("payout", "blocks", "one", 3))
		if third.StateReason != "awaiting_predecessor" {
			t.Errorf("behind a waiting one: %v", third)
		}
		if again := w.submit(inOrder("payout", "blocks", "one", 3)); !again.Duplicate || again.StateReason != "awaiting_predecessor" {
			t.Errorf("submitted again: %v", again)
		}
		if sent(second.Id)+sent(third.Id) != 0 {
			t.Error("sent past a dead one")
		}
		if _, err := w.Notifications.ResendNotifications(w.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{first.Id}, Operator: "alice"})); err != nil {
			t.Fatal(err)
		}
		w.until(third.Id, notifydv1.State_STATE_DELIVERED)
		checkOrder(t, stepsOf(m, "blocks"), true)
	})
	t.Run("dead blocks until it is canceled", func(t *testing.T) {
		w := *w
		w.t = t
		m.AnswerStatus(http.StatusGone)
		first := w.submit(inOrder("payout", "cancels", "one", 1))
		w.until(first.Id, notifydv1.State_STATE_DEAD)
		m.AnswerStatus(http.StatusOK)
		second := w.submit(inOrder("payout", "cancels", "one", 2))
		scenario.Within(t, 10*time.Second, "it waits", func() bool { return w.get(second.Id).Notification.StateReason == "awaiting_predecessor" })
		if sent(second.Id) != 0 {
			t.Error("sent past a dead one")
		}
		scenario.Within(t, 10*time.Second, "it is canceled", func() bool {
			canceled, err := w.Notifications.CancelNotifications(w.ctx, connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{first.Id}, Operator: "alice"}))
			if err != nil || canceled.Msg.Results[0].Error != nil {
				t.Logf("cancel: %v, %v", err, canceled)
				return false
			}
			return true
		})
		w.until(second.Id, notifydv1.State_STATE_DELIVERED)
		w.until(first.Id, notifydv1.State_STATE_CANCELED)
	})
	t.Run("superseded", func(t *testing.T) {
		w := *w
		w.t = t
		old, newer, newest := draft("shop", "payout", "s-1"), draft("shop", "payout", "s-2"), draft("shop", "payout", "s-3")
		for _, n := range []*notifydv1.Notification{old, newer, newest} {
			n.SupersedeKey = "s"
		}
		m.AnswerStatus(http.StatusBadRequest)
		w.merchant("shop", m.URL, nil) // the next attempt is 10 s away
		first := w.submit(old)
		w.until(first.Id, notifydv1.State_STATE_RETRYING)
		second := w.submit(newer)
		got := w.until(first.Id, notifydv1.State_STATE_CANCELED).Notification
		if got.StateReason != "superseded" || got.SettledBy != "supersede:"+second.Id {
			t.Errorf("the older one: %v", got)
		}
		if again := w.submit(old); !again.Duplicate || again.State != notifydv1.State_STATE_CANCELED || again.StateReason != "superseded" {
			t.Errorf("the older one, submitted again: %v", again)
		}
		// One in flight ends its attempt, and is not tried again.
		w.merchant("shop", m.URL, retriesSoon)
		entered, answer := make(chan struct{}), make(chan struct{})
		var once sync.Once
		m.Answer(func(rw http.ResponseWriter, seen scenario.Seen) {
			if seen.ID == second.Id || seen.ID == first.Id {
				once.Do(func() { close(entered) })
				<-answer
				rw.WriteHeader(http.StatusBadRequest)
			}
		})
		inFlight := w.submit(func() *notifydv1.Notification { n := draft("shop", "payout", "s-4"); n.SupersedeKey = "t"; return n }())
		w.until(inFlight.Id, notifydv1.State_STATE_DELIVERED)
		if _, err := w.Notifications.ResendNotifications(w.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{second.Id}, Operator: "alice"})); err != nil {
			t.Fatal(err)
		}
		<-entered
		third := w.submit(newest)
		w.until(third.Id, notifydv1.State_STATE_DELIVERED)
		before := sent(second.Id)
		close(answer)
		w.until(second.Id, notifydv1.State_STATE_CANCELED)
		if got := sent(second.Id); got != before {
			t.Errorf("sent %d times, %d of them before the newer one was accepted", got, before)
		}
	})
	w.Stop(t)
}

func stepsOf(m *scenario.Merchant, key string) (steps []step) {
	for _, seen := range m.Seen() {
		if s := stepOf(seen); s.key == key {
			s.delivered = true
			steps = append(steps, s)
		}
	}
	return steps
}
