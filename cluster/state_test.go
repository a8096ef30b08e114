package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const shards = 64

func me(node string) self { return self{node: node, run: node + "-1", takes: true, shards: shards} }

// turn lets a node take its step; a node with a newer run would fail the test.
func turn(t *testing.T, s state, who self, silent ...string) state {
	t.Helper()
	gone := map[string]bool{}
	for _, name := range silent {
		gone[name] = true
	}
	next, ok := s.step(who, gone)
	if !ok {
		t.Fatalf("%s is superseded", who.node)
	}
	return next
}

func releasing(who self, s state) self {
	who.joined, who.released = true, map[int]bool{}
	for _, shard := range s.Nodes[who.node].Shards {
		if s.meant(shard) != who.node {
			who.released[shard] = true
		}
	}
	return who
}

func TestAloneItHasEverything(t *testing.T) {
	s := turn(t, state{}, me("a"))
	if got := len(s.Nodes["a"].Shards); got != shards {
		t.Errorf("owns %d shards", got)
	}
}

// A node that comes gets its share only when the others have let go of it, and nothing else moves.
func TestSharesMoveWhenTheyAreReleased(t *testing.T) {
	s := turn(t, state{}, me("a"))
	s = turn(t, s, me("b"))
	if got := s.Nodes["b"].Shards; got != nil {
		t.Fatalf("b took %v from a", got)
	}
	before := s.Nodes["a"].Shards
	s = turn(t, s, releasing(me("a"), s))
	s = turn(t, s, me("b"))
	a, b := s.Nodes["a"].Shards, s.Nodes["b"].Shards
	if len(a)+len(b) != shards || len(b) < shards/4 || len(a) < shards/4 {
		t.Errorf("a has %d, b has %d", len(a), len(b))
	}
	for _, shard := range a {
		if !slices.Contains(before, shard) || slices.Contains(b, shard) {
			t.Errorf("shard %d moved, or is owned twice", shard)
		}
	}
}

func TestASilentNodeLosesItsShardsOnce(t *testing.T) {
	s := turn(t, state{}, me("a"))
	s = turn(t, s, me("b"), "a")
	if got := len(s.Nodes["b"].Shards); got != shards || !s.Nodes["a"].Silent || s.Nodes["a"].Shards != nil {
		t.Fatalf("b has %d, a is %+v", got, s.Nodes["a"])
	}
	if len(s.Gone) != 0 {
		t.Errorf("%q have ended, though a may only be paused", s.Gone)
	}
	s = turn(t, s, me("a")) // it was paused
	if s.Nodes["a"].Silent || s.Nodes["a"].Shards != nil {
		t.Errorf("a is back as %+v", s.Nodes["a"])
	}
}

// Who cannot ask the ledger leaves the shards to those that can; while nobody can, everybody goes on.
func TestShardsAreForThoseThatSee(t *testing.T) {
	blind := func(who self) self { who.blind = true; return who }
	settle := func(s state, all ...self) state {
		for range 3 {
			for _, who := range all {
				s = turn(t, s, releasing(who, turn(t, s, who)))
			}
		}
		return s
	}
	a, b, c := me("a"), me("b"), me("c")
	before := settle(state{}, a, b, c)
	for name, m := range before.Nodes {
		if len(m.Shards) < shards/6 {
			t.Fatalf("%s has %d", name, len(m.Shards))
		}
	}
	s := settle(before, blind(a), b, c)
	if s.Nodes["a"].Shards != nil || len(s.Nodes["b"].Shards)+len(s.Nodes["c"].Shards) != shards {
		t.Errorf("a is blind and has %v", s.Nodes["a"].Shards)
	}
	for _, shard := range before.Nodes["b"].Shards {
		if !slices.Contains(s.Nodes["b"].Shards, shard) {
			t.Errorf("shard %d moved from b, which sees", shard)
		}
	}
	if s = settle(s, blind(a), blind(b), c); len(s.Nodes["c"].Shards) != shards {
		t.Errorf("c alone sees, and has %d", len(s.Nodes["c"].Shards))
	}
	for name, s := range map[string]state{"none sees": settle(s, blind(a), blind(b), blind(c)), "all see again": settle(s, a, b, c)} {
		for node, m := range before.Nodes {
			if diff := cmp.Diff(m.Shards, s.Nodes[node].Shards); diff != "" {
				t.Errorf("%s: %s has others than in the beginning: %s", name, node, diff)
			}
		}
	}
}

