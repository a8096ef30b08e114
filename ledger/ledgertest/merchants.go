package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
)

func sample(id string) *merchant.Merchant {
	jitter := 0.25
	return &merchant.Merchant{
		ID: id, Name: "商户", NotifyURL: "https://merchant.example/notify",
		URLPolicy: merchant.URLPolicy{Hosts: []string{"*.example"}, Ports: []uint32{443}, HTTPSOnly: true},
		Contract:  merchant.Contract{Profile: "standard", Signer: merchant.Signer{KeyID: "k-1"}}, Egress: "direct",
		Limits: merchant.Limits{RatePerSecond: 1.5, Burst: 3}, Timeouts: merchant.Timeouts{Total: 3 * time.Second},
		Schedule: merchant.Schedule{Gaps: []time.Duration{time.Second, time.Minute}, Jitter: &jitter}, Isolation: merchant.IsolationMerchant,
		Persist: notification.PersistLedger, Scenes: map[string]merchant.SceneSettings{"scan": {NotifyURL: "https://scan.example/"}},
		Paused: true, PauseReason: "asked to", Secrets: merchant.Secrets{SigningSecret: "whsec_c2VjcmV0"}, //nolint:gosec // it guards nothing
	}
}

func merchants(f *fixture) {
	ctx := f.Context()
	none, wrong := int64(0), int64(4711)
	if _, err := f.GetMerchant(ctx, "b"); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("get nothing: %v", err)
	}
	first, err := f.PutMerchant(ctx, sample("b"), &none)
	f.must(err)
	want := sample("b")
	want.Version, want.UpdatedAt = first.Version, f.clock.now()
	f.same("put", first, want)
	got, err := f.GetMerchant(ctx, "b")
	f.must(err)
	f.same("get", got, want)

	for _, stale := range []*int64{&none, &wrong} {
		if _, err := f.PutMerchant(ctx, sample("b"), stale); !errors.Is(err, ledger.ErrConflict) {
			f.Fatalf("put over another version: %v", err)
		}
	}
	second, err := f.PutMerchant(ctx, sample("b"), &first.Version)
	f.must(err)
	third, err := f.PutMerchant(ctx, sample("a"), nil)
	f.must(err)
	if second.Version <= first.Version || third.Version <= second.Version {
		f.Fatalf("versions %d, %d, %d do not grow", first.Version, second.Version, third.Version)
	}

	ids := func(list []*merchant.Merchant, err error) (out []string) {
		f.must(err)
		for _, m := range list {
			out = append(out, m.ID)
		}
		return out
	}
	f.same("since 0", ids(f.MerchantsSince(ctx, 0)), []string{"b", "a"})
	f.same("since second", ids(f.MerchantsSince(ctx, second.Version)), []string{"a"})
	f.same("since third", ids(f.MerchantsSince(ctx, third.Version)), []string(nil))
	f.same("list", ids(f.ListMerchants(ctx, "", 10)), []string{"a", "b"})
	f.same("first page", ids(f.ListMerchants(ctx, "", 1)), []string{"a"})
	f.same("second page", ids(f.ListMerchants(ctx, "a", 1)), []string{"b"})
}

// merchantVersions polls as a node does while others change merchants: it misses none.
func merchantVersions(f *fixture) {
	const writers, each = 4, 10
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if _, err := f.PutMerchant(f.Context(), sample(fmt.Sprintf("m-%d-%d", w, i)), nil); err != nil {
					f.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writing.Wait(); close(done) }()
	var seen []string
	last := int64(0)
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true // and one more look
		default:
		}
		list, err := f.MerchantsSince(f.Context(), last)
		f.must(err)
		for _, m := range list {
			seen, last = append(seen, m.ID), m.Version
		}
	}
	slices.Sort(seen)
	f.same("seen", len(slices.Compact(seen)), writers*each)
}
