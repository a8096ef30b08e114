package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

// timeUpError ends a leg; its text is what the attempt shows.
type timeUpError string

func (e timeUpError) Error() string { return string(e) }

// Timeout makes it a timeout like any other.
func (timeUpError) Timeout() bool { return true }

const (
	errTimeUp      timeUpError = "no complete answer within timeout and grace"
	errNoFirstByte timeUpError = "no answer within the first byte timeout"
)

// Send makes one attempt and says what happened. It returns when the answer is complete, or at the latest after timeout and
// grace. Canceling ctx abandons the attempt: the engine is stopping.
func (c *Client) Send(ctx context.Context, call Call) (attempt notification.Attempt) {
	attempt, _ = c.send(ctx, call)
	return attempt
}

// Test is Send for a test call; signed is the string that was signed, a secret in it masked.
func (c *Client) Test(ctx context.Context, call Call) (attempt notification.Attempt, signed []byte) {
	call.Kind = notification.KindTest
	return c.send(ctx, call)
}

func (c *Client) send(ctx context.Context, call Call) (attempt notification.Attempt, signed []byte) {
	f := flight{client: c, attempt: &attempt, began: time.Now()}
	defer f.contain()
	attempt = newAttempt(call, f.began)
	f.timeouts = c.config.timeouts(call.Merchant.Timeouts)

	f.fly(ctx, call)

	attempt.Took = time.Since(f.began)
	f.settle(Classify(f.what, c.contracts.Acknowledgement(call.Merchant, call.told(f.began))))
	return attempt, f.signed
}

// flight is an attempt in the making.
type flight struct {
	client   *Client
	timeouts merchant.Timeouts
	began    time.Time
	attempt  *notification.Attempt
	what     What
	err      error // behind what.Fault
	location string
	signed   []byte
	// reconnected says that the one reconnect (P6) is used up; passedOver counts dead connections of the pool.
	reconnected bool
	passedOver  int
}

func newAttempt(call Call, began time.Time) notification.Attempt {
	a := notification.Attempt{
		Number: call.Number, Generation: call.Work.Generation, Trigger: call.Work.Trigger, Operator: call.Work.Operator,
		Kind: call.Kind, Egress: direct, SettingsVersion: call.Merchant.Version, StartedAt: began.UTC().Truncate(time.Microsecond),
	}
	if a.Kind == 0 {
		a.Kind = notification.KindSend
	}
	binary.LittleEndian.PutUint64(a.Key[:8], rand.Uint64()) // tells attempts apart; guards nothing
	binary.LittleEndian.PutUint64(a.Key[8:], rand.Uint64())
	return a
}

func (f *flight) fly(parent context.Context, call Call) {
	order, err := f.client.order(parent, call, f.began)
	if err != nil {
		f.fail(f.blame(parent, err), PhasePrepare, false)
		return
	}
	f.attempt.Request, f.attempt.KeyIDs, f.signed = order.record, order.keyIDs, order.signed
	end := f.began.Add(f.timeouts.Total + f.timeouts.Grace)
	for {
		l := &leg{timeouts: f.timeouts, softEnd: f.began.Add(f.timeouts.Total), end: end, began: time.Now()}
		resp, err := f.client.exchange(parent, l, &order) //nolint:bodyclose // read gives the connection back; no redirects are followed, no cookies kept
		f.note(l, err)
		if err == nil {
			f.read(parent, l, resp)
			return
		}
		f.fail(f.blame(parent, err), l.phaseOf(err), l.sent)
		if !f.reconnects(parent, l) {
			return
		}
	}
}

// note keeps what a leg says about connections and times.
func (f *flight) note(l *leg, err error) {
	a := f.attempt
	var failed *dialError
	switch {
	case l.conn != nil:
		a.LocalAddr, a.RemoteAddr, a.TLS = l.conn.local, l.conn.remote, l.conn.tlsWords
		if !l.reused {
			a.Connects++
			f.took(l.conn.steps)
		}
	case errors.As(err, &failed):
		a.Connects++
		f.took(failed.steps)
	case l.dialing != 0:
		a.Connects++
	}
	if l.wrote > 0 {
		a.Phases.Write = max(l.wrote-l.gotConn, 0)
		if l.firstByte > 0 {
			a.Phases.FirstByte = max(l.firstByte-l.wrote, 0)
		}
	}
}

