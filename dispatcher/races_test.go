package dispatcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/bubble"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/router"
)

const raceRounds = 1000

// P12: whatever happens to one id at once, on two nodes: each attempt on record is a request, each state that is final is
// left by a resend only, and delivered is never left.
func TestRacesOnOneID(t *testing.T) {
	for seed := range uint64(raceRounds) {
		bubble.Test(t, func(t *testing.T) {
			r := newRace(t, seed)
			r.run()
			r.check()
			if t.Failed() {
				t.Fatalf("seed %d:\n%s", seed, r.story())
			}
		})
	}
}

// race is one round: a notification on two nodes that share a ledger and queues.
type race struct {
	t      *testing.T
	memory *ledger.Memory
	nodes  [2]*Dispatcher
	busy   sync.WaitGroup

	mu        sync.Mutex
	random    *rand.Rand
	first     *notification.Notification
	failures  int  // before the merchant acknowledges
	late      bool // it acknowledges after the time is up
	requests  []raceRequest
	states    []notification.State // that the ledger was seen in, in order, without repetitions
	settled   int                  // that the observers were told of
	canceled  int
	resent    int
	rescued   int
	events    []string
	beginning time.Time
}

type raceRequest struct {
	number       int
	generation   int64
	trigger      notification.Trigger
	began        time.Time
	acknowledged bool
}

