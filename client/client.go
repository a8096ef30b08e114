// Package client submits notifications to a notifyd server: what a payment service imports.
//
//	c, err := client.New("https://notifyd.example", client.WithAPIKey(key), client.WithSource("billing"))
//	…
//	result, err := c.Submit(ctx, &client.Notification{RequestId: "refund-81", MerchantId: "shop-7", Scene: "refund", Payload: body})
//
// Submit returns when the notification is durable, or, for a scene of the sync lane, when the merchant has answered.
// Submissions travel on one stream that stays open, or, where the server or something on the way takes none, share calls. What the server cannot take now, and what was lost on the way, is tried
// again until ctx ends: the server recognises a submission by its source and request_id, so it is never sent twice.
package client

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// The words of the API. There is one vocabulary: that of the proto files.
type (
	// Notification is one payment event owed to one merchant.
	Notification = notifydv1.Notification
	// Result says where an accepted notification stands. Duplicate may be true for the first Submit of a notification:
	// an earlier try of the same call was accepted, and its answer was lost.
	Result = notifydv1.SubmitResponse
)

// MaxNotificationBytes is what one encoded notification may have.
const MaxNotificationBytes = 256 << 10

// Client talks to one server. It is safe for concurrent use; one for a process is enough.
type Client struct {
	url  string
	http *http.Client
	rpc  notifydv1connect.NotificationServiceClient
	settings

	submits    notifydv1connect.NotificationServiceClient // as rpc, over HTTP/2
	streams    []streamPlace
	turn       atomic.Uint64   // which of them is next
	streamLife context.Context //nolint:containedctx // it is the client's own
	endStreams context.CancelFunc

	// life ends when Close has run out of patience. Batches run under it: they belong to no single caller.
	life context.Context //nolint:containedctx // it is the client's own
	kill context.CancelFunc

	places   *semaphore.Weighted // of callers that wait for an answer; Close takes them all
	slots    chan struct{}       // of batch calls
	queue    *queue
	batches  sync.WaitGroup
	retrying atomic.Int64

	closing sync.Once
	closed  chan struct{} // nothing new is taken
	drained chan struct{} // and nothing is under way
}

// New returns a client of the server at an http or https URL. It does not connect yet.
func New(serverURL string, opts ...Option) (*Client, error) {
	cfg := defaults()
	for _, opt := range opts {
		opt(&cfg)
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("new client: %w", err)
	}
	server, err := parseServer(serverURL)
	if err != nil {
		return nil, fmt.Errorf("new client: %w", err)
	}
	hc := cfg.newHTTPClient(server)
	life, kill := context.WithCancel(context.Background()) //nolint:forbidigo,gosec // batches outlive their callers; Close ends it
	streamLife, endStreams := context.WithCancel(life)
	return &Client{
		url: server.String(), http: hc, rpc: notifydv1connect.NewNotificationServiceClient(hc, server.String()), settings: cfg.settings,
		submits: notifydv1connect.NewNotificationServiceClient(cfg.newStreamClient(server, hc), server.String(), plain),
		streams: make([]streamPlace, cfg.streamPlaces()), streamLife: streamLife, endStreams: endStreams,
		life: life, kill: kill,
		places: semaphore.NewWeighted(cfg.maxWaiting), slots: make(chan struct{}, cfg.parallel),
		closed: make(chan struct{}), drained: make(chan struct{}), queue: newQueue(cfg.batch, cfg.batchBytes),
	}, nil
}

// Submit returns when the notification is durable (scenes of the sync lane: when the merchant has answered, or the server
// no longer waits for it). Failures that may pass are tried again until ctx ends, or until no try fits before its deadline.
//
// An error is always an *Error. When it Is ErrUncertain, the notification may have been accepted: submitting the same again
// is safe, and tells. Without a request_id and without an order_id the server refuses: nothing could tell two submissions apart.
func (c *Client) Submit(ctx context.Context, n *Notification) (*Result, error) {
	it, err := c.prepare(n)
	if err != nil {
		return nil, err
	}
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.leave()
	waits := c.waits(it.n)
	try := func(ctx context.Context, items []*item) {
		switch s := c.openStream(); { //nolint:contextcheck // a stream belongs to no single caller
		case s != nil && c.tryStreamed(ctx, s, items[0], waits):
		case waits:
			c.tryAlone(ctx, items)
		default:
			c.tryShared(ctx, items)
		}
	}
	c.insist(ctx, []*item{it}, try, func(*item) {})
	return it.answer()
}

// Answer is what became of one notification of SubmitAll: either a Result, or an error, which is always an *Error.
type Answer struct {
	Result *Result
	Err    error
}

