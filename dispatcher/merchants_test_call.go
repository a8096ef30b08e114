package dispatcher

import (
	"context"
	"crypto/rand"
	"fmt"

	"connectrpc.com/connect"

	"notifyd/contract"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// testSource and testEvent are what a test call says of itself.
const testSource, testEvent = "notifyd", "notifyd.test"

// TestMerchant makes one attempt as any other, but for nobody: it is kept nowhere, counts for no breaker, and goes to a merchant
// that is paused, too.
func (s *MerchantService) TestMerchant(ctx context.Context, req *connect.Request[notifydv1.TestMerchantRequest]) (*connect.Response[notifydv1.TestMerchantResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m, err := s.findMerchant(ctx, req.Msg.Id)
	if err != nil {
		return nil, err
	}
	m = m.ForScene(req.Msg.Scene)
	now := s.now()
	n := &notification.Notification{
		Source: testSource, RequestID: rand.Text(), MerchantID: m.ID, Scene: req.Msg.Scene, EventType: testEvent, OrderID: "test-" + rand.Text()[:8],
		OrderStatus: "TEST", NotifyURL: m.NotifyURL, Body: []byte(req.Msg.Payload), AcceptedAt: now,
	}
	if n.ID = n.DeriveID(); req.Msg.NotifyUrl != "" {
		n.NotifyURL = req.Msg.NotifyUrl
	}
	if len(n.Body) == 0 {
		n.Body = contract.Sample(m.Contract.Profile, n)
	}
	if n.NotifyURL == "" {
		return nil, invalid("notify_url", "is empty, and the merchant has none of its own")
	}
	if err := s.urls.CheckURL(n.NotifyURL, m.URLPolicy, m.NotifyURL); err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("notify_url: %w", err))
	}
	if err := s.contracts.Check(m, n); err != nil {
		return nil, invalid("payload", err.Error())
	}
	a, signed := s.tester.Test(ctx, notification.Work{Notification: n, Trigger: notification.TriggerAuto}, m, req.Msg.WrongSignature)
	return connect.NewResponse(&notifydv1.TestMerchantResponse{
		Attempt: attemptToProto(&a), Signed: string(signed),
		AcceptedWrongSignature: req.Msg.WrongSignature && a.Outcome == notification.OutcomeDelivered,
	}), nil
}
