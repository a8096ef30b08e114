package main_test

// One file, though a long one: the scenarios share one engine, and read as the list of what it does.

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/client/verify"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

func proveUntilNow(w *world) (*notifydv1.ProveResponse, error) {
	stream, err := w.Notifications.Prove(w.ctx, connect.NewRequest(&notifydv1.ProveRequest{AcceptedBefore: timestamppb.Now()}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var last *notifydv1.ProveResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if last == nil || !last.Done {
		return nil, errors.New("the proof has no end")
	}
	return last, nil
}

// quick is a schedule that a test can wait for.
func quick(gaps ...time.Duration) func(*notifydv1.Merchant) {
	return func(m *notifydv1.Merchant) {
		none := 0.0
		m.Schedule = &notifydv1.Schedule{Jitter: &none}
		for _, gap := range gaps {
			m.Schedule.Gaps = append(m.Schedule.Gaps, durationpb.New(gap))
		}
	}
}

// One engine serves these scenarios: each has its own merchants.
func TestDelivery(t *testing.T) {
	w := start(t, scenario.DataDir(t))
	for name, run := range map[string]func(*testing.T, *world){
		"async: signed, delivered, remembered":        deliveredSignedRemembered,
		"sync: the merchant's answer in the call":     syncAnswer,
		"sync: a slow merchant does not hold a call":  syncAwaiting,
		"submitting twice sends once":                 submitTwice,
		"a failed attempt is tried again":             triedAgain,
		"the schedule ends in a dead letter":          deadLetter,
		"a redirect is not an acknowledgement":        redirect,
		"the agreed body is the acknowledgement":      exactBody,
		"a late answer is an acknowledgement":         lateAnswer,
		"cancel before the next attempt":              canceled,
		"expires_at passes first":                     expiresFirst,
		"not_before":                                  notBefore,
		"a paused merchant holds, a resumed releases": pausedAndResumed,
		"a dead merchant stalls nobody":               deadStallsNobody,
		"a rate limit spreads, and loses nothing":     rateLimited,
		"batch: one bad item fails alone":             batchNeighbours,
		"list by filters and pages":                   listing,
		"explain sends nothing":                       explained,
		"bad input names field and rule":              badInput,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, &world{Engine: w.Engine, t: t, ctx: w.ctx})
		})
	}
}

func deliveredSignedRemembered(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	secretText := w.merchant("signed", m.URL, nil)
	verifier, err := verify.Standard(secretText)
	if err != nil {
		t.Fatal(err)
	}
	n := draft("signed", "payout", "signed-1")
	res := w.submit(n)
	if res.Lane != notifydv1.Lane_LANE_ASYNC || res.State != notifydv1.State_STATE_ACCEPTED || res.Rule != "builtin:async" {
		t.Errorf("answer: %v", res)
	}
	got := w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	seen := m.Seen()
	if len(seen) != 1 {
		t.Fatalf("the merchant saw %d requests", len(seen))
	}
	if string(seen[0].Body) != n.Payload { // P5
		t.Errorf("body %q, want %q", seen[0].Body, n.Payload)
	}
	if _, err := verifier.VerifyMessage(verify.Message{Header: seen[0].Header, Body: seen[0].Body}, time.Now()); err != nil {
		t.Errorf("signature: %v", err)
	}
	if seen[0].ID != res.Id || seen[0].Attempt != "1" {
		t.Errorf("id %q attempt %q", seen[0].ID, seen[0].Attempt)
	}
	if got.Notification.Payload != n.Payload || got.Notification.SettledBy != "acknowledgement" || got.Notification.AttemptCount != 1 {
		t.Errorf("notification: %v", got.Notification)
	}
	if len(got.Attempts) != 1 {
		t.Fatalf("%d attempts", len(got.Attempts))
	}
	a := got.Attempts[0]
	if a.Outcome != notifydv1.Outcome_OUTCOME_DELIVERED || a.Reason != "acknowledged" || a.HttpStatus != 200 || string(a.Request.Body) != n.Payload ||
		a.LocalAddr == "" || a.RemoteAddr == "" || a.SettingsVersion == 0 || a.Took.AsDuration() <= 0 {
		t.Errorf("attempt: %v", a)
	}
	byRequest, err := w.Notifications.GetNotification(w.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Source: n.Source, RequestId: n.RequestId}))
	if err != nil || byRequest.Msg.Notification.Id != res.Id {
		t.Errorf("by source and request id: %v %v", byRequest, err)
	}
}

