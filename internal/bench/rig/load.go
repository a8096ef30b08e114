package rig

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// LoadConfig says where a load goes: calls take turns over the intakes.
type LoadConfig struct {
	Intakes []string
	// Client submits through the Go client, as a payment service does, where a call has one notification.
	Client bool
}

// Target is a class of merchants, class-0 to class-(Count-1), and its share of the load.
type Target struct {
	Class  string
	Count  int
	Share  float64 // of the sum of all shares
	Scenes int     // 0: the order's scene; else one of channel-0 to channel-(Scenes-1)
	Marked bool
}

// LoadOrder is one turn: N notifications in a closed loop, or Phases of an open one.
type LoadOrder struct {
	Source  string // also the name of its orders: unique in a run
	Scene   string
	Size    int // of a payload
	Batch   int // notifications in one SubmitBatch; 1: Submit
	Callers int
	N       int
	Phases  []Phase
	Targets []Target
	// Patient calls that are told to come again do so. Without it that is counted as refused in an open loop, and an error
	// in a closed one.
	Patient bool
}

// LoadAnswer is what a load saw.
type LoadAnswer struct {
	Paced
	Accepted map[string]int // by class
	Refused  map[string]int
}

// Load submits.
type Load struct{ *Process }

// StartLoad starts a load.
func StartLoad(ctx context.Context, cfg LoadConfig) (*Load, error) {
	p, err := child(ctx, "load", cfg)
	return &Load{Process: p}, err
}

// Order does one turn.
func (l *Load) Order(o LoadOrder) (a LoadAnswer, err error) { return a, l.Ask(o, &a) }

func runLoad(cfg LoadConfig) error {
	httpClient := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}
	var clients []notifydv1connect.NotificationServiceClient
	for _, url := range cfg.Intakes {
		clients = append(clients, notifydv1connect.NewNotificationServiceClient(httpClient, url))
	}
	var sdks []*client.Client
	if cfg.Client {
		for _, url := range cfg.Intakes {
			sdk, err := client.New(url)
			if err != nil {
				return err
			}
			sdks = append(sdks, sdk)
		}
	}
	return serve(func(o LoadOrder) (LoadAnswer, error) {
		l := &loader{LoadOrder: o, clients: clients, sdks: sdks, accepted: map[string]int{}, refused: map[string]int{}}
		for _, t := range o.Targets {
			l.shares += t.Share
		}
		var p Paced
		var err error
		if o.Phases != nil {
			p, err = openLoop(o.Batch, o.Callers, o.Phases, l.call)
		} else {
			p, err = closedLoop((o.N+o.Batch-1)/o.Batch, o.Callers, l.call)
		}
		return LoadAnswer{Paced: p, Accepted: l.accepted, Refused: l.refused}, err
	})
}

// patience is how long a patient call goes on asking: an engine that ended has no room either.
const patience = time.Minute

// loader does one turn.
type loader struct {
	LoadOrder
	clients []notifydv1connect.NotificationServiceClient
	sdks    []*client.Client // nil: calls are made by hand
	shares  float64

	mu                sync.Mutex
	accepted, refused map[string]int
}

// call submits the notifications of one slot.
func (l *loader) call(s Slot) error {
	from := s.Number * l.Batch
	to := from + l.Batch
	if l.Phases == nil {
		to = min(to, l.N)
	}
	wanted, classes := make([]*notifydv1.Notification, to-from), make([]string, to-from)
	for i := range wanted {
		wanted[i], classes[i] = l.draft(from+i, s.At)
	}
	at := s.Number % len(l.clients)
	if l.sdks != nil && len(wanted) == 1 {
		_, err := l.sdks[at].Submit(context.Background(), wanted[0])
		if err == nil {
			l.count(l.accepted, classes, []int{0})
		}
		return err
	}
	rpc := l.clients[at]
	for began := time.Now(); ; {
		again, err := l.submit(rpc, wanted, classes)
		if err != nil || len(again) == 0 {
			return err
		}
		if !l.Patient && l.Phases == nil {
			return fmt.Errorf("refused: %d of %d", len(again), len(wanted))
		}
		if !l.Patient {
			l.count(l.refused, classes, again)
			return nil
		}
		if time.Since(began) > patience {
			return fmt.Errorf("no room for %d notifications in %s", len(again), patience)
		}
		time.Sleep(50 * time.Millisecond)
		some, theirs := make([]*notifydv1.Notification, len(again)), make([]string, len(again))
		for i, n := range again {
			some[i], theirs[i] = wanted[n], classes[n]
		}
		wanted, classes = some, theirs
	}
}

// submit makes one call. It returns the places of those for which there was no room.
func (l *loader) submit(rpc notifydv1connect.NotificationServiceClient, wanted []*notifydv1.Notification, classes []string) (again []int, err error) {
	var in []int
	if len(wanted) == 1 {
		_, err := rpc.Submit(context.Background(), connect.NewRequest(&notifydv1.SubmitRequest{Notification: wanted[0]}))
		switch {
		case err == nil:
			in = []int{0}
		case noRoom(connect.CodeOf(err).String()):
			again = []int{0}
		default:
			return nil, err
		}
	} else {
		res, err := rpc.SubmitBatch(context.Background(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: wanted}))
		if err != nil && !noRoom(connect.CodeOf(err).String()) {
			return nil, err
		}
		for i := range wanted {
			var refused *notifydv1.ItemError
			if err == nil {
				refused = res.Msg.Results[i].GetError()
			}
			switch {
			case err != nil || (refused != nil && noRoom(refused.Code)):
				again = append(again, i)
			case refused != nil:
				return nil, errors.New("refused: " + refused.Code + " " + refused.Message)
			default:
				in = append(in, i)
			}
		}
	}
	l.count(l.accepted, classes, in)
	return again, nil
}

func noRoom(code string) bool {
	return code == connect.CodeResourceExhausted.String() || code == connect.CodeUnavailable.String()
}

func (l *loader) count(to map[string]int, classes []string, places []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range places {
		to[classes[i]]++
	}
}

// target is whom notification i is for: the same one in every run with the same targets.
func (l *loader) target(i int) (Target, int) {
	if len(l.Targets) == 1 {
		return l.Targets[0], i % l.Targets[0].Count
	}
	dice := rand.New(rand.NewPCG(uint64(i), 7))
	at := dice.Float64() * l.shares
	for _, t := range l.Targets {
		if at -= t.Share; at < 0 {
			return t, dice.IntN(t.Count)
		}
	}
	return l.Targets[0], dice.IntN(l.Targets[0].Count) // the shares' sum was rounded
}

func (l *loader) draft(i int, at time.Time) (n *notifydv1.Notification, class string) {
	t, merchant := l.target(i)
	scene := l.Scene
	if t.Scenes > 0 {
		scene = "channel-" + strconv.Itoa(i%t.Scenes)
	}
	order := l.Source + "-" + strconv.Itoa(i)
	return &notifydv1.Notification{
		Source: l.Source, RequestId: strconv.Itoa(i), MerchantId: MerchantID(t.Class, merchant), Scene: scene, EventType: "payment.succeeded",
		OrderId: order, OrderStatus: "SUCCESS", Terminal: true, Payload: string(payload(l.Size, order, at, t.Marked)),
		Amount: &notifydv1.Amount{Currency: "CNY", MinorUnits: int64(i)},
	}, t.Class
}

// MerchantID is the name of a class' merchant.
func MerchantID(class string, i int) string { return class + "-" + strconv.Itoa(i) }
