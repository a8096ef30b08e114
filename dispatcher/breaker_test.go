package dispatcher

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"notifyd/internal/bubble"
	"notifyd/merchant"
	"notifyd/notification"
)

// newGate is a gate that claims nothing and leaves nothing to chance.
func newGate(tb testing.TB, cfg GateConfig, run string) *Gate {
	tb.Helper()
	g, err := NewGate(cfg, run, nil)
	if err != nil {
		tb.Fatal(err)
	}
	g.random = func() float64 { return 0 }
	return g
}

// of is a work of merchant "m" with an isolation key, which no other copy has.
func of(key string) notification.Work {
	return notification.Work{Notification: &notification.Notification{MerchantID: "m", Route: notification.Route{IsolationKey: key}}}
}

func (g *Gate) asks(t *testing.T, key string) permission {
	t.Helper()
	p, err := g.Ask(t.Context(), of(key), &merchant.Merchant{ID: "m"}, true, g.now())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sends makes attempts that end with these reasons; each must be granted.
func (g *Gate) sends(t *testing.T, key string, reasons ...notification.Reason) {
	t.Helper()
	for i, reason := range reasons {
		p := g.asks(t, key)
		if p.kind != granted {
			t.Fatalf("attempt %d was not granted: %+v", i, p)
		}
		p.learn(&notification.Attempt{Reason: reason})
	}
}

func (g *Gate) isDeferred(t *testing.T, key string) bool {
	t.Helper()
	p := g.asks(t, key)
	if p.kind == granted {
		p.learn(&notification.Attempt{Reason: notification.ReasonShutdown}) // says nothing
	}
	return p.kind == deferred
}

const (
	refused = notification.ReasonConnectRefused
	acked   = notification.ReasonAcknowledged
	wrong   = notification.ReasonWrongAnswer
	ours    = notification.ReasonLocalPorts
)

func repeat(n int, reasons ...notification.Reason) []notification.Reason {
	var out []notification.Reason
	for range n {
		out = append(out, reasons...)
	}
	return out
}

// The share of failures opens a breaker that failures in a row do not.
func TestFailureRateOpens(t *testing.T) {
	mixed := repeat(6, refused, refused, acked) // 12 of 18 failed, never three in a row
	for name, c := range map[string]struct {
		first []notification.Reason
		wait  time.Duration
		then  []notification.Reason
		open  bool
	}{
		"12 of 20":                      {first: append(mixed, acked, acked, refused), open: true},
		"too few attempts":              {first: append(mixed, refused)},
		"too small a share":             {first: append(repeat(10, refused, acked), refused)},
		"too long ago":                  {first: mixed, wait: 31 * time.Second, then: []notification.Reason{refused, refused, acked}},
		"within the window":             {first: mixed, wait: 20 * time.Second, then: []notification.Reason{acked, refused}, open: true},
		"wrong answers are answers":     {first: append(repeat(40, refused, wrong, wrong), refused)},
		"4xx never":                     {first: repeat(100, notification.ReasonHTTPClientError)},
		"our own faults do not dilute":  {first: append(repeat(6, refused, ours, refused, acked), acked, refused), open: true},
		"our own faults do not fill it": {first: append(mixed[:15], repeat(20, ours)...)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				g := newGate(t, DefaultGateConfig(), "a")
				g.sends(t, "m:m", c.first...)
				pass(c.wait)
				g.sends(t, "m:m", c.then...)
				if g.isDeferred(t, "m:m") != c.open {
					t.Errorf("open %v, want %v", !c.open, c.open)
				}
				if s := g.find("m:m").state(g.now()); c.open && s.opening.Cause != causeRate {
					t.Errorf("cause %q", s.opening.Cause)
				}
			})
		})
	}
}

// Failures in a row count however long they take: a merchant that is asked seldom has a breaker, too.
func TestFailuresInARowOutliveTheWindow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, DefaultGateConfig(), "a")
		for range 5 {
			g.sends(t, "m:m", refused)
			pass(3 * time.Second)
			g.forget(g.now())
			pass(time.Minute)
		}
		if s := g.find("m:m").state(g.now()); s.opening.Times != 1 || s.opening.Cause != causeInARow {
			t.Errorf("%+v", s)
		}
	})
}

// Each probe that fails doubles the wait, up to a bound; one that succeeds ends all that.
func TestOpeningsGrow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, DefaultGateConfig(), "a")
		openings := 0
		g.opened = func(string) { openings++ }
		g.sends(t, "m:m", repeat(5, refused)...)
		for i, seconds := range []int{10, 20, 40, 80, 120, 120} {
			want := time.Duration(seconds) * time.Second
			p := g.asks(t, "m:m")
			wait := p.until.Sub(g.now())
			if p.kind != deferred || wait != want {
				t.Fatalf("opening %d: %+v, wait %s", i+1, p, wait)
			}
			pass(wait)
			g.sends(t, "m:m", refused)
		}
		pass(2 * time.Minute)
		g.sends(t, "m:m", acked)
		g.sends(t, "m:m", repeat(5, refused)...)
		if wait := g.asks(t, "m:m").until.Sub(g.now()); wait != 10*time.Second || openings != 8 {
			t.Errorf("after a success: wait %s, %d openings", wait, openings)
		}
		g.random = func() float64 { return 0.999 }
		g.sends(t, "m:2", repeat(5, refused)...)
		if wait := g.asks(t, "m:2").until.Sub(g.now()); wait <= 10900*time.Millisecond || wait > 11*time.Second {
			t.Errorf("with its random part: %s", wait)
		}
	})
}