func syncAnswer(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	for _, persist := range []notifydv1.Persist{notifydv1.Persist_PERSIST_STREAM, notifydv1.Persist_PERSIST_LEDGER, notifydv1.Persist_PERSIST_AFTER} {
		id := "sync-" + persist.String()
		w.merchant(id, m.URL, func(m *notifydv1.Merchant) { m.Persist = persist })
		res := w.submit(draft(id, "scan", id))
		if res.Lane != notifydv1.Lane_LANE_SYNC || res.State != notifydv1.State_STATE_DELIVERED || res.Attempt.GetHttpStatus() != 200 {
			t.Errorf("%s: %v", persist, res)
		}
		if got := w.until(res.Id, notifydv1.State_STATE_DELIVERED); len(got.Attempts) != 1 {
			t.Errorf("%s: %d attempts", persist, len(got.Attempts))
		}
		if again := w.submit(draft(id, "scan", id)); !again.Duplicate || again.State != notifydv1.State_STATE_DELIVERED {
			t.Errorf("%s: submitted again: %v", persist, again)
		}
	}
	for id, n := range m.Count() {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

func syncAwaiting(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	release := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	m.Answer(func(http.ResponseWriter, scenario.Seen) { <-release })
	w.merchant("sync-slow", m.URL, nil)
	began := time.Now()
	ctx, cancel := context.WithTimeout(w.ctx, 1500*time.Millisecond) // the caller's deadline travels with the call
	defer cancel()
	res, err := w.Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft("sync-slow", "netbank", "sync-slow-1")}))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("the caller waited %s", took)
	}
	if res.Msg.State != notifydv1.State_STATE_ACCEPTED || res.Msg.StateReason != "awaiting_answer" {
		t.Errorf("answer: %v", res.Msg)
	}
	if again := w.submit(draft("sync-slow", "netbank", "sync-slow-1")); !again.Duplicate || again.State != notifydv1.State_STATE_ACCEPTED {
		t.Errorf("submitted again while the merchant thinks: %v", again)
	}
	release <- struct{}{}
	w.until(res.Msg.Id, notifydv1.State_STATE_DELIVERED)
	if n := len(m.Seen()); n != 1 {
		t.Errorf("the merchant saw %d requests", n)
	}
}

func submitTwice(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("twice", m.URL, nil)
	var mu sync.Mutex
	fresh, ids := 0, map[string]bool{}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			res, err := w.trySubmit(draft("twice", "recharge", "twice-1"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[res.Id] = true
			if !res.Duplicate {
				fresh++
			}
		})
	}
	wg.Wait()
	if fresh != 1 || len(ids) != 1 {
		t.Errorf("%d answers say it is new, %d ids", fresh, len(ids))
	}
	for id := range ids {
		w.until(id, notifydv1.State_STATE_DELIVERED)
	}
	other := draft("twice", "recharge", "twice-1")
	other.Payload = `{"order":"another"}`
	if _, err := w.trySubmit(other); code(err) != connect.CodeAlreadyExists {
		t.Errorf("other content under the same id: %v", err)
	}
	if n := len(m.Seen()); n != 1 {
		t.Errorf("the merchant saw %d requests", n)
	}
}

func triedAgain(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	var tries int
	m.Answer(func(rw http.ResponseWriter, _ scenario.Seen) {
		if tries++; tries < 3 {
			rw.WriteHeader(http.StatusBadGateway)
		}
	})
	w.merchant("flaky", m.URL, quick(300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond))
	res := w.submit(draft("flaky", "payout", "flaky-1"))
	got := w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	var reasons []string
	for i, a := range got.Attempts {
		reasons = append(reasons, a.Reason)
		if int(a.Number) != i+1 {
			t.Errorf("attempt %d has number %d", i+1, a.Number)
		}
	}
	if strings.Join(reasons, " ") != "http_server_error http_server_error acknowledged" {
		t.Errorf("attempts ended as %v", reasons)
	}
	seen := m.Seen()
	for i := 1; i < len(seen); i++ {
		if gap := seen[i].At.Sub(seen[i-1].At); gap < 300*time.Millisecond || gap > 5*time.Second {
			t.Errorf("gap %d was %s, want 300ms", i, gap)
		}
		if seen[i].ID != seen[0].ID {
			t.Errorf("another id at attempt %d", i+1)
		}
	}
}

