package chaos

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"

	"notifyd/internal/scenario"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// takeoverBound is how long the shards of a node that died may be nobody's.
const takeoverBound = 10 * time.Second

// anywhere are merchants that answer at once, one in each shard.
func anywhere() []string {
	out := make([]string, notification.Shards)
	for i, found := 0, 0; found < len(out); i++ {
		id := fmt.Sprintf("shop-%d", i)
		if shard := notification.ShardOf(id); out[shard] == "" {
			out[shard] = id
			found++
		}
	}
	return out
}

// Takeover submits one notification for each shard now, and returns how long it takes until all are told; ok is false
// when that is longer than the limit.
func (r *Run) Takeover(limit time.Duration) (took time.Duration, ok bool) {
	r.tb.Helper()
	began := time.Now()
	drafts := map[string]*probe{}
	for _, merchant := range anywhere() {
		p := r.newProbe(merchant)
		drafts[p.id] = p
	}
	deadline := began.Add(limit)
	for len(drafts) > 0 && time.Now().Before(deadline) {
		for id, p := range drafts {
			for _, n := range r.Nodes {
				p.accepted = p.accepted || r.submitProbe(n, p.draft)
			}
			if p.accepted && r.History.Acknowledged(id) {
				delete(drafts, id)
			}
		}
		r.Wait(20 * time.Millisecond)
	}
	for _, p := range drafts {
		r.giveUp(p)
	}
	return time.Since(began), len(drafts) == 0
}

// Share waits until the shards are shared: each is one node's, and every node has some.
func (r *Run) Share(limit time.Duration) {
	r.tb.Helper()
	var owned map[string]int
	shared := r.until(limit, func() (shared bool) {
		var least int
		owned, least, shared = r.owned()
		return shared && least > 0
	})
	r.tb.Logf("shards: %v", owned)
	if !shared {
		r.History.Broken("the shards are not shared after %s: %v", limit, owned)
	}
}

// owned is how many shards each node says are its own, the least of them, and whether each shard is one node's.
func (r *Run) owned() (by map[string]int, least int, all bool) {
	r.tb.Helper()
	by, least = map[string]int{}, notification.Shards
	sum := 0
	for _, n := range r.Nodes {
		by[n.Name] = n.owned(r.tb)
		sum, least = sum+by[n.Name], min(least, by[n.Name])
	}
	return by, least, sum == notification.Shards
}

var shardsOwned = regexp.MustCompile(`(?m)^notifyd_shards_owned (\d+)$`)

// owned is how many shards a node says are its own; 0 also when it says nothing.
func (n *Node) owned(tb testing.TB) int {
	tb.Helper()
	e := n.Engine()
	if e == nil {
		return 0
	}
	ctx, cancel := bounded(tb, answerBound)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Admin+"/metrics", nil)
	if err != nil {
		tb.Fatal(err)
	}
	res, err := (&http.Client{}).Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = res.Body.Close() }()
	text, _ := io.ReadAll(res.Body)
	if m := shardsOwned.FindSubmatch(text); m != nil {
		count, _ := strconv.Atoi(string(m[1]))
		return count
	}
	return 0
}

// Several are the faults of nodes that are for runs with more than one.
func Several() []Fault {
	return []Fault{
		{"one node of several: dead", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			n := r.Nodes[r.Random.IntN(len(r.Nodes))]
			died := time.Now()
			n.Kill()
			took, ok := r.Takeover(2 * takeoverBound)
			tb.Logf("%s is dead; every shard is delivered from after %s", n.Name, took.Round(time.Millisecond))
			if !ok || took > takeoverBound {
				r.History.Broken("the shards of %s move in %s, not in %s", n.Name, took, takeoverBound)
			}
			return func() {
				had, open, longest := r.History.Unheard(died)
				tb.Logf("%d requests were on the wire; %d of them are made again, after %s at most", had, had-open, longest.Round(time.Millisecond))
				r.restart(n)
			}
		}},
		{"one node of several: paused", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			e := r.Nodes[r.Random.IntN(len(r.Nodes))].Engine()
			e.Pause(tb)
			return func() { e.Resume(tb) }
		}},
		{"nodes: restarted one after another", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			for _, n := range r.Nodes {
				n.Stop(tb)
				r.restart(n)
			}
			return func() {}
		}},
	}
}

// Clustered are the faults of single NATS servers that are for runs with copies on several.
func Clustered() []Fault {
	one := func(r *Run) *scenario.NATS { return r.NATS[r.Random.IntN(len(r.NATS))] }
	kill := func(tb testing.TB, s *scenario.NATS) func() {
		tb.Helper()
		tb.Logf("%s is killed", s.Name)
		s.Kill()
		return func() { s.Start(tb) }
	}
	return []Fault{
		{"one nats server: kill -9", func(tb testing.TB, r *Run) func() { tb.Helper(); return kill(tb, one(r)) }},
		{"one nats server: that leads the shards, kill -9", func(tb testing.TB, r *Run) func() { tb.Helper(); return kill(tb, r.leader(envelope.NotifyStream)) }},
		{"one nats server: isolated", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			s := r.leader(envelope.NotifyStream)
			tb.Logf("%s is isolated", s.Name)
			s.Isolate(tb)
			return func() { s.Rejoin(tb) }
		}},
		{"one nats server: paused", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			s := one(r)
			s.Pause(tb)
			return func() { s.Resume(tb) }
		}},
	}
}

// leader is the server that leads a stream, once there is one.
func (r *Run) leader(stream string) (leads *scenario.NATS) {
	r.tb.Helper()
	if r.watching == nil {
		for _, s := range r.NATS {
			r.watching = append(r.watching, s.Connect(r.tb))
		}
	}
	scenario.Within(r.tb, 30*time.Second, stream+" has a leader", func() bool {
		for _, js := range r.watching {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.tb.Context()), 500*time.Millisecond)
			leads = scenario.Leader(ctx, js, r.NATS, stream)
			cancel()
			if leads != nil {
				return true
			}
		}
		return false
	})
	return leads
}
