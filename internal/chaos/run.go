package chaos

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Run is one run: a world under load.
type Run struct {
	*World
	History *History
	Seed    uint64
	Random  *rand.Rand // of what is hurt; for the test's goroutine

	tb        testing.TB
	cfg       Config
	load      *load
	endLoad   context.CancelFunc
	loaded    chan struct{} // closed when the load has ended
	probes    int
	watching  []jetstream.JetStream // through each NATS server; made when first needed
	restarted bool                  // a node was, while something was hurt
	// unanswered are probes that may have been taken: Finish goes on asking.
	unanswered [][]*notifydv1.Notification
}

// Begin starts a world and its load, which ends with Finish.
func Begin(tb testing.TB, cfg Config) *Run {
	tb.Helper()
	tb.Logf("seed %d", cfg.Seed)
	r := &Run{World: NewWorld(tb, cfg), History: NewHistory(), Seed: cfg.Seed, Random: rand.New(rand.NewPCG(cfg.Seed, 1<<32)), tb: tb, cfg: cfg, loaded: make(chan struct{})}
	settings := play(tb, r.History)
	r.StartAll(tb)
	ctx, cancel := bounded(tb, time.Minute)
	defer cancel()
	for _, m := range settings {
		if _, err := r.Nodes[0].Engine().Merchants.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})); err != nil {
			tb.Fatalf("put merchant %s: %v", m.Id, err)
		}
	}
	for _, n := range r.Nodes {
		for _, m := range settings {
			scenario.Within(tb, 30*time.Second, n.Name+" knows "+m.Id, func() bool { return knows(ctx, n, m.Id) })
		}
	}
	r.load = newLoad(r.History, r.World, cfg.Seed, cfg.Rate)
	loading, end := context.WithCancel(context.WithoutCancel(tb.Context()))
	r.endLoad = sync.OnceFunc(func() {
		end()
		<-r.loaded
	})
	tb.Cleanup(r.endLoad)
	go func() { // its end is awaited by endLoad
		defer close(r.loaded)
		r.load.run(loading)
	}()
	r.Normal(30 * time.Second)
	return r
}

// knows reports whether a node has heard of a merchant: it learns of it within a second.
func knows(ctx context.Context, n *Node, merchant string) bool {
	draft := &notifydv1.Notification{Source: source, RequestId: "known", MerchantId: merchant, Scene: "payout", Payload: `{}`}
	_, err := n.Engine().Notifications.Explain(ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: draft}))
	return err == nil
}

// Hurt hurts something for a while, heals it and waits until the engine is back to normal. What it hurts stays hurt for
// the time given, with load on it.
func (r *Run) Hurt(what string, d time.Duration, hurt func(), heal func()) {
	r.tb.Helper()
	i := Incident{What: what, From: time.Now(), Blind: r.blinds(what)}
	r.restarted = false
	hurt()
	r.Wait(d)
	heal()
	i.To = time.Now()
	i.Blind = i.Blind || r.restarted && takesPostgres(what) // it knows only what the two others know
	r.revive()
	i.Normal = r.Normal(r.cfg.Bound)
	r.tb.Logf("%-40s %6.1fs, normal after %s", what, i.To.Sub(i.From).Seconds(), i.Normal.Round(time.Millisecond))
	r.History.Hurt(i)
}

// blinds reports whether nodes cannot know during a fault what was accepted before it: by others, or by themselves before
// their start.
func (r *Run) blinds(what string) bool {
	return (len(r.Nodes) > 1 || strings.HasPrefix(what, "start:")) && takesPostgres(what)
}

func takesPostgres(what string) bool {
	return strings.Contains(what, "postgres") || strings.Contains(what, "both")
}

// Wait lets the load go on for a while.
func (r *Run) Wait(d time.Duration) { wait(context.WithoutCancel(r.tb.Context()), d) }

// revive starts again what has ended by itself, which no fault of something else may make a node do.
func (r *Run) revive() {
	r.tb.Helper()
	for _, n := range r.Nodes {
		e := n.Engine()
		if e != nil {
			select {
			case <-e.Exited():
				r.History.Broken("%s ended by itself: %s", n.Name, lastLines(e.Output()))
				n.Kill()
			default:
				continue
			}
		}
		if err := n.Start(r.tb); err != nil {
			r.tb.Fatal(err)
		}
	}
}

func lastLines(text string) string { return text[max(0, len(text)-600):] }

// Normal waits until a new notification that is submitted now reaches its merchant through each node, and returns how
// long that took.
func (r *Run) Normal(limit time.Duration) time.Duration {
	r.tb.Helper()
	began := time.Now()
	for _, n := range r.Nodes {
		if !r.probe(n, began.Add(limit)) {
			r.History.Broken("%s is not back to normal after %s", n.Name, limit)
		}
	}
	return time.Since(began)
}

// probe submits a notification of its own to a node until it is accepted, and waits until it is told.
func (r *Run) probe(n *Node, deadline time.Time) bool {
	r.tb.Helper()
	p := r.newProbe(scripts()[0].id)
	for time.Now().Before(deadline) {
		p.accepted = p.accepted || r.submitProbe(n, p.draft)
		if p.accepted && r.History.Acknowledged(p.id) {
			return true
		}
		r.Wait(20 * time.Millisecond)
	}
	r.giveUp(p)
	return false
}

// probe is one notification that is watched.
type probe struct {
	id       string
	draft    *notifydv1.Notification
	accepted bool
}