func deadLetter(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	m.AnswerStatus(http.StatusTeapot)
	w.merchant("refuses", m.URL, quick(50*time.Millisecond))
	res := w.submit(draft("refuses", "payout", "refuses-1"))
	got := w.until(res.Id, notifydv1.State_STATE_DEAD)
	if got.Notification.StateReason != "schedule_exhausted" || len(got.Attempts) != 2 {
		t.Errorf("%v with %d attempts", got.Notification.StateReason, len(got.Attempts))
	}
	m.AnswerStatus(http.StatusOK)
	again, err := w.Notifications.ResendNotifications(w.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{res.Id}, Operator: "li.wei"}))
	if err != nil || again.Msg.Results[0].Error != nil || again.Msg.Results[0].Generation != 2 {
		t.Fatalf("resend: %v %v", again, err)
	}
	got = w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	last := got.Attempts[len(got.Attempts)-1]
	if len(got.Attempts) != 3 || last.Trigger != notifydv1.Trigger_TRIGGER_RESEND || last.Operator != "li.wei" || last.Number != 3 {
		t.Errorf("last of %d attempts: %v", len(got.Attempts), last)
	}
	// P12: a failed resend of a delivered one is an attempt and nothing more.
	m.AnswerStatus(http.StatusTeapot)
	scenario.Within(t, 20*time.Second, "the last attempt is on record, so that a resend is taken", func() bool {
		again, err := w.Notifications.ResendNotifications(w.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{res.Id}}))
		if err != nil {
			t.Fatal(err)
		}
		return again.Msg.Results[0].Error == nil
	})
	scenario.Within(t, 20*time.Second, "the resend of a delivered one is on record", func() bool { return len(w.get(res.Id).Attempts) == 4 })
	if now := w.get(res.Id).Notification; now.State != notifydv1.State_STATE_DELIVERED || !now.SettledAt.AsTime().Equal(got.Notification.SettledAt.AsTime()) {
		t.Errorf("a delivered one reopened: %v", now)
	}
}

func redirect(t *testing.T, w *world) {
	target, m := scenario.NewMerchant(t), scenario.NewMerchant(t)
	m.Answer(func(rw http.ResponseWriter, _ scenario.Seen) {
		rw.Header().Set("Location", target.URL)
		rw.WriteHeader(http.StatusFound)
	})
	w.merchant("redirects", m.URL, quick())
	res := w.submit(draft("redirects", "payout", "redirects-1"))
	scenario.Within(t, 20*time.Second, "the attempt is on record", func() bool { return len(w.get(res.Id).Attempts) > 0 })
	if a := w.get(res.Id).Attempts[0]; a.Reason != "redirect" || a.Outcome != notifydv1.Outcome_OUTCOME_RETRYABLE {
		t.Errorf("attempt: %v", a)
	}
	if n := len(target.Seen()); n != 0 {
		t.Errorf("the redirect was followed %d times", n)
	}
}

func exactBody(t *testing.T, w *world) {
	right, wrong := scenario.NewMerchant(t), scenario.NewMerchant(t)
	right.Answer(func(rw http.ResponseWriter, _ scenario.Seen) { _, _ = rw.Write([]byte("success")) })
	wrong.Answer(func(rw http.ResponseWriter, _ scenario.Seen) { _, _ = rw.Write([]byte("<html>please log in</html>")) })
	for id, m := range map[string]*scenario.Merchant{"says-success": right, "says-login": wrong} {
		w.merchant(id, m.URL, func(m *notifydv1.Merchant) {
			m.Contract = &notifydv1.Contract{Acknowledgement: &notifydv1.Acknowledgement{BodyExact: "success"}}
		})
	}
	w.until(w.submit(draft("says-success", "payout", "says-success-1")).Id, notifydv1.State_STATE_DELIVERED)
	id := w.submit(draft("says-login", "payout", "says-login-1")).Id
	got := w.until(id, notifydv1.State_STATE_RETRYING)
	if a := got.Attempts[0]; a.Reason != "wrong_answer" || string(a.Response.Body) != "<html>please log in</html>" {
		t.Errorf("attempt: %v", a)
	}
}

