package keys

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// Ring is the live snapshot of all keys: read without a lock by every attempt, replaced whole on change.
type Ring struct {
	snapshot atomic.Pointer[ring]
	learned  atomic.Bool
}

// ring is what is known. Nobody changes it.
type ring struct {
	version int64
	byName  map[string]*Set
}

// NewRing returns an empty ring.
func NewRing() *Ring {
	r := &Ring{}
	r.snapshot.Store(&ring{})
	return r
}

// Learned reports whether Learn was ever called: before that nobody knows which keys there are.
func (r *Ring) Learned() bool { return r.learned.Load() }

// Version is the newest version that the snapshot holds.
func (r *Ring) Version() int64 { return r.snapshot.Load().version }

// Get returns a set that nobody may change, or nil.
func (r *Ring) Get(name string) *Set { return r.snapshot.Load().byName[name] }

// Live returns the versions of a name that are in use, newest first: the first one signs, all of them verify. Nobody may
// change them. Empty: there is no such name, or nothing of it is in use now.
func (r *Ring) Live(name string, at time.Time) []*Key {
	set := r.Get(name)
	if set == nil {
		return nil
	}
	live := make([]*Key, 0, liveAtOnce)
	for i := range slices.Backward(set.Keys) {
		if set.Keys[i].Live(at) {
			live = append(live, &set.Keys[i])
		}
	}
	return live
}

// Check says why a merchant's settings cannot name a key for a purpose; nil: they can.
func (r *Ring) Check(name, merchantID string, purpose Purpose, at time.Time) error {
	set := r.Get(name)
	switch {
	case set == nil || set.MerchantID != "" && set.MerchantID != merchantID: // whose it is is nobody else's business
		return fmt.Errorf("%q: there is no such key of the merchant or the platform", name)
	case set.Purpose != purpose:
		return fmt.Errorf("%q: is a key for %s, want one for %s", name, set.Purpose, purpose)
	case len(r.Live(name, at)) == 0:
		return fmt.Errorf("%q: no version of it is in use now", name)
	}
	return nil
}

// List is all sets, in the order of their names.
func (r *Ring) List() []*Set {
	return slices.SortedFunc(maps.Values(r.snapshot.Load().byName), func(a, b *Set) int { return cmp.Compare(a.Name, b.Name) })
}

// Learn adds or replaces sets; an older version never replaces a newer one.
func (r *Ring) Learn(sets ...*Set) {
	defer r.learned.Store(true)
	for len(sets) > 0 {
		before := r.snapshot.Load()
		after := &ring{version: before.version, byName: maps.Clone(before.byName)}
		if after.byName == nil {
			after.byName = map[string]*Set{}
		}
		for _, set := range sets {
			if known := after.byName[set.Name]; known == nil || known.Version < set.Version {
				after.byName[set.Name] = set
			}
			after.version = max(after.version, set.Version)
		}
		if r.snapshot.CompareAndSwap(before, after) {
			return
		}
	}
}

// Expiring is a version in use, or to come, whose certificate ends soon or has ended.
type Expiring struct {
	Name     string
	Version  int
	NotAfter time.Time
	Within   int // the smallest of ExpiryDays that it is within; 0: it has ended
}

// ExpiryDays are the days before a certificate's end at which somebody is told; 0 is its end.
func ExpiryDays() []int { return []int{30, 14, 7, 1, 0} }

// Expiring is what ends within the first of ExpiryDays, in the order of names.
func (r *Ring) Expiring(now time.Time) []Expiring {
	var found []Expiring
	for _, set := range r.List() {
		for i := range set.Keys {
			k := &set.Keys[i]
			if set.succeeded(k) {
				continue
			}
			if within, soon := k.expiresWithin(now); soon {
				found = append(found, Expiring{k.Name, k.Version, k.NotAfter, within})
			}
		}
	}
	return found
}

// succeeded reports whether a newer version takes over before a certificate's end.
func (s *Set) succeeded(k *Key) bool {
	return slices.ContainsFunc(s.Keys, func(o Key) bool {
		return o.Version > k.Version && !o.ActiveFrom.After(k.NotAfter) && (o.RetireAt.IsZero() || o.RetireAt.After(k.NotAfter))
	})
}

func (k *Key) expiresWithin(now time.Time) (days int, soon bool) {
	if k.NotAfter.IsZero() || k.Retired(now) || !k.RetireAt.IsZero() && !k.RetireAt.After(k.NotAfter) {
		return 0, false // it has none, or is retired before
	}
	for _, within := range ExpiryDays() {
		if !k.NotAfter.After(now.Add(time.Duration(within) * 24 * time.Hour)) {
			days, soon = within, true
		}
	}
	return days, soon
}
