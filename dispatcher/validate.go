package dispatcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// MaxNotificationBytes bounds one notification, as it is encoded.
const MaxNotificationBytes = 256 << 10

// violations of the rules that stand in the proto files, with a prefix before each field's path.
func violations(prefix string, msg proto.Message) []*errdetails.BadRequest_FieldViolation {
	err := protovalidate.Validate(msg)
	if err == nil {
		return nil
	}
	var invalid *protovalidate.ValidationError
	if !errors.As(err, &invalid) {
		return []*errdetails.BadRequest_FieldViolation{{Field: prefix, Description: err.Error()}}
	}
	out := make([]*errdetails.BadRequest_FieldViolation, len(invalid.Violations))
	for i, v := range invalid.Violations {
		field := protovalidate.FieldPathString(v.Proto.GetField())
		switch {
		case prefix != "" && field != "":
			field = prefix + "." + field
		case field == "":
			field = prefix
		}
		out[i] = &errdetails.BadRequest_FieldViolation{Field: field, Description: given(v) + v.Proto.GetMessage()}
	}
	return out
}

// longestGiven is how much of a text a violation repeats; of a longer one it says how long it is.
const longestGiven = 64

// given is the value that breaks a rule, as it is put before the rule; empty for a secret and for what has no one value.
func given(v *protovalidate.Violation) string {
	if !v.FieldValue.IsValid() || v.Proto.GetForKey() {
		return ""
	}
	if v.FieldDescriptor != nil {
		if options, ok := v.FieldDescriptor.Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
			return ""
		}
	}
	switch value := v.FieldValue.Interface().(type) {
	case string:
		if length := utf8.RuneCountInString(value); length > longestGiven {
			return fmt.Sprintf("%d characters: ", length)
		}
		return fmt.Sprintf("%q: ", value)
	case protoreflect.List:
		return fmt.Sprintf("%d items: ", value.Len())
	case protoreflect.Map:
		return fmt.Sprintf("%d items: ", value.Len())
	case protoreflect.Message:
		if wait, ok := value.Interface().(*durationpb.Duration); ok {
			return wait.AsDuration().String() + ": "
		}
		return ""
	default: // numbers
		return fmt.Sprintf("%v: ", value)
	}
}

