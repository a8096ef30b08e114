package dispatcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Board is where nodes tell each other of their breakers; what stands on it outlives them. LearnBoard is told of all that is
// put there, of this node's own before Put and Delete return.
type Board interface {
	// Put shows a value to every node for a time; 0: until it is deleted.
	Put(ctx context.Context, name string, value []byte, ttl time.Duration) error
	Delete(ctx context.Context, name string) error
}

// What stands on the board, by the beginning of its name. The rest is a hash: isolation keys have characters that names
// may not have.
const (
	onBoardOpening        = "opening."
	onBoardForced         = "forced."
	onBoardForcedKey      = onBoardForced + "key."
	onBoardForcedMerchant = onBoardForced + "merchant."
)

func boardName(kind, of string) string {
	sum := sha256.Sum256([]byte(of))
	return kind + hex.EncodeToString(sum[:16])
}

// notice is what one node says of a key's breaker: open until its probe, or closed again.
type notice struct {
	Key      string `json:"key"`
	Merchant string `json:"merchant"`
	By       string `json:"by"` // a run
	Closed   bool   `json:"closed,omitempty"`
	opening
}

const (
	// noticeFor is how long a notice outlives the time of its probe: nobody has had anything to probe with since.
	noticeFor = time.Minute
	// closedFor is how long the board says that a breaker has closed: for nodes that are behind.
	closedFor = time.Minute
	// putBound bounds one write to the board.
	putBound = 2 * time.Second
	// tellAgain is when to try again to tell what the board did not take.
	tellAgain = time.Second
	// idleFor is how long a guard is kept that nobody asks.
	idleFor = 15 * time.Minute
	// forgetEvery is how often idle guards are looked for.
	forgetEvery = time.Minute
)

// tell has other nodes told of a guard's news. It waits for nothing.
func (g *Gate) tell(k *guard) {
	if g.board == nil {
		_, change, _ := k.word(0)
		k.wasTold(change)
		return
	}
	g.mu.Lock()
	g.untold[k] = struct{}{}
	g.mu.Unlock()
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// Run tells other nodes what changes and forgets idle keys, until ctx ends. What happens while the board is away stays
// known here, and is told afterwards.
func (g *Gate) Run(ctx context.Context) error {
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	again := time.NewTimer(tellAgain)
	defer again.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), putBound)
			defer cancel()
			if err := g.tellAll(bound); err != nil {
				g.log.Warn("other nodes were not told of all breakers", zap.Error(err))
			}
			return nil
		case <-forget.C:
			g.forget(g.now())
			continue
		case <-g.news:
		case <-again.C:
		}
		err := g.tellAll(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && last == nil:
			g.log.Warn("other nodes cannot be told of breakers; each goes by what it sees itself", zap.Error(err))
		case err == nil && last != nil:
			g.log.Info("other nodes are told of breakers again")
		}
		if last = err; err != nil {
			again.Reset(tellAgain)
		}
	}
}

// tellAll tells everything that is untold, and stops at the first that the board does not take.
func (g *Gate) tellAll(ctx context.Context) error {
	for {
		g.mu.Lock()
		todo := slices.Collect(maps.Keys(g.untold))
		clear(g.untold)
		g.mu.Unlock()
		if len(todo) == 0 {
			return nil
		}
		for i, k := range todo {
			if err := g.tellOne(ctx, k); err != nil {
				g.mu.Lock()
				for _, left := range todo[i:] {
					g.untold[left] = struct{}{}
				}
				g.mu.Unlock()
				return err
			}
		}
	}
}

// tellOne tells what the breaker is now, whatever it was in between.
func (g *Gate) tellOne(ctx context.Context, k *guard) error {
	o, change, news := k.word(g.probeBound)
	if !news {
		return nil
	}
	n, ttl := notice{Key: k.key, Merchant: k.merchantID, By: g.run, Closed: o.At.IsZero(), opening: o}, closedFor
	if !n.Closed {
		ttl = max(o.ProbeAt.Sub(g.now()), 0) + noticeFor
	}
	value, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, putBound)
	defer cancel()
	if err := g.board.Put(ctx, boardName(onBoardOpening, k.key), value, ttl); err != nil {
		return err
	}
	k.wasTold(change)
	return nil
}

