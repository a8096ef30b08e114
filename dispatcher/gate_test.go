package dispatcher

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"notifyd/merchant"
	"notifyd/notification"
)

// P7: what opens a breaker, and what says nothing of the merchant or nothing against it.
func TestWhatOpensABreaker(t *testing.T) {
	opens := map[notification.Reason]bool{
		notification.ReasonHTTPServerError: true, notification.ReasonHTTPUnavailable: true, notification.ReasonTooManyRequests: true,
		notification.ReasonHTTPTimeout: true, notification.ReasonDNSFailure: true, notification.ReasonConnectRefused: true,
		notification.ReasonConnectTimeout: true, notification.ReasonUnreachable: true, notification.ReasonTLSTimeout: true,
		notification.ReasonTLSFailure: true, notification.ReasonTLSCertificate: true, notification.ReasonResetBeforeWrite: true,
		notification.ReasonResetAfterWrite: true, notification.ReasonWriteTimeout: true, notification.ReasonResponseTimeout: true,
		notification.ReasonBodyTimeout: true, notification.ReasonBadResponse: true,

		notification.ReasonHTTPClientError: false, notification.ReasonWrongAnswer: false, notification.ReasonRedirect: false,
		notification.ReasonHTTPUnexpected: false, notification.ReasonGone: false, notification.ReasonAbortMessage: false,
		notification.ReasonResolverFailure: false, notification.ReasonLocalPorts: false, notification.ReasonShutdown: false,
		notification.ReasonInternal: false, notification.ReasonBadNotifyURL: false, notification.ReasonEncodeFailure: false,
		notification.ReasonBlockedAddress: false,
	}
	for reason, want := range opens {
		t.Run(string(reason), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.sends.answers(failed(reason))
				for i := range 10 {
					w.deliver(t, w.accepted(t, strconv.Itoa(i)))
				}
				v, _ := w.deliver(t, w.accepted(t, "last"))
				if v.Deferred != want {
					t.Errorf("deferred %v, want %v: %+v", v.Deferred, want, v)
				}
				if sent := w.sends.count(); want && sent != 5 || !want && sent != 11 {
					t.Errorf("%d sent", sent)
				}
			})
		})
	}
}

// Only failures in a row count; our own faults in between are as if they had not been.
func TestBreakerCountsInARow(t *testing.T) {
	for name, c := range map[string]struct {
		between notification.Attempt
		open    bool
	}{
		"a success begins anew":         {acknowledged(), false},
		"a 4xx begins anew":             {failed(notification.ReasonHTTPClientError), false},
		"our own fault changes nothing": {failed(notification.ReasonLocalPorts), true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				send := func(i int, a notification.Attempt) {
					w.sends.answers(a)
					if v, _ := w.deliver(t, w.accepted(t, strconv.Itoa(i))); v.Deferred {
						t.Fatalf("attempt %d was deferred", i)
					}
				}
				for i := range 4 {
					send(i, failed(notification.ReasonConnectRefused))
				}
				send(4, c.between)
				send(5, failed(notification.ReasonConnectRefused))
				if v, _ := w.deliver(t, w.accepted(t, "last")); v.Deferred != c.open {
					t.Errorf("deferred %v, want %v", v.Deferred, c.open)
				}
			})
		})
	}
}

// openBreaker fails until the breaker of "m" is open.
func openBreaker(t *testing.T, w *world) {
	t.Helper()
	w.sends.answers(failed(notification.ReasonConnectRefused))
	for i := range 5 {
		w.deliver(t, w.accepted(t, fmt.Sprint("opens-", i)))
	}
}

// An open breaker says when to ask again, and holds back nobody else (P8).
func TestOpenBreakerDefers(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		openBreaker(t, w)
		opened := time.Now()
		pass(3 * time.Second)
		work := w.due(t, "waits", nil)
		v, _ := w.deliver(t, work)
		if !v.Deferred || v.Reason != notification.ReasonBreakerOpen || !v.Until.Equal(opened.Add(10*time.Second)) || w.memory.claims != 0 {
			t.Errorf("verdict %+v with %d claims, want until %s without one", v, w.memory.claims, opened.Add(10*time.Second))
		}
		if reason := w.gate.Peek(work, w.merchants.Get("m"), clock()); reason != notification.ReasonBreakerOpen {
			t.Errorf("peek says %q", reason)
		}
		other := w.accepted(t, "other")
		other.Route.IsolationKey = "another"
		w.sends.answers(acknowledged())
		if v, _ := w.deliver(t, other); v.Deferred {
			t.Errorf("another key was deferred: %+v", v)
		}
	})
}

