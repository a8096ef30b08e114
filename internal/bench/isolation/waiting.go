package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/bench/rig"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// A merchant that is back has a cap, and takes some time for each: so much can it take a second.
const (
	backInFlight = 8
	backTakes    = 20 * time.Millisecond
)

// back: a merchant that refused connections takes them again, and much waits for it.
func back(s settings) scenario {
	return scenario{
		ok: s.merchants - 1,
		others: func(w *world) []rig.Merchants {
			return []rig.Merchants{{Class: "back", Count: 1, Base: w.sink.Door, Settings: &notifydv1.Merchant{Limits: &notifydv1.Limits{MaxInFlight: backInFlight}}}}
		},
		targets: func(*world, bool) []rig.Target { return []rig.Target{{Class: "ok", Count: s.merchants - 1, Share: 1}} },
		behave:  map[string]rig.Behaviour{"back": {Delay: backTakes}},
		prepare: func(ctx context.Context, w *world) error {
			if err := w.submit("back", s.waiting, rig.Target{Class: "back", Count: 1, Share: 1}); err != nil {
				return err
			}
			if err := w.settled(ctx, "back"); err != nil {
				return err
			}
			w.say("back: %d wait; the merchant takes connections again", s.waiting)
			if _, err := w.sink.Order(rig.SinkOrder{Door: "open", Forget: true}); err != nil {
				return err
			}
			return w.until(ctx, "the merchant that is back is asked", func() (bool, error) { // at the breaker's next probe
				a, err := w.sink.Order(rig.SinkOrder{Take: true})
				return len(a.Seen["back"].Latencies()) > 1, err
			})
		},
		finish: func(_ context.Context, _ *world, r *row) error {
			r.figure("back: drained a second", float64(len(r.with.Seen["back"].Latencies()))/s.forEach.Seconds(), "cap", backInFlight/backTakes.Seconds())
			r.figure("back: open requests at most", float64(r.with.MostOpen["back"]), "cap", backInFlight)
			return nil
		},
	}
}

// Merchants whose notifications wait for a retry.
const (
	retryMerchants = 100
	massOf         = 5000 // that fail within a few seconds
	massBin        = 250 * time.Millisecond
)

// retries: many wait for a retry, after an answer that opens no breaker; then they come due, as many a second as failed.
func retries(s settings) scenario {
	refuse := rig.Behaviour{Status: 404, First: true}
	mass := min(massOf, s.retries)
	dueRate := func(w *world) float64 { return cmp.Or(s.dueRate, w.rate) }
	failing := func(w *world) time.Duration { // how long it takes until all have failed once
		return time.Duration(float64(s.retries) / dueRate(w) * float64(time.Second))
	}
	retryGap := func(w *world) time.Duration { // the first is due when all are there and fresh traffic was measured
		return (failing(w) + s.forEach + time.Minute).Round(time.Second)
	}
	massGap := s.forEach + 30*time.Second
	class := func(w *world, name string, gap time.Duration, jitter *float64) rig.Merchants {
		return rig.Merchants{Class: name, Count: retryMerchants, Base: w.sink.URL, Settings: &notifydv1.Merchant{Schedule: &notifydv1.Schedule{
			Gaps: []*durationpb.Duration{durationpb.New(gap), durationpb.New(time.Hour)}, Jitter: jitter,
		}}}
	}
	return scenario{
		p99: 1.2, ok: s.merchants,
		others: func(w *world) []rig.Merchants {
			return []rig.Merchants{class(w, "retry", retryGap(w), new(float64)), class(w, "mass", massGap, nil)}
		},
		targets: func(*world, bool) []rig.Target { return []rig.Target{{Class: "ok", Count: s.merchants, Share: 1}} },
		behave:  map[string]rig.Behaviour{"retry": refuse, "mass": refuse},
		prepare: func(ctx context.Context, w *world) error {
			began := time.Now()
			if err := w.offer("retry", rig.Phase{Rate: dueRate(w), For: failing(w)}, rig.Target{Class: "retry", Count: retryMerchants, Share: 1}); err != nil {
				return err
			}
			if err := w.submit("mass", mass, rig.Target{Class: "mass", Count: retryMerchants, Share: 1}); err != nil {
				return err
			}
			err := w.counted(ctx, "all wait for a retry", `state = 2 and source in ('retry', 'mass')`, s.retries+mass)
			w.say("retries: %d wait after %s; the first come due %s after they failed, %.0f a second", s.retries+mass, time.Since(began).Round(time.Second), retryGap(w), dueRate(w))
			return err
		},
		finish: func(ctx context.Context, w *world, r *row) error {
			r.figure("retries: came due while fresh traffic was measured", float64(len(r.with.Seen["retry+"].Latencies())), "wanted", 0)
			seen := rig.SinkAnswer{Seen: map[string]*rig.Arrivals{"retry+": {}, "mass+": {}}}
			for class, all := range seen.Seen {
				all.Append(r.with.Seen[class])
			}
			err := w.until(ctx, "what was due was sent", func() (bool, error) {
				a, err := w.sink.Order(rig.SinkOrder{Take: true})
				for class, all := range seen.Seen {
					all.Append(a.Seen[class])
				}
				return len(seen.Seen["retry+"].At) >= s.retries && len(seen.Seen["mass+"].At) >= mass, err
			})
			if err != nil {
				return fmt.Errorf("%w (%s)", err, seen)
			}
			r.figure("retries: come due a second", dueRate(w), "goal", 5000)
			r.lateness(seen.Seen["retry+"], retryGap(w))
			r.spreadOfMass(seen.Seen["mass+"])
			return nil
		},
	}
}

// lateness is how long after they were due retries came.
func (r *row) lateness(a *rig.Arrivals, gap time.Duration) {
	late, seconds := a.Latencies(), map[int64]int{}
	for i := range late {
		late[i] -= int64(gap)
		seconds[a.Arrived[i]/int64(time.Second)]++
	}
	most := 0
	for _, n := range seconds {
		most = max(most, n)
	}
	spread := rig.SpreadOf(late)
	r.Lateness = &spread
	r.figure("retries: late p99 ms", spread.P99, "goal", 1000)
	r.figure("retries: sent in the busiest second", float64(most), "", 0)
	r.figure("retries: earliest, ms after due", rig.Milliseconds(time.Duration(rig.Quantile(late, 0))), "", 0)
}

// spreadOfMass is the histogram of when those came that had failed together.
func (r *row) spreadOfMass(a *rig.Arrivals) {
	first, last := slices.Min(a.Arrived), slices.Max(a.Arrived)
	r.MassBinMS, r.Mass = int(massBin.Milliseconds()), make([]int, (last-first)/int64(massBin)+1)
	for _, at := range a.Arrived {
		r.Mass[(at-first)/int64(massBin)]++
	}
	mean := float64(len(a.Arrived)) / float64(len(r.Mass))
	r.figure("mass failure: fullest quarter second over the mean", float64(slices.Max(r.Mass))/mean, "", 0)
}
