package chaos

import (
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// script is how a merchant behaves.
type script struct {
	id     string
	sync   bool // whether payment services wait for its answers
	share  int  // of the load
	limits *notifydv1.Limits
	gaps   []time.Duration
	// persist of its notifications; unspecified: the engine's default.
	persist notifydv1.Persist
	// answer to a request, the nth of its id: after a delay, with a status; 0: never.
	answer func(r Request, nth int) (delay time.Duration, status int)
}

// third draws a third of all notifications, always the same ones.
func third(r Request) bool { return r.Body[0]%3 == 0 }

// paced has more than its rate allows, and narrow more than it may be asked at once: they get queues of their own.
const (
	paced  = "paced"
	narrow = "narrow"
)

// atOnce is how many requests narrow takes at a time.
const atOnce = 2

// patient gaps outlast whatever a run does to the engine.
var patient = []time.Duration{300 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second, 5 * time.Second, 10 * time.Second}

// scripts are the merchants of every run. The times suit the settings of a World.
func scripts() []script {
	swift := func(Request, int) (time.Duration, int) { return 0, http.StatusOK }
	slow := func(r Request, _ int) (time.Duration, int) {
		return time.Duration(50+r.Body[1]) * time.Millisecond, http.StatusOK
	}
	unhurried := func(Request, int) (time.Duration, int) { return 40 * time.Millisecond, http.StatusOK }
	flaky := func(r Request, nth int) (time.Duration, int) {
		if third(r) && nth < 3 {
			return 0, http.StatusServiceUnavailable
		}
		return 0, http.StatusOK
	}
	broken := func(Request, int) (time.Duration, int) { return 0, http.StatusInternalServerError }
	hanging := func(r Request, nth int) (time.Duration, int) {
		if third(r) && nth < 2 {
			return 0, 0
		}
		return 0, http.StatusOK
	}
	all := []script{
		{id: "swift-0", sync: true, share: 20, gaps: patient, answer: swift},
		{id: "swift-stream", sync: true, share: 16, gaps: patient, persist: notifydv1.Persist_PERSIST_STREAM, answer: swift},
		{id: "swift-ledger", sync: true, share: 16, gaps: patient, persist: notifydv1.Persist_PERSIST_LEDGER, answer: swift},
		{id: "swift-after", sync: true, share: 16, gaps: patient, persist: notifydv1.Persist_PERSIST_AFTER, answer: swift},
		{id: "slow", sync: true, share: 12, gaps: patient, answer: slow},
		{id: "flaky", share: 12, gaps: patient, answer: flaky},
		{id: "broken", share: 1, gaps: patient[:2], answer: broken},
		{id: "hanging", share: 1, gaps: patient, answer: hanging},
		{id: paced, share: 6, gaps: patient, limits: &notifydv1.Limits{RatePerSecond: 20, Burst: 1}, answer: swift},
		{id: narrow, share: 4, gaps: patient, limits: &notifydv1.Limits{MaxInFlight: atOnce}, answer: unhurried},
	}
	for _, id := range anywhere() {
		all = append(all, script{id: id, gaps: patient, answer: swift})
	}
	return all
}

// merchants are the scripts, played.
type merchants struct {
	history *History

	mu  sync.Mutex
	nth map[string]int // requests by id
}

// play starts a server for each script, until the test ends, and returns the settings of each.
func play(tb testing.TB, history *History) []*notifydv1.Merchant {
	tb.Helper()
	m := &merchants{history: history, nth: map[string]int{}}
	var out []*notifydv1.Merchant
	for _, s := range scripts() {
		if most := s.limits.GetMaxInFlight(); most > 0 {
			history.Limit(s.id, int(most))
		}
		server := httptest.NewServer(m.serve(s))
		tb.Cleanup(server.CloseClientConnections)
		tb.Cleanup(server.Close)
		settings := &notifydv1.Merchant{Id: s.id, Name: s.id, NotifyUrl: server.URL + "/notify", Limits: s.limits, Persist: s.persist, Schedule: &notifydv1.Schedule{}}
		for _, gap := range s.gaps {
			settings.Schedule.Gaps = append(settings.Schedule.Gaps, durationpb.New(gap))
		}
		out = append(out, settings)
	}
	return out
}

func (m *merchants) serve(s script) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seen := Request{ID: r.Header.Get("webhook-id"), At: time.Now()}
		seen.Number, _ = strconv.Atoi(r.Header.Get("notifyd-attempt"))
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the engine died while it was sending: the merchant has not seen a request
		}
		seen.Body = sha256.Sum256(body)
		m.history.Arrived(seen.ID)
		m.mu.Lock()
		m.nth[seen.ID]++
		nth := m.nth[seen.ID]
		m.mu.Unlock()
		delay, status := s.answer(seen, nth)
		if status == 0 {
			delay = time.Hour
		}
		if answered := wait(r.Context(), delay); answered && status != 0 {
			w.WriteHeader(status)
			seen.Status = status
		}
		seen.Done = time.Now()
		m.history.Requested(seen)
	}
}