// LearnBoard takes in what stands on the board now under a name; no value: nothing does. It is called in order.
func (g *Gate) LearnBoard(name string, value []byte) {
	var err error
	switch {
	case strings.HasPrefix(name, onBoardOpening):
		if value == nil {
			return // what a notice said ends with the time that it named
		}
		var n notice
		if err = json.Unmarshal(value, &n); err == nil {
			g.hear(n)
		}
	case strings.HasPrefix(name, onBoardForced):
		if value == nil {
			g.setForced(name, nil)
			return
		}
		var f forced
		if err = json.Unmarshal(value, &f); err == nil && f.Merchant == "" {
			err = errors.New("names no merchant")
		}
		if err == nil {
			g.setForced(name, &f)
		}
	}
	if err != nil {
		g.log.Warn("an entry on the board of breakers cannot be read and is passed over", zap.String("name", name), zap.Error(err))
	}
}

// hear takes in another node's notice. Its probe goes first: this node waits a little longer. No clock that is wrong keeps
// a key closed to us for longer than a breaker may.
func (g *Gate) hear(n notice) {
	if n.By == g.run || n.Key == "" {
		return
	}
	now := g.now()
	k, wake := g.find(n.Key), false
	switch {
	case n.Closed && k == nil:
		return
	case n.Closed:
		wake = k.hear(opening{}, true)
	default:
		if k == nil {
			k = g.guard(n.Key, n.Merchant, nil, now)
		}
		o := n.opening
		o.At, o.ProbeAt = o.At.UTC(), o.ProbeAt.UTC()
		slack := g.cfg.OpenFor / 10
		o.ProbeAt = o.ProbeAt.Add(slack + time.Duration(g.random()*float64(slack)))
		if latest := now.Add(longestPutOff + g.cfg.openFor(maxTimes)); o.ProbeAt.After(latest) {
			o.ProbeAt = latest
		}
		wake = k.hear(o, false)
	}
	g.log.Debug("another node says of a breaker", zap.String("isolation_key", n.Key), zap.Bool("closed", n.Closed), zap.Time("probe_at", n.ProbeAt), zap.String("run", n.By))
	if wake {
		g.wake(k.merchantID)
	}
}

// setForced takes over what is forced, and has looked again whoever waits for it.
func (g *Gate) setForced(name string, f *forced) {
	g.forcing.Lock()
	defer g.forcing.Unlock()
	before := g.forced.Load()
	after := before.with(name, f)
	g.forced.Store(after)
	if now := g.now(); f.closed() {
		for _, k := range g.guards() {
			if after.of(k.key, k.merchantID, now).closed() && k.obey() {
				g.tell(k)
			}
		}
	}
	about := f
	if about == nil && before != nil {
		about = before.byName[name]
	}
	if about != nil {
		g.wake(about.Merchant)
	}
}

// errNoBoard is what an operator is told whose word could not be kept.
var errNoBoard = errors.New("there is nothing that tells other nodes")

// force keeps an operator's decision; nil lifts what was decided about the same subject. Whatever becomes of it after an
// error, deciding it again is safe.
func (g *Gate) force(ctx context.Context, name string, f *forced) error {
	if g.board == nil {
		return errNoBoard
	}
	ctx, cancel := context.WithTimeout(ctx, putBound)
	defer cancel()
	var err error
	if f == nil {
		err = g.board.Delete(ctx, name)
	} else {
		var value []byte
		if value, err = json.Marshal(f); err != nil {
			return fmt.Errorf("encode decision: %w", err)
		}
		ttl := time.Duration(0)
		if !f.Until.IsZero() {
			ttl = max(f.Until.Sub(g.now()), time.Second)
		}
		err = g.board.Put(ctx, name, value, ttl)
	}
	return err
}

// forget drops guards that nobody needs.
func (g *Gate) forget(now time.Time) {
	for _, k := range g.guards() {
		if !k.idle(now) {
			continue
		}
		g.mu.Lock()
		if k.idle(now) { // still: whoever needs it takes it under this lock
			delete(g.keys, k.key)
		}
		g.mu.Unlock()
	}
}
