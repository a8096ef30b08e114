package chaos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"notifyd/internal/faults"
	"notifyd/internal/scenario"
)

// KillNode kills a node and starts it again.
func (r *Run) KillNode(n *Node) {
	r.tb.Helper()
	r.Hurt("kill -9 "+n.Name, 0, n.Kill, func() { r.restart(n) })
}

func (r *Run) restart(n *Node) {
	r.tb.Helper()
	if err := n.Start(r.tb); err != nil {
		r.tb.Fatal(err)
	}
}

// Point is a moment before or after one of the engine's writes, and what happens to it then.
type Point struct {
	Write string // one of faults.Writes
	When  string // before or after
	What  string // kill, fail or panic
	Nth   int    // time that it is reached
}

// String is the rule for the engine's environment.
func (p Point) String() string { return fmt.Sprintf("%s.%s=%s@%d", p.Write, p.When, p.What, p.Nth) }

// Points are all points at which something may happen to a write.
func Points(what string) (out []Point) {
	for _, write := range faults.Writes() {
		for _, when := range []string{"before", "after"} {
			out = append(out, Point{Write: write, When: when, What: what, Nth: 1})
		}
	}
	return out
}

// NeedsPostgresAway reports whether the write is made only while Postgres is away.
func (p Point) NeedsPostgresAway() bool {
	return p.Write == faults.Spill || p.Write == faults.Elsewhere || p.Write == faults.Journal
}

// NeedsNATSAway reports whether the write is made only while NATS is away, too.
func (p Point) NeedsNATSAway() bool { return p.Write == faults.Journal }

// NeedsEveryShard reports whether the write is made by whoever has the shard of a merchant that backs up.
func (p Point) NeedsEveryShard() bool { return p.Write == faults.Own || p.Write == faults.Unown }

// faultsVariable tells an engine that was built with the tag "faults" what to do.
const faultsVariable = "NOTIFYD_FAULTS"

// CrashAt kills a node, starts it such that it is hurt at a point, and waits until it was, at most for the patience given.
// The node is down afterwards: Recover, or another CrashAt, starts it. It reports whether the point was reached. The
// engine must be built with the tag "faults".
func (r *Run) CrashAt(n *Node, p Point, patience time.Duration) (reached bool) {
	r.tb.Helper()
	i := Incident{What: p.String(), From: time.Now(), Blind: p.NeedsPostgresAway()}
	n.Kill()
	back := r.alone(n, p)
	e := n.Launch(r.tb, nil, faultsVariable+"="+p.String())
	n.adopt(e)
	away := r.away(n, p)
	reached = r.until(patience, func() bool { return hit(e, p) })
	if reached && p.What != "kill" {
		r.Wait(500 * time.Millisecond) // what failed is made good, or is in hand when the node dies
	}
	n.Kill()
	e.Kill()
	away()
	back()
	i.To = time.Now()
	r.History.Hurt(i)
	r.tb.Logf("%-40s reached %t after %s", p, reached, i.To.Sub(i.From).Round(time.Millisecond))
	return reached
}

// alone stops the other nodes where the point is reached by one of all only.
func (r *Run) alone(n *Node, p Point) (back func()) {
	r.tb.Helper()
	if !p.NeedsEveryShard() {
		return func() {}
	}
	var stopped []*Node
	for _, other := range r.Nodes {
		if other != n && other.Engine() != nil {
			other.Stop(r.tb)
			stopped = append(stopped, other)
		}
	}
	return func() {
		for _, other := range stopped {
			r.restart(other)
		}
	}
}

// away takes away from the node what must be away for the point to be reached.
func (r *Run) away(n *Node, p Point) (back func()) {
	back = func() {}
	if n.Postgres == nil {
		return back
	}
	if p.NeedsPostgresAway() {
		n.Postgres.Refuse(r.tb)
	}
	if p.NeedsNATSAway() {
		for _, l := range n.NATS {
			l.Refuse(r.tb)
		}
	}
	return func() {
		n.Postgres.Pass(r.tb)
		for _, l := range n.NATS {
			l.Pass(r.tb)
		}
	}
}

// adopt has callers find the node as soon as it takes calls.
func (n *Node) adopt(e *scenario.Engine) {
	if e.Ready() != nil {
		return // it met its fault before it was ready
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.engine = e
}

// hit reports whether the engine has met its fault.
func hit(e *scenario.Engine, p Point) bool {
	if p.What == "kill" {
		select {
		case <-e.Exited():
			return true
		default:
			return false
		}
	}
	return strings.Contains(e.Output(), "fault injected at "+p.Write+"."+p.When)
}

// Recover starts a node that is down, waits until it is back to normal and returns how long that took.
func (r *Run) Recover(n *Node) time.Duration {
	r.tb.Helper()
	if n.Engine() == nil {
		r.restart(n)
	}
	took := r.Normal(r.cfg.Bound)
	r.History.Back(took)
	return took
}

// KillAtRandom kills a random node after a random time under load, n times.
func (r *Run) KillAtRandom(n int, longest time.Duration) {
	r.tb.Helper()
	for range n {
		r.Wait(time.Duration(r.Random.Int64N(int64(longest))))
		r.KillNode(r.Nodes[r.Random.IntN(len(r.Nodes))])
	}
}

// Fault is a way to hurt the engine or what it stands on.
type Fault struct {
	Name string
	// Hurt does it, and returns what makes it good.
	Hurt func(tb testing.TB, r *Run) (heal func())
}

// Do hurts the run by a fault for a while.
func (r *Run) Do(f Fault, d time.Duration) {
	r.tb.Helper()
	var heal func()
	r.Hurt(f.Name, d, func() { heal = f.Hurt(r.tb, r) }, func() { heal() })
}
