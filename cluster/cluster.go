// Package cluster says which nodes live and which shard is whose. The nodes share one document in JetStream, which each
// of them changes by compare-and-set; whoever gives no sign of life loses its shards to the others.
//
// Ownership is for fairness: one taker a shard, one drain an own queue. That no attempt is made twice is for the claims.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

const (
	// Bucket is the key-value bucket that keeps the document.
	Bucket = "notifyd_cluster"

	documentKey = "state"
)

// Config of a node's part in the cluster.
type Config struct {
	// Node is the identity of the data folder; it outlives the process.
	Node string
	// Run is unique for each life of the process. Who finds a newer run of its own node takes no shards meanwhile.
	Run string
	// Heartbeat is the time between two signs of life.
	Heartbeat time.Duration
	// Expiry is how long a node may be silent before others take its shards. A node that cannot show that it lives stops
	// owning a quarter of it earlier, by its own clock.
	Expiry time.Duration
	// Replicas of the bucket: 1 for a single server, 3 for a cluster.
	Replicas int
	// Shards is how many there are to share; 0: this node takes none and only shows that it lives.
	Shards int
}

// DefaultConfig lacks Node, Run and Shards.
func DefaultConfig() Config {
	return Config{Heartbeat: time.Second, Expiry: 4 * time.Second, Replicas: 1}
}

func (c Config) validate() error {
	switch {
	case c.Node == "":
		return errors.New("cluster: node is empty")
	case c.Run == "":
		return errors.New("cluster: run is empty")
	case c.Heartbeat < 10*time.Millisecond:
		return fmt.Errorf("cluster: heartbeat is %s, must be at least 10ms", c.Heartbeat)
	case c.Expiry < 3*c.Heartbeat:
		return fmt.Errorf("cluster: expiry is %s, must be at least three heartbeats (%s)", c.Expiry, 3*c.Heartbeat)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("cluster: replicas is %d, must be 1 to 5", c.Replicas)
	case c.Shards < 0:
		return fmt.Errorf("cluster: shards is %d, must not be negative", c.Shards)
	}
	return nil
}

// Cluster is one node's part. Its methods may be called concurrently.
type Cluster struct {
	cfg   Config
	js    jetstream.JetStream
	log   *zap.Logger
	clock func() time.Time // monotonic
	kick  chan struct{}    // look at once

	// Of the goroutine of Run.
	kv       jetstream.KeyValue // nil: to be opened
	revision uint64             // the newest that was seen
	joined   bool
	beatAt   time.Time // start of the last write that succeeded
	readAt   time.Time
	waitTill time.Time // nothing new is taken before it: the document was lost, and others have not noticed yet
	seen     map[string]sign

	mu       sync.Mutex
	leave    bool
	blind    bool
	mine     map[int]bool // by the last write that succeeded; true: this node's to keep, false: to be given up
	released map[int]bool
	until    time.Time // the lease: mine holds before it
	gone     []string
	living   int
	shown    []int // what Owns said at the last change
	changed  chan struct{}
}

// sign is the last sign of life of another node, and when this one first saw it.
type sign struct {
	run  string
	beat uint64
	at   time.Time
}

// New asks nobody: Run does, and bears that NATS is away.
func New(js jetstream.JetStream, cfg Config, log *zap.Logger) (*Cluster, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Cluster{
		cfg: cfg, js: js, log: log, clock: time.Now, kick: make(chan struct{}, 1),
		seen: map[string]sign{}, mine: map[int]bool{}, released: map[int]bool{}, changed: make(chan struct{}),
	}, nil
}

// Owns reports whether a shard is this node's right now: it was written down as such, and the node has shown that it
// lives so recently that nobody else can have taken it since. It asks nobody.
func (c *Cluster) Owns(shard int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mine[shard] && c.clock().Before(c.until)
}

// Changed is closed when Owns answers differently for some shard.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Release says that nothing is taken any more from a shard that Owns no longer reports. Until then another node that
// should have it waits.
func (c *Cluster) Release(shard int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept, there := c.mine[shard]; there && !kept && !c.released[shard] {
		c.released[shard] = true
		c.look()
	}
}

// Leave says that this node wants no shards any more: it is about to end. It still shows that it lives, until Run ends.
func (c *Cluster) Leave() {
	c.mu.Lock()
	c.leave = true
	for shard := range c.mine {
		c.mine[shard] = false
	}
	c.show()
	c.mu.Unlock()
	c.look()
}

