package dispatcher

import (
	"testing"

	"connectrpc.com/connect"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// What there is no room for is refused before anything is reserved (P10).
func TestNoRoomIsRefusedBeforeItIsReserved(t *testing.T) {
	cfg := DefaultConfig()
	cfg.IntakeBytes = 1 << 20
	inBubble(t, cfg, func(t *testing.T, w *world) {
		w.shards.full = true
		_, err := w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeResourceExhausted, true)
		w.shards.full = false
		if !w.room.TryAcquire(1<<20 - 1) {
			t.Fatal("no room at the start")
		}
		_, err = w.submitOne(t.Context(), payment("a"))
		wantCode(t, err, connect.CodeResourceExhausted, true)
		w.room.Release(1<<20 - 1)
		res, err := w.submitOne(t.Context(), payment("a"))
		if err != nil || res.Duplicate {
			t.Fatalf("%v, %v", res, err)
		}
		if !w.room.TryAcquire(1 << 20) {
			t.Error("room was not given back")
		}
	})
}

// While there is too much to do, submissions are refused unread, in the caller's protocol and with a time to wait; other
// calls are answered.
func TestShed(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		_, service := notifydv1connect.NewNotificationServiceHandler(w.Dispatcher)
		door := inProcess{w.Shed(service)}
		for _, protocol := range []connect.ClientOption{connect.WithProtoJSON(), connect.WithGRPCWeb()} {
			client := notifydv1connect.NewNotificationServiceClient(door, "http://notifyd", protocol)
			w.shards.full = true
			_, err := client.Submit(t.Context(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: payment("a")}))
			wantCode(t, err, connect.CodeResourceExhausted, true)
			_, err = client.SubmitBatch(t.Context(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: []*notifydv1.Notification{payment("a")}}))
			wantCode(t, err, connect.CodeResourceExhausted, true)
			_, err = client.GetNotification(t.Context(), connect.NewRequest(&notifydv1.GetNotificationRequest{Source: "pay", RequestId: "a"}))
			wantCode(t, err, connect.CodeNotFound, false)
			w.shards.full = false
		}
		client := notifydv1connect.NewNotificationServiceClient(door, "http://notifyd")
		if res, err := client.Submit(t.Context(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: payment("a")})); err != nil || res.Msg.Duplicate {
			t.Errorf("%v, %v", res, err)
		}
		if !w.room.TryAcquire(w.cfg.IntakeBytes) {
			t.Error("room was not given back")
		}
	})
}
