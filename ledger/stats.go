package ledger

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Stats is what the writers have to do, and what they have done since the start.
type Stats struct {
	Records    int64     // submitted and not ended, those that wait for room included
	Bytes      int64     // of them; above BytesLimit some wait for room, and so do the attempts that they are about
	BytesLimit int64     // as many may be queued
	Oldest     time.Time // when the oldest record that is being written was submitted: the ledger is behind by its age; zero: it is not

	Batches     uint64 // written
	Rows        uint64 // notifications in them
	Failures    uint64 // tries to write a batch that Postgres did not take; each is tried again
	Quarantined uint64 // records that it refused for good
}

// writerCounts are the numbers behind Stats.
type writerCounts struct {
	records, bytes                       atomic.Int64
	batches, rows, failures, quarantined atomic.Uint64
	last                                 atomic.Int64 // when a batch was written last, Unix nanoseconds
}

func (c *writerCounts) enter(size int64) {
	c.records.Add(1)
	c.bytes.Add(size)
}

func (c *writerCounts) leave(size int64) {
	c.records.Add(-1)
	c.bytes.Add(-size)
}

func (c *writerCounts) stored(rows int) {
	c.batches.Add(1)
	c.last.Store(time.Now().UnixNano())
	c.rows.Add(uint64(rows)) //nolint:gosec // a length
}

// Stats is a snapshot. It asks nobody.
func (l *Postgres) Stats() Stats {
	w := l.writers
	s := Stats{
		Records: w.counts.records.Load(), Bytes: w.counts.bytes.Load(), BytesLimit: l.cfg.QueueBytes,
		Batches: w.counts.batches.Load(), Rows: w.counts.rows.Load(), Failures: w.counts.failures.Load(), Quarantined: w.counts.quarantined.Load(),
	}
	for i := range w.behind {
		if at := w.behind[i].Load(); at != 0 {
			if since := time.Unix(0, at).UTC(); s.Oldest.IsZero() || since.Before(s.Oldest) {
				s.Oldest = since
			}
		}
	}
	return s
}

// standsStill is how long it takes a Postgres that is there to write a batch, however much it has to do.
const standsStill = 2 * time.Second

// Behind is how long the oldest record waits while Postgres writes: 0 where none does. A batch takes some ten milliseconds;
// when it is much more, more is recorded than Postgres keeps up with (P10). It is 0, too, where Postgres stands still: then
// it is away, or will be soon, which is for others to find out.
func (l *Postgres) Behind() (behind time.Duration) {
	now := time.Now()
	if now.UnixNano()-l.writers.counts.last.Load() > int64(standsStill) {
		return 0
	}
	for i := range l.writers.behind {
		if at := l.writers.behind[i].Load(); at != 0 {
			behind = max(behind, time.Duration(now.UnixNano()-at))
		}
	}
	return behind
}

// Overdue is what should have been attempted and rests in nobody's hands.
type Overdue struct {
	Notifications int       // counted up to overdueCounted
	Oldest        time.Time // when the oldest was due; zero: none is overdue
}

// overdueCounted bounds what counting reads.
const overdueCounted = 10_000

// overdueStatement reads the end of an index that the sweep keeps short.
var overdueStatement = `select count(*), min(next_at) from (
	select next_at from notifications where ` + sweepable + ` and next_at < $1
	and ` + unclaimed("$2", "$4") + ` order by next_at limit $3) due`

// Overdue counts what was due before an instant, up to ten thousand.
func (l *Postgres) Overdue(ctx context.Context, before time.Time) (Overdue, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	var o Overdue
	err := l.pool.QueryRow(ctx, overdueStatement, before, microseconds(l.now()), overdueCounted, l.gone()).Scan(&o.Notifications, timeOf(&o.Oldest))
	if err != nil {
		return Overdue{}, fmt.Errorf("count overdue: %w", err)
	}
	return o, nil
}

// Overdue does what Postgres.Overdue does.
func (m *Memory) Overdue(ctx context.Context, before time.Time) (Overdue, error) {
	if err := ctx.Err(); err != nil {
		return Overdue{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var o Overdue
	for _, row := range m.rows {
		p := row.n.Progress
		if p.State.Final() || p.Resting || p.NextAt.IsZero() || !p.NextAt.Before(before) || row.claim.live(m.now(), m.gone()) {
			continue
		}
		o.Notifications = min(o.Notifications+1, overdueCounted)
		if o.Oldest.IsZero() || p.NextAt.Before(o.Oldest) {
			o.Oldest = p.NextAt
		}
	}
	return o, nil
}
