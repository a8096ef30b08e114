package dispatcher

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/egress"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/router"
	synclane "notifyd/sync"
)

// fullLane has no place, so that everything goes async.
type fullLane struct{}

func (fullLane) Enter(string) (*synclane.Place, error) { return nil, synclane.ErrFull }

func (fullLane) Ask(context.Context, *synclane.Place, notification.Work, time.Time) (synclane.Answer, error) {
	return synclane.Answer{}, synclane.ErrFull
}

type guardedURLs struct{}

func (guardedURLs) CheckURL(raw string, policy merchant.URLPolicy, own string) error {
	return egress.CheckURL(raw, policy, own, egress.Guard{})
}

// door is the handler of NotificationService without sockets, with one merchant, m, whose notifications have rows at once.
type door struct {
	handler http.Handler
	memory  *ledger.Memory
	lane    *fakeAsync
}

func newDoor(t *testing.T) *door {
	t.Helper()
	at := time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return at }
	d := &door{memory: ledger.NewMemory(ledger.Config{Now: now}), lane: &fakeAsync{log: &journal{}}}
	t.Cleanup(d.memory.Close)
	routes, err := router.New(router.Config{}, router.Known{})
	must(t, err)
	merchants := merchant.NewRegistry()
	merchants.Learn(&merchant.Merchant{ID: "m", Version: 1, NotifyURL: "https://m.test/notify", URLPolicy: merchant.URLPolicy{Hosts: []string{"m.test", "*.m.test"}}, Persist: notification.PersistLedger})
	serving, err := New(DefaultConfig(), Parts{
		Ledger: d.memory, Store: d.memory, Merchants: merchants, Router: routes, URLs: guardedURLs{}, Delay: &fakeDelay{log: &journal{}}, Hand: hand.NewTable(),
		Places: fakePlaces{}, Observer: Observers{}, Log: zap.NewNop(), Now: now,
	})
	must(t, err)
	serving.Connect(d.lane, fullLane{})
	_, d.handler = notifydv1connect.NewNotificationServiceHandler(serving, StrictJSON())
	return d
}

func (d *door) call(caller Caller, procedure, contentType string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, procedure, bytes.NewReader(body))
	r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r)
	return w
}

// wireError is an error as Connect writes it.
type wireError struct {
	Code    string
	Message string
	Details []struct{ Type, Value string }
}

// FuzzSubmit: whatever is sent has a well-formed answer that says what is wrong, and what is accepted is kept as it was given.
func FuzzSubmit(f *testing.F) {
	seed := func(change func(*notifydv1.Notification)) {
		req := &notifydv1.SubmitRequest{Notification: &notifydv1.Notification{
			Source: "pay", RequestId: "r1", MerchantId: "m", Scene: "payout", OrderId: "o1", Payload: "{\"a\": 1.10,\n\"b\":\"\\u0000\"}",
		}}
		change(req.Notification)
		text, err := protojson.Marshal(req)
		if err != nil {
			text = []byte("{}")
		}
		raw, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(false, text)
		f.Add(true, raw)
	}
	seed(func(*notifydv1.Notification) {})
	seed(func(p *notifydv1.Notification) {
		p.Scene, p.Lane, p.Terminal, p.StatusVersion = "scan", notifydv1.Lane_LANE_SYNC, true, 7
		p.Payload, p.Body, p.ContentType = "", []byte("a=1\x00\xff"), "application/x-www-form-urlencoded"
	})
	seed(func(p *notifydv1.Notification) {
		p.NotifyUrl, p.Labels, p.Amount = "https://a.m.test:8443/n?x=1", map[string]string{"k": "v", "": "x"}, &notifydv1.Amount{Currency: "CNY", MinorUnits: -1}
		p.NotBefore, p.ExpiresAt = &timestamppb.Timestamp{Seconds: 4e9}, &timestamppb.Timestamp{Seconds: 5e9, Nanos: 999_999_999}
	})
	seed(func(p *notifydv1.Notification) {
		p.OccurredAt = &timestamppb.Timestamp{Seconds: 1 << 50}
	})
	seed(func(p *notifydv1.Notification) {
		p.NotBefore = &timestamppb.Timestamp{Nanos: -1}
	})
	seed(func(p *notifydv1.Notification) {
		p.State, p.Rule, p.OrderingKey, p.Labels = notifydv1.State_STATE_DEAD, "r", "k", map[string]string{"a": "\n", "b": "\x7f"}
	})
	seed(func(p *notifydv1.Notification) { p.Payload = `{"card":"4111111111111111","phone":"13800138000"}` })
	f.Add(false, []byte(`{"notification":{"sceen":"scan"}}`))
	f.Fuzz(func(t *testing.T, binary bool, body []byte) {
		d, contentType, given := newDoor(t), "application/json", &notifydv1.SubmitRequest{}
		decode := func() error { return protojson.Unmarshal(body, given) }
		if binary {
			contentType = "application/proto"
			decode = func() error { return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, given) } // of a newer caller: nobody here keeps them
		}
		res := d.call(Caller{}, notifydv1connect.NotificationServiceSubmitProcedure, contentType, body)
		decoded := decode() == nil
		if res.Code != http.StatusOK {
			checkRefusal(t, res, decoded)
			if len(d.lane.accepted()) > 0 {
				t.Fatalf("refused, and in its lane: %s", res.Body)
			}
			return
		}
		if !decoded {
			t.Fatalf("what nobody can read is accepted: %s", res.Body)
		}
		answer := &notifydv1.SubmitResponse{}
		if err := readAnswer(binary, res.Body.Bytes(), answer); err != nil || answer.Id == "" || answer.State != notifydv1.State_STATE_ACCEPTED || answer.Rule == "" {
			t.Fatalf("%v, %v", answer, err)
		}
		d.checkKept(t, given.Notification, answer.Id)
	})
}

