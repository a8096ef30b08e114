package async

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

// alone has every shard.
type alone struct{}

func (alone) Owns(int) bool            { return true }
func (alone) Changed() <-chan struct{} { return nil }
func (alone) Release(int)              {}
func (alone) Leave()                   {}

// owns reports whether the own queue of a key is this node's to drain.
func (l *Lane) owns(isolationKey string) bool {
	return l.owned.Owns(notification.ShardOf(isolationKey))
}

// source is where messages of one shard come from: its envelopes, or what has come due.
type source struct{ stream, durable, subject string }

func sourcesOf(shard int) []source {
	return []source{
		{envelope.NotifyStream, "shard-" + strconv.Itoa(shard), envelope.NotifySubject(shard)},
		{envelope.RetryStream(shard), "due-" + strconv.Itoa(shard), envelope.DueSubject(shard)},
	}
}

// keepShard takes from a shard whenever it is this node's, until the lane stops.
func (l *Lane) keepShard(ctx context.Context, shard int) {
	select {
	case <-l.ready:
	case <-l.stopping:
		return
	}
	for {
		changed := l.owned.Changed()
		if l.owned.Owns(shard) && !isClosed(l.stopping) {
			l.takeShard(ctx, shard)
			continue
		}
		l.owned.Release(shard)
		select {
		case <-l.stopping:
			l.owned.Release(shard)
			return
		case <-changed:
		}
	}
}

// letGo is how long a shard that goes to another node waits for what was handed to this one before it went. What takes
// longer is in hand here, and NATS hands it to nobody else meanwhile.
const letGo = 2 * time.Second

// takeShard takes from a shard until it is this node's no more, or the lane stops; then it lets go of it: when it
// returns, nothing more is taken.
func (l *Lane) takeShard(ctx context.Context, shard int) {
	// What rests is older than what lies in the shard: its keys get their own queues first, and what comes goes behind it.
	if err := l.lookForOwnQueues(ctx, time.Now()); err != nil && !l.away() {
		l.log.Warn("own queues cannot be listed; they are looked for again", zap.Error(err))
	}
	lost, ended := make(chan struct{}), make(chan struct{})
	var both sync.WaitGroup
	for _, from := range sourcesOf(shard) {
		both.Go(func() { l.keepTaking(ctx, from, lost) })
	}
	l.taking.Go(func() { both.Wait(); close(ended) })
	for {
		changed := l.owned.Changed()
		if !l.owned.Owns(shard) || isClosed(l.stopping) {
			break
		}
		select {
		case <-l.stopping:
		case <-changed:
		}
	}
	close(lost)
	timer := time.NewTimer(letGo)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
}

// keepTaking takes until the shard is lost. A consumer that ends by itself, or that NATS does not know any more, for
// example because somebody deleted it, is made again.
func (l *Lane) keepTaking(ctx context.Context, from source, lost <-chan struct{}) {
	for {
		c, broken, err := l.take(ctx, from)
		if err == nil {
			select {
			case <-lost:
				c.Drain() // what has been handed to this process is finished: given back, it would count as perhaps sent
				<-c.Closed()
				return
			case <-c.Closed():
			case <-broken:
				c.Drain()
				<-c.Closed()
			}
			l.log.Debug("consumer ended by itself and is made again", zap.String("consumer", from.durable))
		} else if !l.away() {
			l.log.Warn("consumer cannot be made", zap.String("consumer", from.durable), zap.Error(err))
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-lost:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// consumerHeartbeat is how often NATS says that it still knows a consumer that has nothing to hand out.
const consumerHeartbeat = 5 * time.Second

// prefetch is how many messages NATS hands to a consumer before it opens them. They wait with nobody to hold them, so a
// node that has no room must open them all within AckWait.
const prefetch = 16

// handedOut knows when a consumer's messages were handed out at the earliest. NATS is asked for no more than prefetch
// messages that are not opened, after a reconnect for as many again: so none was asked for before the one that is so far
// ahead of it was opened.
type handedOut struct {
	opened [2 * prefetch]time.Time
	count  int
}

func newHandedOut(began time.Time) *handedOut {
	h := &handedOut{}
	for i := range h.opened {
		h.opened[i] = began
	}
	return h
}

// next is for the message that is opened now; its consumer opens one after another.
func (h *handedOut) next(now time.Time) time.Time {
	at := &h.opened[h.count%len(h.opened)]
	earliest := *at
	*at = now
	h.count++
	return earliest
}

// take begins to take; broken says that NATS does not answer for the consumer.
func (l *Lane) take(ctx context.Context, from source) (_ jetstream.ConsumeContext, broken <-chan struct{}, _ error) {
	consumer, err := l.js.CreateOrUpdateConsumer(ctx, from.stream, jetstream.ConsumerConfig{
		Durable: from.durable, FilterSubject: from.subject, AckPolicy: jetstream.AckExplicitPolicy, AckWait: l.cfg.AckWait,
		MaxAckPending: 4096, MaxDeliver: -1, Replicas: l.cfg.Replicas,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make consumer %s: %w", from.durable, err)
	}
	lost := make(chan struct{}, 1)
	handed := newHandedOut(l.clock())
	c, err := consumer.Consume(func(msg jetstream.Msg) { l.open(ctx, msg, handed.next(l.clock())) },
		jetstream.PullMaxMessages(prefetch), jetstream.PullHeartbeat(consumerHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			if errors.Is(err, jetstream.ErrNoHeartbeat) || errors.Is(err, nats.ErrNoResponders) {
				select {
				case lost <- struct{}{}:
				default:
				}
			}
		}))
	return c, lost, err
}
