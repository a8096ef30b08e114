package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"notifyd/internal/proc"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Overload says how an engine is overloaded.
type Overload struct {
	Engine *scenario.Binary
	Args   []string
	Seed   uint64
	// Measure is how long the capacity is measured, with no more under way than OverloadAhead; then submitters give Times as much, for so long.
	Measure, For time.Duration
	Times        float64
	// Apart gives the engine and its Postgres a core of their own, and the submitters and merchants the others: what a
	// submitter costs is taken from nobody then.
	Apart bool
}

// Overloaded is what came of it.
type Overloaded struct {
	Capacity   float64 // acknowledged per second before the overload, with submitters that wait for the merchants
	After      float64 // the same when it is over: the ledger and its log have grown
	Offered    float64 // submitted per second meanwhile
	Goodput    float64 // acknowledged per second, from the second half of the overload
	Accepted   int
	Refused    int // RESOURCE_EXHAUSTED with a time to wait, at the first try
	Resent     int // refused ones that were submitted again afterwards
	Unanswered int // calls that ended in another way; they are submitted again afterwards
	Before     int // MiB that the engine has before the overload
	Most       int // MiB that it has at most
	Drained    time.Duration
	Violations []string
}

// String is for people.
func (o Overloaded) String() string {
	return fmt.Sprintf("capacity %.0f/s before and %.0f/s after, offered %.0f/s, goodput %.0f/s (%.0f %%), accepted %d, refused %d (%d of them submitted again), unanswered %d, memory %d MiB before, %d MiB at most, drained in %s",
		o.Capacity, o.After, o.Offered, o.Goodput, 100*o.Share(), o.Accepted, o.Refused, o.Resent, o.Unanswered, o.Before, o.Most, o.Drained.Round(10*time.Millisecond))
}

// Share is how much of what the engine can do came through. Two minutes and half a million rows lie between the two
// measurements of what it can do: their mean is what it could have done meanwhile.
func (o Overloaded) Share() float64 { return 2 * o.Goodput / (o.Capacity + o.After) }

const (
	overloadMerchants = 40
	overloadBatch     = 50
	// overloadAhead is how much may be under way while the capacity is measured.
	overloadAhead = 2000
	// overloadCalls bounds the calls under way: their callers, too, have a bound.
	overloadCalls = 128
	// overloadAgain is how many refused ones are submitted again.
	overloadAgain = 200
)

var overloadText = strings.Repeat("7", 700)

// overload is one run.
type overload struct {
	cfg    Overload
	engine *scenario.Engine
	client notifydv1connect.NotificationServiceClient

	made    atomic.Int64 // drafts
	taken   atomic.Int64 // ids that were accepted
	arrived atomic.Int64 // requests at merchants

	mu         sync.Mutex
	told       map[string]int // requests, by id
	accepted   map[string]bool
	refusals   int
	refused    []*notifydv1.Notification // some of them
	unanswered []*notifydv1.Notification
	wrong      []string
}

// RunOverload measures what an engine can do, gives it more for a while, and checks P10.
func RunOverload(tb testing.TB, cfg Overload) Overloaded {
	tb.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: overloadCalls}
	tb.Cleanup(transport.CloseIdleConnections)
	o := &overload{cfg: cfg, told: map[string]int{}, accepted: map[string]bool{}}
	sink := httptest.NewServer(http.HandlerFunc(o.tell))
	tb.Cleanup(sink.Close)
	dir := scenario.DataDir(tb)
	engine := cfg.Engine
	if cfg.Apart {
		engine = engine.Apart(tb)
	}
	o.engine = engine.Logging(dir+".log").Start(tb, dir, append([]string{"--quiet", "--log-level=warn"}, cfg.Args...)...)
	o.client = notifydv1connect.NewNotificationServiceClient(&http.Client{Transport: transport}, o.engine.Intake)
	ctx, cancel := bounded(tb, 15*time.Minute)
	defer cancel()
	for i := range overloadMerchants {
		m := &notifydv1.Merchant{Id: o.merchant(i), NotifyUrl: fmt.Sprintf("%s/%d", sink.URL, i)}
		if _, err := o.engine.Merchants.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})); err != nil {
			tb.Fatal(err)
		}
	}
	var out Overloaded
	out.Capacity = o.capacity(ctx)
	tb.Logf("capacity %.0f/s", out.Capacity)
	out.Before = proc.ResidentMiB(o.engine.PID())
	o.press(ctx, &out)
	out.Resent = o.again(ctx, tb)
	out.Drained = o.drain(ctx)
	out.After = o.capacity(ctx)
	o.check(ctx, &out)
	return out
}

