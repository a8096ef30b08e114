package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/ledger"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/retry"
)

// Submit takes one notification.
func (d *Dispatcher) Submit(ctx context.Context, req *connect.Request[notifydv1.SubmitRequest]) (*connect.Response[notifydv1.SubmitResponse], error) {
	s := newSubmission(req.Msg.Notification, true)
	d.submit(ctx, []*submission{s})
	if s.err != nil {
		return nil, s.err
	}
	return connect.NewResponse(s.response()), nil
}

// SubmitBatch takes many; each has its own answer.
func (d *Dispatcher) SubmitBatch(ctx context.Context, req *connect.Request[notifydv1.SubmitBatchRequest]) (*connect.Response[notifydv1.SubmitBatchResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	subs := make([]*submission, len(req.Msg.Notifications))
	for i, p := range req.Msg.Notifications {
		subs[i] = newSubmission(p, req.Msg.AllowSync)
	}
	d.submit(ctx, subs)
	out := &notifydv1.SubmitBatchResponse{Results: make([]*notifydv1.SubmitResult, len(subs))}
	for i, s := range subs {
		out.Results[i] = s.result()
	}
	return connect.NewResponse(out), nil
}

func newSubmission(p *notifydv1.Notification, allowSync bool) *submission {
	if err := checkNotification(p); err != nil {
		return &submission{err: err}
	}
	return &submission{n: fromProto(p), allowSync: allowSync}
}

// result is the answer beside others: either of the two.
func (s *submission) result() *notifydv1.SubmitResult {
	if s.err != nil {
		return &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Error{Error: itemError(s.err)}}
	}
	return &notifydv1.SubmitResult{Result: &notifydv1.SubmitResult_Response{Response: s.response()}}
}

func (s *submission) response() *notifydv1.SubmitResponse {
	n := s.standing
	out := &notifydv1.SubmitResponse{
		Id: n.ID.String(), Lane: laneToProto(n.Route.Lane), State: stateToProto(n.State), StateReason: string(n.Reason),
		Duplicate: s.duplicate, Rule: n.Route.Rule,
	}
	if s.attempt != nil {
		out.Attempt = attemptToProto(s.attempt)
	}
	return out
}

// GetNotification finds by id, or by source with request_id.
func (d *Dispatcher) GetNotification(ctx context.Context, req *connect.Request[notifydv1.GetNotificationRequest]) (*connect.Response[notifydv1.GetNotificationResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	var id notification.ID
	switch {
	case req.Msg.Id != "" && (req.Msg.Source != "" || req.Msg.RequestId != ""):
		return nil, invalid("id", "is given together with source or request_id: give one way to find it")
	case req.Msg.Id != "":
		var err error
		if id, err = notification.ParseID(req.Msg.Id); err != nil {
			return nil, invalid("id", fmt.Sprintf("%q: %s", req.Msg.Id, err))
		}
	case req.Msg.Source != "" && req.Msg.RequestId != "":
		id = (&notification.Notification{Source: req.Msg.Source, RequestID: req.Msg.RequestId}).DeriveID()
	default:
		return nil, invalid("id", "is empty: give id, or source with request_id")
	}
	n, attempts, err := d.find(ctx, id)
	incomplete := errors.Is(err, ledger.ErrIncomplete)
	if err != nil && !incomplete {
		return nil, err
	}
	if !mayKnow(ctx, n) {
		return nil, notFound("notification", id.String())
	}
	out := &notifydv1.GetNotificationResponse{Notification: toProto(n), LedgerUnavailable: incomplete}
	for i := range attempts {
		out.Attempts = append(out.Attempts, attemptToProto(&attempts[i]))
	}
	switch {
	case seesAll(ctx):
	case req.Msg.RevealReason != "":
		d.log.Info("bodies are revealed", zap.Stringer("id", id), zap.String("to", CallerOf(ctx).String()), zap.String("why", req.Msg.RevealReason))
	default:
		out.Masked = maskNotification(out.Notification)
		for _, a := range out.Attempts {
			out.Masked = maskAttempt(a) || out.Masked
		}
	}
	return connect.NewResponse(out), nil
}

// find asks the ledger, and this process, which may be ahead of it. While the ledger does not answer there may be something
// to show nevertheless: it comes with ErrIncomplete.
func (d *Dispatcher) find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error) {
	held, inHand := d.hand.Find(id) // before the ledger: what leaves the hand is in the ledger by then
	n, attempts, err := d.ledger.Find(ctx, id)
	noRow := errors.Is(err, ledger.ErrReservedOnly) || errors.Is(err, ledger.ErrNotFound)
	var incomplete error
	if err != nil && !noRow {
		if n == nil && !inHand {
			return nil, nil, d.unavailable("ask the ledger", err)
		}
		incomplete = ledger.ErrIncomplete
	}
	switch {
	case inHand && (n == nil || noRow || n.UpdatedAt.Before(held.Notification.UpdatedAt)):
		recorded := len(attempts)
		for _, a := range held.Attempts {
			if !slices.ContainsFunc(attempts[:recorded], func(b notification.Attempt) bool { return a.Key == b.Key }) {
				attempts = append(attempts, a)
			}
		}
		return held.Notification, attempts, incomplete
	case errors.Is(err, ledger.ErrNotFound):
		return nil, nil, notFound("notification", id.String())
	}
	return n, attempts, incomplete
}

