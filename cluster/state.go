package cluster

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// state is what all nodes know together: one small document, which every node changes by compare-and-set only.
type state struct {
	Nodes map[string]member `json:"nodes"`
	// Gone are runs that have ended for certain, the newest last. One that is merely silent is not among them: it may be
	// paused or cut off, and finish its attempts.
	Gone []string `json:"gone,omitempty"`
}

// member is what is known of a node.
type member struct {
	Run   string `json:"run"`
	Beat  uint64 `json:"beat"`  // grows with each sign of life
	Takes bool   `json:"takes"` // wants shards
	// Blind says that it cannot ask the ledger: shards are for those that can, as long as there is one.
	Blind bool `json:"blind,omitempty"`
	// Silent says that it gave no sign of life for the expiry: others may have its shards. Its next beat takes it back.
	Silent bool  `json:"silent,omitempty"`
	Shards []int `json:"shards,omitempty"`
}

const (
	// keepGone bounds the runs that are known to have ended. Their claims lapse by themselves within a minute.
	keepGone = 64
	// keepSilent bounds the silent nodes: each data folder that never came back is one.
	keepSilent = 32
)

// self is a node as it takes part.
type self struct {
	node, run string
	joined    bool // it has been a member in this run
	takes     bool
	blind     bool
	waits     bool         // it takes nothing new for now
	released  map[int]bool // its lane takes nothing more from these
	shards    int          // how many there are
}

// step is what a node makes of the state: it is a member, silent ones lose their shards, what it gave up is free, and
// what is free and meant for it becomes its own. ok is false while a newer run of the same node is a member, unless that
// is silent: then it is none, but what a restored NATS remembers.
func (s state) step(me self, silent map[string]bool) (next state, ok bool) {
	next = state{Nodes: maps.Clone(s.Nodes), Gone: slices.Clone(s.Gone)}
	if next.Nodes == nil {
		next.Nodes = map[string]member{}
	}
	m, there := next.Nodes[me.node]
	if there && m.Run != me.run {
		if me.joined && !silent[me.node] {
			return s, false
		}
		if !me.joined {
			next.end(m.Run)
		}
		m = member{}
	}
	m.Run, m.Takes, m.Blind, m.Silent = me.run, me.takes, me.blind, false
	next.Nodes[me.node] = m
	for name, other := range next.Nodes {
		if silent[name] && name != me.node {
			other.Silent, other.Shards = true, nil
			next.Nodes[name] = other
		}
	}
	m.Shards = next.share(me)
	next.Nodes[me.node] = m
	next.forget()
	return next, true
}

// share is what the node has after this step: what it had and has not given up, and what is free and meant for it.
func (s state) share(me self) []int {
	owners := s.owners()
	var mine []int
	for shard := range me.shards {
		meant := s.meant(shard)
		switch owner := owners[shard]; {
		case owner == me.node && (meant == me.node || !me.released[shard]), owner == "" && meant == me.node && !me.waits:
			mine = append(mine, shard)
		}
	}
	return mine
}

// leave is the state without a node that ends.
func (s state) leave(node, run string) state {
	next := state{Nodes: maps.Clone(s.Nodes), Gone: slices.Clone(s.Gone)}
	if m, there := next.Nodes[node]; there && m.Run == run {
		delete(next.Nodes, node)
	}
	next.end(run)
	return next
}

func (s *state) end(run string) {
	if !slices.Contains(s.Gone, run) {
		s.Gone = append(s.Gone, run)
	}
	s.Gone = s.Gone[max(0, len(s.Gone)-keepGone):]
}

// forget drops silent nodes that are too many, in the order of their names: nobody knows how long each has been silent.
func (s *state) forget() {
	var names []string
	for name, m := range s.Nodes {
		if m.Silent {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names[min(len(names), keepSilent):] {
		delete(s.Nodes, name)
	}
}

func (s state) owners() map[int]string {
	out := map[int]string{}
	for name, m := range s.Nodes {
		for _, shard := range m.Shards {
			out[shard] = name
		}
	}
	return out
}

// meant is the node that should have a shard: the one of the highest score among those that live, take and see (rendezvous
// hashing), so that a node that comes or goes moves its own share only. Where all are blind, none is. Empty: there is none.
func (s state) meant(shard int) string {
	best, highest, sees := "", uint64(0), false
	for name, m := range s.Nodes {
		if !m.Takes || m.Silent || sees && m.Blind {
			continue
		}
		p := score(name, shard)
		if best == "" || !sees && !m.Blind || cmp.Or(cmp.Compare(p, highest), cmp.Compare(name, best)) > 0 {
			best, highest, sees = name, p, !m.Blind
		}
	}
	return best
}

func score(node string, shard int) uint64 {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(node), uint64(shard))) //nolint:gosec // a shard's number is not negative
	return binary.BigEndian.Uint64(sum[:])
}

// same reports whether nothing but signs of life differs.
func (s state) same(other state) bool {
	return slices.Equal(s.Gone, other.Gone) && maps.EqualFunc(s.Nodes, other.Nodes, func(a, b member) bool {
		return a.Run == b.Run && a.Takes == b.Takes && a.Blind == b.Blind && a.Silent == b.Silent && slices.Equal(a.Shards, b.Shards)
	})
}
