package async

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

// containedCounts grow for as long as the lane lives.
type containedCounts struct{ setAside, panics atomic.Uint64 }

// panicError is a bug of the engine that one message brings out.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func isPanic(err error) bool {
	_, is := errors.AsType[*panicError](err)
	return is
}

// contain keeps a panic to the message that it is about.
func (l *Lane) contain(do func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			l.contained.panics.Add(1)
			l.log.Error("panic is contained", zap.Any("panic", value), zap.ByteString("stack", debug.Stack()))
			err = &panicError{value}
		}
	}()
	return do()
}

// setAside keeps a message that cannot be read, for people, and ends it in its queue.
func (l *Lane) setAside(ctx context.Context, msg jetstream.Msg, cause error) {
	l.log.Error("message cannot be taken; it is set aside", zap.String("from", msg.Subject()), zap.String("to", envelope.UndecodableSubject), zap.Error(cause))
	err := l.keepAside(ctx, msg.Data())
	if err == nil {
		err = msg.TermWithReason(string(notification.ReasonUndecodable))
	} else {
		err = errors.Join(err, msg.NakWithDelay(time.Second))
	}
	if err != nil {
		l.log.Warn("message comes again", zap.Error(err))
	}
}

// setAsideOne keeps one member of an envelope for people. Without an error its message need not come again for it.
func (l *Lane) setAsideOne(ctx context.Context, w notification.Work, cause error) error {
	l.log.Error("notification cannot be taken; it is set aside", zap.Stringer("id", w.ID), zap.String("to", envelope.UndecodableSubject), zap.Error(cause))
	data, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		return err
	}
	return l.keepAside(ctx, data)
}

func (l *Lane) keepAside(ctx context.Context, data []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.PublishTimeout)
	defer cancel()
	if _, err := l.js.Publish(ctx, envelope.UndecodableSubject, data); err != nil {
		return fmt.Errorf("set aside: %w", err)
	}
	l.contained.setAside.Add(1)
	return nil
}
