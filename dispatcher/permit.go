package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/source"
)

// denied names the field that asks for more than the caller may have.
func denied(field, description string) *connect.Error {
	return withDetail(connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s: %s", field, description)),
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: description}}})
}

// ownSource is the source that a question is about: a source that calls asks about itself only, and need not say so.
func ownSource(ctx context.Context, field, given string) (string, error) {
	own := CallerOf(ctx).Source
	if own == "" || given == own {
		return given, nil
	}
	if given == "" {
		return own, nil
	}
	return "", denied(field, fmt.Sprintf("%q: the caller is source %q, which sees its own only", given, own))
}

// mayKnow reports whether a caller may know of a notification. Of one that has no row yet nobody knows whose it is:
// what is shown is only that it was accepted, to somebody who has its id or what that was derived from.
func mayKnow(ctx context.Context, n *notification.Notification) bool {
	own := CallerOf(ctx).Source
	return own == "" || n.Source == own || n.Source == ""
}

// mayChange refuses, as if it were not there, what another source submitted; and what has no row yet, since it may be.
func (d *Dispatcher) mayChange(ctx context.Context, id notification.ID) error {
	own := CallerOf(ctx).Source
	if own == "" {
		return nil
	}
	n, _, err := d.find(ctx, id)
	if errors.Is(err, ledger.ErrIncomplete) { // the change itself needs the ledger
		err = d.unavailable("ask the ledger", err)
	}
	switch {
	case err != nil:
		return err
	case n.Source == "":
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s: accepted, but no row yet; try again", id))
	case n.Source != own:
		return notFound("notification", id.String())
	}
	return nil
}

// actor is who stands on record for a change: the caller as far as it is proven, and whom it names besides.
func actor(ctx context.Context, named string) string {
	caller := CallerOf(ctx)
	proven := caller.Operator
	if caller.Source != "" {
		proven = "source:" + caller.Source
	}
	switch {
	case proven == "", proven == named:
		return named
	case named == "":
		return proven
	}
	return proven + "/" + named
}

// permit holds a notification to its caller, who submits as itself only, and to what its source may do. That holds
// whoever submits in a registered source's name; what nobody registered has no rules.
func (d *Dispatcher) permit(ctx context.Context, n *notification.Notification) error {
	if own := CallerOf(ctx).Source; own != "" && n.Source != own {
		return denied("notification.source", fmt.Sprintf("%q: the caller is source %q, which submits as itself only", n.Source, own))
	}
	s := d.sources.Get(n.Source)
	switch {
	case s == nil:
		return nil
	case s.Disabled:
		return denied("notification.source", fmt.Sprintf("%q: is disabled", n.Source))
	case !s.Allows(n.MerchantID):
		return denied("notification.merchant_id", fmt.Sprintf("%q: is none of the merchants that source %q may submit for", n.MerchantID, s.ID))
	case !n.Terminal && !s.AllowNonTerminal:
		return invalid("notification.terminal", fmt.Sprintf("is false: source %q submits only statuses that are their order's last one, unless its allow_non_terminal is set", s.ID))
	}
	return nil
}

// What a source over its rate is asked to wait at least and at most, in seconds.
const (
	minRateWait = 0.001
	maxRateWait = 24 * 60 * 60.0
)

// meter takes a token of its source for each notification that could be accepted. One that finds none is refused, and
// told when there will be one for it.
func (d *Dispatcher) meter(subs []*submission) {
	now := d.now()
	refused := map[string]int{}
	for _, s := range subs {
		if s.answered() {
			continue
		}
		src := d.sources.Get(s.n.Source)
		if src == nil || src.Limits.RatePerSecond <= 0 {
			continue
		}
		limiter := d.rates.of(src, now)
		if limiter.AllowN(now, 1) {
			continue
		}
		refused[src.ID]++
		seconds := (float64(refused[src.ID]) - limiter.TokensAt(now)) / src.Limits.RatePerSecond
		s.err = overRate(src, time.Duration(min(max(seconds, minRateWait), maxRateWait)*float64(time.Second)))
	}
}

func overRate(s *source.Source, wait time.Duration) *connect.Error {
	err := fmt.Errorf("source %q submits more than its %g notifications per second on this node; try again in %s", s.ID, s.Limits.RatePerSecond, wait.Round(time.Millisecond))
	return withDetail(connect.NewError(connect.CodeResourceExhausted, err), &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
}

// rates are the limiters of the sources that have called this node.
type rates struct {
	mu       sync.Mutex
	bySource map[string]*rate.Limiter
}

// of is a source's limiter, set to its limits of now; a change keeps the tokens.
func (r *rates) of(s *source.Source, now time.Time) *rate.Limiter {
	burst := s.Limits.Burst
	if burst == 0 {
		burst = max(1, int(math.Ceil(s.Limits.RatePerSecond)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.bySource[s.ID]
	if limiter == nil {
		if r.bySource == nil {
			r.bySource = map[string]*rate.Limiter{}
		}
		limiter = rate.NewLimiter(rate.Limit(s.Limits.RatePerSecond), burst)
		r.bySource[s.ID] = limiter
	}
	if limit := rate.Limit(s.Limits.RatePerSecond); limiter.Limit() != limit {
		limiter.SetLimitAt(now, limit)
	}
	if limiter.Burst() != burst {
		limiter.SetBurstAt(now, burst)
	}
	return limiter
}
