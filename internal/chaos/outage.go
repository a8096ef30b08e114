package chaos

import (
	"testing"
	"time"

	"notifyd/internal/scenario"
)

// slowness is what a query takes on a Postgres that is slow.
const slowness = 2 * time.Second

// Ends are the faults of nodes: they end, or stand still.
func Ends() []Fault {
	node := func(r *Run) *Node { return r.Nodes[r.Random.IntN(len(r.Nodes))] }
	return []Fault{
		{"node: kill -9", func(_ testing.TB, r *Run) func() {
			n := node(r)
			n.Kill()
			return func() { r.restart(n) }
		}},
		{"node: restarted", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			n := node(r)
			n.Stop(tb)
			return func() { r.restart(n) }
		}},
		{"node: paused", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			e := node(r).Engine()
			e.Pause(tb)
			return func() { e.Resume(tb) }
		}},
	}
}

// Outages are the faults of what the nodes stand on. They are for runs with servers of their own.
func Outages() []Fault {
	cut := func(tb testing.TB, l *scenario.Link) { tb.Helper(); l.Cut(tb) }
	refuse := func(tb testing.TB, l *scenario.Link) { tb.Helper(); l.Refuse(tb) }
	slow := func(tb testing.TB, l *scenario.Link) { tb.Helper(); l.Slow(tb, slowness) }
	return []Fault{
		{"postgres: stopped", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			r.Postgres.Stop(tb)
			return func() { r.Postgres.Start(tb) }
		}},
		{"postgres: kill -9", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			r.Postgres.Kill(tb)
			return func() { r.Postgres.Start(tb) }
		}},
		{"postgres: no connection left", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			return r.Postgres.Exhaust(tb)
		}},
		{"nats: stopped", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			r.NATS[0].Stop(tb)
			return func() { r.NATS[0].Start(tb) }
		}},
		{"nats: kill -9", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			r.NATS[0].Kill()
			return func() { r.NATS[0].Start(tb) }
		}},
		{"nats and nodes: kill -9", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			for _, n := range r.Nodes {
				n.Kill()
			}
			r.NATS[0].Kill()
			return func() {
				r.NATS[0].Start(tb)
				r.StartAll(tb)
			}
		}},
		{"nats: paused", func(tb testing.TB, r *Run) func() {
			tb.Helper()
			r.NATS[0].Pause(tb)
			return func() { r.NATS[0].Resume(tb) }
		}},
		links("postgres: cut off", postgresLinks, cut),
		links("postgres: refuses", postgresLinks, refuse),
		links("postgres: 2 s a query", postgresLinks, slow),
		links("nats: cut off", natsLinks, cut),
		links("nats: refuses", natsLinks, refuse),
		links("both: cut off", bothLinks, cut),
		links("both: refuse", bothLinks, refuse),
		start("start: postgres away", postgresLinks, nil),
		start("start: postgres away, no settings", postgresLinks, (*Node).forgetSettings),
		start("start: nats away", natsLinks, nil),
		start("start: both away", bothLinks, nil),
		OneBlind(),
		links("one of them: nats cut off", oneNode(natsLinks), cut),
	}
}

// start kills all nodes and starts them without what is behind the links.
func start(name string, of func(*Run, []*Node) []*scenario.Link, prepare func(*Node)) Fault {
	away := links(name, of, func(tb testing.TB, l *scenario.Link) { tb.Helper(); l.Refuse(tb) })
	return Fault{name, func(tb testing.TB, r *Run) func() {
		tb.Helper()
		for _, n := range r.Nodes {
			n.Kill()
			if prepare != nil {
				prepare(n)
			}
		}
		heal := away.Hurt(tb, r)
		r.StartAll(tb)
		return heal
	}}
}

func links(name string, of func(*Run, []*Node) []*scenario.Link, do func(testing.TB, *scenario.Link)) Fault {
	return Fault{name, func(tb testing.TB, r *Run) func() {
		tb.Helper()
		hurt := of(r, r.Nodes)
		for _, l := range hurt {
			do(tb, l)
		}
		return func() {
			for _, l := range hurt {
				l.Pass(tb)
			}
		}
	}}
}

// OneBlind cuts Postgres off from one node. Where there are others they take over its shards, while it goes on accepting.
func OneBlind() Fault {
	f := links("one of them: postgres cut off", oneNode(postgresLinks), func(tb testing.TB, l *scenario.Link) { tb.Helper(); l.Cut(tb) })
	return Fault{f.Name, func(tb testing.TB, r *Run) func() {
		tb.Helper()
		heal := f.Hurt(tb, r)
		if len(r.Nodes) == 1 {
			return heal
		}
		began := time.Now()
		var owned map[string]int
		none := func() bool {
			by, least, all := r.owned()
			owned = by
			return all && least == 0
		}
		if !r.until(takeoverBound, none) {
			r.History.Broken("one node cannot ask the ledger, and after %s the shards are %v", takeoverBound, owned)
		}
		tb.Logf("the others have its shards after %s: %v", time.Since(began).Round(time.Millisecond), owned)
		return heal
	}}
}

func postgresLinks(_ *Run, nodes []*Node) (out []*scenario.Link) {
	for _, n := range nodes {
		out = append(out, n.Postgres)
	}
	return out
}

func natsLinks(_ *Run, nodes []*Node) (out []*scenario.Link) {
	for _, n := range nodes {
		out = append(out, n.NATS...)
	}
	return out
}

func bothLinks(r *Run, nodes []*Node) []*scenario.Link {
	return append(postgresLinks(r, nodes), natsLinks(r, nodes)...)
}

func oneNode(of func(*Run, []*Node) []*scenario.Link) func(*Run, []*Node) []*scenario.Link {
	return func(r *Run, nodes []*Node) []*scenario.Link {
		at := r.Random.IntN(len(nodes))
		return of(r, nodes[at:at+1])
	}
}

// DiskFull takes all space from the NATS server of a run with a small disk. JetStream turns itself off then, until its
// server is started anew: who frees the space does that too.
func DiskFull() Fault {
	return Fault{"nats: disk full", func(tb testing.TB, r *Run) func() {
		tb.Helper()
		r.Disk.Fill(tb)
		return func() {
			r.Disk.Free(tb)
			r.NATS[0].Kill() // one that ran out of space may hang when it is asked to stop
			r.NATS[0].Start(tb)
		}
	}}
}