func (f *flight) took(s steps) {
	f.attempt.Phases.DNS, f.attempt.Phases.Connect, f.attempt.Phases.TLS = s.dns, s.connect, s.tls
}

// phaseOf is how far a leg came that failed.
func (l *leg) phaseOf(err error) Phase {
	var failed *dialError
	if l.conn == nil && errors.As(err, &failed) {
		return failed.phase
	}
	return l.phase()
}

// blame gives a canceled caller his name: only the engine's end cancels an attempt.
func (f *flight) blame(parent context.Context, err error) error {
	if parent.Err() != nil && errors.Is(err, context.Cause(parent)) {
		return errShutdown
	}
	return err
}

func (f *flight) fail(err error, phase Phase, sent bool) {
	f.err = err
	f.what.Phase, f.what.Fault, f.what.Sent = phase, faultOf(err, phase), sent
}

// reconnects keeps P6: while nothing was sent, a reset or a local-port error is answered by one reconnect at once.
// Connections of the pool that turn out dead are passed over: they cost nothing, and after a merchant's restart all
// of them are.
func (f *flight) reconnects(ctx context.Context, l *leg) bool {
	if f.what.Sent || (f.what.Fault != FaultReset && f.what.Fault != FaultLocal) || ctx.Err() != nil {
		return false
	}
	if time.Since(f.began) >= f.timeouts.Total {
		return false
	}
	if l.reused && f.passedOver < f.client.config.MaxIdlePerMerchant {
		f.passedOver++
		f.reconnected = true // a fresh connection is the reconnect
		return true
	}
	if f.reconnected {
		return false
	}
	f.reconnected = true
	return true
}

func (f *flight) read(parent context.Context, l *leg, resp *http.Response) {
	body, truncated, err := readAnswer(resp, f.client.config.MaxResponse)
	if err != nil {
		if err = l.timely(err); parent.Err() != nil {
			err = context.Cause(parent) // whoever canceled it has cut the connection off
		}
	}
	f.client.finish(l, resp, err == nil && !truncated)
	took := time.Since(f.began)
	f.attempt.Phases.Read = max(time.Since(l.began)-l.firstByte, 0)
	f.attempt.Response = &notification.Response{
		Status: resp.StatusCode, Headers: keptHeaders(resp.Header), Body: body, Truncated: truncated,
	}
	f.what.Status, f.what.Body, f.what.Truncated, f.what.header = resp.StatusCode, body, truncated, resp.Header
	if err != nil {
		f.fail(f.blame(parent, err), PhaseRead, true)
		return
	}
	f.what.Phase, f.what.Fault, f.what.Sent = PhaseDone, FaultNone, true
	f.location = resp.Header.Get("Location")
	if took > f.timeouts.Total {
		f.what.Late = true
		f.attempt.LateAt = f.began.Add(took).UTC().Truncate(time.Microsecond)
	}
	if value := resp.Header.Get("Retry-After"); value != "" {
		f.attempt.RetryAfter = retryAfter(value, f.began.Add(took))
	}
}

func (f *flight) settle(v Verdict) {
	a := f.attempt
	a.Outcome, a.Reason, a.Counted = v.Outcome, v.Reason, v.Reason.Counts() // P7
	if v.Outcome == notification.OutcomeDelivered {
		a.RetryAfter = 0
	}
	a.Detail = detail(f.what, v, f.err, f.location)
}

// contain turns a bug into one attempt that says so. Bytes may have left.
func (f *flight) contain() {
	if r := recover(); r != nil {
		f.what.Sent, f.what.Fault = true, FaultInternal
		f.err = fmt.Errorf("panic: %v", r)
		f.attempt.Took = time.Since(f.began)
		f.settle(Verdict{Outcome: notification.OutcomeUnconfirmed, Reason: notification.ReasonInternal})
	}
}