func lateAnswer(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	m.Answer(func(_ http.ResponseWriter, _ scenario.Seen) { <-time.After(900 * time.Millisecond) })
	w.merchant("late", m.URL, func(m *notifydv1.Merchant) {
		quick(100 * time.Millisecond)(m)
		m.Timeouts = &notifydv1.Timeouts{Total: durationpb.New(300 * time.Millisecond), Grace: durationpb.New(5 * time.Second)}
	})
	res := w.submit(draft("late", "payout", "late-1"))
	got := w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	if a := got.Attempts[0]; a.Reason != "late_acknowledgement" || a.LateAt == nil || a.LateResponse.GetStatus() != 200 || got.Notification.SettledBy != "late_acknowledgement" {
		t.Errorf("attempt: %v", a)
	}
	if n := len(m.Seen()); n != 1 {
		t.Errorf("the merchant saw %d requests", n)
	}
}

func (w *world) cancel(id string) *notifydv1.ChangeResult {
	w.t.Helper()
	res, err := w.Notifications.CancelNotifications(w.ctx, connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{id}, Operator: "li.wei"}))
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Msg.Results[0]
}

func canceled(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	m.AnswerStatus(http.StatusBadRequest)
	w.merchant("cancel", m.URL, quick(700*time.Millisecond))
	res := w.submit(draft("cancel", "payout", "cancel-1"))
	w.until(res.Id, notifydv1.State_STATE_RETRYING)
	if change := w.cancel(res.Id); change.Error != nil || change.State != notifydv1.State_STATE_CANCELED {
		t.Fatalf("cancel: %v", change)
	}
	if change := w.cancel(res.Id); change.Error.GetCode() != "failed_precondition" {
		t.Errorf("cancel of a final one: %v", change)
	}
	// A sibling with the same schedule, submitted after it, has had its second attempt: the canceled one's time is over too.
	w.until(w.submit(draft("cancel", "payout", "cancel-2")).Id, notifydv1.State_STATE_DEAD)
	if n := m.Count()[res.Id]; n != 1 {
		t.Errorf("a canceled one was sent %d times", n)
	}
	if change := w.cancel("ntf_aaaaaaaaaaaaaaaaaaaaaaaaaa"); change.Error.GetCode() != "not_found" {
		t.Errorf("cancel of nothing: %v", change)
	}
}

func expiresFirst(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	m.AnswerStatus(http.StatusBadRequest)
	w.merchant("expires", m.URL, quick(1500*time.Millisecond, time.Hour))
	n := draft("expires", "payout", "expires-1")
	n.ExpiresAt = timestamppb.New(time.Now().Add(1200 * time.Millisecond))
	res := w.submit(n)
	w.until(res.Id, notifydv1.State_STATE_EXPIRED)
	if n := len(m.Seen()); n != 1 {
		t.Errorf("the merchant saw %d requests", n)
	}
}

func notBefore(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("waits", m.URL, nil)
	n := draft("waits", "scan", "waits-1")
	at := time.Now().Add(1500 * time.Millisecond)
	n.NotBefore = timestamppb.New(at)
	res := w.submit(n)
	if res.State != notifydv1.State_STATE_ACCEPTED || res.StateReason != "not_before" {
		t.Errorf("answer: %v", res)
	}
	w.until(res.Id, notifydv1.State_STATE_DELIVERED)
	if early := at.Sub(m.Seen()[0].At); early > 0 {
		t.Errorf("sent %s early", early)
	}
}

