package main_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/chaos"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// pair is two nodes on one NATS and one Postgres, and a merchant that keeps what it was sent.
type pair struct {
	*chaos.World
	t    *testing.T
	ctx  context.Context // of the test
	shop *scenario.Merchant

	mu   sync.Mutex
	sent map[string]*notifydv1.Notification // every draft that was submitted, by id
}

// persists are the merchants of a pair, all of one shop: by how their notifications are kept.
var persists = map[string]notifydv1.Persist{
	"by-stream": notifydv1.Persist_PERSIST_STREAM, "by-ledger": notifydv1.Persist_PERSIST_LEDGER, "after": notifydv1.Persist_PERSIST_AFTER,
}

func newPair(t *testing.T) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	p := &pair{World: chaos.NewWorld(t, chaosConfig(t)), t: t, ctx: ctx, shop: scenario.NewMerchant(t), sent: map[string]*notifydv1.Notification{}}
	p.StartAll(t)
	for id, persist := range persists {
		m := &notifydv1.Merchant{Id: id, Name: id, NotifyUrl: p.shop.URL, Persist: persist}
		if _, err := p.Nodes[0].Engine().Merchants.PutMerchant(ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})); err != nil {
			t.Fatal(err)
		}
		scenario.Within(t, 30*time.Second, "the second node knows "+id, func() bool {
			_, err := p.Nodes[1].Engine().Notifications.Explain(ctx, connect.NewRequest(&notifydv1.ExplainRequest{Notification: draft(id, "payout", "known")}))
			return err == nil
		})
	}
	return p
}

// try submits through one of the nodes.
func (p *pair) try(node int, n *notifydv1.Notification) (*notifydv1.SubmitResponse, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	res, err := p.Nodes[node].Engine().Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[res.Msg.Id] = n
	return res.Msg, nil
}

func (p *pair) submit(node int, n *notifydv1.Notification) *notifydv1.SubmitResponse {
	p.t.Helper()
	res, err := p.try(node, n)
	if err != nil {
		p.t.Fatalf("submit %s to node %d: %v", n.RequestId, node, err)
	}
	return res
}

// again submits what was submitted before, until it is answered: the first one's acceptance is the answer.
func (p *pair) again(node int, n *notifydv1.Notification) *notifydv1.SubmitResponse {
	p.t.Helper()
	var res *notifydv1.SubmitResponse
	scenario.Within(p.t, 60*time.Second, n.RequestId+" is answered", func() (answered bool) {
		var err error
		res, err = p.try(node, n)
		return err == nil
	})
	return res
}

// refusesOther holds a node to its refusal of other content.
func (p *pair) refusesOther(node int, n *notifydv1.Notification) {
	p.t.Helper()
	other := draft(n.MerchantId, n.Scene, n.RequestId)
	other.Payload = `{"other":"content"}`
	if res, err := p.try(node, other); code(err) != connect.CodeAlreadyExists {
		p.t.Errorf("%s with other content, to node %d: %v, %v", n.RequestId, node, res, err)
	}
}

func (p *pair) told(id string) bool { return p.shop.Count()[id] > 0 }

func (p *pair) untilTold(ids ...string) {
	p.t.Helper()
	for _, id := range ids {
		scenario.Within(p.t, 60*time.Second, id+" is told", func() bool { return p.told(id) })
	}
}

// thinks is a merchant that does not answer before something has happened, or for as long as an attempt may take.
func (p *pair) thinks(until <-chan struct{}) {
	bound := time.NewTimer(time.Second)
	defer bound.Stop()
	select {
	case <-until:
	case <-bound.C:
	case <-p.ctx.Done():
	}
}

