package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// One way for every attempt: numbers, triggers and operators are what differs.
func TestFirstTryRetryAndResendAreOneWay(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.accepted(t, "one")
		w.sends.answers(failed(notification.ReasonHTTPServerError))
		v, err := w.deliver(t, work)
		if err != nil || v.After.State != notification.StateRetrying || v.After.Attempts != 1 {
			t.Fatalf("first try: %+v, %v", v.After, err)
		}
		held := w.later.held()
		if len(held) != 1 || !held[0].NextAt.Equal(v.After.NextAt) || held[0].Attempts != 1 {
			t.Fatalf("scheduled %+v", held)
		}
		pass(time.Until(v.After.NextAt))

		retry := w.again(t, work)
		if v, err = w.deliver(t, retry); err != nil || v.After.Attempts != 2 || v.After.Step != 2 {
			t.Fatalf("retry: %+v, %v", v.After, err)
		}

		w.sends.answers(acknowledged())
		if _, err := w.memory.Resend(t.Context(), work.ID, "ops", clock()); err != nil {
			t.Fatal(err)
		}
		resend := w.again(t, work)
		resend.Trigger, resend.Operator = notification.TriggerResend, "ops"
		if v, err = w.deliver(t, resend); err != nil || v.After.State != notification.StateDelivered {
			t.Fatalf("resend: %+v, %v", v.After, err)
		}

		n, attempts := w.row(t, work.ID)
		if n.State != notification.StateDelivered || n.Generation != 2 || len(attempts) != 3 || w.sends.count() != 3 {
			t.Fatalf("row %+v with %d attempts, %d sent", n.Progress, len(attempts), w.sends.count())
		}
		for i, a := range attempts {
			if a.Number != i+1 {
				t.Errorf("attempt %d has number %d", i, a.Number)
			}
		}
		if a := attempts[2]; a.Trigger != notification.TriggerResend || a.Operator != "ops" || a.Generation != 2 {
			t.Errorf("resend's attempt: %+v", a)
		}
	})
}

// The ledger knows of an attempt before its next one is scheduled.
func TestRecordedBeforeScheduled(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.sends.answers(failed(notification.ReasonHTTPServerError))
		w.deliver(t, w.accepted(t, "one"))
		sent, recorded, delayed := w.log.index("sent"), w.log.index("recorded"), w.log.index("delayed")
		if sent < 0 || recorded < sent || delayed < recorded {
			t.Fatalf("order: %q", w.log.lines)
		}
	})
}

// Settled carries what could not be made durable, so that the message comes again.
func TestSettledSaysWhatIsNotDurable(t *testing.T) {
	for name, c := range map[string]struct {
		breaks  func(w *world)
		settled error
		delayed int
	}{
		"ledger refuses to record": {func(w *world) { w.memory.failRecord = errDown }, errDown, 0},
		"schedule is not taken":    {func(w *world) { w.later.fail = errDown }, errDown, 1},
		"quarantined goes on":      {func(w *world) { w.memory.failRecord = &ledger.QuarantinedError{Err: errDown} }, nil, 1},
		"due after the window":     {func(w *world) { w.later.window = time.Second }, nil, 0},
		"everything works":         {func(*world) {}, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.sends.answers(failed(notification.ReasonHTTPServerError))
				c.breaks(w)
				_, err := w.deliver(t, w.accepted(t, "one"))
				if !errors.Is(err, c.settled) {
					t.Errorf("settled with %v, want %v", err, c.settled)
				}
				if got := w.log.count("delayed"); got != c.delayed {
					t.Errorf("scheduled %d times, want %d", got, c.delayed)
				}
			})
		})
	}
}

