package retry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"notifyd/internal/groupcommit"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// A safetyNet is one schedule for several works, each of which is most likely settled long before it is due: the sync lane's,
// which are being asked about right now. A schedule for each would be a publish and a purge for each, which is more than
// the rest of what the engine does for them. What comes due of settled ones is refused by the claim.
type safetyNet struct {
	shard   int
	subject string // a random one: the schedules of ids are others
	left    atomic.Int32
}

// spreading is a work on its way into a net.
type spreading struct {
	work notification.Work
	net  *safetyNet
}

// newSpreader returns the group commit of nets.
func (d *Delay) newSpreader(ctx context.Context) *groupcommit.Batcher[*spreading] {
	fits := func(batch []*spreading, next *spreading) bool {
		size := envelope.Size(next.work)
		for _, s := range batch {
			size += envelope.Size(s.work)
		}
		return len(batch) < envelope.MaxWorks && size <= envelope.MaxBytes
	}
	return groupcommit.New(fits, func(batch []*spreading) []error { return d.spread(context.WithoutCancel(ctx), batch) }).Linger(time.Millisecond)
}

// SpreadThen makes w due at its NextAt or, with others that come at the same time, a little later, unless takeAway is
// called before. spread is called once; without an error, w is durable until then.
func (d *Delay) SpreadThen(w notification.Work, spread func(takeAway func(context.Context), err error)) {
	s := &spreading{work: w}
	d.spreading.Add(s, func(err error) {
		if err != nil {
			spread(nil, err)
			return
		}
		spread(func(ctx context.Context) { d.takeAway(ctx, s.net) }, nil)
	})
}

func (d *Delay) spread(ctx context.Context, batch []*spreading) []error {
	n := &safetyNet{shard: netShard(batch[0].work)}
	n.subject = envelope.DelaySubject(n.shard, randomID())
	n.left.Store(int32(len(batch))) //nolint:gosec // at most envelope.MaxWorks
	works, due := make([]notification.Work, len(batch)), batch[0].work.NextAt
	for i, s := range batch {
		works[i], s.net = s.work, n
		if s.work.NextAt.After(due) {
			due = s.work.NextAt
		}
	}
	data, err := envelope.Encode(works)
	if err == nil {
		msgs := []*nats.Msg{schedule(n.subject, n.shard, data, due)}
		err = d.publishAll(ctx, msgs)[0]
	}
	if err == nil {
		return nil
	}
	return slices.Repeat([]error{err}, len(batch))
}

// netShard is a shard of the first retry stream: the claims of a net's members do not mind whose shard brings it.
func netShard(w notification.Work) int {
	return notification.ShardOf(w.Route.IsolationKey) / envelope.RetryStreams * envelope.RetryStreams
}

// takeAway removes a net with its last member, when the next one is through: a stream that becomes empty gives up its file
// and begins another, which costs more than all the rest of a net. What stays comes due, and is refused.
func (d *Delay) takeAway(ctx context.Context, n *safetyNet) {
	if n.left.Add(-1) > 0 {
		return
	}
	if before := d.through.Swap(n); before != nil {
		_ = d.purge(ctx, before.shard, before.subject)
	}
}

func randomID() (id notification.ID) {
	binary.LittleEndian.PutUint64(id[:8], rand.Uint64()) // tells nets apart; guards nothing
	binary.LittleEndian.PutUint64(id[8:], rand.Uint64())
	return id
}