// Half-open lets one through; what that one says decides.
func TestHalfOpenLetsOneThrough(t *testing.T) {
	for name, c := range map[string]struct {
		probe  notification.Attempt
		closes bool
		again  bool // the next one is a probe too
	}{
		"acknowledged":  {acknowledged(), true, false},
		"a 4xx":         {failed(notification.ReasonHTTPClientError), true, false},
		"refused again": {failed(notification.ReasonConnectRefused), false, false},
		"our own fault": {failed(notification.ReasonLocalPorts), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				openBreaker(t, w)
				pass(10*time.Second + time.Millisecond)
				release := make(chan struct{})
				w.sends.mu.Lock()
				w.sends.answer = func(notification.Work) notification.Attempt { <-release; return c.probe }
				w.sends.mu.Unlock()
				probe := w.accepted(t, "probe")
				done := make(chan notification.Verdict, 1)
				go func() { done <- w.Deliver(t.Context(), probe, nil, func(error) {}) }()
				synctest.Wait()
				for i := range 3 {
					v, _ := w.deliver(t, w.accepted(t, fmt.Sprint("beside-", i)))
					if !v.Deferred || v.Reason != notification.ReasonBreakerOpen || !v.Until.After(clock()) {
						t.Fatalf("beside the probe: %+v", v)
					}
				}
				close(release)
				if v := <-done; v.Deferred {
					t.Fatalf("the probe was deferred: %+v", v)
				}
				w.sends.answers(acknowledged())
				v, _ := w.deliver(t, w.accepted(t, "next"))
				if v.Deferred == (c.closes || c.again) {
					t.Errorf("after the probe: %+v", v)
				}
				if !c.closes && !c.again && !v.Until.Equal(clock().Add(20*time.Second)) {
					t.Errorf("wait until %s, want 20s from %s", v.Until, clock())
				}
			})
		})
	}
}

// A probe that is refused by its claim leaves the place to the next.
func TestRefusedProbeLeavesItsPlace(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		openBreaker(t, w)
		pass(10*time.Second + time.Millisecond)
		for i := range 3 {
			work := w.due(t, fmt.Sprint("stale-", i), nil)
			if _, err := w.memory.Cancel(t.Context(), work.ID, "", clock()); err != nil {
				t.Fatal(err)
			}
			w.deliver(t, work)
		}
		w.sends.answers(acknowledged())
		if v, _ := w.deliver(t, w.accepted(t, "probe")); v.Deferred {
			t.Fatalf("the probe was deferred: %+v", v)
		}
	})
}

// A limit defers for as long as it takes until there is a token, and waiting takes none.
func TestRateLimitDefers(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Limits: merchant.Limits{RatePerSecond: 2, Burst: 2}})
		send := func(name string) notification.Verdict {
			v, _ := w.deliver(t, w.accepted(t, name))
			return v
		}
		if send("1").Deferred || send("2").Deferred {
			t.Fatal("the burst was deferred")
		}
		for i := range 20 { // asking takes no token: the wait stays what it is
			v := send(fmt.Sprint("waits-", i))
			if wait := v.Until.Sub(clock()); !v.Deferred || v.Reason != notification.ReasonRateLimited || wait != 500*time.Millisecond {
				t.Fatalf("verdict %+v, wait %s", v, wait)
			}
		}
		pass(500 * time.Millisecond)
		if send("3").Deferred || !send("4").Deferred {
			t.Fatal("half a second is one token")
		}
		w.merchant(&merchant.Merchant{ID: "m"})
		if send("5").Deferred {
			t.Fatal("the limit was taken away")
		}
	})
}

// A deferral for want of a token is nothing that a breaker counts.
func TestRateLimitLeavesTheBreakerAlone(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Limits: merchant.Limits{RatePerSecond: 1, Burst: 1}})
		for i := range 20 {
			w.deliver(t, w.accepted(t, strconv.Itoa(i)))
		}
		pass(time.Second)
		if v, _ := w.deliver(t, w.accepted(t, "last")); v.Deferred {
			t.Fatalf("verdict %+v", v)
		}
	})
}

