package main_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

var races = flag.Int("races", 0, "a long form: ids that everything happens to at once, on two nodes")

// P12 with real processes: submitted twice, canceled, resent and answered late at once, through two nodes. Whatever comes
// of it, attempts on record are the requests, and delivered is never left. The engine's own races, at a finer grain and
// with the sweep, are dispatcher's TestRacesOnOneID.
func TestRacesOnOneIDOverTwoNodes(t *testing.T) {
	t.Parallel()
	if *races == 0 {
		t.Skip("a long form: -races 40")
	}
	p := newPair(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p.shop.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		switch n := int(seen.Body[len(seen.Body)-3]); {
		case n%4 == 0 && seen.Attempt == "1":
			w.WriteHeader(http.StatusServiceUnavailable)
		case n%4 == 1:
			after(p.ctx, 1600*time.Millisecond) // the time is up, the grace is not
		default:
			after(p.ctx, time.Duration(n)*time.Millisecond)
		}
	})
	delivered := make([]bool, *races) // was seen as such
	ids := make([]string, *races)
	var all sync.WaitGroup
	slots := make(chan struct{}, 20)
	for i := range ids {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			ids[i], delivered[i] = p.race(i, rand.New(rand.NewPCG(seed, uint64(i))))
		})
	}
	all.Wait()
	p.settled()
	for i, id := range ids {
		p.raced(id, delivered[i])
	}
}

// race does everything to one id at once, and reports whether it was seen as delivered meanwhile.
func (p *pair) race(i int, random *rand.Rand) (id string, delivered bool) {
	n := draft([]string{"by-stream", "by-ledger"}[i%2], []string{"payout", "scan"}[random.IntN(2)], fmt.Sprintf("race-%d", i))
	n.Payload = fmt.Sprintf(`{"race":%d,"way":"%c"}`, i, 'a'+rune(random.IntN(20)))
	first := p.submit(random.IntN(2), n)
	id = first.Id
	var mu sync.Mutex
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			after(p.ctx, time.Duration(draw(1500))*time.Millisecond)
			to := p.Nodes[draw(2)].Engine().Notifications
			switch draw(4) {
			case 0:
				_, _ = to.CancelNotifications(p.ctx, connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{id}, Operator: "races"}))
			case 1:
				_, _ = to.ResendNotifications(p.ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{id}, Operator: "races"}))
			case 2:
				_, _ = p.try(draw(2), n)
			default:
				got, err := to.GetNotification(p.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
				if err == nil && got.Msg.Notification.State == notifydv1.State_STATE_DELIVERED {
					mu.Lock()
					delivered = true
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	return id, delivered
}

// raced checks what became of an id.
func (p *pair) raced(id string, delivered bool) {
	p.t.Helper()
	res, err := p.Nodes[0].Engine().Notifications.GetNotification(p.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
	if err != nil {
		p.t.Fatalf("get %s: %v", id, err)
	}
	state := res.Msg.Notification.State
	if delivered && state != notifydv1.State_STATE_DELIVERED {
		p.t.Errorf("%s was delivered, and ended as %s", id, state)
	}
	var rows, requests []int
	for _, a := range res.Msg.Attempts {
		rows = append(rows, int(a.Number))
	}
	for _, seen := range p.shop.Seen() {
		if seen.ID == id {
			number, _ := strconv.Atoi(seen.Attempt)
			requests = append(requests, number)
		}
	}
	slices.Sort(rows)
	slices.Sort(requests)
	if !slices.Equal(rows, requests) {
		p.t.Errorf("%s, %s: attempts on record %v, requests %v: %v", id, state, rows, requests, res.Msg.Attempts)
	}
}
