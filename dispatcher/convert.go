package dispatcher

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// fromProto is the part of a notification that the caller gives.
func fromProto(p *notifydv1.Notification) *notification.Notification {
	n := &notification.Notification{
		Source: p.Source, RequestID: p.RequestId, MerchantID: p.MerchantId, AppID: p.AppId, Scene: p.Scene, EventType: p.EventType,
		OrderID: p.OrderId, OrderStatus: p.OrderStatus, Terminal: p.Terminal, StatusVersion: p.StatusVersion, BatchID: p.BatchId,
		NotifyURL: p.NotifyUrl, ContentType: p.ContentType,
		OccurredAt: fromTimestamp(p.OccurredAt), OrderCreatedAt: fromTimestamp(p.OrderCreatedAt),
		NotBefore: fromTimestamp(p.NotBefore), ExpiresAt: fromTimestamp(p.ExpiresAt),
		OrderingKey: p.OrderingKey, SupersedeKey: p.SupersedeKey, Labels: p.Labels, RequestedLane: notification.Lane(p.Lane), //nolint:gosec // the numbers are the same, and validated
	}
	if p.Payload != "" {
		n.Body = []byte(p.Payload)
	} else {
		n.Body = p.Body
	}
	if p.Amount != nil {
		n.Amount = notification.Amount{Currency: p.Amount.Currency, MinorUnits: p.Amount.MinorUnits}
	}
	return n
}

func toProto(n *notification.Notification) *notifydv1.Notification {
	p := &notifydv1.Notification{
		Id: n.ID.String(), Source: n.Source, RequestId: n.RequestID, MerchantId: n.MerchantID, AppId: n.AppID, Scene: n.Scene,
		EventType: n.EventType, OrderId: n.OrderID, OrderStatus: n.OrderStatus, Terminal: n.Terminal, StatusVersion: n.StatusVersion,
		BatchId: n.BatchID, NotifyUrl: n.NotifyURL, ContentType: n.ContentType,
		OccurredAt: toTimestamp(n.OccurredAt), OrderCreatedAt: toTimestamp(n.OrderCreatedAt),
		NotBefore: toTimestamp(n.NotBefore), ExpiresAt: toTimestamp(n.ExpiresAt),
		OrderingKey: n.OrderingKey, SupersedeKey: n.SupersedeKey, Labels: n.Labels,
		Lane: laneToProto(n.Route.Lane), State: stateToProto(n.State), StateReason: string(n.Reason), Origin: n.Origin,
		Generation: n.Generation, AttemptCount: int32(n.Attempts), //nolint:gosec // a small count
		AcceptedAt: toTimestamp(n.AcceptedAt), SettledAt: toTimestamp(n.SettledAt), SettledBy: n.SettledBy, Rule: n.Route.Rule,
	}
	if n.ContentType == "" {
		p.Payload = string(n.Body)
	} else {
		p.Body = n.Body
	}
	if n.Amount != (notification.Amount{}) {
		p.Amount = &notifydv1.Amount{Currency: n.Amount.Currency, MinorUnits: n.Amount.MinorUnits}
	}
	// While something is in hand its row's due time is only the sweep's backstop, of no meaning to a reader.
	if n.State == notification.StateRetrying || n.Reason == notification.ReasonNotBefore {
		p.NextAttemptAt = toTimestamp(n.NextAt)
	}
	return p
}

func attemptToProto(a *notification.Attempt) *notifydv1.Attempt {
	p := &notifydv1.Attempt{
		Number: int32(a.Number), Kind: notifydv1.AttemptKind(a.Kind), Trigger: notifydv1.Trigger(a.Trigger), //nolint:gosec // a small count
		Outcome: notifydv1.Outcome(a.Outcome), Reason: string(a.Reason), Counted: a.Counted,
		StartedAt: toTimestamp(a.StartedAt), Took: durationpb.New(a.Took), Phases: phasesToProto(a.Phases),
		Connects: int32(a.Connects), LocalAddr: a.LocalAddr, RemoteAddr: a.RemoteAddr, Tls: a.TLS, Egress: a.Egress, //nolint:gosec // a small count
		KeyIds: a.KeyIDs, SettingsVersion: a.SettingsVersion, Operator: a.Operator, Generation: a.Generation, Detail: a.Detail,
		LateAt: toTimestamp(a.LateAt),
	}
	if a.Request.Method != "" {
		p.Request = &notifydv1.HttpRequest{Method: a.Request.Method, Url: a.Request.URL, Headers: headersToProto(a.Request.Headers), Body: a.Request.Body}
	}
	if a.Response != nil {
		r := &notifydv1.HttpResponse{Status: int32(a.Response.Status), Headers: headersToProto(a.Response.Headers), Body: a.Response.Body, Truncated: a.Response.Truncated} //nolint:gosec // three digits
		p.HttpStatus = r.Status
		if a.LateAt.IsZero() {
			p.Response = r
		} else {
			p.LateResponse = r
		}
	}
	return p
}

func phasesToProto(p notification.Phases) *notifydv1.Phases {
	span := func(d time.Duration) *durationpb.Duration {
		if d == 0 {
			return nil
		}
		return durationpb.New(d)
	}
	return &notifydv1.Phases{Dns: span(p.DNS), Connect: span(p.Connect), Tls: span(p.TLS), Write: span(p.Write), FirstByte: span(p.FirstByte), Read: span(p.Read)}
}

func headersToProto(hs []notification.Header) []*notifydv1.Header {
	out := make([]*notifydv1.Header, len(hs))
	for i, h := range hs {
		out[i] = &notifydv1.Header{Name: h.Name, Value: h.Value}
	}
	return out
}

// The stored numbers of the enums are those of the API; TestEnumsMatch holds it.

func laneToProto(l notification.Lane) notifydv1.Lane    { return notifydv1.Lane(l) }
func stateToProto(s notification.State) notifydv1.State { return notifydv1.State(s) }

func fromTimestamp(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime().Truncate(time.Microsecond)
}

func toTimestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