func (o *overload) merchant(i int) string { return fmt.Sprintf("overload-%d", i%overloadMerchants) }

// tell plays every merchant.
func (o *overload) tell(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	o.mu.Lock()
	o.told[r.Header.Get("webhook-id")]++
	o.mu.Unlock()
	o.arrived.Add(1)
	_, _ = io.WriteString(w, "success")
}

func (o *overload) drafts(n int) []*notifydv1.Notification {
	out := make([]*notifydv1.Notification, n)
	for i := range out {
		nth := int(o.made.Add(1))
		name := fmt.Sprintf("%d-%d", o.cfg.Seed, nth)
		out[i] = &notifydv1.Notification{
			Source: source, RequestId: name, MerchantId: o.merchant(nth), Scene: "payout", EventType: "payment.succeeded", OrderId: name,
			OrderStatus: "SUCCESS", Terminal: true, Payload: `{"order":"` + name + `","text":"` + overloadText + `"}`,
		}
	}
	return out
}

// submit submits drafts in one call, a single one by Submit.
func (o *overload) submit(ctx context.Context, drafts []*notifydv1.Notification) {
	if len(drafts) == 1 {
		res, err := o.client.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: drafts[0]}))
		if err != nil {
			o.failed(drafts, connect.CodeOf(err).String(), asksToWait(err))
			return
		}
		o.keep(res.Msg)
		return
	}
	res, err := o.client.SubmitBatch(ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: drafts}))
	if err != nil {
		o.failed(drafts, connect.CodeOf(err).String(), asksToWait(err))
		return
	}
	for i, r := range res.Msg.Results {
		if bad := r.GetError(); bad != nil {
			o.failed(drafts[i:i+1], bad.Code, bad.RetryAfter != nil)
		} else {
			o.keep(r.GetResponse())
		}
	}
}

func asksToWait(err error) bool {
	var failed *connect.Error
	if !errors.As(err, &failed) {
		return false
	}
	return slices.ContainsFunc(failed.Details(), func(d *connect.ErrorDetail) bool {
		value, err := d.Value()
		_, is := value.(*errdetails.RetryInfo)
		return err == nil && is
	})
}

func (o *overload) keep(r *notifydv1.SubmitResponse) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.accepted[r.Id] {
		o.accepted[r.Id] = true
		o.taken.Add(1)
	}
}

func (o *overload) failed(drafts []*notifydv1.Notification, code string, wait bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if code != connect.CodeResourceExhausted.String() {
		o.unanswered = append(o.unanswered, drafts...)
		return
	}
	if !wait {
		o.wrong = append(o.wrong, "a refusal does not say how long to wait")
	}
	o.refusals += len(drafts)
	if room := overloadAgain - len(o.refused); room > 0 {
		o.refused = append(o.refused, drafts[:min(room, len(drafts))]...)
	}
}

// capacity is what the engine does when no more is under way than it likes.
func (o *overload) capacity(ctx context.Context) float64 {
	measuring, end := context.WithCancel(ctx)
	defer end()
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for measuring.Err() == nil {
				if o.taken.Load()-o.arrived.Load() < overloadAhead {
					o.submit(ctx, o.drafts(overloadBatch))
				} else {
					wait(measuring, 2*time.Millisecond)
				}
			}
		})
	}
	wait(ctx, o.cfg.Measure/4) // warms up
	began, before := time.Now(), o.arrived.Load()
	wait(ctx, o.cfg.Measure)
	rate := float64(o.arrived.Load()-before) / time.Since(began).Seconds()
	end()
	workers.Wait()
	o.drain(ctx)
	return rate
}

