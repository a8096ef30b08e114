package outage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/ledger"
)

// ErrQueuesAway says that NATS, or JetStream in it, does not answer.
var ErrQueuesAway = errors.New("the queues are unavailable")

// WatchPostgres returns the watch of the ledger's Postgres.
func WatchPostgres(cfg Config, ping func(context.Context) error, log *zap.Logger) *Watch {
	return NewWatch("postgres", ping, log, WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: ledger.ErrAway, IsAway: ledger.Unavailable})
}

// WatchNATS returns the watch of JetStream. check is what a server in this process says of itself; nil: there is none.
func WatchNATS(cfg Config, js jetstream.JetStream, check func() error, log *zap.Logger) *Watch {
	hop := newHop(js.Conn(), cfg, log)
	probe := func(ctx context.Context) error {
		if check != nil {
			if err := check(); err != nil {
				return err
			}
		}
		if !js.Conn().IsConnected() {
			hop.reset()
			return nats.ErrDisconnected
		}
		_, err := js.AccountInfo(ctx)
		hop.after(err, time.Now())
		return err
	}
	return NewWatch("nats", probe, log, WatchOptions{Every: cfg.ProbeEvery, Slow: cfg.SlowAfter, Err: ErrQueuesAway, IsAway: natsAway})
}

// natsAway reports whether an error says that NATS does not answer. A stream that refuses or is not there is not that.
func natsAway(err error) bool {
	if api, refused := errors.AsType[*jetstream.APIError](err); refused {
		return api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabled || api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount ||
			api.ErrorCode == errCodeNoLeader
	}
	for _, away := range []error{
		nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrConnectionDraining, nats.ErrDisconnected, nats.ErrNoServers, nats.ErrReconnectBufExceeded,
		nats.ErrStaleConnection, nats.ErrInvalidConnection, nats.ErrTimeout, jetstream.ErrJetStreamNotEnabled,
		jetstream.ErrAsyncPublishTimeout, jetstream.ErrTooManyStalledMsgs, context.DeadlineExceeded, errNoAck, ErrQueuesAway,
	} {
		if errors.Is(err, away) {
			return true
		}
	}
	return false
}

// errCodeNoLeader: the cluster has no leader for JetStream, so it can change and tell nothing.
const errCodeNoLeader jetstream.ErrorCode = 10008

// notStored reports whether a failed publish is known not to have reached a stream. Of the other failures of natsAway nobody knows.
func notStored(err error) bool {
	if _, refused := errors.AsType[*jetstream.APIError](err); refused {
		return true
	}
	for _, unsent := range []error{
		nats.ErrNoResponders, jetstream.ErrNoStreamResponse, nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded, nats.ErrInvalidConnection,
		jetstream.ErrTooManyStalledMsgs, ErrQueuesAway,
	} {
		if errors.Is(err, unsent) {
			return true
		}
	}
	return false
}

// outcomeUnknown reports whether a failed publish may have reached a stream.
func outcomeUnknown(err error) bool { return !notStored(err) && natsAway(err) }

// isRefusedByOrder reports whether a message could not be created because its subject has one. Clusters say it with a code of their own.
func isRefusedByOrder(err error) bool {
	api, refused := errors.AsType[*jetstream.APIError](err)
	return refused &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

var errNoAck = errors.New("no acknowledgement in time")

// publishAll pipelines messages: all are sent, then all acknowledgements are awaited, for at most slow, and not while NATS is away.
func publishAll(ctx context.Context, js jetstream.JetStream, queues *Watch, msgs []*nats.Msg, slow time.Duration, opts ...jetstream.PublishOpt) []error {
	errs := make([]error, len(msgs))
	if queues.Away() {
		for i := range errs {
			errs[i] = ErrQueuesAway
		}
		return errs
	}
	futures := make([]jetstream.PubAckFuture, len(msgs))
	for i, msg := range msgs {
		futures[i], errs[i] = js.PublishMsgAsync(msg, opts...)
	}
	timer := time.NewTimer(slow)
	defer timer.Stop()
	left := queues.Left()
	var given error // set when no more is waited for
	for i, f := range futures {
		if errs[i] != nil {
			continue
		}
		if given == nil {
			select {
			case <-f.Ok():
				continue
			case errs[i] = <-f.Err():
				continue
			case <-timer.C:
				given = errNoAck
			case <-left:
				given = fmt.Errorf("%w: %w", ErrQueuesAway, errNoAck)
			case <-ctx.Done():
				given = fmt.Errorf("%w: %w", errNoAck, context.Cause(ctx))
			}
		}
		select {
		case <-f.Ok():
		case errs[i] = <-f.Err():
		default:
			errs[i] = given
		}
	}
	return errs
}

func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }
