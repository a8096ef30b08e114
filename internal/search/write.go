package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"notifyd/internal/proc"
	"notifyd/ledger"
	"notifyd/notification"
)

// writesPerRound is enough that a hundredth of a second, in which the kernel counts CPU, is nothing.
const (
	writesPerRound = 20_000
	writeRounds    = 5
)

// measureWrites records new notifications through the ledger and prints Postgres' CPU time for each. They are delivered at
// the first attempt, as most are, and written once.
func (m *measurement) measureWrites(ctx context.Context, present int) error {
	postmaster := m.server.PID()
	var each []float64
	for round := range writeRounds {
		records, wanted := records(present, round, m.plan.Until)
		if _, err := m.ledger.Reserve(ctx, wanted); err != nil {
			return err
		}
		before := proc.FamilyCPU(postmaster)
		var all sync.WaitGroup
		failures := make(chan error, len(records))
		for _, r := range records {
			all.Add(1)
			m.ledger.Record(ctx, r, func(err error) {
				if err != nil {
					failures <- err
				}
				all.Done()
			})
		}
		all.Wait()
		if len(failures) > 0 {
			return <-failures
		}
		each = append(each, float64((proc.FamilyCPU(postmaster)-before).Microseconds())/writesPerRound)
	}
	slices.Sort(each)
	fmt.Printf("with %d rows present: a recorded notification costs Postgres %.1f µs of CPU (best of %d), %.1f µs (median)\n", present, each[0], writeRounds, each[writeRounds/2])
	return nil
}

func records(present, round int, at time.Time) ([]ledger.Record, []ledger.Reservation) {
	records, wanted := make([]ledger.Record, writesPerRound), make([]ledger.Reservation, writesPerRound)
	for i := range records {
		n := &notification.Notification{
			Source: fmt.Sprint("source-", i%40), RequestID: fmt.Sprint("write-", present, "-", round, "-", i), MerchantID: fmt.Sprint("merchant-", i*i%2000),
			Scene: fmt.Sprint("scene-", i*7%40), EventType: "payout.succeeded", OrderID: fmt.Sprint("order-", present, "-", round, "-", i),
			NotifyURL: "https://merchant.example/notify", Body: fmt.Appendf(nil, `{"order":"%d","amount":"10.50","note":"%0250d"}`, i, i),
			AcceptedAt: at.Add(time.Duration(present+round*writesPerRound+i) * time.Microsecond), Origin: "submit",
			Route: notification.Route{Lane: notification.LaneAsync, Egress: "direct", Persist: notification.PersistStream, Rule: "default"},
		}
		n.ID, n.Digest, n.Route.IsolationKey = n.DeriveID(), n.ContentDigest(), n.MerchantID
		n.Attempts, n.Step = 1, 1
		n.Settle(notification.StateDelivered, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, n.AcceptedAt.Add(time.Second))
		a := notification.Attempt{
			Key: n.ID, Number: 1, Kind: notification.KindSend, Trigger: notification.TriggerAuto, Outcome: notification.OutcomeDelivered,
			Reason: notification.ReasonAcknowledged, Counted: true, StartedAt: n.AcceptedAt, Took: 250 * time.Millisecond, Connects: 1, Egress: "direct",
			Request:  notification.Request{Method: "POST", URL: n.NotifyURL, Headers: []notification.Header{{Name: "webhook-id", Value: n.ID.String()}}, Body: n.Body},
			Response: &notification.Response{Status: 200, Headers: []notification.Header{{Name: "Content-Type", Value: "application/json"}}, Body: []byte(`{"code":"SUCCESS"}`)},
		}
		records[i] = ledger.Record{Notification: n, New: true, Attempts: []notification.Attempt{a}}
		wanted[i] = ledger.Reservation{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}
	}
	return records, wanted
}
