package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	// maxInFlight bounds the calls that wait for an answer; when they all do, the next order is not made.
	maxInFlight = 32
	// callBound is what one call may take. The engine answers a sync scene before its caller's time is up.
	callBound = 8 * time.Second

	firstWait = 200 * time.Millisecond
	mostWait  = 3 * time.Second

	duplicateEvery = 17 // orders
	burstEvery     = 60 // orders
	burstSize      = 8
)

// Submit plays the payment service until ctx ends: it registers the merchants, waiting for the intake as long as it takes,
// and submits a trickle. Whatever goes wrong is printed, and it goes on.
func (d *Demo) Submit(ctx context.Context) {
	defer d.client.CloseIdleConnections()
	if !d.register(ctx) {
		return
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	places := make(chan struct{}, maxInFlight)
	ticker := time.NewTicker(time.Duration(float64(time.Second) / d.config.Rate))
	defer ticker.Stop()
	t := newTill(d.actors)
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case places <- struct{}{}:
		default:
			d.trouble.say("submit", errors.New("every earlier call still waits for its answer; an order is skipped"))
			continue
		}
		call := d.orders(t, n)
		calls.Go(func() {
			defer func() { <-places }()
			call(ctx)
		})
	}
}

// orders is the nth thing the payment service does.
func (d *Demo) orders(t *till, n int) func(ctx context.Context) {
	now := time.Now()
	if n%burstEvery == burstEvery/4 {
		batch := t.burst(t.one("campus-card", "maple-payroll"), burstSize, now)
		return func(ctx context.Context) { d.submitBatch(ctx, batch) }
	}
	order := t.next(now)
	again := n%duplicateEvery == 0
	return func(ctx context.Context) {
		if d.submitOne(ctx, order) && again { // as a payment service does that did not see the answer
			d.submitOne(ctx, proto.CloneOf(order))
		}
	}
}

// register stores the merchants' settings. It tries until it has worked; false: ctx ended first.
func (d *Demo) register(ctx context.Context) bool {
	wait := firstWait
	for _, a := range d.actors {
		for !d.put(ctx, a) {
			if !pause(ctx, wait) {
				return false
			}
			wait = min(2*wait, mostWait)
		}
		wait = firstWait
	}
	d.trouble.over()
	d.config.Log("demo: %d merchants answer at %s", len(d.actors), d.URL())
	return true
}

// put stores one merchant's settings. A merchant that cannot be stored for good is left out, not tried for ever.
func (d *Demo) put(ctx context.Context, a *actor) bool {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	_, err := d.settings.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: a.merchant(d.URL())}))
	if err == nil {
		return true
	}
	if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		d.trouble.say("register "+a.ID, err)
	}
	return connect.CodeOf(err) == connect.CodeInvalidArgument
}

func (d *Demo) submitOne(ctx context.Context, n *notifydv1.Notification) bool {
	return d.try(ctx, "submit "+n.OrderId, func(ctx context.Context) error {
		_, err := d.submit.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
		return err
	})
}

func (d *Demo) submitBatch(ctx context.Context, ns []*notifydv1.Notification) {
	d.try(ctx, fmt.Sprintf("submit batch of %d", len(ns)), func(ctx context.Context) error {
		resp, err := d.submit.SubmitBatch(ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: ns}))
		if err != nil {
			return err
		}
		for _, result := range resp.Msg.Results {
			if e := result.GetError(); e != nil {
				return fmt.Errorf("%s: %s", e.Code, e.Message)
			}
		}
		return nil
	})
}

// try submits, and once more when the intake cannot take it now, as a careful payment service does.
func (d *Demo) try(ctx context.Context, doing string, submit func(ctx context.Context) error) bool {
	for attempt := 1; ; attempt++ {
		bound, cancel := context.WithTimeout(ctx, callBound)
		err := submit(bound)
		cancel()
		switch {
		case err == nil:
			d.trouble.over()
			return true
		case ctx.Err() != nil: // the demo ends
			return false
		}
		code := connect.CodeOf(err)
		again := code == connect.CodeUnavailable || code == connect.CodeResourceExhausted || code == connect.CodeDeadlineExceeded
		if !again || attempt == 2 {
			d.trouble.say(doing, err)
			return false
		}
		if !pause(ctx, mostWait) {
			return false
		}
	}
}
