// Package async is the lane in which nobody waits: a notification is accepted when it is durable in its shard, and
// delivered fairly. Healthy merchants share the shards; one that backs up, breaks, is paused or floods gets its own queue.
package async

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/groupcommit"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// Deliverer makes attempts.
type Deliverer interface {
	// Deliver makes one attempt now, or says why not. Unless the verdict is Deferred, settled is called once, when what
	// followed is durable.
	Deliver(ctx context.Context, w notification.Work, settled func(error)) notification.Verdict
}

// Memory is what the lane asks of the ledger.
type Memory interface {
	// FindMany returns what is known of the ids, bodies included.
	FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error)
	// Remember makes a snapshot durable; remembered is called once. isNew says that no row exists yet.
	Remember(ctx context.Context, n *notification.Notification, isNew bool, remembered func(error))
}

// Delayer keeps work until it is due.
type Delayer interface {
	Delay(ctx context.Context, w notification.Work) error
}

// Config of the lane.
type Config struct {
	// Depth is how many notifications of one isolation key wait in process before the rest goes to its own queue.
	Depth int `yaml:"depth"`
	// InFlight is how many attempts of one isolation key run at once, unless the merchant says otherwise.
	InFlight int `yaml:"in_flight"`
	// Patience is how long a notification waits in process before its key gets its own queue.
	Patience time.Duration `yaml:"patience"`
	// InHand bounds the notifications taken from NATS and not yet settled, over all keys.
	InHand int `yaml:"in_hand"`
	// StreamBytes bounds each stream on disk; a full one refuses new submissions.
	StreamBytes int64 `yaml:"stream_bytes"`
	// Replicas of each stream: 1 for a single server, 3 for a cluster.
	Replicas int `yaml:"-"`
	// AckWait is how long after a crash NATS waits before it hands a notification to another taker.
	AckWait time.Duration `yaml:"ack_wait"`
	// PublishTimeout bounds one publish.
	PublishTimeout time.Duration `yaml:"publish_timeout"`
}

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{
		Depth: 512, InFlight: 8, Patience: 500 * time.Millisecond, InHand: 20_000, StreamBytes: 8 << 30, Replicas: 1,
		AckWait: 10 * time.Second, PublishTimeout: 5 * time.Second,
	}
}

// Validate names the first key that has a value nobody can work with.
func (c Config) Validate() error {
	switch {
	case c.Depth < 1:
		return fmt.Errorf("async.depth: %d: must be at least 1", c.Depth)
	case c.InFlight < 1:
		return fmt.Errorf("async.in_flight: %d: must be at least 1", c.InFlight)
	case c.Patience < 10*time.Millisecond:
		return fmt.Errorf("async.patience: %s: must be at least 10ms", c.Patience)
	case c.InHand < c.Depth+c.InFlight:
		return fmt.Errorf("async.in_hand: %d: must be at least depth and in_flight together (%d)", c.InHand, c.Depth+c.InFlight)
	case c.StreamBytes < 1<<20:
		return fmt.Errorf("async.stream_bytes: %d: must be at least 1 MiB", c.StreamBytes)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("async.replicas: %d: must be 1 to 5", c.Replicas)
	case c.AckWait < time.Second:
		return fmt.Errorf("async.ack_wait: %s: must be at least 1s", c.AckWait)
	case c.PublishTimeout < 100*time.Millisecond:
		return fmt.Errorf("async.publish_timeout: %s: must be at least 100ms", c.PublishTimeout)
	}
	return nil
}

// ErrFull is returned when a stream takes no more: the caller may try again later.
var ErrFull = errors.New("publish: the stream is full")

// Lane is the asynchronous lane of one node.
type Lane struct {
	cfg     Config
	js      jetstream.JetStream
	deliver Deliverer
	memory  Memory
	delay   Delayer
	hand    *hand.Table
	limits  func(merchantID string) (inFlight int)
	log     *zap.Logger

	shards [notification.Shards]*groupcommit.Batcher[notification.Work]
	room   chan struct{} // one token for each notification in hand

	mu      sync.Mutex
	queues  map[string]*merchantQueue // by isolation key; only keys with something to do
	running sync.WaitGroup            // attempts, drains, moves and acknowledgements
	own     jetstream.Stream
	suspect map[string]uint64 // after a crash: the last sequence of each stream at the start
	unread  atomic.Bool       // see Unread

	stopping chan struct{} // closed: take nothing more

	holding sync.Mutex
	held    map[*message]struct{} // messages taken from NATS and not yet acknowledged

	published publishCounts
}

