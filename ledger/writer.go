package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	batchBytes     = 8 << 20 // of bodies in one transaction
	recordOverhead = 1 << 10 // of a record beside its bodies
	smallBatch     = 20      // a batch below BatchRows/smallBatch waits Linger for company
)

// writers are the goroutines that write records in batches, each the records of its own ids: two records of one id are
// never written in another order than they came.
type writers struct {
	l       *Postgres
	lanes   []chan *pending
	room    *semaphore.Weighted // bytes that may be queued
	started atomic.Bool

	counts writerCounts
	behind []atomic.Int64 // by lane: when the oldest record of the batch in hand was submitted, Unix nanoseconds; 0: none

	gate   sync.RWMutex  // held for reading while a record is handed over
	shut   chan struct{} // closed first, then the lanes under gate
	closed bool
}

// pending is a record on its way into the ledger. It is owned by the writer that took it from its lane.
type pending struct {
	Record
	recorded   func(error)
	size       int64
	submitted  time.Time
	acceptedAt time.Time // under which it is stored; a reservation that was there first decides
}

func newWriters(l *Postgres) *writers {
	w := &writers{l: l, room: semaphore.NewWeighted(l.cfg.QueueBytes), shut: make(chan struct{})}
	for range l.cfg.Writers {
		w.lanes = append(w.lanes, make(chan *pending, 2*l.cfg.BatchRows))
	}
	w.behind = make([]atomic.Int64, len(w.lanes))
	return w
}

// Record hands a snapshot to the writers and returns. recorded is called exactly once: with nil when it is durable, with a
// *QuarantinedError when Postgres refuses it, with ErrClosed when the ledger ends first; from a writer's goroutine,
// which must not be held up. While Postgres is away it is not called at all: the writers go on trying. Record blocks while
// the queue is full; when ctx ends meanwhile, recorded is called at once with its error.
func (l *Postgres) Record(ctx context.Context, r Record, recorded func(error)) {
	l.writers.submit(ctx, &pending{Record: r, recorded: recorded})
}

// Queued is the number of records that wait to be written.
func (l *Postgres) Queued() int {
	queued := 0
	for _, lane := range l.writers.lanes {
		queued += len(lane)
	}
	return queued
}

func (w *writers) submit(ctx context.Context, p *pending) {
	if p.Notification == nil {
		p.recorded(errors.New("record: no notification"))
		return
	}
	p.acceptedAt = microseconds(p.Notification.AcceptedAt)
	p.size, p.submitted = min(sizeOf(p.Record), w.l.cfg.QueueBytes), time.Now()
	w.counts.enter(p.size)
	if err := w.enqueue(ctx, p); err != nil {
		w.counts.leave(p.size)
		p.recorded(err)
	}
}

func (w *writers) enqueue(ctx context.Context, p *pending) error {
	w.gate.RLock()
	defer w.gate.RUnlock()
	if w.closed {
		return ErrClosed
	}
	if err := w.room.Acquire(ctx, p.size); err != nil {
		return err
	}
	id := p.Notification.ID
	lane := w.lanes[binary.BigEndian.Uint32(id[:4])%uint32(len(w.lanes))] //nolint:gosec // at most 64
	select {
	case lane <- p:
		return nil
	case <-w.shut:
		w.room.Release(p.size)
		return ErrClosed
	case <-ctx.Done():
		w.room.Release(p.size)
		return ctx.Err()
	}
}

// finish tells how a record ended and gives its room back.
func (w *writers) finish(p *pending, err error) {
	w.room.Release(p.size)
	w.counts.leave(p.size)
	p.recorded(err)
}