// Either its row brings a notification back or its schedule, never neither, though the delay queue may be full when it is
// written and not a moment later, or the other way round.
func TestOneOfBothBringsItBack(t *testing.T) {
	for name, enter := range map[string]func(t *testing.T, w *world){
		"after a failure": func(t *testing.T, w *world) {
			t.Helper()
			w.sends.answers(failed(notification.ReasonHTTPServerError))
			w.deliver(t, w.accepted(t, "one"))
		},
		"not_before": func(t *testing.T, w *world) {
			t.Helper()
			if _, err := w.submitOne(t.Context(), payment("a", scan, func(p *notifydv1.Notification) { p.NotBefore = timestamppb.New(clock().Add(time.Minute)) })); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, room := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, room %v", name, room), func(t *testing.T) {
				inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
					w.later.within = []bool{room, !room}
					enter(t, w)
					unfed, err := w.memory.Feed(t.Context(), clock().Add(time.Hour), 10)
					if err != nil {
						t.Fatal(err)
					}
					if scheduled := len(w.later.held()); scheduled != map[bool]int{true: 1}[room] || scheduled+len(unfed) != 1 {
						t.Errorf("scheduled %d times, and %d rows for the sweep", scheduled, len(unfed))
					}
				})
			})
		}
	}
}

// A due item of an older generation, a canceled or a finished one is dropped without a request (P12).
func TestStaleIsDroppedWithoutARequest(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, w *world, work notification.Work){
		"newer generation": func(t *testing.T, w *world, work notification.Work) {
			t.Helper()
			if _, err := w.memory.Resend(t.Context(), work.ID, "", clock()); err != nil {
				t.Fatal(err)
			}
		},
		"canceled": func(t *testing.T, w *world, work notification.Work) {
			t.Helper()
			if _, err := w.memory.Cancel(t.Context(), work.ID, "", clock()); err != nil {
				t.Fatal(err)
			}
		},
		"a later attempt is on record": func(t *testing.T, w *world, work notification.Work) {
			t.Helper()
			n := *work.Notification
			n.Attempts++
			w.put(t, &n)
		},
		"delivered by another copy": func(t *testing.T, w *world, work notification.Work) {
			t.Helper()
			n := *work.Notification
			n.Settle(notification.StateDelivered, notification.ReasonAcknowledged, "", clock())
			w.put(t, &n)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				work := w.due(t, "one", nil)
				change(t, w, work)
				before, _ := w.row(t, work.ID)
				v, err := w.deliver(t, work)
				if err != nil || v.Deferred || v.Reason != notification.ReasonStaleGeneration || v.After != nil {
					t.Errorf("verdict %+v, settled with %v", v, err)
				}
				after, attempts := w.row(t, work.ID)
				if w.sends.count() != 0 || len(attempts) != 0 || after.Progress != before.Progress {
					t.Errorf("%d sent, %d attempts, row %+v", w.sends.count(), len(attempts), after.Progress)
				}
			})
		})
	}
}

// Of two copies one is sent; the other one waits for the claim's end, and then for nothing.
func TestBusyIsDeferred(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "one", nil)
		until := clock().Add(20 * time.Second)
		if v, _, err := w.memory.Memory.Claim(t.Context(), ledger.Claim{ID: work.ID, Generation: 1, Until: until}); v != ledger.ClaimGranted || err != nil {
			t.Fatal(v, err)
		}
		v, _ := w.deliver(t, work)
		if !v.Deferred || v.Reason != notification.ReasonInFlight || !v.Until.Equal(until) || w.sends.count() != 0 {
			t.Fatalf("verdict %+v, %d sent", v, w.sends.count())
		}
	})
}

// What an attempt knows and the row does not is still on its way into the ledger.
func TestBehindIsDeferred(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "one", nil)
		ahead := *work.Notification
		ahead.Attempts = 2
		work.Notification = &ahead
		v, _ := w.deliver(t, work)
		if !v.Deferred || v.Reason != notification.ReasonInFlight || !v.Until.After(clock()) || w.sends.count() != 0 {
			t.Fatalf("verdict %+v, %d sent", v, w.sends.count())
		}
	})
}