// Parts are what the lane works with.
type Parts struct {
	JetStream jetstream.JetStream
	Deliverer Deliverer
	Memory    Memory
	Delayer   Delayer
	Hand      *hand.Table
	// InFlight is a merchant's own in-flight cap; 0: none.
	InFlight func(merchantID string) int
	Log      *zap.Logger
	// Crashed says that NATS itself may have died with this node's last run: it may have forgotten what it had handed out,
	// so whatever is stored now counts as handed out before.
	Crashed bool
}

// New makes the lane's streams where they are missing.
func New(ctx context.Context, cfg Config, parts Parts) (*Lane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Lane{
		cfg: cfg, js: parts.JetStream, deliver: parts.Deliverer, memory: parts.Memory, delay: parts.Delayer,
		hand: parts.Hand, limits: parts.InFlight, log: parts.Log,
		room: make(chan struct{}, cfg.InHand), queues: map[string]*merchantQueue{},
		stopping: make(chan struct{}), held: map[*message]struct{}{},
	}
	if err := l.makeStreams(ctx); err != nil {
		return nil, err
	}
	if parts.Crashed {
		if err := l.noteSuspects(ctx); err != nil {
			return nil, err
		}
	}
	for shard := range l.shards {
		l.shards[shard] = groupcommit.New(fitsEnvelope, func(works []notification.Work) []error {
			return l.publish(context.WithoutCancel(ctx), envelope.NotifySubject(shard), works)
		})
	}
	return l, nil
}

func (l *Lane) makeStreams(ctx context.Context) error {
	_, err := l.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: envelope.NotifyStream, Subjects: []string{"notify.*"}, Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: l.cfg.StreamBytes, Replicas: l.cfg.Replicas, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("make stream %s: %w", envelope.NotifyStream, err)
	}
	l.own, err = l.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: envelope.MerchantStream, Subjects: []string{"own.*"}, Retention: jetstream.LimitsPolicy,
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew, MaxBytes: l.cfg.StreamBytes, Replicas: l.cfg.Replicas, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("make stream %s: %w", envelope.MerchantStream, err)
	}
	return nil
}

func (l *Lane) noteSuspects(ctx context.Context) error {
	l.suspect = map[string]uint64{}
	names := []string{envelope.NotifyStream, envelope.MerchantStream}
	for i := range envelope.RetryStreams {
		names = append(names, envelope.RetryStream(i))
	}
	for _, name := range names {
		stream, err := l.js.Stream(ctx, name)
		if err != nil {
			return fmt.Errorf("look at stream %s: %w", name, err)
		}
		l.suspect[name] = stream.CachedInfo().State.LastSeq
	}
	return nil
}

// Accept makes works durable in their shards; each is accepted when accepted has been called for it with nil (P1).
func (l *Lane) Accept(w notification.Work, accepted func(error)) {
	l.shards[notification.ShardOf(w.Route.IsolationKey)].Add(w, accepted)
}

func fitsEnvelope(batch []notification.Work, next notification.Work) bool {
	size := envelope.Size(next)
	for _, w := range batch {
		size += envelope.Size(w)
	}
	return len(batch) < envelope.MaxWorks && size <= envelope.MaxBytes
}

// publish stores one envelope; either every member is durable or none is known to be.
func (l *Lane) publish(ctx context.Context, subject string, works []notification.Work) []error {
	data, err := envelope.Encode(works)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
		defer cancel()
		_, err = l.js.Publish(ctx, subject, data)
	}
	if err == nil {
		l.published.envelope(len(works), len(data))
		return nil
	}
	l.published.failures.Add(1)
	err = fmt.Errorf("publish to %s: %w", subject, publishError(err))
	errs := make([]error, len(works))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

func publishError(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == errCodeStoreFailed {
		return fmt.Errorf("%w: %s", ErrFull, api.Description)
	}
	return err
}

// errCodeStoreFailed is the server's "store failed": over the stream's bounds, or the disk is full.
const errCodeStoreFailed jetstream.ErrorCode = 10077
