package ledgertest

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"notifyd/keys"
	"notifyd/ledger"
)

// generated are keys of both kinds; made once, since what they are does not matter.
var generated = sync.OnceValues(func() ([]keys.Key, error) {
	signing, err := keys.Generate(keys.SM2, 0)
	if err != nil {
		return nil, err
	}
	secret, err := keys.Generate(keys.Symmetric, 0)
	return []keys.Key{signing, secret}, err
})

func sampleKeys(f *fixture, name string) *keys.Set {
	f.Helper()
	made, err := generated()
	f.must(err)
	set := &keys.Set{Name: name, Purpose: keys.PurposeSign, MerchantID: "m", UpdatedBy: "alice", Change: "import"}
	for _, k := range made {
		k.ActiveFrom, k.CreatedAt, k.CreatedBy, k.Note = Start, Start, "alice", "测试"
		set, err = set.With(k, time.Hour, Start)
		f.must(err)
	}
	return set
}

func keySets(f *fixture) {
	ctx := f.Context()
	none, wrong := int64(0), int64(4711)
	want := sampleKeys(f, "platform")
	first, err := f.PutKeys(ctx, want, &none)
	f.must(err)
	want.Version, want.UpdatedAt = first.Version, f.clock.now()
	f.same("put", first, want)
	found, err := f.KeysSince(ctx, 0)
	f.must(err)
	f.same("since 0", found, []*keys.Set{want})
	if k := found[0].Newest(); string(k.Material.Secret()) != string(want.Newest().Material.Secret()) || found[0].Keys[0].Material.Signer() == nil || found[0].Keys[0].ID() != "platform/1" {
		f.Error("the secret parts are not back")
	}
	for _, stale := range []*int64{&none, &wrong} {
		if _, err := f.PutKeys(ctx, sampleKeys(f, "platform"), stale); !errors.Is(err, ledger.ErrConflict) {
			f.Fatalf("put over another version: %v", err)
		}
	}
	f.clock.advance(time.Minute)
	retired, err := first.Retire(2, f.clock.now(), f.clock.now())
	f.must(err)
	retired.UpdatedBy, retired.Change = "bob", "retire"
	second, err := f.PutKeys(ctx, retired, &first.Version)
	f.must(err)
	other, err := f.PutKeys(ctx, sampleKeys(f, "other"), nil)
	f.must(err)
	found, err = f.KeysSince(ctx, first.Version)
	f.must(err)
	f.same("in the order of changes", found, []*keys.Set{second, other})

	changes, err := f.KeyChanges(ctx, "platform", 0, 10)
	f.must(err)
	if len(changes) != 2 || changes[0].After.Change != "retire" || changes[0].After.UpdatedBy != "bob" || changes[1].After.Change != "import" || !changes[0].At.Equal(second.UpdatedAt) {
		f.Fatalf("changes: %+v", changes)
	}
	for _, c := range changes {
		for i := range c.After.Keys {
			if k := &c.After.Keys[i]; k.Material.Signer() != nil || k.Material.Secret() != nil || k.Fingerprint != want.Keys[i].Fingerprint {
				f.Errorf("kept of a change: %+v", k)
			}
		}
	}
	page, err := f.KeyChanges(ctx, "", changes[0].Number+1, 1)
	f.must(err)
	f.same("a page", page, changes[:1])
}

// keyRace imports one name from many sides: one wins.
func keyRace(f *fixture) {
	none, set := int64(0), sampleKeys(f, "platform")
	var won atomic.Int32
	var importing sync.WaitGroup
	for range 20 {
		importing.Go(func() {
			switch _, err := f.PutKeys(f.Context(), set, &none); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrConflict):
				f.Error(err)
			}
		})
	}
	importing.Wait()
	f.same("winners", won.Load(), int32(1))
}

// keyExpiries tells many of one end: one of them is the first.
func keyExpiries(f *fixture) {
	e := keys.Expiring{Name: "n", Version: 1, NotAfter: Start, Within: 30}
	var first atomic.Int32
	var telling sync.WaitGroup
	for range 20 {
		telling.Go(func() {
			is, err := f.NoteExpiry(f.Context(), e, Start)
			if err != nil {
				f.Error(err)
			}
			if is {
				first.Add(1)
			}
		})
	}
	telling.Wait()
	f.same("first", first.Load(), int32(1))
	e.Within = 14
	is, err := f.NoteExpiry(f.Context(), e, Start)
	f.must(err)
	f.same("the next threshold", is, true)
}
