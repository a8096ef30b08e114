// Package async is the lane in which nobody waits: a notification is accepted when it is durable in its shard, and
// delivered fairly. Healthy merchants share the shards; one that backs up, breaks, is paused or floods gets its own queue.
package async

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/crew"
	"notifyd/internal/faults"
	"notifyd/internal/groupcommit"
	"notifyd/internal/streams"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/notification/hand"
)

// Deliverer makes attempts.
type Deliverer interface {
	// Deliver makes one attempt now, or says why not. begin, unless nil, is waited for between the permission and the
	// request, and not called without a request. Unless the verdict is Deferred, settled is called once, when what followed
	// is durable.
	Deliver(ctx context.Context, w notification.Work, begin func(), settled func(error)) notification.Verdict
}

// Memory is what the lane asks of the ledger.
type Memory interface {
	// FindMany returns what is known of the ids, bodies included.
	FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error)
	// Remember makes a snapshot of what goes to rest durable; remembered is called once. isNew says that no row exists yet.
	Remember(ctx context.Context, n *notification.Notification, isNew bool, remembered func(error))
	// PutBack makes durable that the ledger alone has a notification, which has a row and is due at its NextAt; putBack is
	// called once.
	PutBack(ctx context.Context, n *notification.Notification, putBack func(error))
}

// Due hands out what is due and should be sent from here while NATS is away.
type Due interface {
	// TakeDue returns what is due and no queue was told of, and what a queue was told of and is overdue since fedBefore,
	// each to one caller; it is due again after lease.
	TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error)
}

// Delayer keeps work until it is due.
type Delayer interface {
	Delay(ctx context.Context, w notification.Work) error
	// Ensure makes its streams where they are missing, and says when each was made.
	Ensure(ctx context.Context) (made map[string]time.Time, err error)
}

// Shards says which shards are this node's to take from, and whose own queues are this node's to drain. It keeps work
// fair and a drain alone; that no attempt is made twice is for the claims.
type Shards interface {
	// Owns reports whether a shard is this node's right now.
	Owns(shard int) bool
	// Changed is closed when Owns answers differently for some shard.
	Changed() <-chan struct{}
	// Release says that nothing is taken any more from a shard that Owns no longer reports.
	Release(shard int)
	// Leave says that this node wants no shards any more.
	Leave()
}

// Recall puts back on its way what rested in a stream whose contents are gone, as far as the ledger knew of it before
// an instant: the birth of the stream that took the old one's place.
type Recall func(ctx context.Context, stream string, before time.Time) error

// Config of the lane.
type Config struct {
	// Depth is how many notifications of one isolation key wait in process before the rest goes to its own queue.
	Depth int `yaml:"depth"`
	// InFlight is how many attempts of one isolation key run at once until it is known how its merchant answers; fewer if
	// the merchant says so.
	InFlight int `yaml:"in_flight"`
	// MaxInFlight is how many attempts of one isolation key run at once at most, unless the merchant says otherwise.
	MaxInFlight int `yaml:"max_in_flight"`
	// SlowInFlight is how many attempts all isolation keys that answer slowly have together; each has one at least.
	SlowInFlight int `yaml:"slow_in_flight"`
	// Patience is how long a notification waits in process before its key gets its own queue.
	Patience time.Duration `yaml:"patience"`
	// InHand bounds the notifications taken from NATS and not yet settled, over all keys.
	InHand int `yaml:"in_hand"`
	// StreamBytes bounds each stream on disk; a full one refuses new submissions.
	StreamBytes int64 `yaml:"stream_bytes"`
	// OwnQueue bounds the notifications in one own queue; what comes when it is full waits in the ledger.
	OwnQueue int64 `yaml:"own_queue"`
	// OwnQueueRest is about how long it waits there before it is tried again.
	OwnQueueRest time.Duration `yaml:"own_queue_rest"`
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
		Depth: 512, InFlight: 8, MaxInFlight: 64, SlowInFlight: 2048, Patience: 500 * time.Millisecond, InHand: 20_000, StreamBytes: 8 << 30, OwnQueue: 100_000, OwnQueueRest: time.Minute, Replicas: 1,
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
	case c.MaxInFlight < c.InFlight:
		return fmt.Errorf("async.max_in_flight: %d: must be at least in_flight (%d)", c.MaxInFlight, c.InFlight)
	case c.SlowInFlight < 1:
		return fmt.Errorf("async.slow_in_flight: %d: must be at least 1", c.SlowInFlight)
	case c.Patience < 10*time.Millisecond:
		return fmt.Errorf("async.patience: %s: must be at least 10ms", c.Patience)
	case c.InHand < c.Depth+c.InFlight:
		return fmt.Errorf("async.in_hand: %d: must be at least depth and in_flight together (%d)", c.InHand, c.Depth+c.InFlight)
	case c.StreamBytes < 1<<20:
		return fmt.Errorf("async.stream_bytes: %d: must be at least 1 MiB", c.StreamBytes)
	case c.OwnQueue < 1:
		return fmt.Errorf("async.own_queue: %d: must be at least 1", c.OwnQueue)
	case c.OwnQueueRest < time.Second:
		return fmt.Errorf("async.own_queue_rest: %s: must be at least 1s", c.OwnQueueRest)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("async.replicas: %d: must be 1 to 5", c.Replicas)
	case c.AckWait < time.Second:
		return fmt.Errorf("async.ack_wait: %s: must be at least 1s", c.AckWait)
	case c.PublishTimeout < 100*time.Millisecond:
		return fmt.Errorf("async.publish_timeout: %s: must be at least 100ms", c.PublishTimeout)
	}
	return nil
}

