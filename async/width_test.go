package async

import (
	"strconv"
	"testing"
	"time"

	"notifyd/notification"
)

func TestWidth(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	type answer struct {
		times  int
		reason notification.Reason
		took   time.Duration
		idle   bool // fewer were running than might
		round  bool // each begins after the one before has ended
	}
	const quick = 10 * time.Millisecond
	for name, c := range map[string]struct {
		limit   int
		answers []answer
		want    int
	}{
		"fair to begin with":                  {64, nil, 8},
		"not over the merchant's own limit":   {3, nil, 3},
		"one timeout":                         {64, []answer{{times: 1, reason: notification.ReasonResponseTimeout}}, 4},
		"eight timeouts of one round are one": {64, []answer{{times: 8, reason: notification.ReasonResponseTimeout}}, 4},
		"timeouts, round after round":         {64, []answer{{times: 5, reason: notification.ReasonResponseTimeout, round: true}}, 1},
		"429":                                 {64, []answer{{times: 2, reason: notification.ReasonTooManyRequests, round: true}}, 2},
		"503":                                 {64, []answer{{times: 3, reason: notification.ReasonHTTPUnavailable, round: true}}, 1},
		"late acknowledgements":               {64, []answer{{times: 1, reason: notification.ReasonLateAcknowledgement, took: 12 * time.Second, round: true}}, 4},
		"a poison order: 200 fail":            {8, []answer{{times: 100, reason: notification.ReasonWrongAnswer, took: quick, round: true}}, 8},
		"a poison order: 4xx":                 {8, []answer{{times: 100, reason: notification.ReasonHTTPClientError, took: quick, round: true}}, 8},
		"500 is the breaker's":                {64, []answer{{times: 100, reason: notification.ReasonHTTPServerError, took: quick, round: true}}, 8},
		"our own fault":                       {64, []answer{{times: 100, reason: notification.ReasonResolverFailure, round: true}}, 8},
		"grows by one a round":                {64, []answer{{times: 9, reason: notification.ReasonAcknowledged, took: quick}}, 9},
		"grows up to its limit":               {20, []answer{{times: 1000, reason: notification.ReasonAcknowledged, took: quick}}, 20},
		"does not grow for nothing":           {64, []answer{{times: 1000, reason: notification.ReasonAcknowledged, took: quick, idle: true}}, 8},
		"does not grow when answers get slower": {64, []answer{
			{times: 1, reason: notification.ReasonAcknowledged, took: quick}, {times: 10, reason: notification.ReasonAcknowledged, took: 10 * quick},
		}, 8},
		"comes back quickly to what is fair": {64, []answer{
			{times: 5, reason: notification.ReasonResponseTimeout, round: true}, {times: 7, reason: notification.ReasonAcknowledged, took: time.Second},
		}, 8},
		"a slow merchant that answers keeps what is fair": {64, []answer{{times: 100, reason: notification.ReasonAcknowledged, took: 3 * time.Second, idle: true}}, 8},
	} {
		t.Run(name, func(t *testing.T) {
			w, at := newWidth(8, c.limit), began
			for _, a := range c.answers {
				for range a.times {
					attempt := notification.Attempt{Reason: a.reason, Took: a.took, StartedAt: at}
					w.learn(&attempt, !a.idle, at.Add(time.Second))
					if a.round {
						at = at.Add(time.Minute)
					}
				}
			}
			if got := w.cap(); got != c.want {
				t.Errorf("%d at once, want %d", got, c.want)
			}
		})
	}
}

func TestWidthTakesOverALimit(t *testing.T) {
	w := newWidth(8, 64)
	w.wide = 50
	if w.bound(8, 5); w.cap() != 5 {
		t.Errorf("%d at once, the limit is 5", w.cap())
	}
	w.bound(8, 64)
	for range 3 {
		w.learn(&notification.Attempt{Reason: notification.ReasonAcknowledged, Took: time.Millisecond}, true, time.Now())
	}
	if w.cap() != 8 {
		t.Errorf("%d at once after the limit was lifted, want 8", w.cap())
	}
}

func TestSlow(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		pace     pace
		inFlight int
		want     bool
	}{
		"nothing is known":                  {pace{}, 0, false},
		"it has just begun":                 {pace{stillSince: now}, 1, false},
		"nothing has ended for long":        {pace{stillSince: now.Add(-2 * time.Second)}, 1, true},
		"nothing is in flight":              {pace{stillSince: now.Add(-time.Hour)}, 0, false},
		"the last attempt took long":        {pace{took: 2 * time.Second, stillSince: now}, 0, true},
		"one hangs, others end in the mean": {pace{took: time.Millisecond, stillSince: now}, 8, false},
	} {
		if got := c.pace.slow(c.inFlight, time.Second, now); got != c.want {
			t.Errorf("%s: slow %t, want %t", name, got, c.want)
		}
	}
}

// All slow keys together have a share of attempts, each of them one at least; a crowded node gives one slot to a key.
func TestCapOfASlowKey(t *testing.T) {
	for name, c := range map[string]struct {
		slowKeys, inFlight, want int
		quick                    bool
	}{
		"one":                       {slowKeys: 1, want: 8},
		"as many as have two each":  {slowKeys: 50, want: 2},
		"more than there is":        {slowKeys: 500, want: 1},
		"who answers has them all":  {slowKeys: 500, want: 8, quick: true},
		"half of the room is taken": {slowKeys: 1, inFlight: 500, want: 1, quick: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.SlowInFlight, cfg.InHand = 100, 1000
			l := &Lane{cfg: cfg, pacing: newPacing(DefaultConfig()), queues: map[string]*merchantQueue{}}
			for i := range c.slowKeys {
				q := &merchantQueue{pace: l.paceOf("")}
				q.pace.took = time.Minute
				l.queues[string(rune(i))] = q
			}
			l.inFlight = c.inFlight
			l.shareSlow(time.Now())
			q := l.queues["\x00"]
			q.slow = q.slow && !c.quick
			if got := l.capOf(q); got != c.want {
				t.Errorf("%d at once, want %d", got, c.want)
			}
		})
	}
}

// Whatever hangs together times out together: what it begins then is spread, and nobody else waits for it.
func TestWhatTimedOutIsTriedAgainInTurn(t *testing.T) {
	cfg := DefaultConfig()
	cfg.SlowInFlight = 20 // two a second
	l := &Lane{cfg: cfg, pacing: newPacing(cfg), queues: map[string]*merchantQueue{}}
	timeout := &notification.Attempt{Reason: notification.ReasonResponseTimeout, Took: 10 * time.Second}
	answer := &notification.Attempt{Reason: notification.ReasonAcknowledged, Took: 10 * time.Second}
	var last time.Duration
	for i := range 10 {
		q := &merchantQueue{key: strconv.Itoa(i), pace: pace{width: newWidth(8, 64)}, wake: make(chan struct{}, 1)}
		l.learn(q, timeout)
		now := time.Now()
		last = newPass(l, q, 1).again(now).Sub(now)
		l.learn(q, answer)
		if wait := newPass(l, q, 1).again(now).Sub(now); wait != 0 {
			t.Errorf("a key that has answered waits %s", wait)
		}
	}
	if last < 4*time.Second || last > 5*time.Second {
		t.Errorf("the last of ten that timed out waits %s, want 4 to 5 s", last)
	}
}
