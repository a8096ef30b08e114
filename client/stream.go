package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// stream is one call of SubmitStream that the server has answered: what is given to it is on its way at once.
type stream struct {
	call  *connect.BidiStreamForClient[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]
	kill  context.CancelCauseFunc
	queue *queue
	send  chan struct{} // has room for the one that sends

	mu         sync.Mutex
	unanswered map[uint64]*entry // what was sent
	last       uint64
	silent     time.Time // since when nothing was heard though something is unanswered; zero: nothing is
	ended      bool
}

// streamPlace keeps a stream open as long as it is used.
type streamPlace struct {
	current atomic.Pointer[stream] // nil: there is none

	mu      sync.Mutex
	busy    bool          // a stream is open, or being opened
	notYet  time.Time     // before that none is opened
	patient time.Duration // the newest wait
}

// What goes on a stream is small and many: to compress it costs more than it saves.
var plain = connect.WithAcceptCompression("gzip", nil, nil)

// streamRest is how long calls serve before a stream is asked for again, where there is none to be had.
const streamRest = time.Minute

// openStream returns one that is open, by turns; nil: there is none, and one is on its way if it may be.
func (c *Client) openStream() *stream {
	turn := c.turn.Add(1)
	for i := range c.streams {
		p := &c.streams[(turn+uint64(i))%uint64(len(c.streams))]
		if s := p.current.Load(); s != nil {
			return s
		}
		p.mu.Lock()
		if !p.busy && !time.Now().Before(p.notYet) {
			p.busy = true
			c.batches.Go(func() { c.serve(p) })
		}
		p.mu.Unlock()
	}
	return nil
}

// serve opens a stream and reads its answers until it ends.
func (c *Client) serve(p *streamPlace) {
	ctx, kill := context.WithCancelCause(c.streamLife)
	defer kill(nil)
	impatient := time.AfterFunc(c.callTimeout, func() { kill(errors.New("the stream does not open")) })
	call := c.submits.SubmitStream(ctx)
	err := call.Send(nil)
	if err == nil {
		_, err = call.Receive() // nothing is entrusted to it before: something on the way may hold it up
	}
	opened := impatient.Stop() && err == nil
	hangUp := func() { _, _ = call.CloseResponse(), call.CloseRequest() }
	kept := context.AfterFunc(ctx, hangUp) // net/http does not look at ctx while a body waits to be written
	switch {
	case opened:
		s := &stream{call: call, kill: kill, queue: newQueue(c.batch, c.batchBytes), send: make(chan struct{}, 1), unanswered: map[uint64]*entry{}}
		p.current.Store(s)
		err = s.receive()
		p.current.Store(nil)
		s.end(ctx, err)
	case err == nil: // it came at the same moment
		err = context.Cause(ctx)
	}
	if kept() {
		hangUp()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
	p.patient = c.restAfter(opened, err, p.patient)
	p.notYet = time.Now().Add(p.patient/2 + rand.N(p.patient/2+1))
}

// restAfter is how long to make calls instead. A stream that worked, or a server that is not there, is soon tried again;
// not one that the server does not want: calls hear its reason, each for itself.
func (c *Client) restAfter(opened bool, err error, before time.Duration) time.Duration {
	fault := ErrorOf(err)
	refused := fault.Answered && fault.Code != connect.CodeUnavailable
	switch {
	case opened && !refused:
		return c.firstWait
	case !refused && (fault.Answered || fault.Unreached()):
		return min(max(2*before, c.firstWait), c.mostWait)
	}
	return streamRest
}

// receive returns why there are no more answers.
func (s *stream) receive() error {
	for {
		msg, err := s.call.Receive()
		if err != nil {
			return err
		}
		for i, e := range s.take(msg.Results) {
			if e != nil { // else it is of none that we know
				e.answer <- replyOf(msg.Results[i].Result)
			}
		}
	}
}

// take returns whose results these are.
func (s *stream) take(results []*notifydv1.StreamedResult) []*entry {
	entries := make([]*entry, len(results))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range results {
		entries[i] = s.unanswered[r.Number]
		delete(s.unanswered, r.Number)
	}
	s.silent = time.Time{}
	if len(s.unanswered) > 0 {
		s.silent = time.Now()
	}
	return entries
}

// end tells those who wait for an answer that none will come.
func (s *stream) end(ctx context.Context, err error) {
	why := ErrorOf(err).Message
	switch {
	case errors.Is(err, io.EOF):
		why = "the server has ended it"
	case ctx.Err() != nil:
		why = context.Cause(ctx).Error()
	}
	fault := &Error{Code: connect.CodeUnavailable, Message: "the stream ended before the answer: " + why, WholeCall: true, Uncertain: true, cause: err}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, e := range s.unanswered {
		e.answer <- reply{err: fault}
	}
	clear(s.unanswered)
}

// gather sends what has come, and what comes meanwhile. There is never more than one that sends: meanwhile the next message fills.
func (s *stream) gather() {
	s.send <- struct{}{}
	defer func() { <-s.send }()
	runtime.Gosched() // who was answered together submits together: let them come
	for more := true; more; {
		var batch []*entry
		if batch, more = s.queue.take(); len(batch) == 0 { // its callers have left
			continue
		}
		msg := s.enlist(batch)
		if msg == nil {
			for _, e := range batch {
				e.answer <- reply{unsent: true}
			}
			continue
		}
		if err := s.call.Send(msg); err != nil && !errors.Is(err, io.EOF) { // that says that the server has ended it: the receiver hears why
			s.kill(err)
		}
	}
}

// enlist makes a message of a batch whose answers are awaited from now on; nil: the stream has ended.
func (s *stream) enlist(batch []*entry) *notifydv1.SubmitStreamRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	now := time.Now()
	msg := &notifydv1.SubmitStreamRequest{Notifications: make([]*notifydv1.StreamedNotification, len(batch))}
	for i, e := range batch {
		s.last++
		s.unanswered[s.last] = e
		n := &notifydv1.StreamedNotification{Number: s.last, Notification: e.n, Traceparent: e.traceparent}
		if e.waits {
			n.AllowSync, n.Wait = true, durationpb.New(max(e.deadline.Sub(now), time.Millisecond))
		}
		msg.Notifications[i] = n
	}
	if s.silent.IsZero() {
		s.silent = now
	}
	return msg
}

