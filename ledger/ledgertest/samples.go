package ledgertest

import (
	"crypto/rand"
	"fmt"
	"time"

	"notifyd/notification"
)

// Plain is a notification in state accepted.
func Plain(number int, at time.Time) *notification.Notification {
	n := &notification.Notification{
		Source: "pay", RequestID: fmt.Sprintf("request-%d", number), MerchantID: "m-1", Scene: "withhold", EventType: "withhold.succeeded",
		OrderID: fmt.Sprintf("order-%d", number), NotifyURL: "https://merchant.example/notify", Body: []byte(`{"amount": 10.50}`),
		AcceptedAt: at.UTC().Truncate(time.Microsecond), Origin: "submit",
		Route: notification.Route{Lane: notification.LaneAsync, IsolationKey: "m-1", Egress: "direct", Persist: notification.PersistStream, Rule: "default"},
	}
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	n.State, n.Reason, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, n.AcceptedAt
	return n
}

// Full is a notification with something in every field.
func Full(number int, at time.Time) *notification.Notification {
	n := Plain(number, at)
	at = n.AcceptedAt
	n.AppID, n.OrderStatus, n.Terminal, n.StatusVersion, n.BatchID = "app", "paid", true, 7, "batch"
	n.ContentType, n.Body = "application/octet-stream", []byte{0, 1, 0xff, '"', '\\', '\n'}
	n.Amount = notification.Amount{Currency: "CNY", MinorUnits: -9_007_199_254_740_993}
	n.OccurredAt, n.OrderCreatedAt = at.Add(-time.Hour), at.Add(-2*time.Hour)
	n.NotBefore, n.ExpiresAt = at.Add(time.Second), at.Add(time.Hour)
	n.OrderingKey, n.SupersedeKey = "支付", "supersede"
	n.Labels = map[string]string{"city": "上海", "odd": "a\"b\\c\x00<>&"}
	n.RequestedLane, n.Route.Lane, n.Route.Persist, n.Route.Schedule = notification.LaneSync, notification.LaneSync, notification.PersistAfter, "1-5-15"
	n.Digest = n.ContentDigest()
	n.Progress = notification.Progress{
		State: notification.StateRetrying, Reason: notification.ReasonHTTPServerError, Generation: 3, Attempts: 5, Step: 2,
		NextAt: at.Add(time.Minute), WindowFrom: at.Add(time.Millisecond), Resting: true, DeferredFor: 1500 * time.Millisecond,
		DeferredSince: at.Add(2 * time.Second), SettledAt: at.Add(3 * time.Second), SettledBy: notification.SettledBySchedule, UpdatedAt: at.Add(4 * time.Second),
	}
	return n
}

// FullAttempt is an attempt with something in every field.
func FullAttempt(number int, at time.Time) notification.Attempt {
	return notification.Attempt{
		Key: Key(), Number: number, Generation: 3, Kind: notification.KindSend, Trigger: notification.TriggerSweep,
		Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPServerError, Detail: "status 500", Counted: true,
		StartedAt: at, Took: 1234567 * time.Microsecond,
		Phases:   notification.Phases{DNS: time.Millisecond, Connect: 2 * time.Millisecond, TLS: 3 * time.Millisecond, Write: 4 * time.Microsecond, FirstByte: 5 * time.Second, Read: 6 * time.Microsecond},
		Connects: 2, LocalAddr: "10.0.0.1:40000", RemoteAddr: "203.0.113.9:443", TLS: "TLS 1.3", Egress: "direct", KeyIDs: []string{"k-1", "k-2"}, SettingsVersion: 42,
		Request:  notification.Request{Method: "POST", URL: "https://merchant.example/notify", Headers: []notification.Header{{Name: "webhook-id", Value: "ntf_x"}}, Body: []byte("signed=1&body=2")},
		Response: &notification.Response{Status: 500, Headers: []notification.Header{{Name: "Server", Value: "nginx"}}, Body: []byte{0xff, 0, 'x'}, Truncated: true},
		LateAt:   at.Add(11 * time.Second), Operator: "alice", RetryAfter: 30 * time.Second,
	}
}

// BareAttempt is an attempt that got no answer.
func BareAttempt(n *notification.Notification, number int) notification.Attempt {
	return notification.Attempt{
		Key: Key(), Number: number, Kind: notification.KindSend, Trigger: notification.TriggerAuto, Outcome: notification.OutcomeUnconfirmed,
		Reason: notification.ReasonResponseTimeout, Counted: true, StartedAt: n.AcceptedAt, Egress: "direct",
		Request: notification.Request{Method: "POST", URL: n.NotifyURL, Body: n.Body},
	}
}

// Key is a random key of an attempt.
func Key() (key notification.ID) {
	rand.Read(key[:])
	return key
}

// With is a copy of a notification that stands elsewhere.
func With(n *notification.Notification, change func(*notification.Progress)) *notification.Notification {
	next := *n
	change(&next.Progress)
	return &next
}

// Tried is a copy after one more failed attempt, due again at next.
func Tried(n *notification.Notification, at, next time.Time) *notification.Notification {
	return With(n, func(p *notification.Progress) {
		p.State, p.Reason = notification.StateRetrying, notification.ReasonHTTPServerError
		p.Attempts++
		p.Step++
		p.NextAt, p.UpdatedAt = next, at
	})
}

// Delivered is a copy after one more attempt that succeeded.
func Delivered(n *notification.Notification, at time.Time) *notification.Notification {
	return With(n, func(p *notification.Progress) {
		p.Attempts++
		p.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, at)
	})
}