// SubmitAll submits many and answers each, in order: one bad notification never fails its neighbours. It waits for no
// merchant: scenes of the sync lane go async.
func (c *Client) SubmitAll(ctx context.Context, ns []*Notification) []Answer {
	answers := make([]Answer, len(ns))
	c.SubmitEach(ctx, ns, func(i int, a Answer) { answers[i] = a })
	return answers
}

// SubmitEach is SubmitAll for those who want each answer as it comes. answered is called once for each notification with its
// index, in no certain order, one call at a time.
func (c *Client) SubmitEach(ctx context.Context, ns []*Notification, answered func(i int, a Answer)) {
	var mu sync.Mutex
	settle := func(it *item) {
		mu.Lock()
		defer mu.Unlock()
		result, err := it.answer()
		answered(it.index, Answer{result, err})
	}
	if err := c.enter(ctx); err != nil {
		for i := range ns {
			settle(&item{index: i, err: err})
		}
		return
	}
	defer c.leave()
	chunks := make(chan []*item)
	var workers sync.WaitGroup
	for range min(c.parallel, len(ns)) {
		workers.Go(func() {
			for chunk := range chunks {
				c.insist(ctx, chunk, c.tryTogether, settle)
			}
		})
	}
	c.cut(ns, settle, func(chunk []*item) { chunks <- chunk })
	close(chunks)
	workers.Wait()
}

// cut makes chunks of what fits into one call. What can never be sent is settled at once.
func (c *Client) cut(ns []*Notification, settle func(*item), give func([]*item)) {
	var chunk []*item
	size := 0
	for i, n := range ns {
		it, err := c.prepare(n)
		if err != nil {
			settle(&item{index: i, err: err})
			continue
		}
		it.index = i
		if len(chunk) > 0 && (len(chunk) == c.batch || size+it.size > c.batchBytes) {
			give(chunk)
			chunk, size = nil, 0
		}
		chunk, size = append(chunk, it), size+it.size
	}
	if len(chunk) > 0 {
		give(chunk)
	}
}

// Close takes nothing more and waits until what was submitted is answered, in tries to come if need be. When ctx ends first,
// the rest fails with ErrClosed and Close returns an error. Closing again waits again.
func (c *Client) Close(ctx context.Context) error {
	c.closing.Do(func() {
		close(c.closed)
		go c.drain(context.WithoutCancel(ctx))
	})
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	<-c.drained // soon after the kill at the latest: nothing waits longer than the client's life
	c.http.CloseIdleConnections()
	if c.life.Err() != nil {
		return fmt.Errorf("close client: %w: what was not answered may have been accepted", cmp.Or(context.Cause(ctx), ErrClosed))
	}
	return nil
}

// drain returns when every caller has left and every call has ended.
func (c *Client) drain(ctx context.Context) {
	_ = c.places.Acquire(ctx, c.maxWaiting) // this ctx never ends
	c.endStreams()                          // nobody waits for what is on them
	c.batches.Wait()
	close(c.drained)
}

// Stats is what the client has in hand.
type Stats struct {
	Queued   int // notifications that wait for a place in a call, or in a message of a stream
	Retrying int // notifications that wait to be tried again
	Calls    int // batch calls under way
	Streams  int // streams that are open
}

// Stats returns it as of now.
func (c *Client) Stats() Stats {
	stats := Stats{Queued: c.queue.len(), Retrying: int(c.retrying.Load()), Calls: len(c.slots)}
	for i := range c.streams {
		if s := c.streams[i].current.Load(); s != nil {
			stats.Streams++
			stats.Queued += s.queue.len()
		}
	}
	return stats
}

// URL is the server's.
func (c *Client) URL() string { return c.url }

// HTTPClient is what the client calls with: it proves the caller in each request to the server, and follows no redirects.
// Give it to a generated client of another of the server's services.
func (c *Client) HTTPClient() *http.Client { return c.http }

// waits reports whether the caller waits for the merchant's answer.
func (c *Client) waits(n *Notification) bool {
	switch n.Lane {
	case notifydv1.Lane_LANE_SYNC:
		return true
	case notifydv1.Lane_LANE_ASYNC:
		return false
	case notifydv1.Lane_LANE_UNSPECIFIED:
	}
	return c.syncScenes[n.Scene]
}

// enter takes a place, waiting for one when there is none.
func (c *Client) enter(ctx context.Context) *Error {
	select {
	case <-c.closed:
		return ended(ErrClosed, false)
	default:
	}
	if err := c.places.Acquire(ctx, 1); err != nil {
		return ended(context.Cause(ctx), false)
	}
	select {
	case <-c.closed: // it was closed meanwhile
		c.leave()
		return ended(ErrClosed, false)
	default:
		return nil
	}
}

func (c *Client) leave() { c.places.Release(1) }

// bounded is ctx for one call: it ends after the bound too, and with the client's life.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, c.callTimeout)
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() { stop(); cancel() }
}
