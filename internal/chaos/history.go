// Package chaos runs the real engine under load, hurts it and what it stands on, and checks what came of it against a
// history that the submitters and the merchants kept: nothing that was accepted is lost, and what was repeated was in
// flight when something was hurt.
package chaos

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// Digest stands for a body.
type Digest = [sha256.Size]byte

// Request is one request as a merchant saw it.
type Request struct {
	ID     string
	Number int // of the attempt, as the engine says
	Body   Digest
	At     time.Time
	Status int       // of the answer; 0: none was given
	Done   time.Time // when it was given, or when the merchant heard that nobody waits for it any more
}

// acknowledged reports whether the merchant gave its agreed answer. Nobody knows whether the engine heard it.
func (r Request) acknowledged() bool { return r.Status >= 200 && r.Status < 300 }

// Submitted is what its submitter knows of a notification.
type Submitted struct {
	ID       string
	Merchant string
	Body     Digest
	Accepted time.Time // of the first answer that said so; zero: there was none
	Resends  int       // that were asked for and were not refused
}

// Incident is something that was hurt.
type Incident struct {
	What     string
	From, To time.Time
	Normal   time.Duration // from its end until a new notification reached its merchant
	// Blind says that nodes cannot know meanwhile what other nodes accepted before.
	Blind bool
}

// reopening is an answer that says less of a notification than one before.
type reopening struct {
	id   string
	at   time.Time
	what string
}

// History is what was seen from outside. Its methods may be called concurrently.
type History struct {
	mu        sync.Mutex
	submitted map[string]*Submitted
	requests  []Request
	arrived   map[string]int // requests by id, those that are not answered yet included
	highest   map[string]int // number of an attempt, by id
	incidents []Incident
	delivered map[string]time.Time   // when it was first seen as delivered
	refused   map[string]int         // answers by code, "none" among them
	broken    []string               // what was seen to be wrong at once
	reopened  []reopening            // what was not shown as delivered any more
	anew      map[string]time.Time   // when an id that was accepted was taken for new
	again     map[string][]time.Time // when an id that was accepted was submitted again, and nobody heard that it was accepted
	limits    map[string]int         // requests at once that a merchant takes
	from, to  time.Time              // of the load
}

// NewHistory is empty.
func NewHistory() *History {
	return &History{submitted: map[string]*Submitted{}, delivered: map[string]time.Time{}, refused: map[string]int{}, limits: map[string]int{}, anew: map[string]time.Time{}, again: map[string][]time.Time{}, arrived: map[string]int{}, highest: map[string]int{}, from: time.Now()}
}

// Limit is told how many requests at once a merchant takes.
func (h *History) Limit(merchant string, atOnce int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limits[merchant] = atOnce
}

// Submitting is told before a notification is submitted for the first time.
func (h *History) Submitting(id, merchant string, body Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.submitted[id] = &Submitted{ID: id, Merchant: merchant, Body: body}
}

// Body is what was submitted under an id.
func (h *History) Body(id string) Digest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.submitted[id].Body
}

// Accepted is told of each answer of acceptance, and when it was asked for.
func (h *History) Accepted(res *notifydv1.SubmitResponse, asked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.submitted[res.Id]
	if s == nil {
		h.broken = append(h.broken, res.Id+": accepted under an id that nobody derives")
		return
	}
	if s.Accepted.IsZero() {
		s.Accepted = time.Now()
	}
	h.saw(res.Id, res.State, asked)
}

// Refused counts an answer that was none of acceptance, by its code.
func (h *History) Refused(code string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused[code]++
}

// Resent is told of a resend that was not refused: it was granted, or nobody knows.
func (h *History) Resent(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.submitted[id].Resends++
}

// Saw is told of every state that the engine shows, and when it was asked for. Delivered is for ever.
func (h *History) Saw(id string, state notifydv1.State, asked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.saw(id, state, asked)
}

// saw is for a caller that holds the lock.
func (h *History) saw(id string, state notifydv1.State, asked time.Time) {
	delivered, ok := h.delivered[id]
	switch {
	case state == notifydv1.State_STATE_DELIVERED && !ok:
		h.delivered[id] = time.Now()
	case state != notifydv1.State_STATE_DELIVERED && ok && asked.After(delivered):
		h.reopened = append(h.reopened, reopening{id, asked, fmt.Sprintf("%s: was seen as delivered at %s, and is shown as %s at %s", id, delivered.UTC().Format(clock), state, asked.UTC().Format(clock))})
	}
}

// clock is how an instant is printed: a run takes minutes.
const clock = "15:04:05.000"

// Broken is told of what must never be.
func (h *History) Broken(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = append(h.broken, fmt.Sprintf(format, args...))
}

// AskedAgain is told of an id that was accepted and was submitted again, without an answer that says so: it may have been
// refused, or taken for new without anybody hearing of it.
func (h *History) AskedAgain(id string, asked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.again[id] = append(h.again[id], asked)
}

// TakenForNew is told of an id that was accepted, and accepted again without a word of it.
func (h *History) TakenForNew(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.anew[id] = time.Now()
}

// Arrived is told of each request before it is answered.
func (h *History) Arrived(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.arrived[id]++
}

// Highest is the highest number of an attempt that a merchant saw.
func (h *History) Highest(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.highest[id]
}

// Requests is how many requests have arrived for an id.
func (h *History) Requests(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.arrived[id]
}

// Requested is told of each request when it is answered or given up.
func (h *History) Requested(r Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r)
	h.highest[r.ID] = max(h.highest[r.ID], r.Number)
}

// Hurt is told of what has been hurt and healed.
func (h *History) Hurt(i Incident) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.incidents = append(h.incidents, i)
}

// Back is told how long it took to get back to normal after the last incident.
func (h *History) Back(took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.incidents); n > 0 {
		h.incidents[n-1].Normal = took
	}
}

// EndLoad is told when nothing new is submitted any more.
func (h *History) EndLoad() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.to = time.Now()
}

// Acknowledged reports whether the id's merchant has given its agreed answer.
func (h *History) Acknowledged(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.requests, func(r Request) bool { return r.ID == id && r.acknowledged() })
}

// Unheard counts the requests that ended without an answer at an instant, because whoever made them died: how many there
// were, of how many there is no later one yet, and how long the latter took at most.
func (h *History) Unheard(at time.Time) (had, open int, longest time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.requests {
		if r.Status != 0 || r.At.After(at) || r.Done.Before(at) || r.Done.After(at.Add(time.Second)) {
			continue
		}
		had++
		again := time.Duration(0)
		for _, next := range h.requests {
			if next.ID == r.ID && next.At.After(at) && (again == 0 || next.At.Sub(at) < again) {
				again = next.At.Sub(at)
			}
		}
		if again == 0 {
			open++
		}
		longest = max(longest, again)
	}
	return had, open, longest
}

// AcceptedCount is the number of notifications accepted so far.
func (h *History) AcceptedCount() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.submitted {
		if !s.Accepted.IsZero() {
			n++
		}
	}
	return n
}

// IDs are all that were submitted.
func (h *History) IDs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.submitted))
}