// An attempt that left no outcome goes on record with its own number, before the new one.
func TestInterruptedIsOnRecordFirst(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, w *world) notification.Work{
		"its claim lapsed": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			work := w.due(t, "one", nil)
			if _, _, err := w.memory.Memory.Claim(t.Context(), ledger.Claim{ID: work.ID, Generation: 1, Until: clock().Add(time.Second)}); err != nil {
				t.Fatal(err)
			}
			pass(2 * time.Second)
			return work
		},
		"redelivered without a row": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			work := w.accepted(t, "one")
			work.Claim, work.Interrupted = true, true
			return work
		},
		"redelivered without a trace": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			work := w.accepted(t, "one")
			work.Interrupted = true
			return work
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				work := start(t, w)
				w.sends.answers(failed(notification.ReasonHTTPServerError))
				v, err := w.deliver(t, work)
				if err != nil || len(v.Attempts) != 2 {
					t.Fatalf("verdict %+v, %v", v, err)
				}
				n, attempts := w.row(t, work.ID)
				if len(attempts) != 2 || attempts[0].Number != 1 || attempts[1].Number != 2 {
					t.Fatalf("attempts %+v", attempts)
				}
				if a := attempts[0]; a.Outcome != notification.OutcomeUnconfirmed || a.Reason != notification.ReasonInterrupted || a.Counted {
					t.Errorf("interrupted attempt: %+v", a)
				}
				if n.Attempts != 2 || n.Step != 1 {
					t.Errorf("row %+v: want 2 attempts, 1 of them counted", n.Progress)
				}
			})
		})
	}
}

// An interrupted attempt of what rested in an own queue makes the copy there void. Should the process die before the next
// one is on record, the row's due time brings it back.
func TestInterruptedInOwnQueueIsDueAgain(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "one", func(n *notification.Notification) { n.Resting = true })
		work.Interrupted = true
		var seen *notification.Notification
		w.sends.answer = func(notification.Work) notification.Attempt {
			seen, _ = w.row(t, work.ID)
			return acknowledged()
		}
		if _, err := w.deliver(t, work); err != nil {
			t.Fatal(err)
		}
		if seen.Attempts != 1 || seen.Resting || !seen.NextAt.After(clock()) {
			t.Errorf("while its next attempt is made: %+v", seen.Progress)
		}
	})
}

// Delivered never reopens: a failed resend of it is an attempt row, nothing more (P12).
func TestDeliveredStaysDelivered(t *testing.T) {
	for _, reason := range []notification.Reason{notification.ReasonHTTPServerError, notification.ReasonGone, notification.ReasonInternal} {
		t.Run(string(reason), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				work := w.accepted(t, "one")
				w.deliver(t, work)
				before, _ := w.row(t, work.ID)
				if _, err := w.memory.Resend(t.Context(), work.ID, "ops", clock()); err != nil {
					t.Fatal(err)
				}
				resend := w.again(t, work)
				resend.Trigger = notification.TriggerResend
				w.sends.answers(failed(reason))
				if v, err := w.deliver(t, resend); err != nil || v.After.State != notification.StateDelivered {
					t.Errorf("verdict %+v, %v", v.After, err)
				}
				n, attempts := w.row(t, work.ID)
				if n.State != notification.StateDelivered || !n.SettledAt.Equal(before.SettledAt) || !n.NextAt.IsZero() || len(attempts) != 2 {
					t.Errorf("row %+v with %d attempts", n.Progress, len(attempts))
				}
				if len(w.later.held()) != 0 {
					t.Errorf("scheduled %+v", w.later.held())
				}
				// The same resend, found a second time.
				if v, _ := w.deliver(t, resend); v.Reason != notification.ReasonStaleGeneration || w.sends.count() != 2 {
					t.Errorf("its second copy: %+v, %d sent", v, w.sends.count())
				}
			})
		})
	}
}

// A ledger that cannot be asked defers; nothing is sent, nothing is lost, and the merchant's breaker knows nothing of it.
func TestLedgerDownDefers(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "one", nil)
		w.memory.failClaim = errDown
		for range 20 {
			v, _ := w.deliver(t, work)
			if !v.Deferred || v.Reason != notification.ReasonInternal || !v.Until.After(clock()) || v.After == nil || w.sends.count() != 0 {
				t.Fatalf("verdict %+v, %d sent", v, w.sends.count())
			}
		}
		w.memory.failClaim = nil
		if v, err := w.deliver(t, work); err != nil || v.After.State != notification.StateDelivered {
			t.Fatalf("afterwards: %+v, %v", v, err)
		}
	})
}

// A first try needs no claim: Postgres being away does not hold it back (P9).
func TestFirstTryAsksNobody(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.memory.failClaim = errDown
		if v, err := w.deliver(t, w.accepted(t, "one")); err != nil || v.After.State != notification.StateDelivered || w.memory.claims != 0 {
			t.Fatalf("verdict %+v, %v, %d claims", v, err, w.memory.claims)
		}
	})
}