// press submits at Times the capacity, whatever becomes of it: in batches, and one in ten alone.
func (o *overload) press(ctx context.Context, out *Overloaded) {
	began, made := time.Now(), o.made.Load()
	half, arrivedAtHalf := began.Add(o.cfg.For/2), int64(-1)
	calls := make(chan struct{}, overloadCalls)
	var under sync.WaitGroup
	call := func(n int) {
		select {
		case calls <- struct{}{}:
		default:
			return // all callers wait
		}
		drafts := o.drafts(n)
		under.Go(func() {
			defer func() { <-calls }()
			o.submit(ctx, drafts)
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for now := range tick.C {
		if now.After(half) && arrivedAtHalf < 0 {
			half, arrivedAtHalf = now, o.arrived.Load()
		}
		out.Most = max(out.Most, proc.ResidentMiB(o.engine.PID()))
		since := now.Sub(began)
		if since > o.cfg.For {
			break
		}
		for due := int64(out.Capacity * o.cfg.Times * since.Seconds()); o.made.Load()-made < due && len(calls) < cap(calls); {
			call(overloadBatch - 5)
			for range 5 {
				call(1)
			}
		}
	}
	took := time.Since(began).Seconds()
	out.Goodput = float64(o.arrived.Load()-arrivedAtHalf) / time.Since(half).Seconds()
	out.Offered = float64(o.made.Load()-made) / took
	under.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	out.Refused, out.Unanswered = o.refusals, len(o.unanswered)
}

// again submits what had no answer, and some of what was refused, until it is taken.
func (o *overload) again(ctx context.Context, tb testing.TB) (resent int) {
	tb.Helper()
	o.mu.Lock()
	owed := append(slices.Clone(o.refused), o.unanswered...)
	resent = len(o.refused)
	o.mu.Unlock()
	for _, d := range owed {
		o.until(ctx, func() bool {
			res, err := o.client.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: d}))
			if err != nil {
				wait(ctx, 100*time.Millisecond)
				return false
			}
			o.keep(res.Msg)
			return true
		})
	}
	return resent
}

// drain waits until everything accepted is told.
func (o *overload) drain(ctx context.Context) time.Duration {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	o.until(ctx, func() bool { return o.arrived.Load() >= o.taken.Load() })
	return time.Since(began)
}

func (o *overload) until(ctx context.Context, holds func() bool) {
	for !holds() && ctx.Err() == nil {
		wait(ctx, 10*time.Millisecond)
	}
}

// check holds the run to P1, P3, P4 and P10, and asks for the proof.
func (o *overload) check(ctx context.Context, out *Overloaded) {
	var proof *notifydv1.ProveResponse
	proving, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	o.until(proving, func() bool {
		proof, _ = prove(proving, o.client)
		return proof != nil && proof.Missing == 0 && len(proof.Waiting) == 0
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	out.Accepted, out.Violations = len(o.accepted), o.wrong
	wrong := func(format string, args ...any) {
		out.Violations = append(out.Violations, fmt.Sprintf(format, args...))
	}
	for id := range o.accepted {
		if n := o.told[id]; n != 1 {
			wrong("%s was accepted, and sent %d times", id, n)
		}
	}
	for id := range o.told {
		if !o.accepted[id] {
			wrong("%s was not accepted and is sent", id)
		}
	}
	if proof == nil || proof.Missing != 0 || len(proof.Waiting) != 0 || proof.Final["delivered"] != int64(out.Accepted) {
		wrong("the proof says %v of %d accepted", proof, out.Accepted)
	}
}
