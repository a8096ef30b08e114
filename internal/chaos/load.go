package chaos

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

const (
	source = "pay-core"
	// answerBound is how long a caller waits for an answer before it takes it that there will be none.
	answerBound = 5 * time.Second
	// mostOwed is how many submissions without an answer a caller has before it submits nothing new.
	mostOwed  = 40
	batchSize = 20
	lines     = 50 // ordering keys, which one notification in ten has
	callers   = 4
	mostShare = 20 // of the load, that a script has
)

// nodes are where a caller may call. Which of them live is for the caller to find out.
type nodes interface {
	// Any picks a node; nil: none runs.
	Any(random *rand.Rand) notifydv1connect.NotificationServiceClient
}

// load submits, looks, resends and submits again as real callers do, until it is told to end.
type load struct {
	history *History
	nodes   nodes
	seed    uint64
	rate    int // notifications per second, of all callers
	workers [callers]*caller
}

func newLoad(history *History, to nodes, seed uint64, rate int) *load {
	l := &load{history: history, nodes: to, seed: seed, rate: rate}
	for i := range l.workers {
		l.workers[i] = &caller{load: l, number: i, random: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	return l
}

// run submits until the context ends.
func (l *load) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, c := range l.workers {
		wg.Go(func() { c.run(ctx) })
	}
	wg.Wait()
}

// finish submits what has no answer until it has one, or the context ends. It returns how many have none.
func (l *load) finish(ctx context.Context) (unanswered int) {
	for _, c := range l.workers {
		for len(c.owed) > 0 && ctx.Err() == nil {
			c.submitOwed(ctx)
		}
		unanswered += len(c.owed)
	}
	return unanswered
}

// caller is one thread of a payment service.
type caller struct {
	*load
	number   int
	random   *rand.Rand
	serial   int
	owed     [][]*notifydv1.Notification // calls that had no answer: they are made again, with the same content
	answered []*notifydv1.Notification   // accepted, to be submitted again, looked at and resent
}

func (c *caller) run(ctx context.Context) {
	for ctx.Err() == nil {
		n := c.act(ctx)
		wait(ctx, time.Duration(n*callers)*time.Second/time.Duration(c.rate))
	}
}

// act does one thing at random, and returns how many notifications it was about.
func (c *caller) act(ctx context.Context) int {
	if len(c.owed) > 0 && (c.random.IntN(2) == 0 || len(c.owed) > mostOwed) {
		c.submitOwed(ctx)
		return 1
	}
	switch dice := c.random.IntN(100); {
	case dice < 40:
		c.submit(ctx, []*notifydv1.Notification{c.draft(true)})
	case dice < 70:
		c.submit(ctx, []*notifydv1.Notification{c.draft(false)})
	case dice < 80:
		batch := make([]*notifydv1.Notification, batchSize)
		flooded := []string{paced, narrow, "", "", "", ""}[c.random.IntN(6)]
		for i := range batch {
			if flooded != "" {
				batch[i] = c.draftFor(flooded, "payout")
			} else {
				batch[i] = c.draft(false)
			}
		}
		c.submit(ctx, batch)
		return batchSize
	case len(c.answered) == 0:
	case dice < 86:
		c.submitAgain(ctx)
	case dice < 90:
		c.submitOther(ctx)
	case dice < 94:
		c.resend(ctx)
	default:
		c.look(ctx)
	}
	return 1
}

// draft is a new notification for a merchant that is drawn by its share of the load.
func (c *caller) draft(waits bool) *notifydv1.Notification {
	all := scripts()
	var to script
	for to.id == "" {
		s := all[c.random.IntN(len(all))]
		if (!waits || s.sync) && c.random.IntN(mostShare) < s.share {
			to = s
		}
	}
	scene := []string{"payout", "recharge", "withhold"}[c.random.IntN(3)]
	if waits {
		scene = []string{"scan", "netbank"}[c.random.IntN(2)]
	}
	return c.draftFor(to.id, scene)
}

func (c *caller) draftFor(merchant, scene string) *notifydv1.Notification {
	c.serial++
	request := fmt.Sprintf("%d-%d-%d", c.seed, c.number, c.serial)
	n := &notifydv1.Notification{
		Source: source, RequestId: request, MerchantId: merchant, Scene: scene, EventType: "payment.succeeded",
		OrderId: "order-" + request, OrderStatus: "SUCCESS", Terminal: true,
		Payload: `{"order":"` + request + `", "amount":10.50,"big":12345678901234567890}`,
		Amount:  &notifydv1.Amount{Currency: "CNY", MinorUnits: 1050},
	}
	if c.random.IntN(10) == 0 {
		n.OrderingKey = fmt.Sprintf("line-%d", c.random.IntN(lines))
	}
	c.history.Submitting(idOf(n), n.MerchantId, sha256.Sum256([]byte(n.Payload)))
	return n
}

func idOf(n *notifydv1.Notification) string {
	return (&notification.Notification{Source: n.Source, RequestID: n.RequestId}).DeriveID().String()
}

func (c *caller) submitOwed(ctx context.Context) {
	first := c.owed[0]
	c.owed = c.owed[1:]
	if !c.submit(ctx, first) {
		wait(ctx, 50*time.Millisecond)
	}
}

// submit makes one call. What has no answer of acceptance is owed.
func (c *caller) submit(ctx context.Context, list []*notifydv1.Notification) (allAccepted bool) {
	// An answer is waited for also when the load ends: the caller would not know otherwise.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerBound)
	defer cancel()
	asked := time.Now()
	var owed []*notifydv1.Notification
	for i, r := range c.call(ctx, list) {
		switch {
		case r.GetResponse() != nil:
			c.history.Accepted(r.GetResponse(), asked)
			c.answered = append(c.answered, list[i])
		default:
			c.refused(list[i], r.GetError())
			owed = append(owed, list[i])
		}
	}
	if len(owed) > 0 {
		c.owed = append(c.owed, owed)
	}
	return len(owed) == 0
}

// call returns a result for each.
func (c *caller) call(ctx context.Context, list []*notifydv1.Notification) []*notifydv1.SubmitResult {
	to := c.nodes.Any(c.random)
	if to == nil {
		return failed(len(list), "no_node")
	}
	if len(list) > 1 {
		res, err := to.SubmitBatch(ctx, connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: list}))
		if err != nil {
			return failed(len(list), connect.CodeOf(err).String())
		}
		if len(res.Msg.Results) != len(list) {
			c.history.Broken("%d notifications are answered with %d results", len(list), len(res.Msg.Results))
			return failed(len(list), "wrong_number_of_results")
		}
		return res.Msg.Results
	}
	res, err := to.Submit(ctx, connect.NewRequest(&notifydv1.SubmitRequest{Notification: list[0]}))
	if err != nil {
		return failed(1, connect.CodeOf(err).String())
	}
	return []*notifydv1.SubmitResult{{Result: &notifydv1.SubmitResult_Response{Response: res.Msg}}}
}

