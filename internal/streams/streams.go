// Package streams makes JetStream streams that can be lost and made again while messages of the old one are in hand.
package streams

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// MostRead is how many messages one read of a batch may return.
	MostRead = 512
	// SyncQueue is how many messages a connection's subscriptions hold back that are read one by one, as a read of a batch is:
	// beyond it they would be lost. The client library's own number takes half a megabyte, for every read of an own queue.
	SyncQueue = 2 * MostRead
)

// Ensure returns a stream, made where it is missing. What is there stays as it is.
//
// A new one counts its messages from the present instant in microseconds, so that no sequence comes twice in streams of
// one name: an acknowledgement or a removal meant for a message of the old stream hits nothing in the new one.
func Ensure(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (jetstream.Stream, error) {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		want.FirstSeq = uint64(time.Now().UnixMicro())
		stream, err = js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another node was faster
			stream, err = js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", want.Name, err)
	}
	return stream, nil
}

// Update gives a stream the bounds, subjects and replicas that are wanted of it, if it has others.
func Update(ctx context.Context, js jetstream.JetStream, stream jetstream.Stream, want jetstream.StreamConfig) error {
	have := stream.CachedInfo().Config
	next := have
	next.Subjects, next.MaxBytes, next.Replicas = want.Subjects, want.MaxBytes, max(1, want.Replicas)
	next.AllowDirect, next.AllowMsgSchedules = want.AllowDirect, want.AllowMsgSchedules
	next.MaxMsgsPerSubject, next.Discard, next.DiscardNewPerSubject = want.MaxMsgsPerSubject, want.Discard, want.DiscardNewPerSubject
	if next.MaxBytes == 0 {
		next.MaxBytes = -1 // so the server says it
	}
	if next.MaxMsgsPerSubject == 0 {
		next.MaxMsgsPerSubject = -1
	}
	if slices.Equal(next.Subjects, have.Subjects) && next.MaxBytes == have.MaxBytes && next.Replicas == have.Replicas &&
		next.AllowDirect == have.AllowDirect && next.AllowMsgSchedules == have.AllowMsgSchedules && next.Discard == have.Discard &&
		next.MaxMsgsPerSubject == have.MaxMsgsPerSubject && next.DiscardNewPerSubject == have.DiscardNewPerSubject {
		return nil
	}
	if _, err := js.UpdateStream(ctx, next); err != nil {
		return fmt.Errorf("update stream %s: %w", want.Name, err)
	}
	return nil
}

// Away reports whether an error says that JetStream does not answer, or cannot work now; not that it refuses what was asked.
func Away(err error) bool {
	var api *jetstream.APIError
	return err != nil && (!errors.As(err, &api) || api.Code == 503)
}
