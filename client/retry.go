package client

import (
	"context"
	"math/rand/v2"
	"time"
)

// insist tries until each item is settled: with a result, with an error that no later try would change, or because its
// time is over. It is the same for one notification and for a chunk of a thousand: what failed is tried again without its
// neighbours.
func (c *Client) insist(ctx context.Context, items []*item, try func(context.Context, []*item), settle func(*item)) {
	var giveUp time.Time
	for wait := c.firstWait; ; wait = min(2*wait, c.mostWait) {
		try(ctx, items)
		items = sift(items, settle)
		if len(items) == 0 {
			return
		}
		now := time.Now()
		if giveUp.IsZero() {
			giveUp = now.Add(c.retryFor)
		}
		rest := spread(wait, items)
		next := now.Add(rest)
		deadline, bound := ctx.Deadline()
		if next.After(giveUp) || bound && next.After(deadline) {
			break // the caller hears now what it would hear then
		}
		if !c.waitToRetry(ctx, items, rest) {
			for _, it := range items {
				it.end(c.whyEnded(ctx))
			}
			break
		}
	}
	for _, it := range items {
		settle(it)
	}
}

// sift settles what has its answer and keeps the rest.
func sift(items []*item, settle func(*item)) []*item {
	again := items[:0]
	for _, it := range items {
		if it.err != nil && !it.err.ended && it.err.Temporary() {
			again = append(again, it)
		} else {
			settle(it)
		}
	}
	return again
}

// mostAsked is the longest that a server is believed.
const mostAsked = time.Hour

// spread is how long to wait: at least what the server asks for, and not as long as everybody else.
func spread(wait time.Duration, items []*item) time.Duration {
	asked := time.Duration(0)
	for _, it := range items {
		asked = max(asked, min(it.err.RetryAfter, mostAsked))
	}
	return max(wait/2+rand.N(wait/2+1), asked+rand.N(asked/4+1))
}

func (c *Client) waitToRetry(ctx context.Context, items []*item, rest time.Duration) bool {
	if c.onRetry != nil {
		for _, it := range items {
			c.onRetry(it.n, it.err, rest)
		}
	}
	c.retrying.Add(int64(len(items)))
	defer c.retrying.Add(-int64(len(items)))
	timer := time.NewTimer(rest)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-c.life.Done():
	}
	return false
}

// whyEnded is why a caller's wait is over: its own ctx, or else the end of the client; nil: it is not.
func (c *Client) whyEnded(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case c.life.Err() != nil:
		return ErrClosed
	}
	return nil
}
