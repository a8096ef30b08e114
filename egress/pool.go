package egress

import (
	"sync"
	"time"
)

// pool keeps connections between attempts, by origin. The one that came last goes first, so that those a merchant needs
// no more come of age.
type pool struct {
	most, perOrigin int
	keep            time.Duration // how long one may be idle

	mu       sync.Mutex
	idle     map[string][]*conn // the oldest first
	count    int
	sweeping bool
	closed   bool
}

// sweepEvery is the time between two looks for connections that are too old, or that their merchant has closed.
const sweepEvery = 5 * time.Second

func newPool(config Config) *pool {
	return &pool{most: config.MaxIdleConnections, perOrigin: config.MaxIdlePerMerchant, keep: config.IdleTimeout, idle: map[string][]*conn{}}
}

// take returns an idle connection to an origin, nil if there is none.
func (p *pool) take(origin string) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.idle[origin]
	if len(of) == 0 {
		return nil
	}
	last := len(of) - 1
	c := of[last]
	of[last] = nil
	p.leave(origin, of[:last])
	if time.Since(c.idleSince) > p.keep { // the sweep has not come by yet
		go c.Close() //nolint:errcheck // nobody needs it any more
		return nil
	}
	return c
}

// put keeps a connection, or closes it when there are enough.
func (p *pool) put(c *conn) {
	surplus := p.enter(c)
	if surplus != nil {
		_ = surplus.Close()
	}
}

func (p *pool) enter(c *conn) (surplus *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[c.origin]) >= p.perOrigin {
		return c
	}
	if p.count >= p.most {
		surplus = p.evict()
	}
	c.idleSince = time.Now()
	p.idle[c.origin] = append(p.idle[c.origin], c)
	p.count++
	if !p.sweeping {
		p.sweeping = true
		time.AfterFunc(sweepEvery, p.sweep)
	}
	return surplus
}

// evict takes out the oldest one of some origin: which one is left to the map's order. The pool's lock is held.
func (p *pool) evict() *conn {
	for origin, of := range p.idle {
		oldest := of[0]
		p.leave(origin, of[1:])
		return oldest
	}
	return nil
}

// leave notes that an origin has one connection less. The pool's lock is held.
func (p *pool) leave(origin string, left []*conn) {
	p.count--
	if len(left) == 0 {
		delete(p.idle, origin)
		return
	}
	p.idle[origin] = left
}

// sweep closes what is too old, and what its merchant has closed: its descriptor is of use to others.
func (p *pool) sweep() {
	gone := map[*conn]bool{}
	for _, c := range p.all() { // looked at without the lock: one that is taken meanwhile is looked at by its taker
		gone[c] = c.hungUp()
	}
	for _, c := range p.expired(time.Now(), gone) {
		_ = c.Close()
	}
}

func (p *pool) all() (all []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.idle {
		all = append(all, of...)
	}
	return all
}

// expired takes out what is too old, or gone.
func (p *pool) expired(now time.Time, gone map[*conn]bool) (expired []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for origin, of := range p.idle {
		kept := of[:0]
		for _, c := range of {
			if gone[c] || now.Sub(c.idleSince) > p.keep {
				expired = append(expired, c)
			} else {
				kept = append(kept, c)
			}
		}
		clear(of[len(kept):])
		p.count -= len(of) - len(kept)
		if len(kept) == 0 {
			delete(p.idle, origin)
		} else {
			p.idle[origin] = kept
		}
	}
	p.sweeping = p.count > 0
	if p.sweeping {
		time.AfterFunc(sweepEvery, p.sweep)
	}
	return expired
}

// close closes what is idle, and from now on whatever comes back.
func (p *pool) close() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.count, p.closed = map[string][]*conn{}, 0, true
	p.mu.Unlock()
	for _, of := range all {
		for _, c := range of {
			_ = c.Close()
		}
	}
}