// ErrFull is returned when a stream is at its own bound: the caller may try again later. A full disk is another error.
var ErrFull = errors.New("publish: the stream is full")

// Lane is the asynchronous lane of one node.
type Lane struct {
	cfg     Config
	js      jetstream.JetStream
	deliver Deliverer
	memory  Memory
	delay   Delayer
	hand    *hand.Table
	limits  func(merchantID string) Limits
	owned   Shards
	spread  int
	due     Due // nil: nothing is taken from the ledger
	away    func() bool
	behind  func() time.Duration
	recall  Recall // nil: nobody is told
	log     *zap.Logger
	clock   func() time.Time // monotonic: for holds

	publishing [notification.Shards]*groupcommit.Batcher[notification.Work]
	room       chan struct{} // one token for each notification in hand that a message, or a row, brought
	dueRoom    chan struct{} // and one for each of them that had come due
	fresh      fresh
	strain     *strain
	arrivals   atomic.Uint64
	movingIn   [notification.Shards]atomic.Int32 // notifications on their way to own queues
	crowd      crowd
	fullUntil  atomic.Int64 // see Full: nanoseconds since started

	pressedUntil atomic.Int64 // see overwhelmed: the same

	mu     sync.Mutex
	queues map[string]*merchantQueue // by isolation key; only keys with something to do
	ended  [sentLately]int           // attempts of all keys, as in merchantQueue
	pacing
	running crew.Crew      // attempts, drains, moves and acknowledgements
	taking  sync.WaitGroup // whatever takes from NATS
	unread  atomic.Bool    // see Unread

	streams  sync.Mutex
	own      jetstream.Stream  // nil: not seen yet
	suspect  map[string]uint64 // after a crash: the last sequence of each stream at the start
	crashed  bool
	ready    chan struct{} // closed: the streams were there, and suspect is known
	started  time.Time
	look     ownLook
	stopping chan struct{} // closed: take nothing more

	holding sync.Mutex
	held    map[*message]struct{}                          // messages taken from NATS and not yet acknowledged
	acks    map[string]*groupcommit.Batcher[jetstream.Msg] // by consumer

	published publishCounts
	contained containedCounts
}

// Parts are what the lane works with.
type Parts struct {
	JetStream jetstream.JetStream
	Deliverer Deliverer
	Memory    Memory
	Delayer   Delayer
	Hand      *hand.Table
	// Limits are a merchant's own, asked for with each notification; nil: there are none.
	Limits func(merchantID string) Limits
	Log    *zap.Logger
	// Crashed says that NATS itself may have died with this node's last run: it may have forgotten what it had handed out,
	// so whatever is stored now counts as handed out before.
	Crashed bool
	// Shards are shared with other nodes; nil: all are this node's.
	Shards Shards
	// Spread is over how many of the shards envelopes are spread: fewer make them fuller, and need no other node to share
	// them with. 0: all.
	Spread int
	// Away says that NATS does not answer; nil: it always does. Then Due is asked for what to send; nil: nothing is sent.
	Away func() bool
	Due  Due
	// Behind is how long what is recorded waits in a ledger that writes and does not keep up; nil: it always does.
	Behind func() time.Duration
	// Recall is told of each stream that had to be made again; nil: nobody is.
	Recall Recall
}

// New makes the lane's streams where they are missing. While NATS is away it leaves that to KeepStreams.
func New(ctx context.Context, cfg Config, parts Parts) (*Lane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Lane{
		cfg: cfg, js: parts.JetStream, deliver: parts.Deliverer, memory: parts.Memory, delay: parts.Delayer,
		hand: parts.Hand, limits: parts.Limits, owned: parts.Shards, due: parts.Due, away: parts.Away, behind: parts.Behind, recall: parts.Recall,
		log: parts.Log, clock: time.Now, started: time.Now(), crashed: parts.Crashed,
		room: make(chan struct{}, cfg.InHand), strain: newStrain(), dueRoom: make(chan struct{}, max(1, cfg.InHand/2)), pacing: newPacing(cfg), queues: map[string]*merchantQueue{}, ready: make(chan struct{}),
		look: ownLook{keys: map[string]string{}}, stopping: make(chan struct{}), held: map[*message]struct{}{}, acks: map[string]*groupcommit.Batcher[jetstream.Msg]{},
	}
	if l.owned == nil {
		l.owned = alone{}
	}
	if l.spread = parts.Spread; l.spread < 1 || l.spread > notification.Shards {
		l.spread = notification.Shards
	}
	if l.limits == nil {
		l.limits = func(string) Limits { return Limits{} }
	}
	if l.behind == nil {
		l.behind = func() time.Duration { return 0 }
	}
	if l.away == nil {
		l.away = func() bool { return false }
	}
	for shard := range l.publishing {
		l.publishing[shard] = groupcommit.New(fitsEnvelope, func(works []notification.Work) []error {
			return l.publish(context.WithoutCancel(ctx), envelope.NotifySubject(shard), works)
		})
	}
	if err := l.prepare(ctx); streams.Away(err) {
		l.log.Warn("queues cannot be made yet; they are as soon as NATS answers", zap.Error(err))
	} else if err != nil {
		return nil, err
	}
	return l, nil
}

