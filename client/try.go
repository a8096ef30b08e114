package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// reply is what one try of one notification came to: one of the three.
type reply struct {
	result *Result
	err    *Error
	unsent bool // the stream that it should have gone with has ended
}

// tryAlone makes a call for one item: its caller waits for the merchant's answer, and the server knows until when.
func (c *Client) tryAlone(ctx context.Context, items []*item) {
	it := items[0]
	bound, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.rpc.Submit(bound, connect.NewRequest(&notifydv1.SubmitRequest{Notification: it.n}))
	if err != nil {
		it.take(reply{err: ErrorOf(err)})
		c.endIfOver(ctx, it)
		return
	}
	it.take(reply{result: resp.Msg})
}

// tryTogether makes a call for a chunk that nobody else shares. With an answer grace the call outlives ctx.
func (c *Client) tryTogether(ctx context.Context, items []*item) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
	case <-c.life.Done():
	}
	if cause := c.whyEnded(ctx); cause != nil {
		for _, it := range items {
			it.end(cause)
		}
		return
	}
	outlives := ctx
	if c.answerGrace > 0 {
		outlives = context.WithoutCancel(ctx)
	}
	bound, cancel := c.bounded(outlives)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(c.answerGrace, cancel) })
	defer stop()
	ns := make([]*Notification, len(items))
	for i, it := range items {
		ns[i] = it.n
	}
	for i, r := range c.call(bound, ns) {
		items[i].take(r)
		c.endIfOver(ctx, items[i])
	}
}

// endIfOver makes the caller's own end the reason of a try that failed after it, and keeps it from being tried again.
func (c *Client) endIfOver(ctx context.Context, it *item) {
	if cause := c.whyEnded(ctx); cause != nil && it.err != nil && it.err.Temporary() {
		it.end(cause)
	}
}

// tryShared gives an item to the queue and waits for the answer of the batch that it goes with, or for ctx. It leaves the
// queue when ctx ends; once it is in a batch, that goes on without it.
func (c *Client) tryShared(ctx context.Context, items []*item) {
	it := items[0]
	e := &entry{n: it.n, size: it.size, answer: make(chan reply, 1)}
	e.deadline, _ = ctx.Deadline()
	if c.queue.add(e) {
		c.batches.Go(c.gather)
	}
	select {
	case r := <-e.answer:
		it.take(r)
		return
	case <-ctx.Done():
	case <-c.life.Done():
	}
	if !c.queue.remove(e) {
		select {
		case r := <-e.answer: // it came at the same moment
			it.take(r)
			c.endIfOver(ctx, it)
			return
		default:
			it.tries++
			it.uncertain = true
		}
	}
	it.end(c.whyEnded(ctx))
}

// gather makes one batch of what has come until a call may be made, and calls. There is never more than one that gathers:
// while all calls are under way, the next batch fills.
func (c *Client) gather() {
	if c.linger > 0 {
		c.queue.awaitFull(c.linger, c.closed)
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.life.Done():
		return // so do those who wait
	}
	batch, more := c.queue.take()
	if more {
		c.batches.Go(c.gather)
	}
	if len(batch) == 0 {
		return // its callers have left
	}
	bound, cancel := context.WithTimeout(c.life, c.callTimeout)
	defer cancel()
	if last, ok := lastDeadline(batch); ok {
		bound, cancel = context.WithDeadline(bound, last)
		defer cancel()
	}
	ns := make([]*Notification, len(batch))
	for i, e := range batch {
		ns[i] = e.n
	}
	for i, r := range c.call(bound, ns) {
		batch[i].answer <- r
	}
}

// lastDeadline is when nobody waits for the batch any longer; false: somebody always does. A member with an earlier
// deadline leaves on its own.
func lastDeadline(batch []*entry) (last time.Time, ok bool) {
	for _, e := range batch {
		if e.deadline.IsZero() {
			return time.Time{}, false
		}
		if e.deadline.After(last) {
			last = e.deadline
		}
	}
	return last, true
}

// call submits a batch and returns a reply for each of its notifications.
func (c *Client) call(ctx context.Context, ns []*Notification) []reply {
	replies := make([]reply, len(ns))
	resp, err := c.rpc.SubmitBatch(ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: ns}))
	if err == nil && len(resp.Msg.Results) != len(ns) {
		err = connect.NewWireError(connect.CodeInternal, fmt.Errorf("the server gave %d results for %d notifications", len(resp.Msg.Results), len(ns)))
	}
	if err != nil {
		fault := ErrorOf(err)
		fault.WholeCall = true
		for i := range replies {
			replies[i].err = fault
		}
		return replies
	}
	for i, r := range resp.Msg.Results {
		replies[i] = replyOf(r)
	}
	return replies
}

// replyOf is what the server says of one notification among others.
func replyOf(r *notifydv1.SubmitResult) reply {
	switch r := r.GetResult().(type) {
	case *notifydv1.SubmitResult_Response:
		return reply{result: r.Response}
	case *notifydv1.SubmitResult_Error:
		return reply{err: itemFault(r.Error)}
	}
	return reply{err: itemFault(&notifydv1.ItemError{Code: connect.CodeUnknown.String(), Message: "the server gave no result"})}
}

// entry is a notification that waits for a batch, or is in one.
type entry struct {
	n        *Notification
	size     int
	deadline time.Time  // of its caller; zero: none
	answer   chan reply // has room: nobody need be there to take it

	waits       bool   // for the merchant's answer; on a stream only
	traceparent string // on a stream only
}

// queue holds what waits for a batch. The places of the callers bound it.
type queue struct {
	most      int
	mostBytes int

	mu        sync.Mutex
	waiting   []*entry
	gathering bool          // somebody is about to take
	full      chan struct{} // a batch is full, or may be
}

func newQueue(most, mostBytes int) *queue {
	return &queue{most: most, mostBytes: mostBytes, full: make(chan struct{}, 1)}
}

// add reports whether somebody must be sent to gather.
func (q *queue) add(e *entry) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, e)
	if len(q.waiting) >= q.most {
		select {
		case q.full <- struct{}{}:
		default:
		}
	}
	first := !q.gathering
	q.gathering = true
	return first
}

// remove reports whether the entry was still waiting; if not, it has been sent.
func (q *queue) remove(e *entry) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, e)
	if i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	return i >= 0
}

// take returns what goes into one call, and whether something is left to be gathered.
func (q *queue) take() (batch []*entry, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.waiting) && n < q.most && (n == 0 || size+q.waiting[n].size <= q.mostBytes) {
		size += q.waiting[n].size
		n++
	}
	batch = slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.gathering = len(q.waiting) > 0
	return batch, q.gathering
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// awaitFull gives a batch some time to fill.
func (q *queue) awaitFull(linger time.Duration, over <-chan struct{}) {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	select {
	case <-q.full: // may be a late word of the batch before: this one goes early then
	case <-timer.C:
	case <-over:
	}
}