// A merchant that is not there while the ledger cannot be asked, or is paused, defers without a token, a claim or an end.
func TestMissingAndPausedDefer(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.memory.failMerchants = errDown
		missing := w.due(t, "one", func(n *notification.Notification) { n.MerchantID = "gone" })
		if v, _ := w.deliver(t, missing); !v.Deferred || v.Reason != notification.ReasonMerchantMissing || !v.Until.IsZero() || v.After.State != notification.StateAccepted {
			t.Errorf("missing: %+v", v)
		}
		w.merchant(&merchant.Merchant{ID: "m", Paused: true})
		if v, _ := w.deliver(t, w.due(t, "two", nil)); !v.Deferred || v.Reason != notification.ReasonMerchantPaused || v.After.State != notification.StateHeld {
			t.Errorf("paused: %+v", v)
		}
		if w.memory.claims != 0 || w.sends.count() != 0 {
			t.Errorf("%d claims, %d sent", w.memory.claims, w.sends.count())
		}
	})
}

// A merchant that even the ledger does not know ends in a dead letter with its reason, once. One that another node has just
// made is learned and told.
func TestMerchantThatIsGone(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		gone := w.due(t, "one", func(n *notification.Notification) { n.MerchantID = "gone" })
		for range 2 {
			w.deliver(t, gone)
		}
		n, attempts := w.row(t, gone.ID)
		if n.State != notification.StateDead || n.Reason != notification.ReasonMerchantMissing || n.SettledBy != notification.SettledByEngine || len(attempts) != 0 {
			t.Errorf("row %+v, %d attempts", n.Progress, len(attempts))
		}
		if _, err := w.memory.PutMerchant(t.Context(), &merchant.Merchant{ID: "new", NotifyURL: "https://m.test/notify"}, nil); err != nil {
			t.Fatal(err)
		}
		w.merchants = merchant.NewRegistry() // which knows nothing yet
		if v, _ := w.deliver(t, w.due(t, "two", func(n *notification.Notification) { n.MerchantID = "new" })); v.After.State != notification.StateDelivered {
			t.Errorf("of a new merchant: %+v", v)
		}
	})
}

func TestGateConfigNamesTheKey(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for key, spoil := range map[string]func(*Config){
		"gate.consecutive_failures: 0: must be at least 1":             func(c *Config) { c.Gate.ConsecutiveFailures = 0 },
		"gate.open_for: 1ms: must be at least 100ms":                   func(c *Config) { c.Gate.OpenFor = time.Millisecond },
		"gate.failure_rate: 1.5: must be more than 0 and at most 1":    func(c *Config) { c.Gate.FailureRate = 1.5 },
		"gate.failure_rate: NaN: must be more than 0 and at most 1":    func(c *Config) { c.Gate.FailureRate = math.NaN() },
		"gate.failure_window: 0s: must be 1s to 10m":                   func(c *Config) { c.Gate.FailureWindow = 0 },
		"gate.least_attempts: 0: must be at least 1":                   func(c *Config) { c.Gate.LeastAttempts = 0 },
		"gate.open_at_most: 1s: must be at least open_for (10s), or 0": func(c *Config) { c.Gate.OpenAtMost = time.Second },
		"gate.claim_for: 1ms: must be at least 1s":                     func(c *Config) { c.Gate.ClaimFor = time.Millisecond },
		"dispatcher.attempt_bound: 0s: must be at least 1s":            func(c *Config) { c.AttemptBound = 0 },
		"dispatcher.seen_after: 1ms: must be at least 10ms":            func(c *Config) { c.SeenAfter = time.Millisecond },
	} {
		c := DefaultConfig()
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != key {
			t.Errorf("got %v, want %q", err, key)
		}
	}
}

// While nobody can say which merchants there are, one that the snapshot does not have is not called missing, however many
// ask for it.
func TestUnknownMerchantWhileTheLedgerIsAway(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		n := &notification.Notification{MerchantID: "made elsewhere"}
		look := func() connect.Code {
			_, err := w.findMerchant(t.Context(), n.MerchantID)
			return connect.CodeOf(err)
		}
		if got := look(); got != connect.CodeNotFound {
			t.Errorf("the ledger says that there is none: %s", got)
		}
		w.memory.failMerchants = errors.New("away")
		<-time.After(2 * staleAfter)
		for range 200 { // more than are looked up in a second
			if got := look(); got != connect.CodeUnavailable {
				t.Fatalf("nobody knows: %s", got)
			}
		}
	})
}