func newRace(t *testing.T, seed uint64) *race {
	t.Helper()
	r := &race{t: t, random: rand.New(rand.NewPCG(seed, 12)), memory: ledger.NewMemory(ledger.Config{Now: clock}), beginning: clock()}
	r.failures, r.late = r.draw(3), r.draw(3) == 0
	routes, err := router.New(router.Config{}, router.Known{})
	if err != nil {
		t.Fatal(err)
	}
	merchants := merchant.NewRegistry()
	merchants.Learn(&merchant.Merchant{ID: "m", Version: 1, NotifyURL: "https://m.test/notify"})
	for i := range r.nodes {
		r.nodes[i], err = New(DefaultConfig(), Parts{
			Run: fmt.Sprintf("run-%d", i), Ledger: raceLedger{r.memory, r}, Store: r.memory, Merchants: merchants, Router: routes, Sender: r, URLs: anyURL{},
			Delay: r, Hand: hand.NewTable(), Places: fakePlaces{}, Observer: r, Log: zap.NewNop(), Now: clock,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	n := &notification.Notification{
		Source: "pay", RequestID: "one", MerchantID: "m", Scene: "payout", OrderID: "one", NotifyURL: "https://m.test/notify", Body: []byte(`{"a":1}`),
		AcceptedAt: clock(), Origin: "submit",
		Progress: notification.Progress{State: notification.StateAccepted, Reason: notification.ReasonQueued, Generation: 1, UpdatedAt: clock()},
	}
	n.ID, n.Digest = n.DeriveID(), n.ContentDigest()
	n.Route = routes.Route(n, merchants.Get("m"), clock())
	r.first = n
	if _, err := r.memory.Reserve(t.Context(), []ledger.Reservation{{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *race) draw(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.random.IntN(n)
}

// pause is a random time, so that everything meets everything.
func (r *race) pause(longest time.Duration) { pass(time.Duration(r.draw(int(longest)))) }

func (r *race) tell(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%8s ", clock().Sub(r.beginning).Round(100*time.Microsecond))+fmt.Sprintf(format, args...))
}

// run hands out copies and changes at random, until all has come to rest.
func (r *race) run() {
	if first := (notification.Work{Notification: r.first, Trigger: notification.TriggerAuto}); r.draw(3) == 0 {
		r.busy.Go(func() { // straight from its shard: no other copy exists
			r.pause(20 * time.Millisecond)
			r.bring(first)
		})
	} else {
		first.Claim = true
		for range 1 + r.draw(3) {
			r.put(first, time.Time{})
		}
	}
	for range r.draw(3) {
		r.someTime(func(d *Dispatcher) error {
			_, err := d.cancel(r.t.Context(), r.first.ID, "ops")
			if err == nil {
				r.count(&r.canceled)
			}
			r.tell("cancel: %v", err)
			return err
		})
	}
	for range r.draw(3) {
		r.someTime(func(d *Dispatcher) error {
			_, err := d.resend(r.t.Context(), r.first.ID, "ops")
			if err == nil {
				r.count(&r.resent)
			}
			r.tell("resend: %v", err)
			return err
		})
	}
	for range r.draw(3) {
		r.someTime(func(*Dispatcher) error { return r.rescue(clock()) })
	}
	r.busy.Wait()
	for range 10 { // what the queues have lost is found overdue in the end
		pass(10 * time.Minute)
		if err := r.rescue(clock()); err != nil {
			r.t.Fatal(err)
		}
		r.busy.Wait()
	}
	r.memory.Close()
	synctest.Wait()
}

func (r *race) count(n *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}

// someTime changes something by one of the nodes, until it is not refused because of an attempt in flight.
func (r *race) someTime(change func(d *Dispatcher) error) {
	r.busy.Go(func() {
		for range 1 + r.draw(5) {
			r.pause(40 * time.Millisecond)
			if change(r.nodes[r.draw(2)]) == nil {
				return
			}
		}
	})
}

// rescue is the sweep's.
func (r *race) rescue(overdueBefore time.Time) error {
	found, err := r.memory.Rescue(r.t.Context(), overdueBefore, clock(), 10)
	for _, n := range found {
		r.count(&r.rescued)
		r.tell("rescue: generation %d", n.Generation)
		r.put(notification.Work{Notification: n, Trigger: notification.TriggerAuto}, time.Time{})
	}
	return err
}

// put hands a copy out when it is due, and sometimes another one: the queues deliver at least once.
func (r *race) put(w notification.Work, at time.Time) {
	n := *w.Notification
	w.Claim = true
	for copies := 1 + r.draw(5)/4; copies > 0; copies-- {
		own := n
		w.Notification = &own
		work := w
		r.busy.Go(func() {
			pass(time.Until(at))
			r.pause(20 * time.Millisecond)
			r.bring(work)
		})
	}
}

// bring takes a copy in hand as a lane does, until it is settled.
func (r *race) bring(w notification.Work) {
	for range 10_000 {
		d := r.nodes[r.draw(2)]
		settled := make(chan error, 1)
		item, ok := d.hand.Enter(w, clock(), func(err error) { settled <- err })
		if !ok {
			r.pause(5 * time.Millisecond)
			continue
		}
		r.pause(5 * time.Millisecond) // its turn has not come
		work, ok := item.Send()
		if !ok {
			<-settled
			return
		}
		v := d.Deliver(r.t.Context(), work, nil, func(err error) { d.hand.Leave(item, err) })
		if !v.Deferred {
			item.Sent(v.After, v.Attempts)
			if <-settled == nil {
				return
			}
			continue
		}
		d.hand.Leave(item, nil)
		r.pause(100 * time.Millisecond)
	}
	r.tell("a copy of generation %d, attempt %d never ends", w.Generation, w.Attempts)
	r.t.Error("a copy never ends")
}

// Send is the merchant.
func (r *race) Send(_ context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	request := raceRequest{number: w.Attempts + 1, generation: w.Generation, trigger: w.Trigger, began: clock()}
	r.pause(10 * time.Millisecond)
	r.mu.Lock()
	request.acknowledged = len(r.requests) >= r.failures
	late := request.acknowledged && r.late
	r.requests = append(r.requests, request)
	r.mu.Unlock()
	a := failed(notification.ReasonHTTPServerError)
	if late {
		pass(12 * time.Second)
	}
	if request.acknowledged {
		a = acknowledged()
	}
	if late {
		a.Reason, a.LateAt = notification.ReasonLateAcknowledgement, clock()
	}
	a.Key, a.Number, a.Generation, a.Kind = newKey(), w.Attempts+1, w.Generation, notification.KindSend
	a.Trigger, a.Operator, a.SettingsVersion, a.StartedAt = w.Trigger, w.Operator, m.Version, request.began
	r.tell("request %d of generation %d, trigger %d: acknowledged %t, late %t", a.Number, a.Generation, a.Trigger, request.acknowledged, late)
	return a
}

// The delay window of both nodes.

func (r *race) Within(at, now time.Time) bool { return at.Sub(now) <= 10*time.Minute }

func (r *race) Latest(at, now time.Time) time.Time {
	if end := now.Add(10 * time.Minute); at.After(end) {
		return end
	}
	return at
}

func (r *race) DelayThen(w notification.Work, delayed func(error)) {
	r.put(w, w.NextAt)
	delayed(nil)
}

func (r *race) Now(_ context.Context, w notification.Work) error {
	r.put(w, time.Time{}) //nolint:contextcheck // it outlives its caller
	return nil
}

// Cancel comes too late every time.
func (r *race) Cancel(context.Context, notification.Work) error { return nil }

// The observer of both nodes.

func (r *race) Answered(Answer)                                              {}
func (r *race) Attempted(*notification.Notification, *notification.Attempt)  {}
func (r *race) Deferred(_ *notification.Notification, _ notification.Reason) {}
func (r *race) BreakerOpened(string)                                         {}
func (r *race) Settled(*notification.Notification)                           { r.count(&r.settled) }

// raceLedger takes a random time for everything, and notes what became of it.
type raceLedger struct {
	*ledger.Memory
	r *race
}

func (l raceLedger) look(ctx context.Context) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	rows, err := l.FindMany(context.WithoutCancel(ctx), []notification.ID{l.r.first.ID})
	if row := rows[l.r.first.ID]; err == nil && row != nil && (len(l.r.states) == 0 || l.r.states[len(l.r.states)-1] != row.State) {
		l.r.states = append(l.r.states, row.State)
	}
}

func (l raceLedger) around(ctx context.Context, do func()) {
	l.r.pause(3 * time.Millisecond)
	do()
	l.look(ctx)
	l.r.pause(3 * time.Millisecond)
}

func (l raceLedger) Claim(ctx context.Context, c ledger.Claim) (v ledger.ClaimVerdict, until time.Time, err error) {
	l.around(ctx, func() { v, until, err = l.Memory.Claim(ctx, c) })
	return v, until, err
}

func (l raceLedger) Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (n *notification.Notification, err error) {
	l.around(ctx, func() { n, err = l.Memory.Cancel(ctx, id, operator, now) })
	return n, err
}

func (l raceLedger) Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (n *notification.Notification, err error) {
	l.around(ctx, func() { n, err = l.Memory.Resend(ctx, id, operator, now) })
	return n, err
}

func (l raceLedger) Record(ctx context.Context, r ledger.Record, recorded func(error)) {
	copied := *r.Notification
	r.Notification = &copied
	l.r.busy.Go(func() {
		l.r.pause(3 * time.Millisecond)
		l.Memory.Record(context.WithoutCancel(ctx), r, func(err error) {
			l.look(ctx)
			recorded(err)
		})
	})
}

// check holds what was seen to P2 and P12.
func (r *race) check() {
	row, attempts, err := r.memory.Find(r.t.Context(), r.first.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	if !row.State.Final() {
		r.t.Errorf("in the end it is %s", row.State)
	}
	r.attempts(attempts)
	r.transitions(row)
	resent := 0
	for i, q := range r.requests {
		if q.trigger == notification.TriggerResend {
			resent++
		} else if before := slices.IndexFunc(r.requests, func(q raceRequest) bool { return q.acknowledged }); before >= 0 && before < i {
			r.t.Errorf("request %d repeats one that was acknowledged", q.number)
		}
	}
	if resent > r.resent {
		r.t.Errorf("%d requests of resends, %d were granted", resent, r.resent)
	}
}

// attempts on record are the requests.
func (r *race) attempts(rows []notification.Attempt) {
	if len(rows) != len(r.requests) {
		r.t.Errorf("%d requests, %d attempts on record", len(r.requests), len(rows))
	}
	numbers := map[int]int{}
	for _, q := range r.requests {
		numbers[q.number]++
	}
	for _, a := range rows {
		if numbers[a.Number] != 1 {
			r.t.Errorf("attempt %d on record, %d requests have its number", a.Number, numbers[a.Number])
		}
	}
}

// transitions: into a final state once, and once more for each resend that left one.
func (r *race) transitions(row *notification.Notification) {
	ended, reopened := 0, 0
	for i, state := range r.states {
		if i > 0 && r.states[i-1].Final() {
			reopened++
		}
		if i > 0 && r.states[i-1] == notification.StateDelivered {
			r.t.Errorf("delivered became %s", state)
		}
		if state.Final() {
			ended++
		}
	}
	if reopened > r.resent || ended != 1+reopened {
		r.t.Errorf("states %v: ended %d times, left %d final ones, resent %d times", r.states, ended, reopened, r.resent)
	}
	if slices.ContainsFunc(r.requests, func(q raceRequest) bool { return q.acknowledged }) && row.State != notification.StateDelivered {
		r.t.Errorf("acknowledged, and in the end %s", row.State)
	}
	if r.settled != ended {
		r.t.Errorf("ended %d times, observers were told of %d", ended, r.settled)
	}
}

func (r *race) story() string {
	return fmt.Sprintf("states %v, settled %d, canceled %d, resent %d, rescued %d\n    %s", r.states, r.settled, r.canceled, r.resent, r.rescued, strings.Join(r.events, "\n    "))
}