func readAnswer(binary bool, body []byte, into proto.Message) error {
	if binary {
		return proto.Unmarshal(body, into)
	}
	return protojson.Unmarshal(body, into)
}

func checkRefusal(t *testing.T, res *httptest.ResponseRecorder, decoded bool) {
	t.Helper()
	var said wireError
	if err := json.Unmarshal(res.Body.Bytes(), &said); err != nil || said.Message == "" || !strings.HasPrefix(res.Header().Get("Content-Type"), "application/json") {
		t.Fatalf("%d %s: %v", res.Code, res.Body, err)
	}
	switch {
	case said.Code == "not_found" || said.Code == "failed_precondition":
	case said.Code != "invalid_argument":
		t.Fatalf("code %s: %s", said.Code, said.Message)
	case !decoded:
		if !strings.HasPrefix(said.Message, "unmarshal message: ") || len(said.Message) > 2048 {
			t.Fatal(said.Message)
		}
	default:
		checkViolations(t, said)
	}
}

// checkViolations wants every fault to name a field and a rule, in the order of the names; the message repeats the first.
func checkViolations(t *testing.T, said wireError) {
	t.Helper()
	if len(said.Details) != 1 || said.Details[0].Type != "google.rpc.BadRequest" {
		t.Fatalf("no violations: %+v", said)
	}
	raw, err := base64.RawStdEncoding.DecodeString(said.Details[0].Value)
	bad := &errdetails.BadRequest{}
	if err := proto.Unmarshal(raw, bad); err != nil || len(bad.FieldViolations) == 0 {
		t.Fatalf("%+v: %v", said, err)
	}
	must(t, err)
	var fields []string
	for _, v := range bad.FieldViolations {
		if !strings.HasPrefix(v.Field, "notification") || v.Description == "" {
			t.Fatalf("names no field or no rule: %v", v)
		}
		fields = append(fields, v.Field)
	}
	first := bad.FieldViolations[0]
	if !slices.IsSorted(fields) || !strings.HasPrefix(said.Message, first.Field+": "+first.Description) {
		t.Fatalf("%s\nfields %q", said.Message, fields)
	}
}

// checkKept asks for what was accepted, as a caller would, and finds every field as it was given.
func (d *door) checkKept(t *testing.T, given *notifydv1.Notification, id string) {
	t.Helper()
	own := Caller{Source: given.Source} // who sees the whole body
	res := d.call(own, notifydv1connect.NotificationServiceGetNotificationProcedure, "application/json", []byte(`{"id":"`+id+`"}`))
	answer := &notifydv1.GetNotificationResponse{}
	if err := protojson.Unmarshal(res.Body.Bytes(), answer); res.Code != http.StatusOK || err != nil {
		t.Fatalf("accepted, and cannot be shown: %d %s: %v", res.Code, res.Body, err)
	}
	kept := answer.Notification
	if kept.Payload != given.Payload || !bytes.Equal(kept.Body, given.Body) { // P5
		t.Fatalf("given %q %q, kept %q %q", given.Payload, given.Body, kept.Payload, kept.Body)
	}
	for _, w := range d.lane.accepted() {
		if string(w.Body) != given.Payload+string(given.Body) { // one of them is empty
			t.Fatalf("given %q %q, on its way %q", given.Payload, given.Body, w.Body)
		}
	}
	want := proto.CloneOf(given)
	if want.NotifyUrl == "" {
		want.NotifyUrl = "https://m.test/notify"
	}
	for _, at := range []*timestamppb.Timestamp{want.OccurredAt, want.OrderCreatedAt, want.NotBefore, want.ExpiresAt} {
		if at != nil {
			at.Nanos -= at.Nanos % 1000 // the ledger's microseconds
		}
	}
	want.ProtoReflect().SetUnknown(nil)
	clearOutput(want, kept)
	if !proto.Equal(want, kept) {
		t.Fatalf("given %v\nkept  %v", want, kept)
	}
}

// clearOutput takes away what the engine adds, and what is the same in another form.
func clearOutput(want, kept *notifydv1.Notification) {
	kept.Id, kept.State, kept.StateReason, kept.Origin, kept.Generation, kept.AttemptCount, kept.Rule, kept.SettledBy = "", 0, "", "", 0, 0, "", ""
	kept.NextAttemptAt, kept.AcceptedAt, kept.SettledAt = nil, nil, nil
	want.Lane, kept.Lane = 0, 0
	if want.Amount != nil && want.Amount.Currency == "" && want.Amount.MinorUnits == 0 {
		want.Amount = nil
	}
	zero := (time.Time{}).Unix()
	for _, at := range []**timestamppb.Timestamp{&want.OccurredAt, &want.OrderCreatedAt, &want.NotBefore, &want.ExpiresAt} {
		if *at != nil && (*at).Seconds == zero && (*at).Nanos == 0 { // Go's zero time
			*at = nil
		}
	}
}