// Accept makes works durable in their shards; each is accepted when accepted has been called for it with nil (P1).
func (l *Lane) Accept(w notification.Work, accepted func(error)) {
	l.publishing[l.shardOf(w)].Add(w, accepted)
}

// shardOf is where envelopes with a work go.
func (l *Lane) shardOf(w notification.Work) int {
	return notification.ShardOf(w.Route.IsolationKey) % l.spread
}

func fitsEnvelope(batch []notification.Work, next notification.Work) bool {
	size := envelope.Size(next)
	for _, w := range batch {
		size += envelope.Size(w)
	}
	return len(batch) < envelope.MaxWorks && size <= envelope.MaxBytes
}

// fullFor is how long Full says so after a publish was refused: as long as it takes to see how much room there is again.
const fullFor = 20 * time.Millisecond

// Full reports whether nothing more should be accepted right now (P10): the shards' stream was at its bound a moment ago, or
// this engine is behind with what it has accepted, because there is too much of it. Accepting is a good part of what a
// notification costs: an engine that goes on accepting delivers less the more it is given.
func (l *Lane) Full() bool {
	return int64(time.Since(l.started)) < l.fullUntil.Load() || l.overwhelmed() || l.strain.high() && l.fresh.behind(time.Now(), l.started)
}

// overwhelmed reports whether more is recorded than the ledger keeps up with. A moment's delay is none of it: it begins with
// a second. Whoever was overwhelmed a moment ago says so earlier: what is in hand for longer than a few hundred
// milliseconds costs the ledger a row more.
func (l *Lane) overwhelmed() bool {
	behind, now := l.behind(), time.Since(l.started)
	if behind <= lateAfter || behind <= behindAfter && int64(now) > l.pressedUntil.Load() {
		return false
	}
	l.pressedUntil.Store(int64(now + pressedFor))
	return true
}

// pressedFor is how long it is remembered that the ledger was behind.
const pressedFor = 10 * time.Second

// lateAfter is how long records wait in a ledger that does not keep up.
const lateAfter = 300 * time.Millisecond

// late reports whether the ledger does not keep up.
func (l *Lane) late() bool { return l.behind() > lateAfter }

// strained reports whether the engine has more to do than it can: then waiting is nobody's fault but its own.
func (l *Lane) strained() bool { return l.late() || l.strain.high() }

// publish stores one envelope; either every member is durable or none is known to be.
func (l *Lane) publish(ctx context.Context, subject string, works []notification.Work) []error {
	data, err := envelope.Encode(works)
	if err == nil {
		err = l.store(ctx, faults.Publish, subject, data)
	}
	if err == nil {
		l.fullUntil.Store(0)
		l.published.envelope(len(works), len(data))
		return nil
	}
	if errors.Is(err, ErrFull) {
		l.fullUntil.Store(int64(time.Since(l.started) + fullFor))
	}
	l.published.failures.Add(1)
	err = fmt.Errorf("publish to %s: %w", subject, err)
	errs := make([]error, len(works))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// store publishes one message; write is its name among the faults.
func (l *Lane) store(ctx context.Context, write, subject string, data []byte) error {
	if err := faults.Before(write); err != nil {
		return err
	}
	future, err := l.js.PublishAsync(subject, data) // cheaper than Publish, which is a request with an inbox of its own
	if err != nil {
		return publishError(err)
	}
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PublishTimeout)
	defer cancel()
	select {
	case <-future.Ok():
		return faults.After(write)
	case err := <-future.Err():
		return publishError(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publishError tells a stream that is at its own bound, which is the load's doing, from a JetStream that cannot store.
func publishError(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == errCodeStoreFailed && slices.ContainsFunc(streamBounds, func(bound string) bool { return strings.Contains(api.Description, bound) }) {
		return fmt.Errorf("%w: %s", ErrFull, api.Description)
	}
	return err
}

// errCodeStoreFailed is the server's "store failed": over one of the stream's bounds, or something is wrong with the disk.
const errCodeStoreFailed jetstream.ErrorCode = 10077

// streamBounds are the server's words for a stream at its bound.
var streamBounds = []string{"maximum bytes exceeded", "maximum messages exceeded", "maximum messages per subject exceeded"}