func pausedAndResumed(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("paused", m.URL, nil)
	if _, err := w.Merchants.PauseMerchant(w.ctx, connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "paused", Reason: "their release night"})); err != nil {
		t.Fatal(err)
	}
	ids := []string{
		w.submit(draft("paused", "payout", "paused-1")).Id,
		w.submit(draft("paused", "scan", "paused-2")).Id,
	}
	for _, id := range ids {
		if got := w.until(id, notifydv1.State_STATE_HELD); got.Notification.StateReason != "merchant_paused" {
			t.Errorf("held for %q", got.Notification.StateReason)
		}
	}
	if change := w.cancel(ids[0]); change.Error != nil {
		t.Errorf("cancel of a held one: %v", change)
	}
	if _, err := w.Merchants.ResumeMerchant(w.ctx, connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "paused"})); err != nil {
		t.Fatal(err)
	}
	w.until(ids[1], notifydv1.State_STATE_DELIVERED)
	if n := m.Count(); n[ids[0]] != 0 || n[ids[1]] != 1 {
		t.Errorf("the merchant saw %v", n)
	}
}

func deadStallsNobody(t *testing.T, w *world) {
	gone := scenario.NewMerchant(t)
	hanging := make(chan struct{})
	t.Cleanup(func() { close(hanging) })
	gone.Answer(func(http.ResponseWriter, scenario.Seen) { <-hanging })
	w.merchant("hangs", gone.URL, func(m *notifydv1.Merchant) {
		m.Timeouts = &notifydv1.Timeouts{Total: durationpb.New(2 * time.Second), Grace: durationpb.New(0)}
	})
	// Merchants in the very same shard would be the first to feel it, so there are more of them than shards.
	healthy := scenario.NewMerchant(t)
	var batch []*notifydv1.Notification
	for i := range 70 {
		id := "neighbour-" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		w.merchant(id, healthy.URL, nil)
		batch = append(batch, draft(id, "payout", id))
	}
	var stuck []*notifydv1.Notification
	for i := range 200 {
		stuck = append(stuck, draft("hangs", "payout", "hangs-"+time.Duration(i).String()))
	}
	if _, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: stuck})); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "the hanging merchant holds its in-flight cap", func() bool { return len(gone.Seen()) >= 8 })
	began := time.Now()
	if _, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch})); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "every neighbour is told", func() bool { return len(healthy.Seen()) == len(batch) })
	t.Logf("70 neighbours told in %s while 200 wait for a hanging merchant", time.Since(began).Round(time.Millisecond))
}

func rateLimited(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("limited", m.URL, func(m *notifydv1.Merchant) { m.Limits = &notifydv1.Limits{RatePerSecond: 10, Burst: 1} })
	var batch []*notifydv1.Notification
	for i := range 20 {
		batch = append(batch, draft("limited", "payout", "limited-"+time.Duration(i).String()))
	}
	if _, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch})); err != nil {
		t.Fatal(err)
	}
	scenario.Within(t, 30*time.Second, "all twenty are told", func() bool { return len(m.Count()) == 20 })
	seen := m.Seen()
	if len(seen) != 20 {
		t.Errorf("the merchant saw %d requests", len(seen))
	}
	if took := seen[len(seen)-1].At.Sub(seen[0].At); took < 1800*time.Millisecond {
		t.Errorf("20 at 10/s took %s", took)
	}
}

func batchNeighbours(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("batch", m.URL, nil)
	good, bad, unknown, twin := draft("batch", "payout", "batch-1"), draft("batch", "payout", "batch-2"), draft("nobody", "payout", "batch-3"), draft("batch", "payout", "batch-1")
	bad.Payload = "{"
	res, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: []*notifydv1.Notification{good, bad, unknown, twin, draft("batch", "scan", "batch-5")}}))
	if err != nil {
		t.Fatal(err)
	}
	r := res.Msg.Results
	if len(r) != 5 || r[0].GetResponse() == nil || r[1].GetError().GetCode() != "invalid_argument" || r[1].GetError().Violations[0].Field != "notification.payload" ||
		r[2].GetError().GetCode() != "not_found" || !r[3].GetResponse().GetDuplicate() || r[4].GetResponse().GetLane() != notifydv1.Lane_LANE_ASYNC {
		t.Fatalf("results: %v", r)
	}
	w.until(r[0].GetResponse().Id, notifydv1.State_STATE_DELIVERED)
}

