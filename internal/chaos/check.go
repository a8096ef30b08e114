package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// slack is how long after a merchant's answer the engine may still be writing down what it was.
const slack = 10 * time.Second

// interrupted is the reason of an attempt that left no outcome.
const interrupted = "interrupted"

// Findings are what the engine says in the end.
type Findings struct {
	Notifications map[string]*notifydv1.GetNotificationResponse // by id; what it does not know is missing
	Proof         *notifydv1.ProveResponse                      // with every missing id
	Settled       time.Duration                                 // from the end of the load until nothing waited; 0: something still waits
}

// Report is the verdict over a run.
type Report struct {
	Accepted   int
	Refused    map[string]int // answers that were none of acceptance, by code: the caller submitted again
	Requests   int
	Delivered  int
	Dead       int      // dead, canceled, expired
	Waiting    int      // visibly neither
	Lost       []string // accepted, and neither acknowledged nor visibly not
	Anew       int      // ids that a node took for new, because it could not know that another had accepted them
	Repeated   int      // requests after one that the merchant acknowledged, resends apart
	Unrecorded int      // requests that left no record: a node died with them in hand, and the notification was canceled and resent before that was noticed
	Unheard    int      // of those: the acknowledgement came too late for the attempt, which is on record as unconfirmed
	Resent     int
	Oldest     time.Duration // between an acknowledgement and the fault that made the engine forget it, at most
	Stall      time.Duration // longest time without a request while there was load
	Normal     time.Duration // longest time from the end of a fault until a new notification reached its merchant
	Settled    time.Duration
	Crowd      int // requests at once beyond what their merchant takes, at most, while nodes took over from each other
	Incidents  int
	Violations []string // what is wrong, losses included
	Stories    []string // of the first few notifications that something is wrong with
}

// check is the state of one Check.
type check struct {
	h       *History
	found   Findings
	byID    map[string][]Request
	r       Report
	counted map[string]int64 // accepted ids by final state
}