func failed(n int, code string) []*notifydv1.SubmitResult {
	out := make([]*notifydv1.SubmitResult, n)
	for i := range out {
		out[i] = &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Error{Error: &notifydv1.ItemError{Code: code}}}
	}
	return out
}

// refused counts, and takes it for broken when it is a refusal that submitting again does not help against.
func (c *caller) refused(n *notifydv1.Notification, e *notifydv1.ItemError) {
	c.history.Refused(e.GetCode())
	switch e.GetCode() {
	case connect.CodeAlreadyExists.String(), connect.CodeInvalidArgument.String(), connect.CodeFailedPrecondition.String(), connect.CodeNotFound.String(), connect.CodePermissionDenied.String():
		c.history.Broken("%s: refused: %s %s", idOf(n), e.GetCode(), e.GetMessage())
	}
}

func (c *caller) old() *notifydv1.Notification { return c.answered[c.random.IntN(len(c.answered))] }

// submitAgain submits what was accepted: the first one's state is the answer.
func (c *caller) submitAgain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerBound)
	defer cancel()
	n, asked := c.old(), time.Now()
	switch r := c.call(ctx, []*notifydv1.Notification{n})[0]; {
	case r.GetResponse() == nil:
		c.history.AskedAgain(idOf(n), asked)
		c.refused(n, r.GetError())
	case !r.GetResponse().Duplicate:
		c.history.TakenForNew(idOf(n))
	default:
		c.history.Accepted(r.GetResponse(), asked)
	}
}

// submitOther submits other content under an id that was accepted.
func (c *caller) submitOther(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerBound)
	defer cancel()
	was, asked := c.old(), time.Now()
	other := &notifydv1.Notification{
		Source: was.Source, RequestId: was.RequestId, MerchantId: was.MerchantId, Scene: was.Scene, EventType: was.EventType,
		OrderId: was.OrderId, OrderStatus: was.OrderStatus, Terminal: true, Payload: `{"other":` + strconv.Itoa(c.random.IntN(1000)) + `}`, Amount: was.Amount,
	}
	if r := c.call(ctx, []*notifydv1.Notification{other})[0]; r.GetResponse() != nil {
		c.history.TakenForNew(idOf(was))
	} else {
		c.history.AskedAgain(idOf(was), asked)
	}
}

// resend asks for what may be final to be sent once more.
func (c *caller) resend(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerBound)
	defer cancel()
	to, id := c.nodes.Any(c.random), idOf(c.old())
	if to == nil {
		return
	}
	res, err := to.ResendNotifications(ctx, connect.NewRequest(&notifydv1.ResendNotificationsRequest{Ids: []string{id}, Operator: "chaos"}))
	if err == nil && res.Msg.Results[0].Error != nil {
		return
	}
	c.history.Resent(id) // without an answer it may have been granted
}

// look remembers the state that is shown.
func (c *caller) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerBound)
	defer cancel()
	to, id := c.nodes.Any(c.random), idOf(c.old())
	if to == nil {
		return
	}
	asked := time.Now()
	res, err := to.GetNotification(ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
	switch {
	case err == nil:
		c.history.Saw(id, res.Msg.Notification.State, asked)
	case connect.CodeOf(err) == connect.CodeNotFound:
		c.history.Broken("%s: was accepted, and is not found", id)
	}
}

// wait returns false when the context ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