func listing(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("listed", m.URL, nil)
	var batch []*notifydv1.Notification
	for i := range 25 {
		n := draft("listed", "payout", "listed-"+string(rune('a'+i)))
		n.BatchId = "payroll-11"
		batch = append(batch, n)
	}
	if _, err := w.Notifications.SubmitBatch(w.ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch})); err != nil {
		t.Fatal(err)
	}
	list := func(f *notifydv1.NotificationFilter, size int32, token string) *notifydv1.ListNotificationsResponse {
		res, err := w.Notifications.ListNotifications(w.ctx, connect.NewRequest(&notifydv1.ListNotificationsRequest{Filter: f, PageSize: size, PageToken: token}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	mine := &notifydv1.NotificationFilter{MerchantId: "listed", States: []notifydv1.State{notifydv1.State_STATE_DELIVERED}}
	scenario.Within(t, 20*time.Second, "all are delivered and in the ledger", func() bool { return len(list(mine, 100, "").Notifications) == 25 })
	seen, token, pages := map[string]bool{}, "", 0
	for {
		page := list(&notifydv1.NotificationFilter{BatchId: "payroll-11"}, 10, token)
		for _, n := range page.Notifications {
			seen[n.Id] = true
		}
		pages++
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if len(seen) != 25 || pages != 3 {
		t.Errorf("%d in %d pages", len(seen), pages)
	}
	if got := list(&notifydv1.NotificationFilter{OrderId: "order-listed-c"}, 0, "").Notifications; len(got) != 1 || got[0].RequestId != "listed-c" {
		t.Errorf("by order: %v", got)
	}
	if got := list(&notifydv1.NotificationFilter{MerchantId: "listed", AcceptedFrom: timestamppb.New(time.Now().Add(time.Hour))}, 0, "").Notifications; len(got) != 0 {
		t.Errorf("from the future: %v", got)
	}
}

func explained(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("explained", m.URL, nil)
	res, err := w.Notifications.Explain(w.ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: draft("explained", "scan", "explained-1")}))
	if err != nil {
		t.Fatal(err)
	}
	if e := res.Msg; e.Lane != notifydv1.Lane_LANE_SYNC || e.Rule != "builtin:sync-scenes" || e.Schedule != "default" || len(e.Gaps) != 11 || e.Persist != "stream" || e.Gate != "" || e.IsolationKey == "" {
		t.Errorf("explained as %v", e)
	}
	if _, err := w.Notifications.GetNotification(w.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: res.Msg.Id})); code(err) != connect.CodeNotFound {
		t.Errorf("explain left something: %v", err)
	}
}

