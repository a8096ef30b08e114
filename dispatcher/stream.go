package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"notifyd/internal/groupcommit"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// The bounds of one stream; notification_service.proto promises them.
const (
	maxStreamed    = 1000   // notifications in one message
	maxUnanswered  = 10_000 // notifications that were read and whose answer has not left
	maxAnswerBytes = 4 << 20
)

var errUnanswered = fmt.Errorf("%d notifications of this stream have no answer yet", maxUnanswered)

// stream is one call of SubmitStream.
type stream struct {
	d       *Dispatcher
	call    *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]
	guard   *streamGuard
	answers *groupcommit.Batcher[streamAnswer]

	underWay   sync.WaitGroup // messages, and notifications whose merchant is asked
	unanswered atomic.Int64   // only the reader adds to it
}

type streamAnswer struct {
	*notifydv1.StreamedResult
	size int
}

// SubmitStream takes notifications as they come. However it ends, what is under way is answered first if the caller still
// listens, and goes on if not.
func (d *Dispatcher) SubmitStream(ctx context.Context, call *connect.BidiStream[notifydv1.SubmitStreamRequest, notifydv1.SubmitStreamResponse]) error {
	guard, ok := ctx.Value(guardKey{}).(*streamGuard)
	if !ok {
		return connect.NewError(connect.CodeInternal, errors.New("a stream needs Authenticate before it"))
	}
	if !d.streams.begin(guard) {
		return withDetail(connect.NewError(connect.CodeUnavailable, errors.New("this node is stopping; try another")), retryInfo())
	}
	defer d.streams.end(guard)
	defer guard.watch()()
	s := &stream{d: d, call: call, guard: guard}
	s.answers = groupcommit.New(fitsAnswers, s.send)
	if call.Send(&notifydv1.SubmitStreamResponse{}) != nil {
		return nil // the caller is gone
	}
	err := s.receive(ctx)
	s.underWay.Wait()
	s.answers.Wait()
	return err
}

// receive returns when nothing more is to be read.
func (s *stream) receive(ctx context.Context) error {
	// The caller's end is not that of its notifications, nor is its trace theirs.
	work := trace.ContextWithSpanContext(context.WithoutCancel(ctx), trace.SpanContext{})
	for {
		msg, err := s.call.Receive()
		s.guard.received()
		if err != nil {
			return s.whyEnded(ctx, err)
		}
		items := msg.Notifications
		if len(items) > maxStreamed {
			return invalid("notifications", fmt.Sprintf("has %d items: at most %d are allowed", len(items), maxStreamed))
		}
		room := min(len(items), maxUnanswered-int(s.unanswered.Load()))
		if taken := items[:room]; len(taken) > 0 {
			s.unanswered.Add(int64(len(taken)))
			s.work(func() { s.take(work, taken) })
		}
		s.refuse(items[room:])
	}
}

// work does something that the end of the stream waits for.
func (s *stream) work(job func()) {
	s.underWay.Add(1)
	s.d.crew.Go(func() {
		defer s.underWay.Done()
		job()
	})
}

// whyEnded is what the caller is told; nil: it has ended the stream itself, or this node stops.
func (s *stream) whyEnded(ctx context.Context, err error) error {
	switch cause := s.guard.cause(); {
	case errors.Is(cause, errStopping), errors.Is(err, io.EOF), cause == nil && ctx.Err() != nil:
		return nil //nolint:nilerr // an end without a fault
	case cause != nil:
		return cause
	}
	switch connect.CodeOf(err) { //nolint:exhaustive // the rest is about the message
	case connect.CodeInternal, connect.CodeUnknown: // a connection that broke, or what is no message
		return connect.NewError(connect.CodeCanceled, fmt.Errorf("the stream cannot be read on: %w", err))
	}
	return err
}

