package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"notifyd/notification"
)

// terminal prints one wide line for each attempt, for people.
type terminal struct {
	onlyAttempts
	mu  sync.Mutex
	out io.Writer
}

// Attempted prints when, outcome, reason, status, time, attempt number, scene, merchant, id, what comes next, URL.
func (t *terminal) Attempted(after *notification.Notification, a *notification.Attempt) {
	status := "---"
	if a.Response != nil {
		status = strconv.Itoa(a.Response.Status)
	}
	line := fmt.Sprintf("%s %-11s %-20s %s %7s #%d %-8s %-5s %-22s %s %s %s\n",
		a.StartedAt.Local().Format("15:04:05.000"), a.Outcome, a.Reason, status, a.Took.Round(100*time.Microsecond), a.Number,
		after.Scene, after.Route.Lane, after.MerchantID, after.ID, next(after, a), withoutQuery(after.NotifyURL))
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = io.WriteString(t.out, line) // a terminal that is gone must not stop deliveries
}

func next(n *notification.Notification, a *notification.Attempt) string {
	if n.State == notification.StateRetrying {
		return "again in " + n.NextAt.Sub(a.StartedAt.Add(a.Took)).Round(time.Second).String()
	}
	return n.State.String()
}
