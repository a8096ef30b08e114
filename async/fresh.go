package async

import (
	"context"
	"sync/atomic"
	"time"
)

// fresh knows how late first tries are taken, so that what comes due lets them go first.
type fresh struct {
	late atomic.Int64 // how old what was taken last was, in nanoseconds
	at   atomic.Int64 // when it was taken, in Unix nanoseconds
}

const (
	// freshLate is how late first tries may be taken before what comes due waits for them.
	freshLate = 100 * time.Millisecond
	// freshFor is how long after the last of them that is known.
	freshFor = 250 * time.Millisecond
	// duePatience is how long one message that has come due waits: so some come through, however late the first tries are.
	duePatience = 200 * time.Millisecond
)

func (f *fresh) came(now, stored time.Time) {
	f.late.Store(int64(now.Sub(stored)))
	f.at.Store(now.UnixNano())
}

func (f *fresh) isLate(now time.Time) bool {
	return time.Duration(f.late.Load()) > freshLate && now.UnixNano()-f.at.Load() < int64(freshFor)
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
