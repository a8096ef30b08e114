package chaos_test

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/internal/chaos"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	delivered   = notifydv1.State_STATE_DELIVERED
	dead        = notifydv1.State_STATE_DEAD
	accepted    = notifydv1.State_STATE_ACCEPTED
	unconfirmed = notifydv1.Outcome_OUTCOME_UNCONFIRMED
)

// told is a made-up history of one notification and what the engine says of it: all is well, until a case changes it.
type told struct {
	h        *chaos.History
	began    time.Time
	found    chaos.Findings
	attempts []*notifydv1.Attempt
}

func well() *told {
	c := &told{h: chaos.NewHistory(), began: time.Now()}
	c.h.Submitting("id", "shop", body("it"))
	c.h.Accepted(&notifydv1.SubmitResponse{Id: "id", State: accepted}, c.began)
	c.ends(delivered)
	c.found.Settled = time.Second
	c.found.Proof = &notifydv1.ProveResponse{Accepted: 1, Final: map[string]int64{"delivered": 1}, Done: true}
	return c
}

func body(text string) chaos.Digest { return sha256.Sum256([]byte(text)) }

func (c *told) ends(state notifydv1.State) {
	c.found.Notifications = map[string]*notifydv1.GetNotificationResponse{"id": {Notification: &notifydv1.Notification{Id: "id", State: state}, Attempts: c.attempts}}
}

// request is one that the merchant saw, so many seconds after the beginning.
func (c *told) request(number, status int, at float64) {
	when := c.began.Add(time.Duration(at * float64(time.Second)))
	c.h.Requested(chaos.Request{ID: "id", Number: number, Body: body("it"), At: when, Status: status, Done: when})
}

func (c *told) row(number int32, outcome notifydv1.Outcome, reason string, status int32, trigger notifydv1.Trigger) {
	c.attempts = append(c.attempts, &notifydv1.Attempt{Number: number, Outcome: outcome, Reason: reason, HttpStatus: status, Trigger: trigger, StartedAt: timestamppb.New(c.began)})
	c.found.Notifications["id"].Attempts = c.attempts
}

// once is an attempt that was made, acknowledged and recorded.
func (c *told) once(number int, at float64, trigger notifydv1.Trigger) {
	c.request(number, 200, at)
	c.row(int32(number), notifydv1.Outcome_OUTCOME_DELIVERED, "acknowledged", 200, trigger)
}

func (c *told) killed(at float64) {
	when := c.began.Add(time.Duration(at * float64(time.Second)))
	c.h.Hurt(chaos.Incident{What: "kill -9", From: when, To: when.Add(time.Second)})
}