// Retry-After with 429 and 503 puts the probe off, within a bound, and a success makes it void.
func TestRetryAfterPutsTheProbeOff(t *testing.T) {
	const busy, down = notification.ReasonTooManyRequests, notification.ReasonHTTPUnavailable
	for name, c := range map[string]struct {
		attempt notification.Attempt
		between notification.Reason
		want    time.Duration
	}{
		"429":                {notification.Attempt{Reason: busy, RetryAfter: time.Minute}, refused, time.Minute},
		"503":                {notification.Attempt{Reason: down, RetryAfter: time.Minute}, refused, time.Minute},
		"less than it waits": {notification.Attempt{Reason: busy, RetryAfter: time.Second}, refused, 10 * time.Second},
		"500":                {notification.Attempt{Reason: notification.ReasonHTTPServerError, RetryAfter: time.Minute}, refused, 10 * time.Second},
		"a day":              {notification.Attempt{Reason: down, RetryAfter: 24 * time.Hour}, refused, 10 * time.Minute},
		"void":               {notification.Attempt{Reason: busy, RetryAfter: time.Minute}, acked, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				g := newGate(t, DefaultGateConfig(), "a")
				p := g.asks(t, "m:m")
				p.learn(&c.attempt)
				g.sends(t, "m:m", c.between)
				for range 5 {
					if p := g.asks(t, "m:m"); p.kind == granted {
						p.learn(&notification.Attempt{Reason: refused})
					}
				}
				if wait := g.asks(t, "m:m").until.Sub(g.now()); wait != c.want {
					t.Errorf("wait %s, want %s", wait, c.want)
				}
			})
		})
	}
	bubble.Test(t, func(t *testing.T) { // one that was in flight when the breaker opened
		g := newGate(t, DefaultGateConfig(), "a")
		straggler := g.asks(t, "m:m")
		g.sends(t, "m:m", repeat(5, refused)...)
		straggler.learn(&notification.Attempt{Reason: busy, RetryAfter: time.Minute})
		if wait := g.asks(t, "m:m").until.Sub(g.now()); wait != time.Minute {
			t.Errorf("wait %s", wait)
		}
	})
}

// While a probe hangs, however many ask, none goes beside it, and what was in flight before decides nothing.
func TestOneProbeInAStorm(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, DefaultGateConfig(), "a")
		before := g.asks(t, "m:m")
		g.sends(t, "m:m", repeat(5, refused)...)
		pass(10 * time.Second)
		var (
			probes atomic.Int32
			storm  sync.WaitGroup
			probe  permission
		)
		for range 200 {
			storm.Go(func() {
				if p := g.asks(t, "m:m"); p.kind == granted {
					probe = p
					probes.Add(1)
				} else if !p.until.After(g.now()) {
					t.Errorf("deferred until the past: %+v", p)
				}
			})
		}
		storm.Wait()
		before.learn(&notification.Attempt{Reason: acked})
		for range 30 { // as long as an attempt takes
			pass(500 * time.Millisecond)
			if g.asks(t, "m:m").kind == granted {
				probes.Add(1)
			}
		}
		if probes.Load() != 1 {
			t.Fatalf("%d probes", probes.Load())
		}
		probe.learn(&notification.Attempt{Reason: acked})
		g.sends(t, "m:m", repeat(10, acked)...)
	})
}

