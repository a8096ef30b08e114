package outage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"notifyd/internal/groupcommit"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// Ledger is the memory of a node, also while Postgres is away. Its methods are safe for use from many goroutines.
type Ledger struct {
	asking
	cfg     Config
	queues  *Watch
	js      jetstream.JetStream
	log     *zap.Logger
	journal *journal
	handles sync.Map // of the streams, by name

	spilled  waiting // records in SPILL
	reserved waiting // ids in RESERVED
	recent   *recent
	spilling *groupcommit.Batcher[*entry]

	pending entries
	ticks   atomic.Int64             // the clock of pending: one look each
	soon    atomic.Pointer[patience] // ends within two looks

	counts counts
}

// Parts are what the ledger works with.
type Parts struct {
	Postgres Postgres
	Conn     *nats.Conn
	Away     *Watch // of Postgres, see WatchPostgres; whoever made it runs it
	Queues   *Watch // of NATS, see WatchNATS; as above
	Dir      string // for the journal: in the data folder, which is this process' alone
	Log      *zap.Logger
}

type counts struct {
	spilled, journaled, elsewhere, drained, setAside, lost atomic.Uint64
}

// Stats are the numbers of a moment, and counts since the start.
type Stats struct {
	PostgresAway, NATSAway   bool
	PostgresSince, NATSSince time.Time // when they came into that state

	Pending         int   // records handed over and not durable anywhere yet
	SpillWaiting    int64 // records in SPILL, of all nodes; -1: not known
	ReservedWaiting int64 // ids in RESERVED, of all nodes; -1: not known
	JournalWaiting  int64 // records in this node's journal
	JournalBytes    int64

	Spilled   uint64 // records put into SPILL
	Journaled uint64 // records put into the journal
	Elsewhere uint64 // ids that this node reserved in RESERVED
	Drained   uint64 // records and ids that this node moved into Postgres
	SetAside  uint64 // messages that could not be decoded
	Lost      uint64 // records that nothing took: their writers were told
}

// NewLedger opens the journal and makes the streams; while NATS is away, Run makes them.
func NewLedger(ctx context.Context, cfg Config, parts Parts) (*Ledger, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	// Its own, so that what it leaves unanswered during an outage takes nobody else's places.
	js, err := jetstream.New(parts.Conn, jetstream.WithPublishAsyncTimeout(5*time.Second), jetstream.WithPublishAsyncMaxPending(8192))
	if err != nil {
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	j, err := openJournal(parts.Dir, cfg.JournalBytes, parts.Log)
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		cfg: cfg, queues: parts.Queues, js: js, log: parts.Log, journal: j, recent: newRecent(recentIDs),
	}
	l.asking = asking{parts.Postgres, parts.Away, l.settling}
	l.soon.Store(newPatience(ctx))
	l.spilled.unknown()
	l.reserved.unknown()
	l.spilling = groupcommit.New(groupcommit.AtMost[*entry](spillBatch), func(batch []*entry) []error {
		return l.publishRecords(context.WithoutCancel(ctx), batch)
	})
	if !parts.Queues.Away() {
		_ = l.makeStreams(ctx) // Run tries again, and says so
	}
	return l, nil
}

// Run carries on until ctx ends: records that wait too long go elsewhere, streams are made again, and what waits
// elsewhere is moved into Postgres. What is recorded afterwards still becomes durable; see Close.
func (l *Ledger) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { l.hurry(ctx); return nil })
	group.Go(func() error { l.keepStreams(ctx); return nil })
	group.Go(func() error { l.drain(ctx, envelope.SpillStream, &l.spilled, l.moveRecords); return nil })
	group.Go(func() error { l.drain(ctx, envelope.ReservedStream, &l.reserved, l.moveReservations); return nil })
	group.Go(func() error { l.replay(ctx); return nil })
	return group.Wait()
}

// Close returns when what is on its way elsewhere is durable or has failed, and closes the journal. It is for after the
// last Record has been told how it ended, and before NATS is left.
func (l *Ledger) Close() error {
	l.spilling.Wait()
	return l.journal.close()
}

