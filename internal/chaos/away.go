package chaos

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// DoWith hurts the run by a fault, looks at what holds while it lasts, and then waits for a while longer.
func (r *Run) DoWith(f Fault, look func(), d time.Duration) {
	r.tb.Helper()
	var heal func()
	r.Hurt(f.Name, d, func() { heal = f.Hurt(r.tb, r); look() }, func() { heal() })
}

const (
	// awayBound is how long anything may take during an outage on a busy machine; on a free one it is a tenth.
	awayBound = 40 * time.Second
	// answerWithin bounds an answer in the moment in which a dependency goes away: a second for it, and what a busy machine adds.
	answerWithin = 3 * time.Second
)

// PostgresAway checks what callers see of a node while Postgres is away: what is submitted is told, retries included, and
// found by its id; whatever needs the ledger says at once that it is unavailable.
func (r *Run) PostgresAway(n *Node) {
	r.tb.Helper()
	e := n.Engine()
	r.refuses("list", func(ctx context.Context) error {
		_, err := e.Notifications.ListNotifications(ctx, connect.NewRequest(&notifydv1.ListNotificationsRequest{Filter: &notifydv1.NotificationFilter{MerchantId: "flaky"}}))
		return err
	})
	for _, merchant := range []string{"swift-stream", "swift-ledger", "flaky"} {
		p := r.told(n, merchant)
		r.within(p.id+" is found as delivered", func() bool {
			ctx, cancel := bounded(r.tb, answerBound)
			defer cancel()
			res, err := e.Notifications.GetNotification(ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: p.id}))
			return err == nil && res.Msg.LedgerUnavailable && res.Msg.Notification.State == notifydv1.State_STATE_DELIVERED
		})
		r.refuses("resend", func(ctx context.Context) error {
			res, err := e.Notifications.ResendNotifications(ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{p.id}, Operator: "chaos"}))
			return firstError(res, err, func(m *notifydv1.ResendNotificationsResponse) *notifydv1.ItemError { return m.Results[0].Error })
		})
		r.refuses("cancel", func(ctx context.Context) error {
			res, err := e.Notifications.CancelNotifications(ctx, connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{p.id}, Operator: "chaos"}))
			return firstError(res, err, func(m *notifydv1.CancelNotificationsResponse) *notifydv1.ItemError { return m.Results[0].Error })
		})
	}
}

// firstError is a call's error, or its first item's.
func firstError[M any](res *connect.Response[M], err error, of func(*M) *notifydv1.ItemError) error {
	if err != nil {
		return err
	}
	if item := of(res.Msg); item != nil && item.Code == connect.CodeUnavailable.String() {
		return connect.NewError(connect.CodeUnavailable, errors.New(item.Message))
	}
	return nil
}

// refuses waits until a question is answered UNAVAILABLE, for the ledger. No answer may take long.
func (r *Run) refuses(what string, ask func(context.Context) error) {
	r.tb.Helper()
	var err error
	r.within(what+" is refused", func() bool {
		ctx, cancel := bounded(r.tb, answerBound)
		defer cancel()
		began := time.Now()
		err = ask(ctx)
		if took := time.Since(began); took > answerWithin {
			r.History.Broken("%s: answered after %s", what, took.Round(time.Millisecond))
		}
		return connect.CodeOf(err) == connect.CodeUnavailable
	})
	if !strings.Contains(err.Error(), "the ledger is unavailable") {
		r.History.Broken("%s: says %v", what, err)
	}
}

// NATSAway checks what callers see of a node while NATS is away: what is submitted is told, from the ledger, and who waits
// for an answer has it.
func (r *Run) NATSAway(n *Node) {
	r.tb.Helper()
	for _, merchant := range []string{"swift-stream", "swift-ledger", "flaky"} {
		r.told(n, merchant)
	}
	p := r.newProbe("swift-0")
	p.draft.Scene = "scan"
	r.within("a caller who waits has the merchant's answer", func() bool { return r.submitProbe(n, p.draft) })
	if !r.History.Acknowledged(p.id) {
		r.History.Broken("%s: a caller who waits is answered before the merchant was asked", p.id)
	}
}

// told submits a notification, which is retried by those who need to be, and waits until its merchant has acknowledged it.
func (r *Run) told(n *Node, merchant string) *probe {
	r.tb.Helper()
	p := r.newProbe(merchant)
	for merchant == "flaky" && !third(Request{Body: r.History.Body(p.id)}) {
		p = r.newProbe(merchant)
	}
	began := time.Now()
	r.within("a submission is accepted", func() bool { p.accepted = r.submitProbe(n, p.draft); return p.accepted })
	accepted := time.Since(began)
	r.within(merchant+" acknowledges what was submitted now", func() bool { return r.History.Acknowledged(p.id) })
	r.tb.Logf("    %-12s accepted after %4d ms, told after %4d ms", merchant, accepted.Milliseconds(), time.Since(began).Milliseconds())
	return p
}

// InHand returns when attempts are under way that take longer than an outage takes to be noticed.
func (r *Run) InHand(n *Node) {
	r.tb.Helper()
	for range 3 {
		p := r.newProbe("hanging")
		for !third(Request{Body: r.History.Body(p.id)}) {
			p = r.newProbe("hanging")
		}
		r.within("a submission is accepted", func() bool { return r.submitProbe(n, p.draft) })
		r.within("its merchant is asked", func() bool { return r.History.Requests(p.id) > 0 })
	}
}

// BothAway checks that a node refuses in time what it cannot keep, for each way in.
func (r *Run) BothAway(n *Node) {
	r.tb.Helper()
	for _, round := range []string{"as they go", "once it is known"} {
		var asking sync.WaitGroup
		var mu sync.Mutex
		var longest time.Duration
		refused := 0
		for _, merchant := range []string{"swift-0", "swift-stream", "swift-ledger", "swift-after"} {
			for _, scene := range []string{"payout", "scan"} {
				p := r.newProbe(merchant)
				p.draft.Scene = scene
				r.giveUp(p) // a caller asks again
				asking.Go(func() {
					began := time.Now()
					accepted := r.submitProbe(n, p.draft)
					mu.Lock()
					defer mu.Unlock()
					if longest = max(longest, time.Since(began)); !accepted {
						refused++
					}
				})
			}
		}
		asking.Wait()
		r.tb.Logf("    both away, %s: %d of 8 refused, within %d ms", round, refused, longest.Milliseconds())
		if longest > answerWithin {
			r.History.Broken("with both away a submission is answered after %s", longest.Round(time.Millisecond))
		}
	}
}

// Restart kills a node and starts it while its outage goes on.
func (r *Run) Restart(n *Node) {
	r.tb.Helper()
	r.restarted = true
	n.Kill()
	if err := n.Start(r.tb); err != nil {
		r.tb.Fatal(err)
	}
}

func (r *Run) within(what string, holds func() bool) {
	r.tb.Helper()
	scenario.Within(r.tb, awayBound, what, holds)
}

// Named is the fault of that name.
func Named(tb testing.TB, name string) Fault {
	tb.Helper()
	for _, f := range append(Outages(), DiskFull()) {
		if f.Name == name {
			return f
		}
	}
	tb.Fatalf("no fault is named %q", name)
	return Fault{}
}
