package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// BoardConfig sets a Board.
type BoardConfig struct {
	// Bucket is the key-value bucket behind it.
	Bucket string
	// Replicas of the bucket: 1 for a single server, 3 for a cluster.
	Replicas int
	// Look is how often the watch is compared with the bucket: one that has gone silent begins anew.
	Look time.Duration
}

// DefaultBoardConfig lacks Bucket.
func DefaultBoardConfig() BoardConfig { return BoardConfig{Replicas: 1, Look: 2 * time.Second} }

func (c BoardConfig) validate() error {
	switch {
	case c.Bucket == "":
		return errors.New("board: bucket is empty")
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("board: replicas is %d, must be 1 to 5", c.Replicas)
	case c.Look < 10*time.Millisecond:
		return fmt.Errorf("board: look is %s, must be at least 10ms", c.Look)
	}
	return nil
}

// Board is where nodes tell each other a few things: each entry is seen by all of them, outlives them, and may end by
// itself. While NATS is away nothing can be put, and what is known stays known; afterwards everything is caught up.
type Board struct {
	cfg     BoardConfig
	js      jetstream.JetStream
	log     *zap.Logger
	learned chan struct{} // closed when everything stored has been told once

	// Of the goroutine of Run.
	made  time.Time // when the bucket was made
	heard uint64    // no change up to this revision is still to come
	// restoring says that what is known may have to be put into a bucket that was made again.
	restoring bool

	mu    sync.Mutex       // held while something is told: in the order of revisions
	known map[string]entry // what is on the board, as far as this node knows
	tell  func(key string, value []byte)
}

type entry struct {
	revision uint64
	value    []byte
	ends     time.Time // zero: it stays
}

// NewBoard asks nobody: Run does, and bears that NATS is away.
func NewBoard(js jetstream.JetStream, cfg BoardConfig, log *zap.Logger) (*Board, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Board{cfg: cfg, js: js, log: log, learned: make(chan struct{}), known: map[string]entry{}, tell: func(string, []byte) {}}, nil
}

// Learned is closed when everything that was on the board when Run began has been told.
func (b *Board) Learned() <-chan struct{} { return b.learned }

// Put shows an entry to every node for a time, which is rounded up to seconds; 0: until it is deleted. Before it returns,
// this node has been told, of this or of something newer. After an error the entry may be there or not: putting it again
// is safe.
func (b *Board) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	e := entry{value: value}
	if ttl > 0 {
		e.ends = time.Now().Add(ttl)
	}
	return b.publish(ctx, key, e)
}

// Delete takes an entry away, if there is one; as with Put, this node has been told.
func (b *Board) Delete(ctx context.Context, key string) error {
	marker := b.message(key, nil)
	marker.Header = nats.Header{"KV-Operation": {"DEL"}}
	ack, err := b.js.PublishMsg(ctx, marker, jetstream.WithMsgTTL(markerFor))
	if err != nil {
		return fmt.Errorf("delete %s from bucket %s: %w", key, b.cfg.Bucket, err)
	}
	b.drop(key, ack.Sequence)
	return nil
}

// publish is what the bucket's own Put does, with a time to live, for which that has no option.
func (b *Board) publish(ctx context.Context, key string, e entry, opts ...jetstream.PublishOpt) error {
	if !e.ends.IsZero() {
		ttl := max(time.Until(e.ends), time.Second) // the server's least
		opts = append(opts, jetstream.WithMsgTTL((ttl + time.Second - 1).Truncate(time.Second)))
	}
	ack, err := b.js.PublishMsg(ctx, b.message(key, e.encode()), opts...)
	if err != nil {
		return fmt.Errorf("put %s into bucket %s: %w", key, b.cfg.Bucket, err)
	}
	e.revision = ack.Sequence
	b.keep(key, e)
	return nil
}

func (b *Board) message(key string, data []byte) *nats.Msg {
	return &nats.Msg{Subject: "$KV." + b.cfg.Bucket + "." + key, Data: data}
}

// keep notes and tells an entry, unless a newer one is known.
func (b *Board) keep(key string, e entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known[key].revision < e.revision {
		b.known[key] = e
		b.tell(key, e.value)
	}
}

// drop notes and tells that an entry has gone, unless a newer one is known.
func (b *Board) drop(key string, revision uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, there := b.known[key]; there && e.revision < revision {
		delete(b.known, key)
		b.tell(key, nil)
	}
}

// encode is an entry as it is stored: eight bytes say when it ends, in Unix nanoseconds, 0 for never. A watch is not shown
// the time to live, and a node that has to put an entry back must know.
func (e entry) encode() []byte {
	ends := int64(0)
	if !e.ends.IsZero() {
		ends = e.ends.UnixNano()
	}
	return append(binary.BigEndian.AppendUint64(nil, uint64(ends)), e.value...)
}

func decodeEntry(stored jetstream.KeyValueEntry) (entry, bool) {
	data := stored.Value()
	if len(data) < 8 {
		return entry{}, false
	}
	e := entry{revision: stored.Revision(), value: data[8:]}
	if ends := int64(binary.BigEndian.Uint64(data)); ends != 0 { //nolint:gosec // its bits
		e.ends = time.Unix(0, ends)
	}
	return e, true
}

