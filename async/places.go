package async

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"

	"notifyd/internal/streams"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// placesPage is how many stored messages one read returns.
const placesPage = streams.MostRead

// Waiting calls found for every notification that rests in a stream, with the place's name: shard, delay, due or own_queue.
func (l *Lane) Waiting(ctx context.Context, found func(id notification.ID, place string)) error {
	names := []string{envelope.NotifyStream, envelope.MerchantStream}
	for i := range envelope.RetryStreams {
		names = append(names, envelope.RetryStream(i))
	}
	for _, name := range names {
		if err := l.scan(ctx, name, found); err != nil {
			return fmt.Errorf("read stream %s: %w", name, err)
		}
	}
	return nil
}

// scan reads a stream from its first message to its last without a consumer, so that nothing is taken from anybody.
func (l *Lane) scan(ctx context.Context, stream string, found func(id notification.ID, place string)) error {
	for seq := uint64(1); ; {
		messages, err := jetstreamext.GetBatch(ctx, l.js, stream, placesPage, jetstreamext.GetBatchSeq(seq), jetstreamext.GetBatchSubject(">"))
		if err != nil {
			return err
		}
		read, ended := 0, false
		for msg, err := range messages {
			if errors.Is(err, jetstreamext.ErrNoMessages) {
				ended = true
				break
			}
			if err != nil {
				return err
			}
			read++
			seq = msg.Sequence + 1
			l.report(msg, found)
		}
		switch {
		case ended:
			return nil
		case read == 0: // the iteration also ends when the answer does not come in time
			return errNoAnswer
		}
	}
}

func (l *Lane) report(msg *jetstream.RawStreamMsg, found func(id notification.ID, place string)) {
	if msg.Subject == envelope.UndecodableSubject {
		return
	}
	works, err := envelope.Decode(msg.Data)
	if err != nil {
		l.log.Error("stored message cannot be decoded", zap.String("subject", msg.Subject), zap.Uint64("sequence", msg.Sequence), zap.Error(err))
		return
	}
	place := envelope.PlaceOf(msg.Subject)
	for _, w := range works {
		found(w.ID, place)
	}
}