func badInput(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	w.merchant("strict", m.URL, nil)
	for _, test := range []struct {
		name   string
		change func(*notifydv1.Notification)
		code   connect.Code
		field  string
	}{
		{"no source", func(n *notifydv1.Notification) { n.Source = "" }, connect.CodeInvalidArgument, "notification.source"},
		{"no scene", func(n *notifydv1.Notification) { n.Scene = "" }, connect.CodeInvalidArgument, "notification.scene"},
		{"scene in capitals", func(n *notifydv1.Notification) { n.Scene = "SCAN" }, connect.CodeInvalidArgument, "notification.scene"},
		{"no payload", func(n *notifydv1.Notification) { n.Payload = "" }, connect.CodeInvalidArgument, "notification.payload"},
		{"payload and body", func(n *notifydv1.Notification) { n.Body = []byte("x") }, connect.CodeInvalidArgument, "notification.body"},
		{"body without type", func(n *notifydv1.Notification) { n.Payload, n.Body = "", []byte("x") }, connect.CodeInvalidArgument, "notification.content_type"},
		{"broken JSON", func(n *notifydv1.Notification) { n.Payload = `{"a":}` }, connect.CodeInvalidArgument, "notification.payload"},
		{"currency", func(n *notifydv1.Notification) { n.Amount.Currency = "yuan" }, connect.CodeInvalidArgument, "notification.amount.currency"},
		{"output field", func(n *notifydv1.Notification) { n.State = notifydv1.State_STATE_DELIVERED }, connect.CodeInvalidArgument, "notification.state"},
		{"control characters in a key", func(n *notifydv1.Notification) { n.OrderingKey = "k\n" }, connect.CodeInvalidArgument, "notification.ordering_key"},
		{"expired already", func(n *notifydv1.Notification) { n.ExpiresAt = timestamppb.New(time.Unix(1, 0)) }, connect.CodeInvalidArgument, "notification.expires_at"},
		{"no name at all", func(n *notifydv1.Notification) { n.RequestId, n.OrderId = "", "" }, connect.CodeInvalidArgument, "notification.request_id"},
		{"too large", func(n *notifydv1.Notification) { n.Payload = `"` + strings.Repeat("x", 300<<10) + `"` }, connect.CodeInvalidArgument, "notification"},
		{"control character", func(n *notifydv1.Notification) { n.OrderId = "a\nb" }, connect.CodeInvalidArgument, "notification.order_id"},
		{"unknown merchant", func(n *notifydv1.Notification) { n.MerchantId = "nobody" }, connect.CodeNotFound, ""},
		{"another host", func(n *notifydv1.Notification) { n.NotifyUrl = "http://evil.example/x" }, connect.CodeFailedPrecondition, ""},
		{"private address", func(n *notifydv1.Notification) { n.NotifyUrl = "http://10.0.0.1/x" }, connect.CodeFailedPrecondition, ""},
		{"no URL", func(n *notifydv1.Notification) { n.NotifyUrl = "ftp://127.0.0.1/x" }, connect.CodeFailedPrecondition, ""},
	} {
		n := draft("strict", "payout", "strict-"+test.name)
		test.change(n)
		_, err := w.trySubmit(n)
		if code(err) != test.code {
			t.Errorf("%s: %v, want %s", test.name, err, test.code)
			continue
		}
		if test.field != "" && !names(err, test.field) {
			t.Errorf("%s: no violation names %s: %v", test.name, test.field, err)
		}
	}
	if n := len(m.Seen()); n != 0 {
		t.Errorf("the merchant saw %d requests", n)
	}
	for name, put := range map[string]*notifydv1.Merchant{
		"merchant.notify_url":             {Id: "bad", NotifyUrl: "http://192.168.1.1/x"},
		"merchant.contract.profile":       {Id: "bad", Contract: &notifydv1.Contract{Profile: "alipray"}},
		"merchant.contract.signer.secret": {Id: "bad", Contract: &notifydv1.Contract{Signer: &notifydv1.Signer{Secret: "hunter2"}}},
		"merchant.schedule":               {Id: "bad", Schedule: &notifydv1.Schedule{Name: "hourly"}},
		"merchant.tls":                    {Id: "bad", Tls: &notifydv1.TlsSettings{Profile: "legacy"}},
		"merchant.egress":                 {Id: "bad", Egress: "proxy-a"},
	} {
		_, err := w.Merchants.PutMerchant(w.ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: put}))
		if code(err) != connect.CodeInvalidArgument || !names(err, name) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	got, err := w.Merchants.GetMerchant(w.ctx, connect.NewRequest(&notifydv1.GetMerchantRequest{Id: "strict"}))
	if err != nil || got.Msg.Merchant.Contract.Signer.Secret != "" {
		t.Errorf("get merchant: %v %v", got, err)
	}
	stale := connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: &notifydv1.Merchant{Id: "strict", NotifyUrl: m.URL}, Etag: "0"})
	if _, err := w.Merchants.PutMerchant(w.ctx, stale); code(err) != connect.CodeAborted {
		t.Errorf("stale etag: %v", err)
	}
}

func names(err error, field string) bool {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return false
	}
	for _, d := range ce.Details() {
		if value, derr := d.Value(); derr == nil {
			if bad, ok := value.(*errdetails.BadRequest); ok {
				for _, v := range bad.FieldViolations {
					if v.Field == field {
						return true
					}
				}
			}
		}
	}
	return false
}
