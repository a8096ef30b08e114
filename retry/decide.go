// Package retry makes good what failed: it decides when a notification is tried again (pure, in decide.go and
// schedule.go), keeps what is due soon in JetStream, and sweeps the ledger for the rest.
package retry

import (
	"time"

	"notifyd/notification"
)

// Bounds of waits that no schedule names.
const (
	// MaxRetryAfter bounds what a merchant may ask for with Retry-After.
	MaxRetryAfter = time.Hour
	// An attempt that failed by our own fault is due again as long after it as it has been deferred before, within these.
	minDeferral = 5 * time.Second
	maxDeferral = time.Minute
	// attemptAllowance is what the jitter leaves in the window for each later attempt: the default timeout and grace.
	attemptAllowance = 15 * time.Second
)

// Decide is what becomes of a notification after an attempt: progress before it, the attempt, the schedule and a
// random number from [0,1) give the progress after it. It is the only place where an attempt's outcome turns into a
// state, for the first attempt, a retry and a resend alike. Limits that it cannot know, such as expires_at, are the
// gate's.
func Decide(p notification.Progress, a notification.Attempt, s Schedule, now time.Time, random float64) notification.Progress {
	start, end := span(&a, now)
	p.Attempts = max(p.Attempts, a.Number)
	p.UpdatedAt = now
	// P12: final is final. Making a dead one retrying again is the resend's doing, before the attempt.
	if p.State.Final() {
		p.NextAt = time.Time{}
		return p
	}
	if p.WindowFrom.IsZero() {
		p.WindowFrom = start
	}
	p = resume(p, start)
	if a.Counted {
		p.Step++
	}
	switch a.Outcome {
	case notification.OutcomeDelivered:
		by := notification.SettledByAcknowledgement
		if !a.LateAt.IsZero() {
			by = notification.SettledByLateAcknowledgement
		}
		p.Settle(notification.StateDelivered, a.Reason, by, now)
		return p
	case notification.OutcomeRejected:
		p.Settle(notification.StateDead, a.Reason, notification.SettledByMerchant, now)
		return p
	case notification.OutcomeRetryable, notification.OutcomeUnconfirmed:
	}
	if a.Reason.Permanent() {
		p.Settle(notification.StateDead, a.Reason, notification.SettledByEngine, now)
		return p
	}
	p.State, p.Reason = notification.StateRetrying, a.Reason
	if !a.Counted {
		return deferAgain(p, start, end, random)
	}
	next, ok := s.next(&p, end, a.RetryAfter, random)
	if !ok {
		p.Settle(notification.StateDead, notification.ReasonScheduleExhausted, notification.SettledBySchedule, now)
		return p
	}
	p.NextAt = next
	return p
}

// span tolerates an attempt whose start was lost: it ended now.
func span(a *notification.Attempt, now time.Time) (start, end time.Time) {
	if a.StartedAt.IsZero() {
		return now, now
	}
	return a.StartedAt, a.StartedAt.Add(max(0, a.Took))
}

// resume ends the present deferral, if there is one: the attempt was made.
func resume(p notification.Progress, start time.Time) notification.Progress {
	if !p.DeferredSince.IsZero() {
		p.DeferredFor += max(0, start.Sub(p.DeferredSince))
	}
	p.DeferredSince = time.Time{}
	p.Resting = false
	return p
}

// deferAgain keeps P7 for an attempt that did not count: no step, no window and no budget is used up by it, from its
// start on. The waits double up to maxDeferral, so that a fault of ours that lasts does not fill the ledger.
func deferAgain(p notification.Progress, start, end time.Time, random float64) notification.Progress {
	wait := min(max(minDeferral, p.DeferredFor), maxDeferral)
	p.NextAt = instant(end.Add(wait + share(wait, 0.5, random)))
	p.DeferredSince = start
	return p
}

// next is when the attempt after the p.Step counted ones is due; not ok: never.
func (s *Schedule) next(p *notification.Progress, end time.Time, retryAfter time.Duration, random float64) (time.Time, bool) {
	if p.Step < 1 || p.Step > len(s.Gaps) {
		return time.Time{}, false
	}
	gap := s.Gaps[p.Step-1]
	wait := max(gap, min(retryAfter, MaxRetryAfter))
	if s.Window <= 0 {
		return instant(end.Add(wait + share(wait, s.Jitter, random))), true
	}
	until := p.WindowFrom.Add(s.Window).Add(p.DeferredFor)
	left := until.Sub(end)
	if gap > left {
		if p.Step >= s.LeastAttempts {
			return time.Time{}, false
		}
		return instant(end.Add(wait + share(wait, s.Jitter, random))), true
	}
	wait = min(wait, left) // no merchant's Retry-After reaches past the window
	jitter := min(share(wait, s.Jitter, random), share(s.slack(p.Step, left-wait), 0.5, random))
	return instant(end.Add(wait + jitter)), true
}

// slack is what the later gaps leave of the time after the next attempt is due. The jitter takes at most half of it,
// so that chance never costs an attempt that the window has room for.
func (s *Schedule) slack(step int, left time.Duration) time.Duration {
	left -= attemptAllowance
	for _, gap := range s.Gaps[step:] {
		if gap+attemptAllowance > left {
			break
		}
		left -= gap + attemptAllowance
	}
	return max(0, left)
}

// share is a random part of a fraction of a wait.
func share(wait time.Duration, fraction, random float64) time.Duration {
	return time.Duration(float64(wait) * fraction * random)
}

// instant rounds up to the ledger's microseconds: never before the time that was meant.
func instant(t time.Time) time.Time {
	return t.Add(time.Microsecond - 1).UTC().Truncate(time.Microsecond)
}