// Check compares the history with what the engine says. It is for the time after the load.
func Check(h *History, found Findings) Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &check{h: h, found: found, byID: map[string][]Request{}, counted: map[string]int64{}}
	c.r = Report{Refused: maps.Clone(h.refused), Requests: len(h.requests), Settled: found.Settled, Incidents: len(h.incidents), Violations: slices.Clone(h.broken)}
	requests := slices.SortedFunc(slices.Values(h.requests), func(a, b Request) int { return a.At.Compare(b.At) })
	for _, r := range requests {
		c.byID[r.ID] = append(c.byID[r.ID], r)
	}
	for _, r := range h.reopened {
		if !c.blind(r.at) { // whoever cannot know takes it for new
			c.wrong("%s", r.what)
		}
	}
	c.stall(requests)
	c.crowds(requests)
	for _, i := range h.incidents {
		c.r.Normal = max(c.r.Normal, i.Normal)
	}
	for _, id := range slices.Sorted(maps.Keys(c.byID)) {
		if h.submitted[id] == nil {
			c.wrong("%s: sent, and nobody submitted it", id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(h.submitted)) {
		c.notification(h.submitted[id])
	}
	c.proof()
	if found.Settled == 0 {
		c.wrong("not everything was settled in time: %v wait", found.Proof.GetWaiting())
	}
	return c.r
}

func (c *check) wrong(format string, args ...any) {
	c.r.Violations = append(c.r.Violations, fmt.Sprintf(format, args...))
}

func (c *check) stall(requests []Request) {
	last := c.h.from
	for _, r := range requests {
		if r.At.After(c.h.to) {
			break
		}
		c.r.Stall = max(c.r.Stall, r.At.Sub(last))
		last = r.At
	}
	c.r.Stall = max(c.r.Stall, c.h.to.Sub(last))
}

// handover is how long after a fault a merchant may still be sent to by a node that lost it and by the one that has it now.
const handover = 10 * time.Second

// crowds checks that nobody is sent more at once than it takes: two nodes that drain one own queue would. While one takes
// over from another, what the first has in hand comes on top.
func (c *check) crowds(requests []Request) {
	for merchant, most := range c.h.limits {
		var under []Request // way
		for _, r := range requests {
			s := c.h.submitted[r.ID]
			if s == nil || s.Merchant != merchant {
				continue
			}
			under = slices.DeleteFunc(under, func(u Request) bool { return !u.Done.After(r.At) })
			under = append(under, r)
			if len(under) > most && !c.handedOver(r.At) {
				c.wrong("%s: %s is sent %d at once, and takes %d; nothing was hurt", r.ID, merchant, len(under), most)
			}
			c.r.Crowd = max(c.r.Crowd, len(under)-most)
		}
	}
}

func (c *check) handedOver(at time.Time) bool {
	return at.Sub(c.h.from) < handover || slices.ContainsFunc(c.h.incidents, func(i Incident) bool {
		return !at.Before(i.From) && at.Before(i.To.Add(i.Normal+handover))
	})
}

// mostStories bounds what a report tells.
const mostStories = 5

// notification checks one of them.
func (c *check) notification(s *Submitted) {
	wrong := len(c.r.Violations)
	c.examine(s)
	known := slices.ContainsFunc(c.h.broken, func(text string) bool { return strings.HasPrefix(text, s.ID) })
	if (known || len(c.r.Violations) > wrong) && len(c.r.Stories) < mostStories {
		c.r.Stories = append(c.r.Stories, c.story(s))
	}
}

func (c *check) examine(s *Submitted) {
	requests, found := c.byID[s.ID], c.found.Notifications[s.ID]
	acknowledged := slices.ContainsFunc(requests, Request.acknowledged)
	at, anew := c.takenForNew(s, requests)
	for _, r := range requests {
		if r.Body != s.Body && !anew {
			c.wrong("%s: attempt %d carried other bytes than were submitted", s.ID, r.Number)
		}
	}
	if !s.Accepted.IsZero() {
		c.r.Accepted++
		c.standing(s, found, acknowledged)
	}
	if anew {
		if c.blind(at) { // P4: it is told twice, or what came second is in quarantine
			c.r.Anew++
			return
		}
		c.wrong("%s: was accepted, and taken for new at %s", s.ID, at.UTC().Format(clock))
	}
	if found == nil {
		return
	}
	if state := found.Notification.State; !c.h.delivered[s.ID].IsZero() && state != notifydv1.State_STATE_DELIVERED {
		c.wrong("%s: was delivered, and ended as %s", s.ID, state)
	}
	c.rows(s, requests, found.Attempts)
	c.repeats(s, requests, found.Attempts)
}

// takenForNew is when an id that was accepted was taken for new: its submitter was told, or was not told anything and
// the merchant saw a first attempt once more.
func (c *check) takenForNew(s *Submitted, requests []Request) (time.Time, bool) {
	if at, told := c.h.anew[s.ID]; told {
		return at, true
	}
	firsts := 0
	for _, r := range requests {
		if r.Number != 1 {
			continue
		}
		firsts++
		if firsts > 1 && slices.ContainsFunc(c.h.again[s.ID], func(asked time.Time) bool {
			return !r.At.Before(asked) && r.At.Before(asked.Add(answerBound)) && c.blind(r.At)
		}) {
			return r.At, true
		}
	}
	return time.Time{}, false
}

// blind reports whether a node could not know at an instant what others had accepted.
func (c *check) blind(at time.Time) bool {
	return slices.ContainsFunc(c.h.incidents, func(i Incident) bool {
		return i.Blind && !at.Before(i.From) && !at.After(i.To.Add(i.Normal+slack))
	})
}

// justBlind reports whether a node may have gone blind a moment ago, and others have not taken over from it yet.
func (c *check) justBlind(at time.Time) bool {
	return slices.ContainsFunc(c.h.incidents, func(i Incident) bool {
		return i.Blind && !at.Before(i.From) && at.Before(i.From.Add(takeoverBound))
	})
}

// standing checks that what was accepted is told, or visibly not.
func (c *check) standing(s *Submitted, found *notifydv1.GetNotificationResponse, acknowledged bool) {
	lost := func(why string) {
		c.r.Lost = append(c.r.Lost, s.ID)
		c.wrong("%s: lost: accepted for %s at %s, %s", s.ID, s.Merchant, s.Accepted.UTC().Format(clock), why)
	}
	if found == nil {
		lost("and the engine does not know it")
		return
	}
	switch found.Notification.State {
	case notifydv1.State_STATE_DELIVERED:
		c.counted["delivered"]++
		c.r.Delivered++
		if !acknowledged {
			lost("called delivered, and its merchant never acknowledged it")
		}
	case notifydv1.State_STATE_DEAD, notifydv1.State_STATE_CANCELED, notifydv1.State_STATE_EXPIRED:
		c.r.Dead++
	case notifydv1.State_STATE_ACCEPTED, notifydv1.State_STATE_RETRYING, notifydv1.State_STATE_HELD:
		c.r.Waiting++
	case notifydv1.State_STATE_UNSPECIFIED, notifydv1.State_STATE_PREPARED:
		lost("in no state: " + found.Notification.State.String())
	}
}

// rows checks that the attempts on record are the requests that the merchant saw, but for interrupted ones.
func (c *check) rows(s *Submitted, requests []Request, attempts []*notifydv1.Attempt) {
	row := byNumber(attempts)
	seen := map[int]int{}
	first := map[int]Request{}
	for _, r := range requests {
		if seen[r.Number]++; seen[r.Number] == 1 {
			first[r.Number] = r
		}
		switch a := row[r.Number]; {
		case a == nil:
			c.wrong("%s: attempt %d was made and is not on record", s.ID, r.Number)
		case seen[r.Number] > 1 && a.Trigger == notifydv1.Trigger_TRIGGER_RESEND && c.hurt(first[r.Number], r):
			c.r.Unrecorded++ // see docs/limits.md
		case seen[r.Number] > 1 && !unsure(a):
			c.wrong("%s: two requests say that they are attempt %d", s.ID, r.Number)
		case a.HttpStatus != 0 && r.Status != 0 && int(a.HttpStatus) != r.Status:
			c.wrong("%s: attempt %d was answered %d and is on record with %d", s.ID, r.Number, r.Status, a.HttpStatus)
		}
	}
	for _, a := range attempts {
		if a.HttpStatus != 0 && seen[int(a.Number)] == 0 {
			c.wrong("%s: attempt %d is on record with an answer of %d, and its merchant never saw it", s.ID, a.Number, a.HttpStatus)
		}
	}
	counted := len(attempts)
	for _, a := range attempts {
		if a.Reason == interrupted && row[int(a.Number)] != a && c.blind(a.StartedAt.AsTime()) {
			counted-- // it stands for an attempt whose outcome Postgres has, and nobody could ask it
		}
	}
	if len(row) != counted {
		c.wrong("%s: %d attempts on record have %d numbers", s.ID, len(attempts), len(row))
	}
}

func byNumber(attempts []*notifydv1.Attempt) map[int]*notifydv1.Attempt {
	row := map[int]*notifydv1.Attempt{}
	for _, a := range attempts {
		if known := row[int(a.Number)]; known == nil || known.Reason == interrupted {
			row[int(a.Number)] = a
		}
	}
	return row
}

// unsure reports whether the engine did not learn how the attempt ended.
func unsure(a *notifydv1.Attempt) bool {
	return a.Reason == interrupted || a.Outcome == notifydv1.Outcome_OUTCOME_UNCONFIRMED
}

// repeats checks each request after one that the merchant acknowledged: a resend, or one whose predecessor left no
// outcome because something was hurt while it was in flight.
func (c *check) repeats(s *Submitted, requests []Request, attempts []*notifydv1.Attempt) {
	row := byNumber(attempts)
	resent := 0
	var before *Request // the last one that the merchant acknowledged
	for _, r := range requests {
		if before != nil {
			switch was, is := row[before.Number], row[r.Number]; {
			case is.GetTrigger() == notifydv1.Trigger_TRIGGER_RESEND:
				resent++
			case was != nil && !unsure(was) && c.justBlind(r.At): // the claim was judged by a node that could not know
				c.r.Repeated++
			case was != nil && !unsure(was):
				c.r.Repeated++
				c.wrong("%s: attempt %d repeats attempt %d, which is on record as %s", s.ID, r.Number, before.Number, was.Outcome)
			default:
				c.r.Repeated++
				if was.GetReason() != interrupted {
					c.r.Unheard++
				}
				c.inFlight(s, *before, r)
			}
		}
		if r.acknowledged() {
			before = &r
		}
	}
	c.r.Resent += resent
	if most := s.Resends + count(attempts, interrupted); resent > most {
		c.wrong("%s: resent %d times, asked for %d times", s.ID, resent, s.Resends)
	}
}

func count(attempts []*notifydv1.Attempt, reason string) (n int) {
	for _, a := range attempts {
		if a.Reason == reason {
			n++
		}
	}
	return n
}

// inFlight checks that something was hurt while the first of two requests was in flight.
func (c *check) inFlight(s *Submitted, first, second Request) {
	if !c.hurt(first, second) {
		c.wrong("%s: attempt %d repeats attempt %d, and nothing was hurt in between", s.ID, second.Number, first.Number)
	}
}

func (c *check) hurt(first, second Request) bool {
	for _, i := range c.h.incidents {
		if !i.From.After(second.At) && !i.To.Before(first.At) && i.From.Before(first.Done.Add(slack)) {
			c.r.Oldest = max(c.r.Oldest, i.From.Sub(first.Done))
			return true
		}
	}
	return false
}

// proof checks that the engine's own count agrees.
func (c *check) proof() {
	p := c.found.Proof
	if p == nil {
		c.wrong("there is no proof")
		return
	}
	var sum int64
	for _, n := range p.Final {
		sum += n
	}
	for _, n := range p.Waiting {
		sum += n
	}
	if p.Missing != 0 {
		c.wrong("the proof misses %d: %v", p.Missing, p.MissingIds)
	}
	if sum+p.Missing != int64(c.r.Accepted) {
		c.wrong("the proof knows of %d, and %d were accepted", sum+p.Missing, c.r.Accepted)
	}
	if p.Final["delivered"] != c.counted["delivered"] {
		c.wrong("the proof counts %d delivered, the notifications themselves are %d", p.Final["delivered"], c.counted["delivered"])
	}
	if sum+p.Missing+p.Unanswered != p.Accepted {
		c.wrong("the proof's counts do not add up: %v", p)
	}
}

// story tells what was seen of a notification, in order.
func (c *check) story(s *Submitted) string {
	type event struct {
		at   time.Time
		text string
	}
	var events []event
	tell := func(at time.Time, format string, args ...any) {
		events = append(events, event{at, fmt.Sprintf(format, args...)})
	}
	if !s.Accepted.IsZero() {
		tell(s.Accepted, "the caller hears of the acceptance")
	}
	if at := c.h.delivered[s.ID]; !at.IsZero() {
		tell(at, "it is first seen as delivered")
	}
	for _, r := range c.byID[s.ID] {
		tell(r.At, "the merchant sees attempt %d and answers %d after %s", r.Number, r.Status, r.Done.Sub(r.At).Round(time.Millisecond))
	}
	found := c.found.Notifications[s.ID]
	for _, a := range found.GetAttempts() {
		tell(a.StartedAt.AsTime(), "the ledger: attempt %d of generation %d (%s): %s %s %d", a.Number, a.Generation, a.Trigger, a.Outcome, a.Reason, a.HttpStatus)
	}
	first, last := c.h.to, c.h.from
	for _, e := range events {
		if e.at.Before(first) {
			first = e.at
		}
		if e.at.After(last) {
			last = e.at
		}
	}
	for _, i := range c.h.incidents {
		if !i.To.Before(first.Add(-time.Second)) && !i.From.After(last) {
			tell(i.From, "%s, for %s", i.What, i.To.Sub(i.From).Round(time.Millisecond))
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	n := found.GetNotification()
	var out strings.Builder
	fmt.Fprintf(&out, "%s for %s, lane %s, rule %q, accepted at %s, in the end %s %s, generation %d, resends asked for %d\n", s.ID, s.Merchant,
		n.GetLane(), n.GetRule(), n.GetAcceptedAt().AsTime().Format(clock), n.GetState(), n.GetStateReason(), n.GetGeneration(), s.Resends)
	for _, e := range events {
		fmt.Fprintf(&out, "    %s %s\n", e.at.UTC().Format(clock), e.text)
	}
	return out.String()
}
