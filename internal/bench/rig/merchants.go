package rig

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Merchants is a class of merchants at an address, and what they have of their own.
type Merchants struct {
	Class    string
	Count    int
	Base     string // of their notify URLs
	Settings *notifydv1.Merchant
}

// registrars is how many merchants are registered at once: Postgres commits them together.
const registrars = 16

// Register makes merchants known to the engine.
func (e *Engine) Register(ctx context.Context, classes ...Merchants) error {
	client := notifydv1connect.NewMerchantServiceClient(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: registrars}}, e.Intakes[0])
	for _, c := range classes {
		var next atomic.Int64
		group, ctx := errgroup.WithContext(ctx)
		for range registrars {
			group.Go(func() error {
				for {
					i := int(next.Add(1)) - 1
					if i >= c.Count {
						return nil
					}
					if _, err := client.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: c.merchant(i)})); err != nil {
						return err
					}
				}
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// GenerateKey makes a key that signs requests.
func (e *Engine) GenerateKey(ctx context.Context, name, algorithm string) error {
	client := notifydv1connect.NewKeyServiceClient(&http.Client{}, e.Intakes[0])
	_, err := client.GenerateKey(ctx, connect.NewRequest(&notifydv1.GenerateKeyRequest{
		Name: name, Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_SIGN, Key: &notifydv1.GeneratedKey{Algorithm: algorithm},
	}))
	return err
}

func (c Merchants) merchant(i int) *notifydv1.Merchant {
	m := &notifydv1.Merchant{Id: MerchantID(c.Class, i), NotifyUrl: c.Base + "/" + MerchantPath(c.Class, i)}
	if s := c.Settings; s != nil {
		m.Contract, m.Limits, m.Schedule, m.Isolation, m.Persist, m.Timeouts = s.Contract, s.Limits, s.Schedule, s.Isolation, s.Persist, s.Timeouts
	}
	return m
}

// Pause holds what comes for a class of merchants from now on, on all nodes.
func (e *Engine) Pause(ctx context.Context, c Merchants) error {
	client := notifydv1connect.NewMerchantServiceClient(&http.Client{}, e.Intakes[0])
	for i := range c.Count {
		req := &notifydv1.PauseMerchantRequest{Id: MerchantID(c.Class, i), Reason: "measuring what rests"}
		if _, err := client.PauseMerchant(ctx, connect.NewRequest(req)); err != nil {
			return err
		}
	}
	last := MerchantID(c.Class, c.Count-1)
	for _, intake := range e.Intakes {
		node := notifydv1connect.NewNotificationServiceClient(&http.Client{}, intake)
		err := Until(ctx, 20*time.Millisecond, "a node knows that "+last+" is paused", func() (bool, error) {
			ask := &notifydv1.ExplainRequest{Notification: &notifydv1.Notification{
				Source: "rig", RequestId: "1", MerchantId: last, Scene: "payout", EventType: "payment.succeeded", OrderId: "1", OrderStatus: "SUCCESS", Terminal: true, Payload: "{}",
			}}
			res, err := node.Explain(ctx, connect.NewRequest(ask))
			return err == nil && res.Msg.Gate == string(notification.ReasonMerchantPaused), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// MerchantPath is where a class' merchant answers; the sink reads the class from it.
func MerchantPath(class string, i int) string { return class + "/" + strconv.Itoa(i) }