// A cancellation on the way of a due item wins, whichever comes first.
func TestCancelAgainstDeliver(t *testing.T) {
	for i := range 50 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				work := w.due(t, "one", nil)
				canceled := make(chan error, 1)
				go func() {
					_, err := w.cancel(context.WithoutCancel(t.Context()), work.ID, "ops")
					canceled <- err
				}()
				w.deliver(t, work)
				err := <-canceled
				n, _ := w.row(t, work.ID)
				switch {
				case err == nil && (w.sends.count() != 0 || n.State != notification.StateCanceled):
					t.Errorf("canceled, but %d sent and %s", w.sends.count(), n.State)
				case err != nil && (w.sends.count() != 1 || n.State != notification.StateDelivered):
					t.Errorf("cancel refused with %v, but %d sent and %s", err, w.sends.count(), n.State)
				}
			})
		})
	}
}

// Expiry settles whatever stands in the way of an attempt; it needs no merchant.
func TestExpiredSettles(t *testing.T) {
	expires := func(n *notification.Notification) { n.ExpiresAt = clock().Add(time.Minute) }
	for name, arrange := range map[string]func(t *testing.T, w *world) notification.Work{
		"first try": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			work := w.accepted(t, "one")
			expires(work.Notification)
			return work
		},
		"due": func(t *testing.T, w *world) notification.Work { t.Helper(); return w.due(t, "one", expires) },
		"merchant missing": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			return w.due(t, "one", func(n *notification.Notification) { expires(n); n.MerchantID = "gone" })
		},
		"merchant paused": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			w.merchant(&merchant.Merchant{ID: "m", Paused: true})
			return w.due(t, "one", expires)
		},
		"breaker open": func(t *testing.T, w *world) notification.Work {
			t.Helper()
			w.sends.answers(failed(notification.ReasonConnectRefused))
			for i := range 5 {
				w.deliver(t, w.accepted(t, fmt.Sprint("before-", i)))
			}
			return w.due(t, "one", expires)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				work := arrange(t, w)
				sent := w.sends.count()
				pass(time.Until(work.ExpiresAt))
				v, err := w.deliver(t, work)
				if err != nil || v.Deferred || w.sends.count() != sent {
					t.Errorf("verdict %+v, %v, sent %d", v, err, w.sends.count()-sent)
				}
				n, _ := w.row(t, work.ID)
				if n.State != notification.StateExpired || n.Reason != notification.ReasonExpired || n.SettledBy != notification.SettledByExpiry || !n.NextAt.IsZero() {
					t.Errorf("row %+v", n.Progress)
				}
			})
		})
	}
}

// Of an expired one that was canceled meanwhile nothing changes.
func TestExpiryNeverUndoesACancellation(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		work := w.due(t, "one", func(n *notification.Notification) { n.ExpiresAt = clock().Add(time.Minute) })
		if _, err := w.memory.Cancel(t.Context(), work.ID, "", clock()); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		w.deliver(t, work)
		if n, _ := w.row(t, work.ID); n.State != notification.StateCanceled {
			t.Fatalf("row %+v", n.Progress)
		}
	})
}

// Time in which the gate was shut does not eat the window (P7).
func TestDeferredTimeIsKept(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Paused: true})
		work := w.due(t, "one", nil)
		v, _ := w.deliver(t, work)
		if !v.Deferred || v.Reason != notification.ReasonMerchantPaused || v.After.State != notification.StateHeld || v.After.DeferredSince.IsZero() {
			t.Fatalf("verdict %+v, after %+v", v, v.After)
		}
		since := v.After.DeferredSince
		pass(time.Hour)
		work.Notification = v.After
		if v, _ = w.deliver(t, work); !v.After.DeferredSince.Equal(since) {
			t.Fatalf("asked again: deferred since %s, want %s", v.After.DeferredSince, since)
		}
		if n, _ := w.row(t, work.ID); n.State != notification.StateAccepted {
			t.Fatalf("a deferral was written: %+v", n.Progress)
		}
		w.merchant(&merchant.Merchant{ID: "m"})
		w.sends.answers(failed(notification.ReasonHTTPServerError))
		work.Notification = v.After
		v, err := w.deliver(t, work)
		if err != nil || v.After.DeferredFor != time.Hour || !v.After.DeferredSince.IsZero() || v.After.State != notification.StateRetrying {
			t.Fatalf("after the pause: %+v, %v", v.After, err)
		}
	})
}

