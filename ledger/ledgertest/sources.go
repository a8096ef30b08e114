package ledgertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/ledger"
	"notifyd/source"
)

func sampleSource(id string) *source.Source {
	api, signing := source.NewSecret(source.KindAPIKey), source.NewSecret(source.KindHMAC)
	return &source.Source{
		ID: id, Name: "支付服务", Merchants: []string{"shop-*", "m"}, Certificates: []string{"dns:pay.example", "subject:CN=pay,O=Example"},
		AllowNonTerminal: true, Limits: source.Limits{RatePerSecond: 1.5, Burst: 3, MaxRequestBytes: 1 << 20}, Disabled: true,
		Keys: []source.Key{
			{ID: api.KeyID, Kind: api.Kind, Label: "pay-prod", CreatedAt: Start, ExpiresAt: Start.Add(time.Hour)},
			{ID: signing.KeyID, Kind: signing.Kind, CreatedAt: Start},
		},
		Secrets: source.Secrets{api.KeyID: api.Kept(), signing.KeyID: signing.Kept()},
	}
}

func sources(f *fixture) {
	ctx := f.Context()
	none, wrong := int64(0), int64(4711)
	if _, err := f.GetSource(ctx, "b"); !errors.Is(err, ledger.ErrNotFound) {
		f.Fatalf("get nothing: %v", err)
	}
	want := sampleSource("b")
	first, err := f.PutSource(ctx, want, &none)
	f.must(err)
	want.Version, want.UpdatedAt = first.Version, f.clock.now()
	f.same("put", first, want)
	got, err := f.GetSource(ctx, "b")
	f.must(err)
	f.same("get", got, want)

	for _, stale := range []*int64{&none, &wrong} {
		if _, err := f.PutSource(ctx, sampleSource("b"), stale); !errors.Is(err, ledger.ErrConflict) {
			f.Fatalf("put over another version: %v", err)
		}
	}
	f.clock.advance(time.Minute)
	bare := &source.Source{ID: "b"}
	second, err := f.PutSource(ctx, bare, &first.Version)
	f.must(err)
	third, err := f.PutSource(ctx, sampleSource("a"), nil)
	f.must(err)
	if second.Version <= first.Version || third.Version <= second.Version {
		f.Fatalf("versions %d, %d, %d do not grow", first.Version, second.Version, third.Version)
	}
	bare.Version, bare.UpdatedAt = second.Version, f.clock.now()
	got, err = f.GetSource(ctx, "b")
	f.must(err)
	f.same("replaced, keys and secrets gone", got, bare)

	ids := func(list []*source.Source, err error) (out []string) {
		f.must(err)
		for _, s := range list {
			out = append(out, s.ID)
		}
		return out
	}
	f.same("since 0", ids(f.SourcesSince(ctx, 0)), []string{"b", "a"})
	f.same("since second", ids(f.SourcesSince(ctx, second.Version)), []string{"a"})
	f.same("since third", ids(f.SourcesSince(ctx, third.Version)), []string(nil))
	f.same("list", ids(f.ListSources(ctx, "", 10)), []string{"a", "b"})
	f.same("first page", ids(f.ListSources(ctx, "", 1)), []string{"a"})
	f.same("second page", ids(f.ListSources(ctx, "a", 1)), []string{"b"})
}

// sourceRace changes one version from many sides, as two nodes that make keys do.
func sourceRace(f *fixture) {
	before, err := f.PutSource(f.Context(), sampleSource("a"), nil)
	f.must(err)
	var won atomic.Int32
	var changing sync.WaitGroup
	for range 20 {
		changing.Go(func() {
			switch _, err := f.PutSource(f.Context(), sampleSource("a"), &before.Version); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrConflict):
				f.Error(err)
			}
		})
	}
	changing.Wait()
	f.same("winners", won.Load(), int32(1))
}

// sourceVersions polls as a node does while others revoke keys: it misses none.
func sourceVersions(f *fixture) {
	const writers, each = 4, 10
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if _, err := f.PutSource(f.Context(), sampleSource(fmt.Sprintf("s-%d-%d", w, i)), nil); err != nil {
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
		list, err := f.SourcesSince(f.Context(), last)
		f.must(err)
		for _, s := range list {
			seen, last = append(seen, s.ID), s.Version
		}
	}
	slices.Sort(seen)
	f.same("seen", len(slices.Compact(seen)), writers*each)
}