// Run tells what is on the board, and each change, one after another, until ctx ends; no value: the entry is gone. Whoever
// is told puts nothing meanwhile.
func (b *Board) Run(ctx context.Context, tell func(key string, value []byte)) error {
	b.mu.Lock()
	b.tell = tell
	b.mu.Unlock()
	away := false
	for ctx.Err() == nil {
		err := b.watch(ctx, func() {
			if away {
				b.log.Info("board is read again", zap.String("bucket", b.cfg.Bucket))
			}
			away = false
		})
		if !away && ctx.Err() == nil {
			b.log.Warn("board cannot be read; what is known of it serves meanwhile", zap.String("bucket", b.cfg.Bucket), zap.Error(err))
		}
		away = true
		timer := time.NewTimer(b.cfg.Look / 4)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
	return nil
}

var (
	errSilent  = errors.New("the watch has gone silent")
	errEnded   = errors.New("the watch has ended")
	errRemade  = errors.New("the bucket was made again")
	errMissing = errors.New("the stored entries do not arrive")
)

// watch tells until something is wrong.
func (b *Board) watch(ctx context.Context, began func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	kv, err := b.open(ctx)
	if err != nil {
		return err
	}
	before, err := b.state(ctx, kv)
	if err != nil {
		return err
	}
	changes, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", b.cfg.Bucket, err)
	}
	defer leave(changes)
	renewed := b.begin(before)
	stored, seen := false, map[string]bool{}
	tick := time.NewTicker(b.cfg.Look)
	defer tick.Stop()
	due := b.heard // what has to be heard by the next look
	looks := 0
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, ok := <-changes.Updates():
			switch {
			case !ok:
				return errEnded
			case e != nil:
				seen[e.Key()] = true
				b.take(e)
				continue
			}
			if err := b.settle(ctx, seen, before.last, renewed); err != nil {
				return err
			}
			stored, b.heard, b.restoring = true, max(b.heard, before.last), false
			select {
			case <-b.learned:
			default:
				close(b.learned)
			}
			began()
		case <-tick.C:
			looks++
			now, err := b.state(ctx, kv)
			switch {
			case err != nil:
				return err
			case !now.made.Equal(b.made):
				return errRemade
			case !stored && looks < arrivalLooks:
				continue
			case !stored:
				return errMissing
			case b.heard < due:
				return errSilent
			}
			due = now.last
		}
	}
}

// leave ends a watch. What has arrived is taken out of it: its callback would wait for that for ever.
func leave(changes jetstream.KeyWatcher) {
	_ = changes.Stop() // the connection may be gone
	bound := time.NewTimer(askFor)
	defer bound.Stop()
	for {
		select {
		case _, open := <-changes.Updates():
			if !open {
				return
			}
		case <-bound.C:
			return
		}
	}
}

// begin forgets the revisions of a bucket that is no more. True: there are entries to put into the new one.
func (b *Board) begin(now bucketState) bool {
	if now.made.Equal(b.made) {
		return b.restoring
	}
	b.made, b.heard = now.made, 0
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, e := range b.known {
		e.revision = 0
		b.known[key] = e
	}
	b.restoring = true
	return true
}

// take tells one change.
func (b *Board) take(stored jetstream.KeyValueEntry) {
	b.heard = max(b.heard, stored.Revision())
	if stored.Operation() != jetstream.KeyValuePut {
		b.drop(stored.Key(), stored.Revision())
	} else if e, ok := decodeEntry(stored); ok {
		b.keep(stored.Key(), e)
	} else {
		b.log.Warn("an entry on the board cannot be read and is passed over", zap.String("bucket", b.cfg.Bucket), zap.String("key", stored.Key()))
	}
}

// settle deals with what was known and is not stored: it has gone while nobody listened, or, when the bucket was lost and
// made again, is put there again. What has a revision after last was put while the stored entries arrived.
func (b *Board) settle(ctx context.Context, seen map[string]bool, last uint64, renewed bool) error {
	now, lost := time.Now(), map[string]entry{}
	b.mu.Lock()
	for key, e := range b.known {
		switch {
		case seen[key] || e.revision > last:
		case renewed && (e.ends.IsZero() || now.Before(e.ends)):
			lost[key] = e
		default:
			delete(b.known, key)
			b.tell(key, nil)
		}
	}
	b.mu.Unlock()
	for key, e := range lost {
		ctx, cancel := context.WithTimeout(ctx, askFor)
		err := b.publish(ctx, key, e, jetstream.WithExpectLastSequencePerSubject(0))
		cancel()
		if err != nil && !isTaken(err) { // else another node has put it back, or something newer
			return err
		}
	}
	return nil
}

func isTaken(err error) bool {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// askFor bounds one request.
const askFor = 2 * time.Second

// arrivalLooks is how many looks the stored entries have to arrive.
const arrivalLooks = 5

// markerFor is how long the bucket shows that an entry has ended: for watches that are behind.
const markerFor = time.Minute

func (b *Board) open(ctx context.Context) (jetstream.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	kv, err := b.js.KeyValue(ctx, b.cfg.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = b.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: b.cfg.Bucket, Description: "what nodes of notifyd tell each other", History: 1, Storage: jetstream.FileStorage,
			Replicas: b.cfg.Replicas, LimitMarkerTTL: markerFor,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = b.js.KeyValue(ctx, b.cfg.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", b.cfg.Bucket, err)
	}
	return kv, nil
}

// bucketState is when a bucket was made, and its last revision.
type bucketState struct {
	made time.Time
	last uint64
}

func (b *Board) state(ctx context.Context, kv jetstream.KeyValue) (bucketState, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	status, err := kv.Status(ctx)
	if err != nil {
		return bucketState{}, fmt.Errorf("look at bucket %s: %w", b.cfg.Bucket, err)
	}
	backing, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return bucketState{}, fmt.Errorf("look at bucket %s: no stream behind it", b.cfg.Bucket)
	}
	info := backing.StreamInfo()
	return bucketState{made: info.Created, last: info.State.LastSeq}, nil
}
