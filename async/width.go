package async

import (
	"time"

	"notifyd/notification"
)

// width is how many attempts of one key may run at once. It grows with each answer by one a round, and is halved, once a
// round, by each sign that there are too many: a timeout, 429 or 503 (AIMD). It begins fair, never gets wider than its
// limit nor narrower than one. What a merchant says of one order, a 4xx or a wrong answer, is an answer like any other:
// one poison order narrows nothing. A merchant that is slow but answers keeps what is fair: it takes no one's place, see
// Lane.capOf.
type width struct {
	fair, limit int
	wide        float64
	cutAt       time.Time     // what began before it belongs to the round that was cut
	best        time.Duration // about the shortest answer of late
}

func newWidth(fair, limit int) width {
	fair = min(fair, limit)
	return width{fair: fair, limit: limit, wide: float64(fair)}
}

// cap is as many as may run.
func (w *width) cap() int { return max(1, int(w.wide)) }

// bound takes over another limit.
func (w *width) bound(fair, limit int) {
	w.fair, w.limit = min(fair, limit), limit
	w.wide = min(w.wide, float64(limit))
}

// learn takes an attempt in. used says that as many were running as might: only then there is a need for more.
func (w *width) learn(a *notification.Attempt, used bool, now time.Time) {
	switch signOf(a.Reason) {
	case tooMany:
		if !a.StartedAt.Before(w.cutAt) {
			w.wide, w.cutAt = max(1, w.wide/2), now
		}
	case answered:
		w.learnTime(a.Took)
		if used && w.keepsUp(a.Took) {
			w.widen()
		}
	case saysNothing:
	}
}

// widen doubles in a round what is below fair, and adds one a round beyond.
func (w *width) widen() {
	step := 1 / w.wide
	if w.wide < float64(w.fair) {
		step = 1
	}
	w.wide = min(w.wide+step, float64(w.limit))
}

// learnTime follows a shorter time at once, a longer one slowly: merchants change.
func (w *width) learnTime(took time.Duration) {
	if w.best == 0 || took < w.best {
		w.best = took
	}
	w.best += (took - w.best) / 64
}

// keepsUp reports whether a merchant is not slowed down by what it has already. Up to fair nobody asks.
func (w *width) keepsUp(took time.Duration) bool {
	return w.wide < float64(w.fair) || took <= 2*w.best+5*time.Millisecond
}

type sign uint8

const (
	saysNothing sign = iota
	answered
	tooMany
)

func signOf(reason notification.Reason) sign {
	switch reason { //nolint:exhaustive // two lists; everything else says nothing
	case notification.ReasonTooManyRequests, notification.ReasonHTTPUnavailable, notification.ReasonHTTPTimeout, notification.ReasonResponseTimeout,
		notification.ReasonBodyTimeout, notification.ReasonWriteTimeout, notification.ReasonConnectTimeout, notification.ReasonTLSTimeout,
		notification.ReasonLateAcknowledgement:
		return tooMany
	case notification.ReasonAcknowledged, notification.ReasonWrongAnswer, notification.ReasonRedirect, notification.ReasonHTTPClientError,
		notification.ReasonHTTPUnexpected, notification.ReasonGone, notification.ReasonAbortMessage:
		return answered
	default:
		return saysNothing
	}
}