// GetNotification, cancel and the show tick meet an attempt in flight.
func TestShownWhileInHand(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		work := w.accepted(t, "slow")
		item, _ := w.hand.Enter(work, time.Now(), func(error) {})
		sending, _ := item.Send()
		release := make(chan struct{})
		w.sends.mu.Lock()
		w.sends.answer = func(notification.Work) notification.Attempt { <-release; return acknowledged() }
		w.sends.mu.Unlock()
		done := make(chan notification.Verdict, 1)
		go func() {
			v := w.Deliver(ctx, sending, nil, func(err error) { w.hand.Leave(item, err) })
			item.Sent(v.After, v.Attempts)
			done <- v
		}()
		pass(time.Second)
		synctest.Wait()
		n, _ := w.row(t, work.ID)
		if n.State != notification.StateAccepted || n.Reason != notification.ReasonInFlight || !n.NextAt.After(clock().Add(2*time.Minute)) {
			t.Errorf("while it is sent: %+v", n.Progress)
		}
		pass(70 * time.Second)
		synctest.Wait()
		if n, _ = w.row(t, work.ID); !n.NextAt.After(clock().Add(2 * time.Minute)) {
			t.Errorf("its backstop was not put off: due %s, now %s", n.NextAt, clock())
		}
		if _, err := w.cancel(t.Context(), work.ID, "ops"); !errors.Is(err, ledger.ErrInFlight) {
			t.Errorf("cancel: %v, want %v", err, ledger.ErrInFlight)
		}
		close(release)
		<-done
		synctest.Wait()
		if n, _ = w.row(t, work.ID); n.State != notification.StateDelivered || w.hand.Len() != 0 {
			t.Errorf("afterwards: %+v, %d in hand", n.Progress, w.hand.Len())
		}
		stop()
		<-ended
	})
}

// A panic ends one attempt: it is on record, counts, is no fault of the merchant's, and the schedule ends it.
func TestPanicIsContained(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Schedule: merchant.Schedule{Gaps: []time.Duration{time.Second, time.Second}}})
		w.sends.mu.Lock()
		w.sends.answer = func(work notification.Work) notification.Attempt {
			if work.OrderID == "poison" {
				panic("a bug")
			}
			return acknowledged()
		}
		w.sends.mu.Unlock()
		work := w.accepted(t, "poison")
		for range 3 {
			if _, err := w.deliver(t, work); err != nil {
				t.Fatal(err)
			}
			work = w.again(t, work)
		}
		n, attempts := w.row(t, work.ID)
		if n.State != notification.StateDead || n.Reason != notification.ReasonScheduleExhausted || len(attempts) != 3 {
			t.Errorf("row %+v, %d attempts", n.Progress, len(attempts))
		}
		for i, a := range attempts {
			if a.Number != i+1 || a.Reason != notification.ReasonInternal || a.Outcome != notification.OutcomeUnconfirmed || a.Detail != "panic: a bug" {
				t.Errorf("attempt %+v", a)
			}
		}
		if got := w.Stats(); got.Panics != 3 || got.Sending != 0 || got.OpenBreakers != 0 {
			t.Errorf("stats %+v", got)
		}
		if v, _ := w.deliver(t, w.accepted(t, "neighbour")); v.After.State != notification.StateDelivered {
			t.Errorf("neighbour %+v", v.After.Progress)
		}
	})
}

// What no request can be made of is dead at once, with its reason.
func TestWhatCannotBeEncodedIsDead(t *testing.T) {
	for _, reason := range []notification.Reason{notification.ReasonEncodeFailure, notification.ReasonBadNotifyURL} {
		t.Run(string(reason), func(t *testing.T) {
			inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
				w.sends.answers(failed(reason))
				work := w.accepted(t, "one")
				w.deliver(t, work)
				n, attempts := w.row(t, work.ID)
				if n.State != notification.StateDead || n.Reason != reason || n.SettledBy != notification.SettledByEngine || len(attempts) != 1 {
					t.Errorf("row %+v, %d attempts", n.Progress, len(attempts))
				}
			})
		})
	}
}