// untilRecorded waits until the ledger knows that an id was delivered, as another node than its sender sees it.
func (p *pair) untilRecorded(node int, id string) {
	p.t.Helper()
	scenario.Within(p.t, 60*time.Second, id+" is delivered", func() bool {
		res, err := p.Nodes[node].Engine().Notifications.GetNotification(p.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
		return err == nil && res.Msg.Notification.State == notifydv1.State_STATE_DELIVERED
	})
}

// settled waits until nothing is on its way any more, copies included.
func (p *pair) settled() {
	p.t.Helper()
	var last string
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Log(last)
		}
	})
	js := p.NATS[0].Connect(p.t)
	scenario.Within(p.t, 60*time.Second, "nothing is on its way", func() bool {
		waiting := map[string]uint64{}
		for info := range js.ListStreams(p.ctx).Info() {
			if name := info.Config.Name; !strings.HasPrefix(name, "KV_") && info.State.Msgs > 0 {
				waiting[name] = info.State.Msgs
			}
		}
		proof, err := p.prove()
		last = fmt.Sprintf("waiting %v, proof %v, %v", waiting, proof, err)
		return len(waiting) == 0 && err == nil && proof.Missing == 0 && len(proof.Waiting) == 0
	})
}

// once waits until all is settled, and checks that the merchant was asked once for each id.
func (p *pair) once() {
	p.t.Helper()
	p.settled()
	count := p.shop.Count()
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, n := range p.sent {
		if count[id] != 1 {
			p.t.Errorf("%s for %s, scene %s: sent %d times", n.RequestId, n.MerchantId, n.Scene, count[id])
		}
	}
}

func (p *pair) prove() (*notifydv1.ProveResponse, error) {
	return proveUntilNow(&world{Engine: p.Nodes[0].Engine(), t: p.t, ctx: p.ctx})
}

// ways are a merchant and a scene for every way through the engine.
func ways() map[string]func(request string) *notifydv1.Notification {
	out := map[string]func(string) *notifydv1.Notification{}
	for merchant := range persists {
		for _, scene := range []string{"payout", "scan"} {
			out[merchant+" "+scene] = func(request string) *notifydv1.Notification {
				return draft(merchant, scene, strings.Join([]string{request, merchant, scene}, "-"))
			}
		}
	}
	return out
}

// P3, P4: whatever is submitted twice is sent once, to whichever node and whatever happened in between.
func TestSubmittedTwiceIsSentOnce(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.aHundredAtOnce()
	p.backToBack()
	p.callerGivesUp()
	p.restarts()
	p.cutShort()
	p.once()
	p.outages()
	p.once()
}

// A hundred callers at once, through two nodes: one is told that its own was accepted.
func (p *pair) aHundredAtOnce() {
	p.t.Helper()
	for way, drafted := range ways() {
		var all sync.WaitGroup
		var answered atomic.Int32
		others := make(chan struct{}) // closed when all callers but one have their answer: the merchant thinks until then
		p.shop.Answer(func(http.ResponseWriter, scenario.Seen) { p.thinks(others) })
		results, errs := [100]*notifydv1.SubmitResponse{}, [100]error{}
		for i := range results {
			all.Go(func() {
				results[i], errs[i] = p.try(i%2, drafted("hundred"))
				if answered.Add(1) == 99 {
					close(others)
				}
			})
		}
		all.Wait()
		duplicates := 0
		for i, res := range results {
			if errs[i] != nil || res.Id != results[0].GetId() {
				p.t.Fatalf("%s: %v, %v; another caller was told %v", way, res, errs[i], results[0])
			}
			if res.Duplicate {
				duplicates++
			}
		}
		if duplicates != 99 {
			p.t.Errorf("%s: of a hundred callers %d were told that theirs was a duplicate, want 99", way, duplicates)
		}
		p.refusesOther(1, drafted("hundred"))
	}
	p.shop.Answer(func(http.ResponseWriter, scenario.Seen) {})
}

// To one node and at once to the other.
func (p *pair) backToBack() {
	p.t.Helper()
	for way, drafted := range ways() {
		for i := range 17 {
			n := drafted(fmt.Sprintf("pair-%d", i))
			first, second := p.submit(i%2, n), p.submit((i+1)%2, n)
			if first.Id != second.Id || first.Duplicate || !second.Duplicate {
				p.t.Errorf("%s: %v, then %v", way, first, second)
			}
		}
	}
}

