package async

import (
	"context"
	"sync/atomic"
	"time"

	"notifyd/notification"
)

// fresh knows how late first tries are taken from each shard.
type fresh struct{ shards [notification.Shards]lateness }

// lateness is a shard's. One goroutine takes from a shard.
type lateness struct {
	stored atomic.Int64 // when what was taken last was stored, in Unix nanoseconds
	at     atomic.Int64 // when it was taken
	taking atomic.Bool  // not all of it is in hand yet
}

const (
	// freshLate is how late first tries may be taken before what comes due waits for them.
	freshLate = 100 * time.Millisecond
	// freshFor is how long after the last of them that is known.
	freshFor = 250 * time.Millisecond
	// duePatience is how long one message that has come due waits: so some come through, however late the first tries are.
	duePatience = 200 * time.Millisecond
	// behindAfter is how late first tries are taken, or records written, by an engine that does less than is submitted.
	behindAfter = time.Second
)

// come notes what is taken; taken says that all of it is in hand.
func (f *fresh) come(shard int, now, stored time.Time) (taken func()) {
	of := &f.shards[shard]
	of.stored.Store(stored.UnixNano())
	of.at.Store(now.UnixNano())
	of.taking.Store(true)
	return func() {
		of.at.Store(time.Now().UnixNano())
		of.taking.Store(false)
	}
}

// late is how late a shard's first tries are; ok: something came lately.
func (l *lateness) late(now time.Time) (late time.Duration, ok bool) {
	at := l.at.Load()
	if l.taking.Load() {
		at = now.UnixNano()
	}
	return time.Duration(at - l.stored.Load()), now.UnixNano()-at < int64(freshFor)
}

// isLate reports whether some shard's first tries are late.
func (f *fresh) isLate(now time.Time) bool {
	for i := range f.shards {
		if late, ok := f.shards[i].late(now); ok && late > freshLate {
			return true
		}
	}
	return false
}

// behind reports whether most shards are: one alone may wait for one merchant. What was stored before since does not count:
// whoever begins has a backlog.
func (f *fresh) behind(now, since time.Time) bool {
	behind, active := 0, 0
	for i := range f.shards {
		late, ok := f.shards[i].late(now)
		if !ok {
			continue
		}
		active++
		if late > behindAfter && f.shards[i].stored.Load() > since.UnixNano() {
			behind++
		}
	}
	return 2*behind > active
}

// letFreshGoFirst holds up a message that has come due while first tries are late. Each shard has its own goroutine for
// either, so nothing else waits.
func (l *Lane) letFreshGoFirst(ctx context.Context) {
	began := time.Now()
	l.waitWhile(ctx, func() bool {
		now := time.Now()
		return now.Sub(began) < duePatience && l.fresh.isLate(now)
	})
}
