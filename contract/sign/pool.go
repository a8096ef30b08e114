package sign

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
)

// Pool bounds how many costly signatures are made at once, so that they leave room for everything else, and is fair
// between those they are for: each in turn, so that a thousand that wait for one merchant cost another one's a turn.
// It has no goroutines: whoever asks signs. How many may wait is bounded by how many ask.
type Pool struct {
	mu     sync.Mutex
	places int
	free   int     // if any is, nobody waits
	lines  []*line // of those with somebody waiting: the next turn first
}

// line is who waits for one merchant, in order.
type line struct {
	owner   string
	waiting []chan struct{} // closed when its turn has come
}

// NewPool makes a pool in which so many sign at once; 0: three quarters of the processors that Go uses, at least one.
func NewPool(places int) *Pool {
	if places <= 0 {
		places = max(1, runtime.GOMAXPROCS(0)*3/4)
	}
	return &Pool{places: places, free: places}
}

// Sign signs when the owner's turn has come; the owner is whom the signature is for, a merchant's id. Signers that are not
// Costly do not wait. When ctx ends first nothing was signed, and the error is ctx's.
func (p *Pool) Sign(ctx context.Context, owner string, signer *Signer, message []byte) ([]byte, error) {
	if !signer.Algorithm().Costly() {
		return signer.Sign(message)
	}
	if err := p.enter(ctx, owner); err != nil {
		return nil, fmt.Errorf("wait to sign with %s: %w", signer.Algorithm(), err)
	}
	defer p.leave() // even if a signer panics
	return signer.Sign(message)
}

// PoolStats is what a pool is at.
type PoolStats struct {
	Places, Busy, Waiting int
}

// Stats says what the pool is at.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := PoolStats{Places: p.places, Busy: p.places - p.free}
	for _, line := range p.lines {
		stats.Waiting += len(line.waiting)
	}
	return stats
}

func (p *Pool) enter(ctx context.Context, owner string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn, taken := p.take(owner)
	if taken {
		return nil
	}
	return p.await(ctx, owner, turn)
}

func (p *Pool) await(ctx context.Context, owner string, turn chan struct{}) error {
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		if !p.withdraw(owner, turn) { // the turn has come meanwhile: it is the next one's
			p.leave()
		}
		return ctx.Err()
	}
}

// take takes a free place, or joins the owner's line.
func (p *Pool) take(owner string) (turn chan struct{}, taken bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free > 0 {
		p.free--
		return nil, true
	}
	turn = make(chan struct{})
	if at := p.lineOf(owner); at >= 0 {
		p.lines[at].waiting = append(p.lines[at].waiting, turn)
	} else {
		p.lines = append(p.lines, &line{owner: owner, waiting: []chan struct{}{turn}})
	}
	return turn, false
}

// leave hands the place to whose turn it is; that owner's next waits until all others had theirs.
func (p *Pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		p.free++
		return
	}
	next := p.lines[0]
	close(next.waiting[0])
	next.waiting = next.waiting[1:]
	p.lines = p.lines[1:]
	if len(next.waiting) > 0 {
		p.lines = append(p.lines, next)
	}
}

// withdraw leaves the line; false: the turn had come.
func (p *Pool) withdraw(owner string, turn chan struct{}) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.lineOf(owner)
	if at < 0 {
		return false
	}
	line := p.lines[at]
	place := slices.Index(line.waiting, turn)
	if place < 0 {
		return false
	}
	line.waiting = slices.Delete(line.waiting, place, place+1)
	if len(line.waiting) == 0 {
		p.lines = slices.Delete(p.lines, at, at+1)
	}
	return true
}

// lineOf is where the owner's line is, or -1. There are at most as many lines as merchants with something in hand.
func (p *Pool) lineOf(owner string) int {
	return slices.IndexFunc(p.lines, func(l *line) bool { return l.owner == owner })
}