// The caller gives up while the merchant thinks, and asks the other node.
func (p *pair) callerGivesUp() {
	p.t.Helper()
	for way, drafted := range ways() {
		n := drafted("gives-up")
		if n.Scene != "scan" {
			continue
		}
		ctx, cancel := context.WithCancel(p.ctx)
		again := make(chan struct{})
		p.shop.Answer(func(http.ResponseWriter, scenario.Seen) {
			cancel() // the merchant has the request
			p.thinks(again)
		})
		_, err := p.Nodes[0].Engine().Notifications.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: n}))
		if code(err) != connect.CodeCanceled {
			p.t.Fatalf("%s: %v", way, err)
		}
		if res := p.submit(1, n); !res.Duplicate {
			p.t.Errorf("%s: asked again while the merchant thinks: %v", way, res)
		}
		close(again)
		p.shop.Answer(func(http.ResponseWriter, scenario.Seen) {})
	}
}

// One node drains, the other is killed; what was told before is not told again.
func (p *pair) restarts() {
	p.t.Helper()
	p.once()
	p.Nodes[0].Stop(p.t)
	p.Nodes[1].Kill()
	p.StartAll(p.t)
	p.mu.Lock()
	var before []*notifydv1.Notification
	for _, n := range p.sent {
		before = append(before, n)
	}
	p.mu.Unlock()
	for i, n := range before {
		if res := p.submit(i%2, n); !res.Duplicate || res.State != notifydv1.State_STATE_DELIVERED {
			p.t.Errorf("%s after the restarts: %v", n.RequestId, res)
		}
		if i%10 == 0 {
			p.refusesOther(i%2, n)
		}
	}
}

// A node fails, or dies, at the publish that its reservation is for; the caller asks the other node.
func (p *pair) cutShort() {
	p.t.Helper()
	defer func() {
		p.Nodes[0].Kill()
		p.StartAll(p.t)
	}()
	for _, fault := range []string{"publish.before=fail", "publish.after=fail", "publish.before=kill", "publish.after=kill"} {
		for _, merchant := range []string{"by-stream", "by-ledger"} {
			n := draft(merchant, "payout", "cut-short-"+fault+"-"+merchant)
			p.Nodes[0].Kill()
			if err := p.Nodes[0].Start(p.t, "NOTIFYD_FAULTS="+fault); err != nil {
				p.t.Fatal(err)
			}
			res, err := p.try(0, n)
			p.t.Logf("%s for %s is answered %v, %v", fault, merchant, res.GetState(), err)
			p.untilRecorded(1, p.again(1, n).Id) // before the next kill: what that one interrupts may be repeated
			p.refusesOther(1, n)
		}
	}
}

// Postgres is killed, and NATS starts anew in between.
func (p *pair) outages() {
	p.t.Helper()
	before := draft("by-stream", "payout", "before-the-outage")
	p.submit(0, before)
	p.untilTold(p.submit(0, before).Id)
	p.Postgres.Kill(p.t)
	var during []*notifydv1.Notification
	for _, drafted := range ways() {
		n := drafted("during")
		during = append(during, n)
		first := p.again(0, n)
		if second := p.again(1, n); first.Id != second.Id || !second.Duplicate {
			p.t.Errorf("%s: %v, then %v", n.RequestId, first, second)
		}
	}
	check := func(when string) {
		p.t.Helper()
		for i, n := range during {
			if res := p.again(i%2, n); !res.Duplicate {
				p.t.Errorf("%s, %s: %v", n.RequestId, when, res)
			}
			p.refusesOther(0, n)
			p.refusesOther(1, n)
		}
		if res := p.again(0, before); !res.Duplicate {
			p.t.Errorf("%s, %s: %v", before.RequestId, when, res)
		}
		p.refusesOther(0, before)
	}
	check("while Postgres is away")
	p.NATS[0].Stop(p.t)
	p.NATS[0].Start(p.t)
	p.again(0, draft("by-stream", "payout", "nats-is-back-0"))
	p.again(1, draft("by-stream", "payout", "nats-is-back-1"))
	check("after NATS was away, too")
	p.Postgres.Start(p.t)
	check("while Postgres returns")
	p.once()
	check("when all is there again")
}