func TestANewerRunTakesOverAtOnce(t *testing.T) {
	s := turn(t, state{}, me("a"))
	again := me("a")
	again.run = "a-2"
	s = turn(t, s, again)
	if len(s.Nodes["a"].Shards) != shards || s.Nodes["a"].Run != "a-2" || !slices.Equal(s.Gone, []string{"a-1"}) {
		t.Fatalf("%+v", s)
	}
	old := me("a")
	old.joined = true
	if next, ok := s.step(old, nil); ok || !cmp.Equal(next, s) {
		t.Error("the older run takes part")
	}
	if next := turn(t, s, old, "a"); next.Nodes["a"].Run != "a-1" || slices.Contains(next.Gone, "a-2") {
		t.Errorf("what never shows that it lives is none: %+v", next)
	}
	s = s.leave("a", "a-1")
	if len(s.Nodes["a"].Shards) != shards {
		t.Error("the older run took the newer one out when it ended")
	}
	if s = s.leave("a", "a-2"); len(s.Nodes) != 0 || !slices.Equal(s.Gone, []string{"a-1", "a-2"}) {
		t.Errorf("after a clean end: %+v", s)
	}
}

func TestWhoTakesNothingOnlyShowsThatItLives(t *testing.T) {
	s := turn(t, state{}, self{node: "intake", run: "1"})
	s = turn(t, s, me("a"))
	if len(s.Nodes["a"].Shards) != shards || len(s.Nodes["intake"].Shards) != 0 {
		t.Errorf("%+v", s)
	}
	waiting := me("b")
	waiting.waits = true
	if s = turn(t, state{}, waiting); len(s.Nodes["b"].Shards) != 0 {
		t.Error("took something while it has to wait")
	}
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	s := state{}
	for i := range 200 {
		again := me("a")
		again.run = strconv.Itoa(i)
		s = turn(t, s, again)
		s = turn(t, s, me(fmt.Sprint("lost-", i)))
		s = turn(t, s, again, fmt.Sprint("lost-", i))
	}
	if len(s.Gone) != keepGone || s.Gone[keepGone-1] != "198" || len(s.Nodes) > keepSilent+1 {
		t.Errorf("%d gone, %d nodes", len(s.Gone), len(s.Nodes))
	}
}

// Whatever nodes come, fall silent, come back, restart, go blind and end, in any order: no shard has two owners, and when it is
// quiet each has the one that it is meant for.
func TestAnyOrderEndsWithOneOwnerEach(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		s, names := state{}, []string{"a", "b", "c", "d"}
		runs, blind := map[string]int{}, map[string]bool{}
		who := func(name string) self {
			w := me(name)
			w.blind = blind[name]
			w.run = fmt.Sprint(name, "-", runs[name])
			w.joined = s.Nodes[name].Run == w.run
			return w
		}
		for range 300 {
			name := names[random.IntN(len(names))]
			w := who(name)
			switch random.IntN(10) {
			case 0:
				runs[name]++
				s = turn(t, s, who(name))
			case 1:
				s = s.leave(name, w.run)
			case 2:
				s = turn(t, s, w, names[random.IntN(len(names))])
			case 9:
				blind[name] = !blind[name]
				s = turn(t, s, releasing(who(name), s))
			case 3, 4, 5:
				s = turn(t, s, releasing(w, s))
				s.check(t, seed)
			default:
				s = turn(t, s, w)
			}
			s.check(t, seed)
		}
		for range 3 {
			for _, name := range names {
				s = turn(t, s, releasing(who(name), s))
			}
		}
		owners := s.owners()
		for shard := range shards {
			if owners[shard] == "" || owners[shard] != s.meant(shard) {
				t.Fatalf("seed %d: shard %d is %q's, meant for %q", seed, shard, owners[shard], s.meant(shard))
			}
		}
	}
}

func (s state) check(t *testing.T, seed uint64) {
	t.Helper()
	owned := map[int]string{}
	for name, m := range s.Nodes {
		for _, shard := range m.Shards {
			if other, twice := owned[shard]; twice {
				t.Fatalf("seed %d: shard %d is %s's and %s's", seed, shard, name, other)
			}
			owned[shard] = name
		}
	}
}