// Page sizes of ListNotifications.
const (
	defaultPage = 50
	maxPage     = 200
)

// ListNotifications lists newest first.
func (d *Dispatcher) ListNotifications(ctx context.Context, req *connect.Request[notifydv1.ListNotificationsRequest]) (*connect.Response[notifydv1.ListNotificationsResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	f, err := filterFromProto(req.Msg.Filter)
	if err != nil {
		return nil, err
	}
	if f.Source, err = ownSource(ctx, "filter.source", f.Source); err != nil {
		return nil, err
	}
	after, err := ledger.ParseToken(req.Msg.PageToken, f)
	if err != nil {
		return nil, invalid("page_token", fmt.Sprintf("%q: %s", req.Msg.PageToken, err))
	}
	size := int(req.Msg.PageSize)
	if size == 0 {
		size = defaultPage
	}
	found, next, err := d.ledger.List(ctx, f, min(size, maxPage), after)
	if err != nil {
		return nil, d.searchError(err)
	}
	out := &notifydv1.ListNotificationsResponse{NextPageToken: next.Token(f)}
	for _, n := range found {
		p := toProto(n)
		if !seesAll(ctx) {
			maskNotification(p)
		}
		out.Notifications = append(out.Notifications, p)
	}
	return connect.NewResponse(out), nil
}

// ResendNotifications makes a new attempt for each id, whatever its state.
func (d *Dispatcher) ResendNotifications(ctx context.Context, req *connect.Request[notifydv1.ResendNotificationsRequest]) (*connect.Response[notifydv1.ResendNotificationsResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	out := &notifydv1.ResendNotificationsResponse{}
	for _, text := range req.Msg.Ids {
		out.Results = append(out.Results, d.change(text, func(id notification.ID) (*notification.Notification, error) {
			return d.resend(ctx, id, actor(ctx, req.Msg.Operator))
		}))
	}
	return connect.NewResponse(out), nil
}

// resend raises the generation, which makes whatever waits for this id void, and puts the new one on its way. Dying in
// between leaves a row that the sweep finds.
func (d *Dispatcher) resend(ctx context.Context, id notification.ID, operator string) (*notification.Notification, error) {
	if !d.hand.Settle(ctx, id) {
		return nil, ledger.ErrInFlight
	}
	n, err := d.ledger.Resend(ctx, id, operator, d.now())
	if err != nil {
		return nil, err
	}
	if err := d.mayResend(n); err != nil {
		return nil, err
	}
	w := notification.Work{Notification: n, Trigger: notification.TriggerResend, Operator: operator}
	if err := d.delay.Now(context.WithoutCancel(ctx), w); err != nil {
		d.log.Warn("resend is not on its way yet; the sweep sends it", zap.Stringer("id", id), zap.Error(err))
	}
	return n, nil
}

// CancelNotifications makes undelivered ones final.
func (d *Dispatcher) CancelNotifications(ctx context.Context, req *connect.Request[notifydv1.CancelNotificationsRequest]) (*connect.Response[notifydv1.CancelNotificationsResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	out := &notifydv1.CancelNotificationsResponse{}
	for _, text := range req.Msg.Ids {
		out.Results = append(out.Results, d.change(text, func(id notification.ID) (*notification.Notification, error) {
			if err := d.mayChange(ctx, id); err != nil {
				return nil, err
			}
			return d.cancel(ctx, id, actor(ctx, req.Msg.Operator))
		}))
	}
	return connect.NewResponse(out), nil
}

// cancel takes a queued notification back from its lane, or asks the ledger, which refuses while an attempt is in
// flight. What is due later is refused by its claim; its schedule is taken away as well.
func (d *Dispatcher) cancel(ctx context.Context, id notification.ID, operator string) (*notification.Notification, error) {
	return d.withdraw(ctx, id, func(p *notification.Progress) {
		p.Settle(notification.StateCanceled, notification.ReasonCanceled, notification.SettledByOperator, d.now())
	}, func() (*notification.Notification, error) { return d.ledger.Cancel(ctx, id, operator, d.now()) })
}

// withdraw is cancel for whatever reason: settle says so of what its lane gives back, change asks the ledger.
func (d *Dispatcher) withdraw(ctx context.Context, id notification.ID, settle func(*notification.Progress), change func() (*notification.Notification, error)) (*notification.Notification, error) {
	if item, ok := d.hand.TakeBack(id); ok {
		w := item.Work()
		n := *w.Notification
		n.Generation++
		settle(&n.Progress)
		d.observer.Settled(&n)
		done := make(chan error, 1)
		d.remember(context.WithoutCancel(ctx), w, &n, nil, func(err error) {
			d.hand.Leave(item, err)
			done <- err
		})
		return &n, <-done
	}
	if !d.hand.Settle(ctx, id) {
		return nil, ledger.ErrInFlight
	}
	n, err := change()
	if err != nil {
		return nil, err
	}
	d.observer.Settled(n)
	d.moveUp(ctx, n)
	if err := d.delay.Cancel(context.WithoutCancel(ctx), notification.Work{Notification: n}); err != nil {
		d.log.Debug("schedule stays; the claim refuses what it brings", zap.Stringer("id", id), zap.Error(err))
	}
	return n, nil
}

func (d *Dispatcher) change(text string, apply func(notification.ID) (*notification.Notification, error)) *notifydv1.ChangeResult {
	id, err := notification.ParseID(text)
	if err != nil {
		return &notifydv1.ChangeResult{Id: text, Error: itemError(invalid("ids", fmt.Sprintf("%q: %s", text, err)))}
	}
	n, err := apply(id)
	if err != nil {
		return &notifydv1.ChangeResult{Id: text, Error: itemError(d.changeError(text, err))}
	}
	return &notifydv1.ChangeResult{Id: text, State: stateToProto(n.State), Generation: n.Generation}
}

// Explain says what Submit would do.
func (d *Dispatcher) Explain(ctx context.Context, req *connect.Request[notifydv1.ExplainRequest]) (*connect.Response[notifydv1.ExplainResponse], error) {
	s := newSubmission(req.Msg.Notification, true)
	d.admit(ctx, s)
	if s.err != nil {
		return nil, s.err
	}
	n := s.n
	schedule, err := retry.Resolve(s.m.Schedule, n.Route.Schedule)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	out := &notifydv1.ExplainResponse{
		Id: n.ID.String(), Lane: laneToProto(n.Route.Lane), Rule: n.Route.Rule, IsolationKey: n.Route.IsolationKey, Egress: n.Route.Egress,
		ContractProfile: s.m.Contract.Profile, NotifyUrl: n.NotifyURL, Persist: n.Route.Persist.String(), Schedule: schedule.Name,
		Gate: string(d.gate.Peek(notification.Work{Notification: n}, s.m, d.now())),
	}
	if rule := d.access.Judge(n.MerchantID, n.Source, n.Scene, d.now()); rule != nil {
		out.AccessRule, out.AccessMode = rule.ID, notifydv1.AccessMode(rule.Mode)
		if CallerOf(ctx).Source == "" { // what operators say to each other
			out.AccessReason = rule.Reason
		}
	}
	if out.Schedule == "" {
		out.Schedule = "custom"
	}
	for _, gap := range schedule.Gaps {
		out.Gaps = append(out.Gaps, durationpb.New(gap))
	}
	return connect.NewResponse(out), nil
}