// take submits what came in one message: what waits for a merchant each on its own, the rest together.
func (s *stream) take(ctx context.Context, items []*notifydv1.StreamedNotification) {
	began := s.d.now()
	numbers, together := make([]uint64, 0, len(items)), make([]*submission, 0, len(items))
	for _, item := range items {
		sub := newStreamed(ctx, item)
		s.d.admit(ctx, sub)
		if sub.err != nil || !sub.allowSync || sub.n.Route.Lane != notification.LaneSync {
			numbers, together = append(numbers, item.Number), append(together, sub)
			continue
		}
		s.work(func() {
			ctx := ctx
			if item.Wait != nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, item.Wait.AsDuration())
				defer cancel()
			}
			s.d.submitAdmitted(ctx, []*submission{sub}, began)
			s.answer(item.Number, sub)
		})
	}
	if len(together) == 0 {
		return
	}
	s.d.submitAdmitted(ctx, together, began)
	for i, sub := range together {
		s.answer(numbers[i], sub)
	}
}

func newStreamed(ctx context.Context, item *notifydv1.StreamedNotification) *submission {
	s := newSubmission(item.Notification, item.AllowSync)
	if item.Traceparent != "" {
		carrier := propagation.MapCarrier{"traceparent": item.Traceparent}
		s.trace = traceparent(propagation.TraceContext{}.Extract(ctx, carrier))
	}
	switch wait := item.Wait; {
	case s.err != nil || wait == nil:
	case !wait.IsValid():
		s.err = invalid("wait", fmt.Sprintf("%d seconds and %d nanoseconds: is no duration", wait.Seconds, wait.Nanos))
	case wait.AsDuration() <= 0:
		s.err = invalid("wait", wait.AsDuration().String()+": must be more than 0; leave it out for the default")
	}
	return s
}

func (s *stream) answer(number uint64, sub *submission) {
	result := &notifydv1.StreamedResult{Number: number, Result: sub.result()}
	s.answers.Add(streamAnswer{result, proto.Size(result)}, func(error) { s.unanswered.Add(-1) })
}

// refuse answers what goes beyond the bound, and returns when that has left: who does not read its answers is not read.
func (s *stream) refuse(items []*notifydv1.StreamedNotification) {
	if len(items) == 0 {
		return
	}
	began := s.d.now()
	subs := make([]*submission, len(items))
	var told sync.WaitGroup
	for i, item := range items {
		subs[i] = &submission{err: busy(errUnanswered)}
		result := &notifydv1.StreamedResult{Number: item.Number, Result: subs[i].result()}
		told.Add(1)
		s.answers.Add(streamAnswer{result, proto.Size(result)}, func(error) { told.Done() })
	}
	s.d.tellAnswers(subs, began)
	told.Wait()
}

func fitsAnswers(batch []streamAnswer, next streamAnswer) bool {
	size := next.size
	for _, a := range batch {
		size += a.size
	}
	return len(batch) < maxStreamed && size <= maxAnswerBytes
}

// send sends what was ready together; meanwhile the next answers gather. Of a stream that is broken the reader hears too.
func (s *stream) send(answers []streamAnswer) []error {
	msg := &notifydv1.SubmitStreamResponse{Results: make([]*notifydv1.StreamedResult, len(answers))}
	for i, a := range answers {
		msg.Results[i] = a.StreamedResult
	}
	s.guard.sending(true)
	defer s.guard.sending(false)
	_ = s.call.Send(msg)
	return nil
}

// streams are those that are open. The zero value is ready.
type streams struct {
	mu       sync.Mutex
	open     map[*streamGuard]struct{}
	stopping bool
}

// begin reports whether a stream may begin; then it must end.
func (s *streams) begin(g *streamGuard) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	if s.open == nil {
		s.open = map[*streamGuard]struct{}{}
	}
	s.open[g] = struct{}{}
	return true
}

func (s *streams) end(g *streamGuard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, g)
}

// EndStreams reads no more from any stream: each ends when what is under way on it is answered. New ones are refused.
func (d *Dispatcher) EndStreams() {
	d.streams.mu.Lock() // a guard must not be used after its stream has ended
	defer d.streams.mu.Unlock()
	d.streams.stopping = true
	for g := range d.streams.open {
		g.stop(errStopping)
	}
}