// Blind says whether this node cannot ask the ledger what has become of a notification. Where another node can, that one
// takes from the shards meanwhile; while none can, all of them go on.
func (c *Cluster) Blind(blind bool) {
	c.mu.Lock()
	changed := c.blind != blind
	c.blind = blind
	c.mu.Unlock()
	if changed {
		c.look()
	}
}

// Gone names runs that are known to have ended, the recent ones. One that is merely silent is not among them.
func (c *Cluster) Gone() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// Stats is what this node sees.
type Stats struct {
	Nodes  int // living ones, this one included; 0: nobody knows
	Shards int // owned by this node
}

// Stats is a snapshot.
func (c *Cluster) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.clock().Before(c.until) {
		return Stats{}
	}
	return Stats{Nodes: c.living, Shards: len(c.owned())}
}

func (c *Cluster) look() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Run takes part until ctx ends, then gives everything up.
func (c *Cluster) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Heartbeat / 4)
	defer tick.Stop()
	lapse := time.AfterFunc(c.cfg.Expiry, func() { // a write that hangs must not keep the lane from hearing that the lease is over
		c.mu.Lock()
		defer c.mu.Unlock()
		c.show()
	})
	defer lapse.Stop()
	var last error
	for {
		err := c.once(ctx)
		switch superseded := errors.Is(err, errSuperseded); {
		case ctx.Err() != nil:
		case superseded && !errors.Is(last, errSuperseded):
			c.log.Error("a newer run of this node takes part; this one takes no shards meanwhile", zap.String("node", c.cfg.Node), zap.String("run", c.cfg.Run))
		case err != nil && last == nil:
			c.log.Warn("cluster cannot be asked; this node takes from no shard until it can", zap.Error(err))
		case err == nil && last != nil:
			c.log.Info("cluster answers again")
		}
		last = err
		c.mu.Lock()
		c.show()
		lapse.Reset(max(c.until.Sub(c.clock()), 0) + time.Millisecond)
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			c.end(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
		case <-c.kick:
		}
	}
}

var (
	errSuperseded = errors.New("a newer run of this node takes part")
	errLostRace   = errors.New("other nodes always wrote first")
)

// once looks at the document and writes it where something is to be changed, or a sign of life is due.
func (c *Cluster) once(ctx context.Context) error {
	for range 8 {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.Heartbeat)
		written, err := c.try(ctx)
		cancel()
		if written || err != nil {
			if err != nil && !errors.Is(err, errSuperseded) { // which needs no other bucket
				c.kv = nil // it may have been deleted
			}
			return err
		}
		// Somebody else wrote in between; what is read next may come from a server that has not heard of it yet.
		timer := time.NewTimer(c.cfg.Heartbeat / 100)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
	return errLostRace
}

// try is one compare-and-set. False without an error: another node wrote in between.
func (c *Cluster) try(ctx context.Context) (bool, error) {
	now, revision, err := c.read(ctx)
	if err != nil {
		return false, err
	}
	if revision < c.revision { // from a server that has not heard of the newest yet
		return false, nil
	}
	c.revision = revision
	began := c.clock()
	c.mu.Lock()
	me := self{
		node: c.cfg.Node, run: c.cfg.Run, joined: c.joined, takes: c.cfg.Shards > 0 && !c.leave, blind: c.blind, waits: began.Before(c.waitTill),
		released: maps.Clone(c.released), shards: c.cfg.Shards,
	}
	c.mu.Unlock()
	next, ok := now.step(me, c.silent(now, began))
	if !ok {
		c.drop()
		return false, errSuperseded
	}
	if next.same(now) && began.Sub(c.beatAt) < c.cfg.Heartbeat {
		c.learn(next)
		return true, nil
	}
	m := next.Nodes[c.cfg.Node]
	m.Beat++
	next.Nodes[c.cfg.Node] = m
	if written, err := c.write(ctx, next, revision); !written || err != nil {
		return written, err
	}
	c.joined, c.beatAt = true, began
	c.mu.Lock()
	c.until = began.Add(c.cfg.Expiry - c.cfg.Expiry/4)
	c.mu.Unlock()
	c.learn(next)
	return true, nil
}

// read returns the document, made where it is missing, and its revision; 0: there is none yet.
func (c *Cluster) read(ctx context.Context) (state, uint64, error) {
	if c.kv == nil {
		if err := c.open(ctx); err != nil {
			return state{}, 0, err
		}
	}
	entry, err := c.kv.Get(ctx, documentKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return state{}, 0, nil
	}
	if err != nil {
		return state{}, 0, fmt.Errorf("read cluster: %w", err)
	}
	var s state
	if err := json.Unmarshal(entry.Value(), &s); err != nil {
		c.log.Error("the cluster's document cannot be read and is made again", zap.Error(err))
		s = state{}
	}
	return s, entry.Revision(), nil
}

