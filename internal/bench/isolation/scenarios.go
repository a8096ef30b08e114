package main

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/bench/rig"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// The goals: what the healthy ones had with the fault, as a share of what they had without.
const (
	leastDelivered = 0.95
	mostP99        = 1.5
)

// scenario is one fault.
type scenario struct {
	healthy string  // the class that must not feel it
	p99     float64 // the goal, where it is not mostP99
	rate    float64 // the scenario's own; 0: the run's
	ok      int     // ordinary merchants
	others  func(w *world) []rig.Merchants
	// targets and phases are what is offered.
	targets func(w *world, fault bool) []rig.Target
	phases  func(w *world, fault bool) []rig.Phase
	// behave is how the classes answer in both runs, faulty what the fault changes.
	behave, faulty map[string]rig.Behaviour
	prepare        func(ctx context.Context, w *world) error         // before the run with the fault; nil: nothing
	finish         func(ctx context.Context, w *world, r *row) error // after it
	batch          int                                               // notifications in one call
}

const shareBad = 0.05

func scenarios(s settings) map[string]scenario {
	bad := max(1, int(shareBad*float64(s.merchants)))
	hang := func(traffic float64, how time.Duration) scenario {
		return scenario{
			ok:     s.merchants - bad,
			others: func(w *world) []rig.Merchants { return []rig.Merchants{{Class: "bad", Count: bad, Base: w.sink.URL}} },
			targets: func(*world, bool) []rig.Target {
				return []rig.Target{{Class: "ok", Count: s.merchants - bad, Share: 1 - traffic}, {Class: "bad", Count: bad, Share: traffic}}
			},
			faulty: map[string]rig.Behaviour{"bad": {Delay: how}},
		}
	}
	return map[string]scenario{
		"none": hang(shareBad, 0), "hang5": hang(shareBad, s.hang), "hang50": hang(0.5, s.hang), "flood": flood(s), "back": back(s), "poison": poison(s), "retries": retries(s), "channels": channels(s),
	}
}

// flooding is how much more than it may one merchant gets.
const flooding = 10

// flood: one merchant may have a hundredth of the rate, and gets ten times that.
func flood(s settings) scenario {
	own := func(w *world) float64 { return w.rate / 100 }
	return scenario{
		ok: s.merchants - 1,
		others: func(w *world) []rig.Merchants {
			return []rig.Merchants{{Class: "flood", Count: 1, Base: w.sink.URL, Settings: &notifydv1.Merchant{Limits: &notifydv1.Limits{RatePerSecond: own(w)}}}}
		},
		targets: func(w *world, fault bool) []rig.Target {
			return []rig.Target{{Class: "ok", Count: s.merchants - 1, Share: w.rate - own(w)}, {Class: "flood", Count: 1, Share: times(fault, own(w))}}
		},
		phases: func(w *world, fault bool) []rig.Phase {
			return []rig.Phase{{Rate: w.rate - own(w) + times(fault, own(w)), For: s.forEach}}
		},
		finish: func(_ context.Context, w *world, r *row) error {
			r.figure("flood: asked a second", float64(len(r.with.Seen["flood"].Latencies()))/s.forEach.Seconds(), "may", own(w))
			return nil
		},
	}
}

func times(fault bool, rate float64) float64 {
	if fault {
		return flooding * rate
	}
	return rate
}

// siblings is how many a second the poison order's merchant gets, or a tenth of all if that is less: enough for a p99.
const siblings = 50

// poison: one order of a merchant is always answered 200 fail.
func poison(s settings) scenario {
	gaps := make([]*durationpb.Duration, 100)
	for i := range gaps {
		gaps[i] = durationpb.New(250 * time.Millisecond)
	}
	own := &notifydv1.Merchant{Contract: &notifydv1.Contract{Acknowledgement: &notifydv1.Acknowledgement{BodyExact: "success"}}, Schedule: &notifydv1.Schedule{Gaps: gaps}}
	return scenario{
		healthy: "poison", ok: s.merchants - 1,
		others: func(w *world) []rig.Merchants {
			return []rig.Merchants{{Class: "poison", Count: 1, Base: w.sink.URL, Settings: own}}
		},
		targets: func(w *world, _ bool) []rig.Target {
			own := min(siblings, w.rate/10)
			return []rig.Target{{Class: "ok", Count: s.merchants - 1, Share: w.rate - own}, {Class: "poison", Count: 1, Share: own}}
		},
		behave: map[string]rig.Behaviour{"poison": {Body: "fail", Marked: true}},
		prepare: func(_ context.Context, w *world) error {
			return w.submit("poison", 1, rig.Target{Class: "poison", Count: 1, Share: 1, Marked: true})
		},
		finish: func(_ context.Context, _ *world, r *row) error {
			r.figure("poison: attempts of the one order", float64(len(r.with.Seen["poison"+rig.MarkedSuffix].Latencies())), "", 0)
			return nil
		},
	}
}

// The channels of the requirements' scale test: merchants, channels, and a rate with bursts.
const (
	channelMerchants, channelCount   = 40, 50
	channelRate, channelBurst        = 120, 500
	channelSteadyFor, channelBurstOf = 8 * time.Second, 2 * time.Second
)

// channels: one merchant of forty hangs in all of its fifty channels, each an isolation key.
func channels(s settings) scenario {
	own := &notifydv1.Merchant{Isolation: notifydv1.Isolation_ISOLATION_MERCHANT_SCENE}
	return scenario{
		healthy: "shop", p99: 1.2, rate: channelRate, batch: 1,
		others: func(w *world) []rig.Merchants {
			return []rig.Merchants{{Class: "shop", Count: channelMerchants - 1, Base: w.sink.URL, Settings: own}, {Class: "bad", Count: 1, Base: w.sink.URL, Settings: own}}
		},
		targets: func(*world, bool) []rig.Target {
			return []rig.Target{{Class: "shop", Count: channelMerchants - 1, Share: channelMerchants - 1, Scenes: channelCount}, {Class: "bad", Count: 1, Share: 1, Scenes: channelCount}}
		},
		phases: func(_ *world, fault bool) (all []rig.Phase) {
			long := s.channelsFor
			if !fault {
				long = cmp.Or(s.channelsWithout, long)
			}
			for left := long; left > 0; left -= channelSteadyFor + channelBurstOf {
				all = append(all, rig.Phase{Rate: channelRate, For: min(left, channelSteadyFor)}, rig.Phase{Rate: channelBurst, For: max(0, min(left-channelSteadyFor, channelBurstOf))})
			}
			return all
		},
		faulty: map[string]rig.Behaviour{"bad": {Delay: s.hang}},
	}
}