// run writes until ctx ends, then takes nothing more and writes what is there for up to Config.Drain.
func (w *writers) run(ctx context.Context) error {
	if !w.started.CompareAndSwap(false, true) {
		return errors.New("run ledger: it has been run before")
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var writing sync.WaitGroup
	for i, lane := range w.lanes {
		writing.Go(func() {
			for batch := w.next(lane, false); batch != nil; batch = w.next(lane, len(batch) > 1) {
				w.behind[i].Store(batch[0].submitted.UnixNano()) // whatever waits behind it is younger
				w.write(work, batch)
				w.behind[i].Store(0)
			}
		})
	}
	<-ctx.Done()
	defer time.AfterFunc(w.l.cfg.Drain, stop).Stop()
	w.shutLanes()
	writing.Wait()
	return nil
}

// close fails what was submitted when nobody ever ran the writers.
func (w *writers) close() {
	if !w.started.CompareAndSwap(false, true) {
		return
	}
	var failing sync.WaitGroup
	for _, lane := range w.lanes {
		failing.Go(func() {
			for p := range lane {
				w.finish(p, ErrClosed)
			}
		})
	}
	w.shutLanes()
	failing.Wait()
}

// shutLanes ends the lanes after everybody who was handing something over is through.
func (w *writers) shutLanes() {
	close(w.shut)
	w.gate.Lock() // writers go on meanwhile, so whoever waits for room gets it
	defer w.gate.Unlock()
	w.closed = true
	for _, lane := range w.lanes {
		close(lane)
	}
}

// next takes whatever is queued, and while that is little, what comes within the linger of each; nil when the lane has ended.
// busy: the batch before had several records.
func (w *writers) next(lane <-chan *pending, busy bool) []*pending {
	first, open := <-lane
	if !open {
		return nil
	}
	batch, size, wait := []*pending{first}, first.size, newLinger(w.l.cfg.Linger, busy)
	defer wait.stop()
	wait.add(first)
	for len(batch) < w.l.cfg.BatchRows && size < batchBytes {
		p, open := takeNow(lane)
		if p == nil && open {
			if len(batch) > w.l.cfg.BatchRows/smallBatch {
				return batch
			}
			p, open = wait.next(lane)
		}
		if p == nil || !open {
			return batch
		}
		batch, size = append(batch, p), size+p.size
		wait.add(p)
	}
	return batch
}

// takeNow takes what is queued; nil: nothing is.
func takeNow(lane <-chan *pending) (p *pending, open bool) {
	select {
	case p, open := <-lane:
		return p, open
	default:
		return nil, true
	}
}

// patientTimes is how many lingers a record waits for company that nobody waits for.
const patientTimes = 12

// linger is how long a batch waits for company.
type linger struct {
	each  time.Duration // negative: not at all
	busy  bool
	until time.Time   // zero: nothing is in the batch yet
	timer *time.Timer // nil: not needed yet
}

func newLinger(each time.Duration, busy bool) *linger { return &linger{each: each, busy: busy} }

// add notes a record of the batch: the one with the least patience decides.
func (l *linger) add(p *pending) {
	until := p.submitted
	if p.Patient {
		until = until.Add(patientTimes * l.each)
	} else if l.busy {
		until = until.Add(l.each)
	}
	if l.until.IsZero() || until.Before(l.until) {
		l.until = until
	}
}

// next waits for company; nil: the time is over.
func (l *linger) next(lane <-chan *pending) (p *pending, open bool) {
	wait := time.Until(l.until)
	if l.each < 0 || wait <= 0 {
		return nil, true
	}
	if l.timer == nil {
		l.timer = time.NewTimer(wait)
	} else {
		l.timer.Reset(wait)
	}
	select {
	case p, open := <-lane:
		return p, open
	case <-l.timer.C:
		return nil, true
	}
}

func (l *linger) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

func sizeOf(r Record) int64 {
	size := recordOverhead + len(r.Notification.Body)
	for i := range r.Attempts {
		size += recordOverhead + len(r.Attempts[i].Request.Body)
		if answer := r.Attempts[i].Response; answer != nil {
			size += len(answer.Body)
		}
	}
	return int64(size)
}