func (c *Cluster) open(ctx context.Context) error {
	kv, err := c.js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = c.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: Bucket, Description: "which node of notifyd lives, and which shard is whose", History: 1, Storage: jetstream.FileStorage, Replicas: c.cfg.Replicas,
		})
		if err == nil && len(c.seen) > 0 {
			c.log.Warn("the cluster's document was lost and is made again")
			c.waitTill = c.clock().Add(c.cfg.Expiry)
		}
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = c.js.KeyValue(ctx, Bucket)
		}
	}
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", Bucket, err)
	}
	c.kv, c.revision = kv, 0
	return nil
}

// write stores the document if nobody else has since it was read.
func (c *Cluster) write(ctx context.Context, next state, revision uint64) (bool, error) {
	data, err := json.Marshal(next)
	if err != nil {
		return false, fmt.Errorf("encode cluster: %w", err)
	}
	var written uint64
	if revision == 0 {
		written, err = c.kv.Create(ctx, documentKey, data)
	} else {
		written, err = c.kv.Update(ctx, documentKey, data, revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write cluster: %w", err)
	}
	c.revision = written
	return true, nil
}

// silent names the others whose last sign of life this node has known for the expiry. Time in which it could not read
// does not count: when NATS comes back, everybody has been silent.
func (c *Cluster) silent(now state, at time.Time) map[string]bool {
	blind := at.Sub(c.readAt) > c.cfg.Expiry/2
	c.readAt = at
	seen, out := map[string]sign{}, map[string]bool{}
	for name, m := range now.Nodes {
		if m.Silent || name == c.cfg.Node && m.Run == c.cfg.Run {
			continue
		}
		last, known := c.seen[name]
		if !known || blind || last.run != m.Run || last.beat != m.Beat {
			last = sign{run: m.Run, beat: m.Beat, at: at}
		}
		seen[name] = last
		if at.Sub(last.at) >= c.cfg.Expiry {
			out[name] = true
			c.log.Warn("a node is silent and loses its shards", zap.String("node", name), zap.String("run", m.Run), zap.Ints("shards", m.Shards))
		}
	}
	c.seen = seen
	return out
}

// learn takes over what the document says of this node.
func (c *Cluster) learn(s state) {
	living := 0
	for _, m := range s.Nodes {
		if !m.Silent {
			living++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mine, released := map[int]bool{}, map[int]bool{}
	for _, shard := range s.Nodes[c.cfg.Node].Shards {
		mine[shard] = !c.leave && s.meant(shard) == c.cfg.Node
		_, before := c.mine[shard]
		if !mine[shard] && (c.released[shard] || !before) { // what the lane has not heard of it takes nothing from
			released[shard] = true
		}
	}
	if living != c.living {
		c.log.Info("nodes of the cluster", zap.Int("living", living), zap.Int("shards", len(mine)))
	}
	c.mine, c.released, c.gone, c.living = mine, released, s.Gone, living
}

func (c *Cluster) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mine, c.until = map[int]bool{}, time.Time{}
}

// show tells whoever waits for a change that there is one. Cluster.mu is held.
func (c *Cluster) show() {
	owned := c.owned()
	if slices.Equal(owned, c.shown) {
		return
	}
	c.shown = owned
	close(c.changed)
	c.changed = make(chan struct{})
}

// owned are the shards that Owns reports. Cluster.mu is held.
func (c *Cluster) owned() []int {
	if !c.clock().Before(c.until) {
		return nil
	}
	var out []int
	for shard, keeps := range c.mine {
		if keeps {
			out = append(out, shard)
		}
	}
	slices.Sort(out)
	return out
}

// end takes the node out: its run has ended, and nobody has to wait for it.
func (c *Cluster) end(ctx context.Context) {
	c.drop()
	c.mu.Lock()
	c.show()
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.Heartbeat)
	defer cancel()
	for ctx.Err() == nil {
		now, revision, err := c.read(ctx)
		if err == nil && revision == 0 {
			return
		}
		var written bool
		if err == nil {
			written, err = c.write(ctx, now.leave(c.cfg.Node, c.cfg.Run), revision)
		}
		if err != nil {
			c.log.Warn("cluster was not told that this node ends; it will notice", zap.Error(err))
			return
		}
		if written {
			return
		}
	}
}
