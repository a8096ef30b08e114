package async

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/streams"
	"notifyd/notification/envelope"
)

func (l *Lane) notifyStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: envelope.NotifyStream, Subjects: []string{"notify.*"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: l.cfg.StreamBytes, Replicas: l.cfg.Replicas, AllowDirect: true,
	}
}

func (l *Lane) merchantStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: envelope.MerchantStream, Subjects: []string{"own.*"}, Retention: jetstream.LimitsPolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: l.cfg.StreamBytes, Replicas: l.cfg.Replicas, AllowDirect: true,
		MaxMsgsPerSubject: l.cfg.OwnQueue, DiscardNewPerSubject: true,
	}
}

// prepareTimeout bounds one look at all streams.
const prepareTimeout = 10 * time.Second

// prepare makes the streams, brings them up to date, and notes after a crash what was stored before it.
func (l *Lane) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	notify, err := streams.Ensure(ctx, l.js, l.notifyStream())
	if err != nil {
		return err
	}
	if err := streams.Update(ctx, l.js, notify, l.notifyStream()); err != nil {
		return err
	}
	own, err := streams.Ensure(ctx, l.js, l.merchantStream())
	if err != nil {
		return err
	}
	if err := l.boundOwnQueues(ctx, own); err != nil {
		return err
	}
	suspect := map[string]uint64{}
	if l.crashed {
		if suspect, err = l.suspects(ctx); err != nil {
			return err
		}
	}
	l.streams.Lock()
	defer l.streams.Unlock()
	if !isClosed(l.ready) {
		l.own, l.suspect = own, suspect
		close(l.ready)
	}
	return nil
}

// boundOwnQueues brings the stream of own queues up to date. The server makes a bound good at once, by deleting: one that
// is below what a queue holds already waits for a start at which it is not.
func (l *Lane) boundOwnQueues(ctx context.Context, own jetstream.Stream) error {
	want := l.merchantStream()
	if have := own.CachedInfo().Config.MaxMsgsPerSubject; have < 1 || have > want.MaxMsgsPerSubject {
		info, err := own.Info(ctx, jetstream.WithSubjectFilter("own.*"))
		if err != nil {
			return fmt.Errorf("look at stream %s: %w", envelope.MerchantStream, err)
		}
		for _, holds := range info.State.Subjects {
			want.MaxMsgsPerSubject = max(want.MaxMsgsPerSubject, 2*int64(holds)) //nolint:gosec // a number of messages; twice: more come in between
		}
	}
	return streams.Update(ctx, l.js, own, want)
}

// suspects are the last sequences of all streams.
func (l *Lane) suspects(ctx context.Context) (map[string]uint64, error) {
	names := []string{envelope.NotifyStream, envelope.MerchantStream}
	for i := range envelope.RetryStreams {
		names = append(names, envelope.RetryStream(i))
	}
	out := map[string]uint64{}
	for _, name := range names {
		stream, err := l.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue // whatever will be in it comes after the crash
		}
		if err != nil {
			return nil, fmt.Errorf("look at stream %s: %w", name, err)
		}
		out[name] = stream.CachedInfo().State.LastSeq
	}
	return out, nil
}

// suspected is the last sequence of a stream that counts as handed out before; 0: none does.
func (l *Lane) suspected(stream string) uint64 {
	l.streams.Lock()
	defer l.streams.Unlock()
	return l.suspect[stream]
}

var errNotReady = errors.New("the streams have not been seen yet")

func (l *Lane) ownStream() (jetstream.Stream, error) {
	l.streams.Lock()
	defer l.streams.Unlock()
	if l.own == nil {
		return nil, errNotReady
	}
	return l.own, nil
}

const (
	// lookEvery is the time between two looks at the streams.
	lookEvery = 2 * time.Second
	// clockSlack is how far the clocks of a node and of NATS may be apart.
	clockSlack = 5 * time.Second
)

// KeepStreams makes streams again that somebody deleted, or that could not be made at the start, until ctx ends. Whoever
// is behind Recall hears of each that was made since this process started: what rested in its predecessor is lost.
func (l *Lane) KeepStreams(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	known, failing := map[string]time.Time{}, false
	for {
		err := l.lookAtStreams(ctx, known)
		if err != nil && !failing && ctx.Err() == nil {
			l.log.Warn("streams cannot be looked after", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lookAtStreams makes what is missing; known is when each stream was made as far as everybody has been told.
func (l *Lane) lookAtStreams(ctx context.Context, known map[string]time.Time) error {
	if !isClosed(l.ready) {
		if err := l.prepare(ctx); err != nil {
			return err
		}
	}
	asking, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	made, err := l.delay.Ensure(asking)
	if err != nil {
		return err
	}
	for _, want := range []jetstream.StreamConfig{l.notifyStream(), l.merchantStream()} {
		stream, err := streams.Ensure(asking, l.js, want)
		if err != nil {
			return err
		}
		made[want.Name] = stream.CachedInfo().Created
	}
	for name, at := range made {
		last, seen := known[name]
		if last.Equal(at) {
			continue
		}
		if seen || at.After(l.started.Add(-clockSlack)) {
			if seen {
				l.log.Warn("stream was lost and is made again", zap.String("stream", name))
			}
			if l.recall != nil {
				if err := l.recall(ctx, name, at); err != nil {
					return fmt.Errorf("recall what rested in %s: %w", name, err)
				}
			}
		}
		known[name] = at
	}
	return nil
}
