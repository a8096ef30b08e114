package dispatcher

import (
	"sync"
	"time"
)

// pace knows whether the ledger keeps up with the callers: whether ids that are being reserved have been waiting for long.
// Its zero value is ready for use.
type pace struct {
	mu    sync.Mutex
	under map[int64]int // calls that are reserving, by the slice of time in which they began
}

// paceSlice: a call that has waited for one to two of these is late. Above it callers are refused, so that those who are
// in get their answer before anybody takes the ledger for away.
const paceSlice = 250 * time.Millisecond

func sliceOf(now time.Time) int64 { return now.UnixNano() / int64(paceSlice) }

// begin notes a call; end is for when it has its ids.
func (p *pace) begin(now time.Time) (end func()) {
	slice := sliceOf(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.under == nil {
		p.under = map[int64]int{}
	}
	p.under[slice]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.under[slice]--; p.under[slice] == 0 {
			delete(p.under, slice)
		}
	}
}

// late reports whether some call has been waiting for long.
func (p *pace) late(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for slice := range p.under { // a handful at most: nobody waits longer than Config.SlowAfter of package outage
		if slice < sliceOf(now)-1 {
			return true
		}
	}
	return false
}