func (c *told) blind(at float64) {
	when := c.began.Add(time.Duration(at * float64(time.Second)))
	c.h.Hurt(chaos.Incident{What: "postgres away", From: when, To: when.Add(2 * time.Second), Blind: true})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	auto, resend := notifydv1.Trigger_TRIGGER_AUTO, notifydv1.Trigger_TRIGGER_RESEND
	for name, test := range map[string]struct {
		happens func(c *told)
		wrong   string // part of the one violation; empty: there is none
		lost    int
		repeats int
	}{
		"told once": {happens: func(c *told) { c.once(1, 1, auto) }},
		"dead after what the merchant answered": {happens: func(c *told) {
			c.request(1, 500, 1)
			c.row(1, notifydv1.Outcome_OUTCOME_RETRYABLE, "http_server_error", 500, auto)
			c.ends(dead)
			c.found.Proof.Final = map[string]int64{"dead": 1}
		}},
		"in flight at a kill": {repeats: 1, happens: func(c *told) {
			c.request(1, 200, 1)
			c.killed(1.1)
			c.row(1, unconfirmed, "interrupted", 0, auto)
			c.once(2, 3, auto)
		}},
		"resent": {happens: func(c *told) {
			c.once(1, 1, auto)
			c.h.Resent("id")
			c.once(2, 2, resend)
		}},
		"unknown": {wrong: "does not know it", lost: 1, happens: func(c *told) {
			c.found.Notifications = nil
			c.found.Proof.Final, c.found.Proof.Waiting = nil, map[string]int64{"shard": 1}
		}},
		"called delivered": {wrong: "never acknowledged", lost: 1, happens: func(*told) {}},
		"repeated without a reason": {wrong: "attempt 2 repeats attempt 1, which is on record as", repeats: 1, happens: func(c *told) {
			c.once(1, 1, auto)
			c.once(2, 2, auto)
		}},
		"repeated long before a kill": {wrong: "nothing was hurt in between", repeats: 1, happens: func(c *told) {
			c.request(1, 200, 1)
			c.row(1, unconfirmed, "interrupted", 0, auto)
			c.once(2, 2, auto)
			c.killed(60)
		}},
		"told again as if new": {wrong: "two requests say that they are attempt 1", repeats: 1, happens: func(c *told) {
			c.once(1, 1, auto)
			c.request(1, 200, 5)
			c.blind(4)
		}},
		"taken for new by who could not know, and nobody heard": {happens: func(c *told) {
			c.once(1, 1, auto)
			c.h.AskedAgain("id", c.began.Add(4*time.Second))
			c.request(1, 200, 5)
			c.blind(4)
		}},
		"told again long after it was submitted again": {wrong: "two requests say that they are attempt 1", repeats: 1, happens: func(c *told) {
			c.once(1, 1, auto)
			c.h.AskedAgain("id", c.began.Add(-4*time.Second))
			c.request(1, 200, 5)
			c.blind(4)
		}},
		"resent without being asked": {wrong: "resent 1 times, asked for 0 times", happens: func(c *told) {
			c.once(1, 1, auto)
			c.once(2, 2, resend)
		}},
		"not on record": {wrong: "attempt 2 was made and is not on record", happens: func(c *told) {
			c.request(2, 500, 1)
			c.once(1, 2, auto)
		}},
		"on record and never made": {wrong: "its merchant never saw it", happens: func(c *told) {
			c.once(1, 1, auto)
			c.row(2, notifydv1.Outcome_OUTCOME_RETRYABLE, "http_server_error", 500, auto)
		}},
		"recorded otherwise": {wrong: "was answered 500 and is on record with 503", happens: func(c *told) {
			c.request(1, 500, 1)
			c.row(1, notifydv1.Outcome_OUTCOME_RETRYABLE, "http_server_error", 503, auto)
			c.once(2, 2, auto)
		}},
		"reopened": {wrong: "was delivered, and ended as", happens: func(c *told) {
			c.once(1, 1, auto)
			c.h.Saw("id", delivered, c.began)
			c.ends(accepted)
			c.found.Proof.Final, c.found.Proof.Waiting = nil, map[string]int64{"shard": 1}
		}},
		"other bytes": {wrong: "carried other bytes", happens: func(c *told) {
			c.once(1, 2, auto)
			c.h.Requested(chaos.Request{ID: "id", Number: 1, Body: body("other"), At: c.began, Status: 500, Done: c.began})
			c.attempts[0].Outcome, c.attempts[0].HttpStatus = unconfirmed, 0
		}},
		"missing in the proof": {wrong: "the proof misses 1", happens: func(c *told) {
			c.once(1, 1, auto)
			c.found.Proof.Accepted, c.found.Proof.Missing = 2, 1
			c.h.Submitting("other", "shop", body("it"))
			c.h.Accepted(&notifydv1.SubmitResponse{Id: "other", State: accepted}, c.began)
			c.found.Notifications["other"] = &notifydv1.GetNotificationResponse{Notification: &notifydv1.Notification{Id: "other", State: accepted}}
		}},
		"the proof counts otherwise": {wrong: "the proof knows of 2, and 1 were accepted", happens: func(c *told) {
			c.once(1, 1, auto)
			c.found.Proof.Accepted, c.found.Proof.Final["dead"] = 2, 1
		}},
		"nobody submitted it": {wrong: "nobody submitted it", happens: func(c *told) {
			c.once(1, 1, auto)
			c.h.Requested(chaos.Request{ID: "stranger", Number: 1, At: c.began, Done: c.began})
		}},
		"not settled": {wrong: "not everything was settled", happens: func(c *told) {
			c.once(1, 1, auto)
			c.found.Settled = 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := well()
			test.happens(c)
			c.h.EndLoad()
			got := chaos.Check(c.h, c.found)
			if (test.wrong == "") != (len(got.Violations) == 0) || len(got.Violations) > 1 || !strings.Contains(strings.Join(got.Violations, "\n"), test.wrong) {
				t.Errorf("violations %q, want one with %q", got.Violations, test.wrong)
			}
			if len(got.Lost) != test.lost || got.Repeated != test.repeats {
				t.Errorf("lost %d, repeated %d, want %d, %d", len(got.Lost), got.Repeated, test.lost, test.repeats)
			}
		})
	}
}
