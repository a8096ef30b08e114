package sync

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"notifyd/notification"
	"notifyd/notification/envelope"
)

// askSubject is where intake nodes ask sync nodes; one node of the group answers each question.
const (
	askSubject = "ask.sync"
	askGroup   = "sync"
)

// ErrAway says that no node of the sync lane answers.
var ErrAway = errors.New("sync lane: no node of it answers")

// question is what an intake node asks a sync node.
type question struct {
	Work         []byte // an envelope with one member
	HasRow       bool
	Claim        bool
	DurableUntil time.Time
	// Wait is how long the asking caller still waits; a duration, since clocks differ.
	Wait time.Duration
}

// reply answers a question: Fault is set, or Answer counts. The notification's body is left out of it, since the asking
// node has it: with the merchant's answer a reply could else be more than a message may hold.
type reply struct {
	Answer Answer
	Same   []bool // attempts whose request had the notification's body
	Full   bool
	InHand bool
	Fault  string
}

// Remote is the lane of a node that has none of its own: it asks the nodes that have.
type Remote struct {
	cfg  Config
	conn *nats.Conn
	net  Net
}

// NewRemote returns a lane that asks over NATS.
func NewRemote(cfg Config, conn *nats.Conn, net Net) (*Remote, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Remote{cfg: cfg, conn: conn, net: net}, nil
}

// Enter always has a place: the node that is asked counts its own.
func (r *Remote) Enter(string) (*Place, error) { return &Place{}, nil }

// Ask does what Lane.Ask does, on another node. When that node does not answer in time, the notification is made durable
// here: whatever became of the question, it comes due at durableUntil, and is claimed before it is sent again.
func (r *Remote) Ask(ctx context.Context, _ *Place, w notification.Work, durableUntil time.Time) (Answer, error) {
	if !r.conn.IsConnected() { // nothing would leave
		return Answer{}, ErrAway
	}
	wait := r.cfg.Deadline
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline) - r.cfg.Margin
	}
	data, err := encodeQuestion(w, durableUntil, wait)
	if err != nil {
		return Answer{}, err
	}
	// The other node answers within wait, in time or with TimedOut; a little longer is for the way.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait+r.cfg.Margin/2)
	defer cancel()
	msg, err := r.conn.RequestWithContext(asking, askSubject, data)
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrReconnectBufExceeded) { // nobody has heard it
		return Answer{}, ErrAway
	}
	if err == nil {
		var got reply
		if err = gob.NewDecoder(bytes.NewReader(msg.Data)).Decode(&got); err == nil {
			return got.result(w.Body)
		}
	}
	// No answer: the question may be on its way, or lost with the node that took it.
	spread := *w.Notification
	spread.NextAt = durableUntil
	net := w
	net.Notification = &spread
	if _, netErr := r.net.Spread(context.WithoutCancel(ctx), net); netErr != nil {
		return Answer{}, fmt.Errorf("ask a sync node: %w; make durable: %w", err, netErr)
	}
	return awaiting(w), nil
}

// Wait returns at once: nothing runs here.
func (r *Remote) Wait(context.Context) error { return nil }

func encodeQuestion(w notification.Work, durableUntil time.Time, wait time.Duration) ([]byte, error) {
	work, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := gob.NewEncoder(&out).Encode(question{Work: work, HasRow: w.HasRow, Claim: w.Claim, DurableUntil: durableUntil, Wait: wait}); err != nil {
		return nil, fmt.Errorf("encode question: %w", err)
	}
	return out.Bytes(), nil
}

func decodeQuestion(data []byte) (question, notification.Work, error) {
	var q question
	if err := gob.NewDecoder(bytes.NewReader(data)).Decode(&q); err != nil {
		return q, notification.Work{}, fmt.Errorf("decode question: %w", err)
	}
	works, err := envelope.Decode(q.Work)
	if err != nil {
		return q, notification.Work{}, err
	}
	if len(works) != 1 {
		return q, notification.Work{}, fmt.Errorf("decode question: it has %d members", len(works))
	}
	w := works[0]
	w.HasRow, w.Claim = q.HasRow, q.Claim
	return q, w, nil
}

func (r reply) result(body []byte) (Answer, error) {
	switch {
	case r.Full:
		return Answer{}, ErrFull
	case r.InHand:
		return Answer{}, ErrInHand
	case r.Fault != "":
		return Answer{}, fmt.Errorf("sync node: %s", r.Fault)
	}
	if after := r.Answer.Verdict.After; after != nil {
		after.Body = body
	}
	for i, same := range r.Same {
		if same {
			r.Answer.Verdict.Attempts[i].Request.Body = body
		}
	}
	return r.Answer, nil
}

// withoutBody is an answer without the body that the asking node has.
func withoutBody(a Answer, body []byte) reply {
	r := reply{Answer: a, Same: make([]bool, len(a.Verdict.Attempts))}
	if a.Verdict.After != nil {
		after := *a.Verdict.After
		after.Body = nil
		r.Answer.Verdict.After = &after
	}
	r.Answer.Verdict.Attempts = slices.Clone(a.Verdict.Attempts)
	for i := range r.Answer.Verdict.Attempts {
		if request := &r.Answer.Verdict.Attempts[i].Request; bytes.Equal(request.Body, body) {
			request.Body, r.Same[i] = nil, true
		}
	}
	return r
}

// ServeRemote answers the questions of intake nodes until ctx ends; then it takes no more, and returns when those that
// it took are answered.
func (l *Lane) ServeRemote(ctx context.Context, conn *nats.Conn, log *zap.Logger) error {
	work := context.WithoutCancel(ctx)
	sub, err := conn.QueueSubscribe(askSubject, askGroup, func(msg *nats.Msg) {
		l.running.Go(func() { l.answerRemote(work, msg, log) })
	})
	if err != nil {
		return fmt.Errorf("take questions: %w", err)
	}
	taken := make(chan struct{}) // the last question that was on its way has been
	sub.SetClosedHandler(func(string) { close(taken) })
	<-ctx.Done()
	if err := sub.Drain(); err != nil {
		return fmt.Errorf("stop taking questions: %w", err)
	}
	<-taken // NATS' client bounds a drain
	l.running.Wait()
	return nil
}

func (l *Lane) answerRemote(ctx context.Context, msg *nats.Msg, log *zap.Logger) {
	q, w, err := decodeQuestion(msg.Data)
	var out reply
	if err != nil {
		out.Fault = err.Error()
	} else {
		out = l.askFor(ctx, q, w)
	}
	var data bytes.Buffer
	if err := gob.NewEncoder(&data).Encode(out); err != nil {
		log.Error("answer of the sync lane cannot be encoded", zap.Error(err))
		return
	}
	if err := msg.Respond(data.Bytes()); err != nil { // the asking node makes it durable when its time is up
		log.Warn("answer of the sync lane cannot be sent", zap.Error(err))
	}
}

func (l *Lane) askFor(ctx context.Context, q question, w notification.Work) reply {
	place, err := l.Enter(w.Route.IsolationKey)
	if err != nil {
		return reply{Full: true}
	}
	// Ask takes the margin off again; both nodes keep one: this one to make it durable, that one for the way back.
	ctx, cancel := context.WithTimeout(ctx, q.Wait)
	defer cancel()
	answer, err := l.Ask(ctx, place, w, q.DurableUntil)
	switch {
	case errors.Is(err, ErrInHand):
		return reply{InHand: true}
	case err != nil:
		return reply{Fault: err.Error()}
	}
	return withoutBody(answer, w.Body)
}