// An operator's decision holds whatever the breaker does, for its key or for all of its merchant's, until it ends.
func TestForced(t *testing.T) {
	const key, other = "m:m/s:scan", "m:m/s:payout"
	merchantWide := boardName(onBoardForcedMerchant, "m")
	ofKey := boardName(onBoardForcedKey, key)
	for name, c := range map[string]struct {
		forced map[string]*forced
		want   map[string]notification.Reason // of the keys after five failures each; none: granted
	}{
		"nothing": {nil, map[string]notification.Reason{key: notification.ReasonBreakerOpen, other: notification.ReasonBreakerOpen}},
		"open":    {map[string]*forced{merchantWide: {Merchant: "m", Open: true}}, map[string]notification.Reason{key: notification.ReasonBreakerForcedOpen, other: notification.ReasonBreakerForcedOpen}},
		"closed":  {map[string]*forced{merchantWide: {Merchant: "m"}}, map[string]notification.Reason{key: "", other: ""}},
		"one key": {map[string]*forced{ofKey: {Key: key, Merchant: "m"}}, map[string]notification.Reason{key: "", other: notification.ReasonBreakerOpen}},
		"key goes first": {
			map[string]*forced{merchantWide: {Merchant: "m", Open: true}, ofKey: {Key: key, Merchant: "m"}},
			map[string]notification.Reason{key: "", other: notification.ReasonBreakerForcedOpen},
		},
		"another merchant": {map[string]*forced{merchantWide: {Merchant: "n", Open: true}}, map[string]notification.Reason{key: notification.ReasonBreakerOpen, other: notification.ReasonBreakerOpen}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				g := newGate(t, DefaultGateConfig(), "a")
				for name, f := range c.forced {
					f.Until = g.now().Add(time.Minute)
					g.setForced(name, f)
				}
				for key, want := range c.want {
					for range 5 {
						if p := g.asks(t, key); p.kind == granted {
							p.learn(&notification.Attempt{Reason: refused})
						}
					}
					p := g.asks(t, key)
					peeked := g.Peek(of(key), &merchant.Merchant{ID: "m"}, g.now())
					if p.reason != want || peeked != want || (p.kind == granted) != (want == "") {
						t.Errorf("%s: %+v, peeked %q, want %q", key, p, peeked, want)
					}
					if p.kind == granted {
						p.learn(&notification.Attempt{Reason: refused})
						if s := g.find(key).state(g.now()); s.inARow != 6 || s.failed != 6 {
							t.Errorf("%s: failures are not counted: %+v", key, s)
						}
					}
				}
				pass(time.Minute) // it has expired
				for key, was := range c.want {
					if was == notification.ReasonBreakerOpen {
						continue
					}
					wasClosed := was == ""
					g.sends(t, key, refused)
					if g.isDeferred(t, key) != wasClosed { // the failures of that time count from now on
						t.Errorf("%s: after its end: deferred %v, want %v", key, !wasClosed, wasClosed)
					}
				}
			})
		})
	}
}

// Forced closed ends an opening, and so does a probe that is on its way then.
func TestForcedClosedWhileOpen(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, DefaultGateConfig(), "a")
		g.sends(t, "m:m", repeat(5, refused)...)
		pass(10 * time.Second)
		probe := g.asks(t, "m:m")
		g.setForced("x", &forced{Merchant: "m"})
		probe.learn(&notification.Attempt{Reason: refused})
		g.sends(t, "m:m", repeat(20, refused)...)
		g.setForced("x", nil)
		if g.isDeferred(t, "m:m") {
			t.Error("lifting it opens it without a failure")
		}
		g.sends(t, "m:m", refused)
		if !g.isDeferred(t, "m:m") {
			t.Error("the next failure does not open it")
		}
	})
}

// What nobody asks is forgotten, once it would change nothing.
func TestIdleKeysAreForgotten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(t, DefaultGateConfig(), "a")
		g.sends(t, "idle", acked)
		flight := g.asks(t, "in flight")
		slow := &merchant.Merchant{ID: "m", Limits: merchant.Limits{RatePerSecond: 0.0001, Burst: 1}}
		if p, err := g.Ask(t.Context(), of("in debt"), slow, true, g.now()); err != nil || p.kind != granted {
			t.Fatal(p, err)
		} else {
			p.learn(&notification.Attempt{Reason: acked})
		}
		pass(idleFor - time.Second)
		g.sends(t, "busy", acked)
		g.forget(g.now())
		if len(g.keys) != 4 {
			t.Fatalf("%d keys before their time", len(g.keys))
		}
		pass(2 * time.Second)
		g.forget(g.now())
		if g.find("idle") != nil || g.find("in flight") == nil || g.find("in debt") == nil || g.find("busy") == nil {
			t.Errorf("kept: %v", g.keys)
		}
		flight.learn(&notification.Attempt{Reason: acked})
	})
}

// What a key costs.
func TestGuardsAreSmall(t *testing.T) {
	const n = 20_000
	g := newGate(t, DefaultGateConfig(), "a")
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range n {
		g.sends(t, fmt.Sprintf("m:merchant-%d", i), acked)
	}
	each := (heap() - before) / n
	t.Logf("%d bytes a key", each)
	if each > 1500 {
		t.Errorf("%d bytes a key", each)
	}
	runtime.KeepAlive(g)
}

func TestMerchantOfKey(t *testing.T) {
	for key, want := range map[string]string{
		"m:acme": "acme", "s:scan/m:a%2Fb%3D%25": "a/b=%", "m:acme/u:https://h/m:evil/x": "acme", "acme": "", "m:": "", "m:%zz": "", "u:https://h/m": "",
	} {
		if got, ok := merchantOfKey(key); got != want && ok || ok != (want != "") {
			t.Errorf("%q: %q %v", key, got, ok)
		}
	}
}

func BenchmarkGate(b *testing.B) {
	g := newGate(b, DefaultGateConfig(), "a")
	m, a := &merchant.Merchant{ID: "m"}, &notification.Attempt{Reason: acked}
	works := make([]notification.Work, 10_000)
	for i := range works {
		works[i] = of("m:" + strings.Repeat("x", 8) + strconv.Itoa(i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p, err := g.Ask(b.Context(), works[i%len(works)], m, true, g.now())
		if err != nil || p.kind != granted {
			b.Fatal(p, err)
		}
		p.learn(a)
	}
}
