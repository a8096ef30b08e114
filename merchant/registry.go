package merchant

import (
	"maps"
	"sync/atomic"
)

// Registry is the live snapshot of all merchants: read without a lock by every attempt, replaced whole on change.
type Registry struct {
	snapshot atomic.Pointer[map[string]*Merchant]
	learned  atomic.Bool
}

// Learned reports whether Learn was ever called: before that nobody knows which merchants there are.
func (r *Registry) Learned() bool { return r.learned.Load() }

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	r := &Registry{}
	r.snapshot.Store(&map[string]*Merchant{})
	return r
}

// Get returns a merchant that nobody may change, or nil.
func (r *Registry) Get(id string) *Merchant { return (*r.snapshot.Load())[id] }

// Len is the number of merchants known.
func (r *Registry) Len() int { return len(*r.snapshot.Load()) }

// Version is the newest version that the snapshot holds.
func (r *Registry) Version() int64 {
	var newest int64
	for _, m := range *r.snapshot.Load() {
		newest = max(newest, m.Version)
	}
	return newest
}

// Learn adds or replaces merchants; an older version never replaces a newer one.
func (r *Registry) Learn(merchants ...*Merchant) {
	defer r.learned.Store(true)
	for len(merchants) > 0 {
		before := r.snapshot.Load()
		after := maps.Clone(*before)
		for _, m := range merchants {
			if known := after[m.ID]; known == nil || known.Version < m.Version {
				after[m.ID] = m
			}
		}
		if r.snapshot.CompareAndSwap(before, &after) {
			return
		}
	}
}