// checkRequest answers a request that breaks the proto files' rules.
func checkRequest(msg proto.Message) error {
	if by, ok := msg.(interface{ GetOperator() string }); ok && !printable(by.GetOperator()) {
		return invalid("operator", fmt.Sprintf("%q: control characters are not allowed", by.GetOperator()))
	}
	if why, ok := msg.(interface{ GetRevealReason() string }); ok && !printable(why.GetRevealReason()) {
		return invalid("reveal_reason", fmt.Sprintf("%q: control characters are not allowed", why.GetRevealReason()))
	}
	if vs := violations("", msg); len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

// checkNotification answers a notification that the engine cannot take.
func checkNotification(p *notifydv1.Notification) *connect.Error {
	if p == nil {
		return invalid("notification", "is required")
	}
	if size := proto.Size(p); size > MaxNotificationBytes {
		return invalid("notification", fmt.Sprintf("has %d bytes: at most %d are allowed", size, MaxNotificationBytes))
	}
	vs := violations("notification", p)
	refuse := func(field, description string) {
		vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: "notification." + field, Description: description})
	}
	checkContent(p, refuse)
	checkTimes(p, refuse)
	checkOutputOnly(p, refuse)
	if p.RequestId == "" && p.OrderId == "" {
		refuse("request_id", "is empty, and without order_id no id can be derived: give one of them")
	}
	if p.NotBefore.IsValid() && p.ExpiresAt.IsValid() && !p.NotBefore.AsTime().Before(p.ExpiresAt.AsTime()) {
		refuse("expires_at", p.ExpiresAt.AsTime().Format(time.RFC3339)+": is not after not_before")
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

func checkContent(p *notifydv1.Notification, refuse func(field, description string)) {
	switch {
	case p.Payload == "" && len(p.Body) == 0:
		refuse("payload", "is empty: give payload, or body with content_type")
	case p.Payload != "" && len(p.Body) > 0:
		refuse("body", "is given together with payload: give one of them")
	case p.Payload != "" && p.ContentType != "":
		refuse("content_type", fmt.Sprintf("%q: goes with body; a payload is application/json", p.ContentType))
	case p.Payload != "" && !json.Valid([]byte(p.Payload)):
		refuse("payload", jsonFault(p.Payload))
	case len(p.Body) > 0 && p.ContentType == "":
		refuse("content_type", "is empty: body needs one")
	}
	for _, r := range p.ContentType {
		if r < ' ' || r > '~' {
			refuse("content_type", fmt.Sprintf("%q: only printable ASCII is allowed", p.ContentType))
			break
		}
	}
	for _, f := range [...]struct{ field, text string }{
		{"source", p.Source},
		{"request_id", p.RequestId},
		{"merchant_id", p.MerchantId},
		{"app_id", p.AppId},
		{"event_type", p.EventType},
		{"order_id", p.OrderId},
		{"order_status", p.OrderStatus},
		{"batch_id", p.BatchId},
		{"ordering_key", p.OrderingKey},
		{"supersede_key", p.SupersedeKey},
	} {
		if !printable(f.text) {
			refuse(f.field, fmt.Sprintf("%q: control characters are not allowed", f.text))
		}
	}
	for key, value := range p.Labels {
		if !printable(key) || !printable(value) {
			refuse(fmt.Sprintf("labels[%q]", key), "control characters are not allowed")
		}
	}
}

func printable(text string) bool {
	for _, r := range text {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}

// jsonFault says where a payload stops being JSON.
func jsonFault(payload string) string {
	var raw json.RawMessage
	err := json.Unmarshal([]byte(payload), &raw)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("is not JSON: %s at byte %d", syntax.Error(), syntax.Offset)
	}
	return "is not JSON"
}

// checkTimes refuses what is no instant: neither the ledger nor JSON could give it back.
func checkTimes(p *notifydv1.Notification, refuse func(field, description string)) {
	for _, f := range [...]struct {
		field string
		at    *timestamppb.Timestamp
	}{{"occurred_at", p.OccurredAt}, {"order_created_at", p.OrderCreatedAt}, {"not_before", p.NotBefore}, {"expires_at", p.ExpiresAt}} {
		if fault := timeFault(f.at); fault != "" {
			refuse(f.field, fault)
		}
	}
}

// timeFault says what is wrong with a timestamp; empty: nothing, or there is none.
func timeFault(at *timestamppb.Timestamp) string {
	if at == nil || at.IsValid() {
		return ""
	}
	return fmt.Sprintf("%d seconds and %d nanoseconds: must be an instant of the years 1 to 9999, with 0 to 999999999 nanoseconds", at.Seconds, at.Nanos)
}

// checkOutputOnly refuses what only the engine sets, so that nobody believes it was taken.
func checkOutputOnly(p *notifydv1.Notification, refuse func(field, description string)) {
	const outputOnly = "is output only; leave it empty"
	for _, f := range [...]struct {
		field string
		given bool
	}{
		{"id", p.Id != ""},
		{"state", p.State != 0},
		{"state_reason", p.StateReason != ""},
		{"origin", p.Origin != ""},
		{"generation", p.Generation != 0},
		{"attempt_count", p.AttemptCount != 0},
		{"next_attempt_at", p.NextAttemptAt != nil},
		{"accepted_at", p.AcceptedAt != nil},
		{"settled_at", p.SettledAt != nil},
		{"settled_by", p.SettledBy != ""},
		{"rule", p.Rule != ""},
	} {
		if f.given {
			refuse(f.field, outputOnly)
		}
	}
}