func (r *Run) newProbe(merchant string) *probe {
	r.probes++
	draft := &notifydv1.Notification{
		Source: source, RequestId: fmt.Sprintf("%d-probe-%d", r.Seed, r.probes), MerchantId: merchant, Scene: "payout", EventType: "payment.succeeded",
		OrderId: fmt.Sprintf("probe-%d", r.probes), OrderStatus: "SUCCESS", Terminal: true, Payload: fmt.Sprintf(`{"probe":%d}`, r.probes),
	}
	p := &probe{id: idOf(draft), draft: draft}
	r.History.Submitting(p.id, merchant, sha256.Sum256([]byte(draft.Payload)))
	return p
}

// giveUp leaves it to the end of the run to submit a probe that may have been taken.
func (r *Run) giveUp(p *probe) {
	if !p.accepted {
		r.unanswered = append(r.unanswered, []*notifydv1.Notification{p.draft})
	}
}

func (r *Run) submitProbe(n *Node, draft *notifydv1.Notification) bool {
	e := n.Engine()
	if e == nil {
		return false
	}
	ctx, cancel := bounded(r.tb, answerBound)
	defer cancel()
	asked := time.Now()
	res, err := e.Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: draft}))
	if err != nil {
		return false
	}
	r.History.Accepted(res.Msg, asked)
	return true
}

// Finish ends the load, waits until everything is settled, at most for the bound, and checks what came of it.
func (r *Run) Finish() Report {
	r.tb.Helper()
	r.endLoad()
	r.History.EndLoad()
	r.revive()
	ctx, cancel := bounded(r.tb, r.cfg.Bound)
	defer cancel()
	began := time.Now()
	r.load.workers[0].owed = append(r.load.workers[0].owed, r.unanswered...)
	if n := r.load.finish(ctx); n > 0 {
		r.History.Broken("%d calls have no answer %s after the load", n, r.cfg.Bound)
	}
	var found Findings
	told := began
	for {
		var err error
		if found.Proof, err = r.Prove(ctx); err == nil && found.Proof.Missing == 0 && len(found.Proof.Waiting) == 0 {
			found.Settled = time.Since(began)
			break
		}
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			r.tb.Logf("%s after the load wait %v, missing %d, %v", time.Since(began).Round(time.Second), found.Proof.GetWaiting(), found.Proof.GetMissing(), err)
		}
		if !wait(ctx, 200*time.Millisecond) {
			break
		}
	}
	found.Notifications = r.collect()
	if found.Settled == 0 { // what the last notification looks like may be newer than the last proof
		last, cancel := bounded(r.tb, time.Minute)
		defer cancel()
		found.Proof, _ = r.Prove(last)
	}
	return Check(r.History, found)
}

// Prove asks for the proof over everything that was accepted until now.
func (r *Run) Prove(ctx context.Context) (*notifydv1.ProveResponse, error) {
	to := r.Any(r.Random)
	if to == nil {
		return nil, errors.New("no node runs")
	}
	return prove(ctx, to)
}

func prove(ctx context.Context, to notifydv1connect.NotificationServiceClient) (*notifydv1.ProveResponse, error) {
	stream, err := to.Prove(ctx, connect.NewRequest(&notifydv1.ProveRequest{AcceptedBefore: timestamppb.Now()}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var last *notifydv1.ProveResponse
	var missing []string
	for stream.Receive() {
		last = stream.Msg()
		missing = append(missing, last.MissingIds...)
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if last == nil || !last.Done {
		return nil, errors.New("the proof ended early")
	}
	last.MissingIds = missing
	return last, nil
}

// recordBound is how long after everything is settled an attempt that a dead node made may be off the record: a claim lapses
// after 45 s.
const recordBound = 90 * time.Second

// collect asks for every notification that was submitted, again while a request that its merchant saw is not on record: a
// resend of a delivered one may still be in the hands of a node that died, and the proof does not wait for that.
func (r *Run) collect() map[string]*notifydv1.GetNotificationResponse {
	r.tb.Helper()
	ctx, cancel := bounded(r.tb, 5*time.Minute)
	defer cancel()
	patience, cancel := context.WithTimeout(ctx, recordBound)
	defer cancel()
	var mu sync.Mutex
	out := map[string]*notifydv1.GetNotificationResponse{}
	ids := r.History.IDs()
	var all sync.WaitGroup
	for part := range slices.Chunk(ids, len(ids)/callers+1) {
		to := r.Any(r.Random)
		all.Go(func() {
			for _, id := range part {
				res, err := r.recorded(ctx, patience, to, id)
				if connect.CodeOf(err) == connect.CodeNotFound {
					continue
				}
				if err != nil {
					r.History.Broken("%s: cannot be looked at: %v", id, err)
					continue
				}
				mu.Lock()
				out[id] = res.Msg
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}

// recorded is a notification when each request that its merchant saw is on record, or patience is over.
func (r *Run) recorded(ctx, patience context.Context, to notifydv1connect.NotificationServiceClient, id string) (*connect.Response[notifydv1.GetNotificationResponse], error) {
	for late := false; ; {
		res, err := to.GetNotification(ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
		if err != nil {
			return nil, err
		}
		missing := len(res.Msg.Attempts) < r.History.Highest(id)
		if !missing && !late || !wait(patience, time.Second) { // what was late is followed by another attempt at once
			return res, nil
		}
		late = missing
	}
}

// until looks again every few milliseconds.
func (r *Run) until(limit time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(limit); !holds(); r.Wait(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}
