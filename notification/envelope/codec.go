// Package envelope says how notifications rest in NATS: what a message holds and which subjects there are.
package envelope

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"notifyd/notification"
	storev1 "notifyd/proto/notifyd/store/v1"
)

// MaxWorks and MaxBytes bound one envelope.
const (
	MaxWorks = 64
	MaxBytes = 256 << 10
)

// Encode packs works of one shard into one message.
func Encode(works []notification.Work) ([]byte, error) {
	env := &storev1.Envelope{Works: make([]*storev1.Work, len(works))}
	for i, w := range works {
		env.Works[i] = pack(w)
	}
	data, err := proto.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	return data, nil
}

// Decode reads a message. The bodies do not share memory with data.
func Decode(data []byte) ([]notification.Work, error) {
	var env storev1.Envelope
	if err := proto.Unmarshal(data, &env); err != nil {
		return nil, fmt.Errorf("decode envelope: %w", err)
	}
	if len(env.Works) == 0 {
		return nil, errors.New("decode envelope: it holds nothing")
	}
	works := make([]notification.Work, len(env.Works))
	for i, p := range env.Works {
		if len(p.Id) != len(notification.ID{}) || len(p.Digest) != len(notification.Notification{}.Digest) {
			return nil, fmt.Errorf("decode envelope: member %d has an id of %d and a digest of %d bytes", i, len(p.Id), len(p.Digest))
		}
		works[i] = unpack(p)
	}
	return works, nil
}

// Size estimates the bytes that a work adds to an envelope.
func Size(w notification.Work) int {
	n := w.Notification
	size := len(n.Body) + len(n.NotifyURL) + len(n.RequestID) + len(n.MerchantID) + len(n.OrderID) + 256
	for k, v := range n.Labels {
		size += len(k) + len(v) + 8
	}
	return size
}

func pack(w notification.Work) *storev1.Work {
	n := w.Notification
	return &storev1.Work{
		Id: n.ID[:], Digest: n.Digest[:], Source: n.Source, RequestId: n.RequestID, MerchantId: n.MerchantID, AppId: n.AppID,
		Scene: n.Scene, EventType: n.EventType, OrderId: n.OrderID, OrderStatus: n.OrderStatus, Terminal: n.Terminal,
		StatusVersion: n.StatusVersion, BatchId: n.BatchID, NotifyUrl: n.NotifyURL, Body: n.Body, ContentType: n.ContentType,
		Currency: n.Amount.Currency, MinorUnits: n.Amount.MinorUnits,
		OccurredAt: micros(n.OccurredAt), OrderCreatedAt: micros(n.OrderCreatedAt), NotBefore: micros(n.NotBefore), ExpiresAt: micros(n.ExpiresAt),
		OrderingKey: n.OrderingKey, SupersedeKey: n.SupersedeKey, Labels: n.Labels, RequestedLane: uint32(n.RequestedLane),
		Lane: uint32(n.Route.Lane), IsolationKey: n.Route.IsolationKey, Egress: n.Route.Egress, Schedule: n.Route.Schedule,
		Persist: uint32(n.Route.Persist), Rule: n.Route.Rule,
		State: uint32(n.State), StateReason: string(n.Reason), Origin: n.Origin, Generation: n.Generation,
		Attempts: int32(n.Attempts), Step: int32(n.Step), //nolint:gosec // both are small counts
		AcceptedAt: micros(n.AcceptedAt), NextAt: micros(n.NextAt), WindowFrom: micros(n.WindowFrom),
		DeferredFor: n.DeferredFor.Microseconds(), DeferredSince: micros(n.DeferredSince),
		SettledAt: micros(n.SettledAt), SettledBy: n.SettledBy, UpdatedAt: micros(n.UpdatedAt), Resting: n.Resting,
		Trigger: uint32(w.Trigger), SecondCopy: w.SecondCopy, Operator: w.Operator, Interrupted: w.Interrupted, Trace: w.Trace,
		Unreserved: w.Unreserved,
	}
}

func unpack(p *storev1.Work) notification.Work {
	n := &notification.Notification{
		Source: p.Source, RequestID: p.RequestId, MerchantID: p.MerchantId, AppID: p.AppId,
		Scene: p.Scene, EventType: p.EventType, OrderID: p.OrderId, OrderStatus: p.OrderStatus, Terminal: p.Terminal,
		StatusVersion: p.StatusVersion, BatchID: p.BatchId, NotifyURL: p.NotifyUrl, Body: p.Body, ContentType: p.ContentType,
		Amount:     notification.Amount{Currency: p.Currency, MinorUnits: p.MinorUnits},
		OccurredAt: instant(p.OccurredAt), OrderCreatedAt: instant(p.OrderCreatedAt), NotBefore: instant(p.NotBefore), ExpiresAt: instant(p.ExpiresAt),
		OrderingKey: p.OrderingKey, SupersedeKey: p.SupersedeKey, Labels: p.Labels, RequestedLane: notification.Lane(p.RequestedLane), //nolint:gosec // written by pack
		Route: notification.Route{
			Lane: notification.Lane(p.Lane), IsolationKey: p.IsolationKey, Egress: p.Egress, Schedule: p.Schedule, //nolint:gosec // written by pack
			Persist: notification.Persist(p.Persist), Rule: p.Rule, //nolint:gosec // written by pack
		},
		AcceptedAt: instant(p.AcceptedAt), Origin: p.Origin,
		Progress: notification.Progress{
			State: notification.State(p.State), Reason: notification.Reason(p.StateReason), Generation: p.Generation, //nolint:gosec // written by pack
			Attempts: int(p.Attempts), Step: int(p.Step), NextAt: instant(p.NextAt), WindowFrom: instant(p.WindowFrom),
			Resting: p.Resting, DeferredFor: time.Duration(p.DeferredFor) * time.Microsecond, DeferredSince: instant(p.DeferredSince),
			SettledAt: instant(p.SettledAt), SettledBy: p.SettledBy, UpdatedAt: instant(p.UpdatedAt),
		},
	}
	copy(n.ID[:], p.Id)
	copy(n.Digest[:], p.Digest)
	return notification.Work{
		Notification: n, Trigger: notification.Trigger(p.Trigger), SecondCopy: p.SecondCopy, Operator: p.Operator, Interrupted: p.Interrupted, Trace: p.Trace, //nolint:gosec // written by pack
		Unreserved: p.Unreserved,
	}
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func instant(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