// Stats is a snapshot.
func (l *Ledger) Stats() Stats {
	s := Stats{
		Pending: l.pending.len(), SpillWaiting: l.spilled.count.Load(), ReservedWaiting: l.reserved.count.Load(),
		JournalWaiting: l.journal.entries.Load(), JournalBytes: l.journal.bytes(),
		Spilled: l.counts.spilled.Load(), Journaled: l.counts.journaled.Load(), Elsewhere: l.counts.elsewhere.Load(),
		Drained: l.counts.drained.Load(), SetAside: l.counts.setAside.Load(), Lost: l.counts.lost.Load(),
	}
	s.PostgresAway, s.PostgresSince = l.away.Since()
	s.NATSAway, s.NATSSince = l.queues.Since()
	return s
}

// waiting is how many messages a stream has, as far as this node knows.
type waiting struct {
	count atomic.Int64 // -1: not known
	puts  atomic.Int64 // so far, by this node
}

func (w *waiting) unknown() { w.count.Store(-1) }

// put notes a message of this node's own.
func (w *waiting) put() {
	w.puts.Add(1)
	w.count.CompareAndSwap(0, 1)
}

// seen notes what the stream said, unless this node has put something into it since the question was asked.
func (w *waiting) seen(count, putsBefore int64) {
	if count == 0 && w.puts.Load() != putsBefore {
		count = 1
	}
	w.count.Store(count)
}

// maybe reports whether there may be something to find.
func (w *waiting) maybe() bool { return w.count.Load() != 0 }

// seems is maybe for who cannot ask: what a stream had when it was last seen counts, and a stream that was never seen with
// anything seems empty.
func (w *waiting) seems(canAsk bool) bool { return w.count.Load() > 0 || canAsk && w.maybe() }

// settleBound is how long after its return Postgres' due index is left alone, if what was spilled is not drained by then.
// A node that is cut off alone may spill for longer: it must not keep the others from what is due.
const settleBound = 2 * time.Minute

// settling reports whether Postgres has not been back for long and lacks what was recorded meanwhile: what it believes to
// be due or overdue may be over.
func (l *Ledger) settling() bool {
	away, since := l.away.Since()
	if away || time.Since(since) > settleBound {
		return away
	}
	canAsk := !l.queues.Away()
	return l.spilled.seems(canAsk) || l.reserved.seems(canAsk) || l.journal.entries.Load() > 0
}

// makeStreams makes what is missing, and changes what is configured otherwise.
func (l *Ledger) makeStreams(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, cfg := range []jetstream.StreamConfig{
		{Name: envelope.SpillStream, Subjects: []string{"spill.*"}, MaxBytes: l.cfg.SpillBytes, AllowDirect: true},
		// Not direct: a copy that lags behind would not show the reservation that refused another.
		{Name: envelope.ReservedStream, Subjects: []string{"reserved.*"}, MaxBytes: l.cfg.ReservedBytes},
	} {
		cfg.Retention, cfg.Storage, cfg.Discard, cfg.Replicas = jetstream.WorkQueuePolicy, jetstream.FileStorage, jetstream.DiscardNew, l.cfg.Replicas
		stream, err := l.js.Stream(ctx, cfg.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			_, err = l.js.CreateStream(ctx, cfg)
		case err == nil && (stream.CachedInfo().Config.MaxBytes != cfg.MaxBytes || stream.CachedInfo().Config.Replicas != cfg.Replicas):
			_, err = l.js.UpdateStream(ctx, cfg)
		}
		if err != nil {
			return fmt.Errorf("make stream %s: %w", cfg.Name, err)
		}
	}
	return nil
}