// suspect ends a stream that has been silent for too long, so that the next try finds another way.
func (s *stream) suspect(patience time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.silent.IsZero() && time.Since(s.silent) >= patience {
		s.kill(fmt.Errorf("nothing was heard for %s", patience))
	}
}

// tryStreamed gives an item to a stream and waits for its answer, for ctx, or until the try has taken too long. It returns
// false when the stream has ended before: then nothing was sent.
func (c *Client) tryStreamed(ctx context.Context, s *stream, it *item, waits bool) bool {
	e := &entry{n: it.n, size: it.size + streamedOverhead, waits: waits, answer: make(chan reply, 1), deadline: time.Now().Add(c.callTimeout)}
	if ends, ok := ctx.Deadline(); ok && ends.Before(e.deadline) {
		e.deadline = ends
	}
	if c.traceparent != nil {
		e.traceparent = c.traceparent(ctx)
	}
	if s.queue.add(e) {
		c.batches.Go(s.gather)
	}
	timer := time.NewTimer(c.callTimeout)
	defer timer.Stop()
	select {
	case r := <-e.answer:
		if r.unsent {
			return false
		}
		it.take(r)
		return true
	case <-ctx.Done():
	case <-c.life.Done():
	case <-timer.C:
	}
	sent := !s.queue.remove(e)
	if sent {
		s.suspect(c.callTimeout)
		select {
		case r := <-e.answer: // it came at the same moment
			if r.unsent {
				return false
			}
			it.take(r)
			c.endIfOver(ctx, it)
			return true
		default:
			it.tries++
			it.uncertain = true
		}
	}
	if cause := c.whyEnded(ctx); cause != nil {
		it.end(cause)
	} else {
		it.err = &Error{Code: connect.CodeDeadlineExceeded, Message: fmt.Sprintf("no answer within %s", c.callTimeout), Tries: it.tries, Uncertain: it.uncertain}
	}
	return true
}

// streamedOverhead is what a notification takes in a message beside itself, in bytes.
const streamedOverhead = 128
