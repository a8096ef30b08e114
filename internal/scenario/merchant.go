package scenario

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// Seen is one request as a merchant saw it.
type Seen struct {
	ID      string // webhook-id
	Attempt string // notifyd-attempt
	Method  string
	Path    string
	Header  http.Header
	Body    []byte
	At      time.Time
}

// Merchant is a scripted merchant on loopback.
type Merchant struct {
	URL    string
	server *httptest.Server

	mu     sync.Mutex
	answer func(w http.ResponseWriter, seen Seen)
	seen   []Seen
}

// NewMerchant starts a merchant that answers 200.
func NewMerchant(tb testing.TB) *Merchant {
	tb.Helper()
	m := &Merchant{answer: func(http.ResponseWriter, Seen) {}}
	m.server = httptest.NewServer(http.HandlerFunc(m.serve))
	m.URL = m.server.URL + "/notify"
	tb.Cleanup(m.server.Close)
	return m
}

func (m *Merchant) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the engine died while it was sending
	}
	seen := Seen{ID: r.Header.Get("webhook-id"), Attempt: r.Header.Get("notifyd-attempt"), Method: r.Method, Path: r.URL.Path, Header: r.Header, Body: body, At: time.Now()}
	m.mu.Lock()
	m.seen = append(m.seen, seen)
	answer := m.answer
	m.mu.Unlock()
	answer(w, seen)
}

// Answer sets how the merchant answers from now on.
func (m *Merchant) Answer(answer func(w http.ResponseWriter, seen Seen)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = answer
}

// AnswerStatus makes the merchant answer with a status and an empty body.
func (m *Merchant) AnswerStatus(status int) {
	m.Answer(func(w http.ResponseWriter, _ Seen) { w.WriteHeader(status) })
}

// Seen is every request so far.
func (m *Merchant) Seen() []Seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Seen(nil), m.seen...)
}

// Count is the number of requests so far for each id.
func (m *Merchant) Count() map[string]int {
	count := map[string]int{}
	for _, s := range m.Seen() {
		count[s.ID]++
	}
	return count
}