// keepStreams looks how much waits in the streams, and makes them again when they are gone.
func (l *Ledger) keepStreams(ctx context.Context) {
	ticker := time.NewTicker(2 * l.cfg.ProbeEvery)
	defer ticker.Stop()
	made, failing := false, false
	for {
		if !l.queues.Away() {
			if !made {
				err := l.makeStreams(ctx)
				made = err == nil
				if err != nil && !failing && ctx.Err() == nil && !natsAway(err) {
					l.log.Error("streams cannot be made: should postgres go away now, nothing is accepted", zap.Error(err))
				}
				failing = err != nil
			}
			spill, reserved := l.look(ctx, envelope.SpillStream, &l.spilled), l.look(ctx, envelope.ReservedStream, &l.reserved)
			made = made && spill && reserved
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// look asks a stream how much it has, and reports whether it is there. While Postgres is away anybody may put something
// into it at any moment: then a stream is never known to be empty.
func (l *Ledger) look(ctx context.Context, name string, w *waiting) (there bool) {
	present, puts := !l.away.Away(), w.puts.Load()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.SlowAfter)
	defer cancel()
	stream, err := l.js.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		w.seen(0, puts)
		return false
	case err != nil:
		return true
	case stream.CachedInfo().State.Msgs > 0:
		w.seen(int64(stream.CachedInfo().State.Msgs), puts) //nolint:gosec // a number of messages
	case present && !l.away.Away():
		w.seen(0, puts)
	default:
		w.unknown()
	}
	return true
}

// recentIDs is how many ids a node remembers of those that it reserved or recorded: about 8 MB.
const recentIDs = 65_536

// recent is a bounded memory of reservations and of how far they have come: two generations, the older of which is
// forgotten as a whole.
type recent struct {
	mu       sync.Mutex
	half     int
	now, old map[notification.ID]remembered
	reasons  []notification.Reason // those met so far, a closed set; the first is the empty one
}

// remembered holds no pointer, so that the collector has nothing to look for in its tens of thousands: how long it is at work
// is how long everything else waits for a processor.
type remembered struct {
	digest     [32]byte
	acceptedAt int64 // nanoseconds since 1970; 0: not known
	elsewhere  bool

	// Of the newest record that is durable.
	state      notification.State
	reason     uint16 // its place in recent.reasons
	generation int64  // 0: there is none
	attempts   int
}

func newRecent(most int) *recent {
	return &recent{half: most / 2, now: map[notification.ID]remembered{}, reasons: []notification.Reason{""}}
}

func (r *recent) add(id notification.ID, reserved ledger.Reserved) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, _ := r.find(id)
	known.digest, known.acceptedAt, known.elsewhere = reserved.Digest, reserved.AcceptedAt.UnixNano(), reserved.Elsewhere
	r.keep(id, known)
}

// recorded notes how far a notification has come, durably.
func (r *recent) recorded(n *notification.Notification) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.find(n.ID)
	if ok && known.generation > 0 && !follows(n.Progress, r.progress(known)) {
		return
	}
	if !ok {
		known.digest, known.acceptedAt = n.Digest, n.AcceptedAt.UnixNano()
	}
	known.state, known.reason, known.generation, known.attempts = n.State, r.placeOf(n.Reason), n.Generation, n.Attempts
	r.keep(n.ID, known)
}

// get answers as a reservation that was there before.
func (r *recent) get(id notification.ID) (ledger.Reserved, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.find(id)
	reserved := ledger.Reserved{Digest: found.digest, Elsewhere: found.elsewhere, Known: r.progress(found)}
	if found.acceptedAt != 0 {
		reserved.AcceptedAt = time.Unix(0, found.acceptedAt).UTC()
	}
	return reserved, ok
}

// find and what follows are for a caller that holds the lock.
func (r *recent) find(id notification.ID) (remembered, bool) {
	found, ok := r.now[id]
	if !ok {
		found, ok = r.old[id]
	}
	return found, ok
}

func (r *recent) keep(id notification.ID, known remembered) {
	if _, there := r.now[id]; !there && len(r.now) >= r.half {
		r.old, r.now = r.now, make(map[notification.ID]remembered, r.half)
	}
	r.now[id] = known
}

func (r *recent) progress(m remembered) notification.Progress {
	return notification.Progress{State: m.state, Reason: r.reasons[m.reason], Generation: m.generation, Attempts: m.attempts}
}

// placeOf is where a reason stands in reasons.
func (r *recent) placeOf(reason notification.Reason) uint16 {
	place := slices.Index(r.reasons, reason)
	if place < 0 {
		place = len(r.reasons)
		r.reasons = append(r.reasons, reason)
	}
	return uint16(place) //nolint:gosec // a closed set of some sixty
}
