package main

import (
	"time"

	"go.uber.org/zap"

	"notifyd/dispatcher"
	"notifyd/notification"
)

// onlyAttempts listens to nothing: those that embed it listen to attempts and nothing else.
type onlyAttempts struct{}

// Answered is not listened to.
func (onlyAttempts) Answered(dispatcher.Answer) {}

// Deferred is not listened to.
func (onlyAttempts) Deferred(*notification.Notification, notification.Reason) {}

// Settled is not listened to.
func (onlyAttempts) Settled(*notification.Notification) {}

// BreakerOpened is not listened to.
func (onlyAttempts) BreakerOpened(string) {}

// attemptLog writes one wide line for each attempt: everything that is asked at night, no secrets, no query strings, no
// payload.
type attemptLog struct {
	onlyAttempts
	log *zap.Logger
}

// Attempted writes the line.
func (l attemptLog) Attempted(after *notification.Notification, a *notification.Attempt) {
	line := l.log.Check(zap.InfoLevel, "attempt")
	if line == nil {
		return
	}
	status := 0
	if a.Response != nil {
		status = a.Response.Status
	}
	fields := make([]zap.Field, 0, 32)
	fields = append(fields,
		zap.Stringer("outcome", a.Outcome), zap.String("reason", string(a.Reason)), zap.Int("status", status), zap.Duration("took", a.Took),
		zap.Int("attempt", a.Number), zap.Stringer("trigger", a.Trigger), zap.String("merchant_id", after.MerchantID), zap.Stringer("id", after.ID),
		zap.Stringer("state", after.State), zap.String("scene", after.Scene), zap.Stringer("lane", after.Route.Lane),
		zap.String("source", after.Source), zap.String("request_id", after.RequestID), zap.String("order_id", after.OrderID),
		zap.String("url", withoutQuery(after.NotifyURL)), zap.String("remote_addr", a.RemoteAddr), zap.Int("connects", a.Connects),
		zap.Duration("since_accepted", a.StartedAt.Sub(after.AcceptedAt)), zap.Int64("generation", after.Generation),
	)
	if after.BatchID != "" {
		fields = append(fields, zap.String("batch_id", after.BatchID))
	}
	if after.State == notification.StateRetrying {
		fields = append(fields, zap.Time("next_at", after.NextAt))
	}
	for _, phase := range []struct {
		name string
		took time.Duration
	}{
		{"dns", a.Phases.DNS}, {"connect", a.Phases.Connect}, {"tls", a.Phases.TLS}, {"first_byte", a.Phases.FirstByte}, {"read", a.Phases.Read},
	} {
		if phase.took > 0 {
			fields = append(fields, zap.Duration(phase.name, phase.took))
		}
	}
	if a.Detail != "" {
		fields = append(fields, zap.String("detail", a.Detail))
	}
	if a.Operator != "" {
		fields = append(fields, zap.String("operator", a.Operator))
	}
	line.Write(fields...)
}
