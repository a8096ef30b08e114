package access

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// Registry is the live snapshot of all rules: read without a lock by every attempt, replaced whole on change.
type Registry struct {
	snapshot atomic.Pointer[snapshot]
	learned  atomic.Bool
}

// snapshot is the rules and what leads to them. Nobody changes it.
type snapshot struct {
	version   int64
	byID      map[string]*Rule // the removed ones too: an older version must not bring them back
	merchants lists            // of those that are not removed
	sources   lists
}

// lists are the rules of a kind.
type lists struct {
	everybody pair
	byID      map[string]map[string]pair // by a merchant's or a source's id, then by scene
}

// pair is the rules of one subject.
type pair struct{ block, allow *Rule }

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	r := &Registry{}
	r.snapshot.Store(&snapshot{})
	return r
}

// Nobody returns a registry that knows that there are no rules.
func Nobody() *Registry {
	r := NewRegistry()
	r.Learn()
	return r
}

// Learned reports whether Learn was ever called: before that nobody knows what is blocked.
func (r *Registry) Learned() bool { return r.learned.Load() }

// Version is the newest version that the snapshot holds.
func (r *Registry) Version() int64 { return r.snapshot.Load().version }

// Get returns a rule that nobody may change, or nil. A removed one is there, too.
func (r *Registry) Get(id string) *Rule { return r.snapshot.Load().byID[id] }

// List is the rules that are not removed, in the order of their ids.
func (r *Registry) List() []*Rule {
	var list []*Rule
	for _, rule := range r.snapshot.Load().byID {
		if !rule.Removed {
			list = append(list, rule)
		}
	}
	slices.SortFunc(list, func(a, b *Rule) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// ExpiredBetween reports whether a rule's time was over after one instant, and not after the other.
func (r *Registry) ExpiredBetween(after, until time.Time) bool {
	for _, rule := range r.snapshot.Load().byID {
		if !rule.Removed && rule.ExpiresAt.After(after) && !rule.ExpiresAt.After(until) {
			return true
		}
	}
	return false
}

// Learn adds or replaces rules; an older version never replaces a newer one.
func (r *Registry) Learn(rules ...*Rule) {
	defer r.learned.Store(true)
	for len(rules) > 0 {
		before := r.snapshot.Load()
		byID := maps.Clone(before.byID)
		if byID == nil {
			byID = map[string]*Rule{}
		}
		for _, rule := range rules {
			if known := byID[rule.ID]; known == nil || known.Version < rule.Version {
				byID[rule.ID] = rule
			}
		}
		if r.snapshot.CompareAndSwap(before, index(byID)) {
			return
		}
	}
}

func index(byID map[string]*Rule) *snapshot {
	out := &snapshot{byID: byID}
	for _, rule := range byID {
		out.version = max(out.version, rule.Version)
		if rule.Removed {
			continue
		}
		if rule.Subject.Kind == KindSource {
			out.sources.add(rule)
		} else {
			out.merchants.add(rule)
		}
	}
	return out
}

func (l *lists) add(rule *Rule) {
	if rule.Subject.ID == "" {
		l.everybody = l.everybody.with(rule)
		return
	}
	if l.byID == nil {
		l.byID = map[string]map[string]pair{}
	}
	scenes := l.byID[rule.Subject.ID]
	if scenes == nil {
		scenes = map[string]pair{}
		l.byID[rule.Subject.ID] = scenes
	}
	scenes[rule.Subject.Scene] = scenes[rule.Subject.Scene].with(rule)
}

func (p pair) with(rule *Rule) pair {
	if rule.Effect == EffectAllow {
		p.allow = rule
	} else {
		p.block = rule
	}
	return p
}

// Judge returns the rule that blocks what a source submits for a merchant in a scene; nil: nothing does. Both are judged
// apart, and of two rules that block the stricter holds.
func (r *Registry) Judge(merchantID, sourceID, scene string, now time.Time) *Rule {
	rules := r.snapshot.Load()
	byMerchant, bySource := rules.merchants.judge(merchantID, scene, now), rules.sources.judge(sourceID, scene, now)
	if byMerchant == nil || bySource != nil && bySource.Mode.strictness() > byMerchant.Mode.strictness() {
		return bySource
	}
	return byMerchant
}

// judge asks the narrowest live rules first: they decide.
func (l *lists) judge(id, scene string, now time.Time) *Rule {
	if scenes := l.byID[id]; scenes != nil {
		for _, name := range [...]string{scene, ""} {
			if rule, decided := scenes[name].judge(now); decided {
				return rule
			}
		}
	}
	rule, _ := l.everybody.judge(now)
	return rule
}

// judge returns the rule that blocks, or that a live rule allows: of both the block decides.
func (p pair) judge(now time.Time) (blocks *Rule, decided bool) {
	switch {
	case p.block != nil && p.block.Live(now):
		return p.block, true
	case p.allow != nil && p.allow.Live(now):
		return nil, true
	}
	return nil, false
}
