package dispatcher

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// An operator sees bodies with people's numbers hidden until a reason is given, which stands in the log; a source sees
// its own as they are.
func TestBodiesAreMasked(t *testing.T) {
	f := newFront(t, CallersConfig{})
	const payload = `{"card":"4111111111111111","phone":"13812345678","id":"11010519491231002X","amount":10.50}`
	n := payment("masked")
	n.Payload = payload
	ctx := t.Context()
	submitted, err := f.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
	must(t, err)
	get := func(caller Caller, why string) *notifydv1.GetNotificationResponse {
		t.Helper()
		got, err := f.GetNotification(context.WithValue(ctx, callerKey{}, caller), connect.NewRequest(&notifydv1.GetNotificationRequest{Id: submitted.Msg.Id, RevealReason: why}))
		must(t, err)
		return got.Msg
	}
	const hidden = `{"card":"411111******1111","phone":"138****5678","id":"110105********002X","amount":10.50}`
	for _, caller := range []Caller{{}, {Operator: "mei"}} {
		if got := get(caller, ""); got.Notification.Payload != hidden || !got.Masked {
			t.Errorf("%v sees %s, masked: %v", caller, got.Notification.Payload, got.Masked)
		}
		listed, err := f.ListNotifications(context.WithValue(ctx, callerKey{}, caller), connect.NewRequest(&notifydv1.ListNotificationsRequest{}))
		must(t, err)
		if got := listed.Msg.Notifications[0].Payload; got != hidden {
			t.Errorf("%v lists %s", caller, got)
		}
	}
	if got := get(Caller{Operator: "mei"}, "dispute 81"); got.Notification.Payload != payload || got.Masked {
		t.Errorf("with a reason: %s, masked: %v", got.Notification.Payload, got.Masked)
	}
	if lines := f.lines.FilterMessage("bodies are revealed").All(); len(lines) != 1 || !strings.Contains(lines[0].ContextMap()["to"].(string), "mei") || lines[0].ContextMap()["why"] != "dispute 81" {
		t.Errorf("the log says %v", lines)
	}
	if got := get(Caller{Source: n.Source}, ""); got.Notification.Payload != payload || got.Masked {
		t.Errorf("its source sees %s", got.Notification.Payload)
	}
}

func TestAttemptsAreMasked(t *testing.T) {
	a := &notifydv1.Attempt{
		Request:  &notifydv1.HttpRequest{Body: []byte("card=4111111111111111")},
		Response: &notifydv1.HttpResponse{Body: []byte("thanks, 13812345678")},
	}
	if !maskAttempt(a) || string(a.Request.Body) != "card=411111******1111" || string(a.Response.Body) != "thanks, 138****5678" {
		t.Errorf("got %s and %s", a.Request.Body, a.Response.Body)
	}
	if maskAttempt(&notifydv1.Attempt{Response: &notifydv1.HttpResponse{Body: []byte("success")}}) {
		t.Error("nothing is hidden in success")
	}
}
