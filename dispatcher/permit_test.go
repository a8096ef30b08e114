package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/source"
)

// What a source may submit, whoever does it in its name.
func TestSubmitRules(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	f.put(t, &source.Source{ID: "open", Merchants: []string{"*"}, AllowNonTerminal: true})
	open := f.key(t, "open", source.KindAPIKey)
	f.put(t, &source.Source{ID: "off", Merchants: []string{"*"}, Disabled: true})
	const denied, invalid, missing = connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeNotFound
	for name, c := range map[string]struct {
		key    string
		change []func(*notifydv1.Notification)
		code   connect.Code
		told   string
		field  string
	}{
		"its own":                        {api.Reveal(), []func(*notifydv1.Notification){final}, 0, "", ""},
		"a merchant by its prefix":       {api.Reveal(), []func(*notifydv1.Notification){final, to("shop-1")}, 0, "", ""},
		"another source":                 {api.Reveal(), []func(*notifydv1.Notification){final, from("open")}, denied, `notification.source: "open": the caller is source "pay", which submits as itself only`, "notification.source"},
		"a source that nobody has":       {api.Reveal(), []func(*notifydv1.Notification){final, from("else")}, denied, `notification.source: "else": the caller is source "pay"`, "notification.source"},
		"a merchant of others":           {api.Reveal(), []func(*notifydv1.Notification){final, to("x")}, denied, `notification.merchant_id: "x": is none of the merchants that source "pay" may submit for`, "notification.merchant_id"},
		"a merchant nobody has":          {api.Reveal(), []func(*notifydv1.Notification){final, to("shop-2")}, missing, `merchant "shop-2": not found`, ""},
		"not terminal":                   {api.Reveal(), nil, invalid, `notification.terminal: is false: source "pay" submits only statuses that are their order's last one`, "notification.terminal"},
		"not terminal, allowed":          {open.Reveal(), []func(*notifydv1.Notification){from("open")}, 0, "", ""},
		"invalid comes first":            {api.Reveal(), []func(*notifydv1.Notification){to("x"), func(p *notifydv1.Notification) { p.Payload = "{" }}, invalid, "notification.payload: is not JSON", "notification.payload"},
		"operator, a source's merchant":  {operatorKey, []func(*notifydv1.Notification){final, to("x")}, denied, `"x": is none of the merchants that source "pay"`, "notification.merchant_id"},
		"operator, a source's terminal":  {operatorKey, nil, invalid, `notification.terminal: is false: source "pay"`, "notification.terminal"},
		"operator, a disabled source":    {operatorKey, []func(*notifydv1.Notification){final, from("off")}, denied, `notification.source: "off": is disabled`, "notification.source"},
		"operator, a source nobody has":  {operatorKey, []func(*notifydv1.Notification){from("else")}, 0, "", ""},
		"operator, a merchant not there": {operatorKey, []func(*notifydv1.Notification){from("else"), to("x")}, missing, `merchant "x": not found`, ""},
	} {
		for protocol, options := range protocols {
			caller := f.client(t, bearer(c.key), options...)
			p := payment(protocol+name, c.change...)
			_, err := caller.submit(t, p)
			if c.code == 0 && err == nil {
				continue
			}
			wantError(t, name+" over "+protocol, err, c.code, c.told, c.field)
			_, err = got(caller.notifications.Explain(t.Context(), connect.NewRequest(&notifydv1.ExplainRequest{Notification: p})))
			wantError(t, "Explain: "+name+" over "+protocol, err, c.code, c.told, c.field)
		}
	}
}

// Each item of a batch has its own verdict, and the good ones are taken.
func TestBatchOfMixedVerdicts(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	_, signing := f.pay(t)
	res, err := got(f.client(t, signed(signing.Reveal(), f.clock.now)).notifications.SubmitBatch(t.Context(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: []*notifydv1.Notification{
		payment("a", final), payment("b", final, from("other")), payment("c", final, to("x")), payment("d"), payment("e", final, to("shop-1")),
		payment("f", final, func(p *notifydv1.Notification) { p.Payload = "" }), payment("a", final),
	}})))
	must(t, err)
	var verdicts []string
	for _, r := range res.Results {
		if e := r.GetError(); e != nil {
			verdicts = append(verdicts, e.Code+" "+e.Violations[0].Field)
		} else {
			verdicts = append(verdicts, fmt.Sprint("ok ", r.GetResponse().Duplicate))
		}
	}
	want := []string{
		"ok false", "permission_denied notification.source", "permission_denied notification.merchant_id", "invalid_argument notification.terminal",
		"ok false", "invalid_argument notification.payload", "ok true",
	}
	if !slices.Equal(verdicts, want) {
		t.Errorf("got %q\nwant %q", verdicts, want)
	}
}

func retryDelay(t *testing.T, err error) time.Duration {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeResourceExhausted {
		t.Fatalf("%v, want RESOURCE_EXHAUSTED", err)
	}
	for _, d := range ce.Details() {
		value, err := d.Value()
		must(t, err)
		if info, ok := value.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration()
		}
	}
	t.Fatalf("%v: without RetryInfo", err)
	return 0
}

// A source over its rate is told when there is room again, and then there is. What cannot be accepted anyway, and asking,
// cost nothing.
func TestRate(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m"}, Limits: source.Limits{RatePerSecond: 2, Burst: 3}})
	f.put(t, &source.Source{ID: "other", Merchants: []string{"m"}, Limits: source.Limits{RatePerSecond: 0.5}})
	key := f.key(t, "pay", source.KindAPIKey)
	for protocol, options := range protocols {
		caller := f.client(t, bearer(key.Reveal()), options...)
		f.clock.advance(time.Minute)
		for i := range 10 {
			if _, err := caller.submit(t, payment(fmt.Sprint("bad", i))); connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("not terminal: %v", err)
			}
			if _, err := got(caller.notifications.Explain(t.Context(), connect.NewRequest(&notifydv1.ExplainRequest{Notification: payment("explained", final)}))); err != nil {
				t.Error(err)
			}
		}
		for i := range 3 {
			if _, err := caller.submit(t, payment(fmt.Sprint(protocol, i), final)); err != nil {
				t.Errorf("%s: %d of the burst: %v", protocol, i, err)
			}
		}
		_, err := caller.submit(t, payment(protocol+"over", final))
		wait := retryDelay(t, err)
		if wait != 500*time.Millisecond || !strings.Contains(err.Error(), `source "pay" submits more than its 2 notifications per second on this node; try again in 500ms`) {
			t.Errorf("%s: %s, %v", protocol, wait, err)
		}
		if _, err := f.client(t, bearer(operatorKey), options...).submit(t, payment(protocol+"over", final)); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("an operator in its name: %v", err)
		}
		if _, err := f.client(t, bearer(operatorKey), options...).submit(t, payment(protocol, final, from("other"))); err != nil {
			t.Errorf("another source: %v", err)
		}
		f.clock.advance(wait)
		if _, err := caller.submit(t, payment(protocol+"over", final)); err != nil {
			t.Errorf("%s: after the wait: %v", protocol, err)
		}
	}
}

// Of a batch what fits is taken; each of the others is told when its turn would be.
func TestRateInABatch(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m"}, Limits: source.Limits{RatePerSecond: 4, Burst: 2}})
	key := f.key(t, "pay", source.KindAPIKey)
	batch := []*notifydv1.Notification{payment("bad", final, to("x"))}
	for i := range 5 {
		batch = append(batch, payment(strconv.Itoa(i), final))
	}
	caller := f.client(t, bearer(key.Reveal()))
	verdicts := func() (out []string) {
		res, err := got(caller.notifications.SubmitBatch(t.Context(), connect.NewRequest(&notifydv1.SubmitBatchRequest{Notifications: batch})))
		must(t, err)
		for _, r := range res.Results {
			if e := r.GetError(); e != nil {
				out = append(out, fmt.Sprint(e.Code, " ", e.RetryAfter.AsDuration()))
			} else {
				out = append(out, fmt.Sprint("ok ", r.GetResponse().Duplicate))
			}
		}
		return out
	}
	want := []string{"permission_denied 0s", "ok false", "ok false", "resource_exhausted 250ms", "resource_exhausted 500ms", "resource_exhausted 750ms"}
	if got := verdicts(); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	f.clock.advance(750 * time.Millisecond) // the burst is two: three tokens are not saved up
	want = []string{"permission_denied 0s", "ok true", "ok true", "resource_exhausted 250ms", "resource_exhausted 500ms", "resource_exhausted 750ms"}
	if got := verdicts(); !slices.Equal(got, want) {
		t.Errorf("later: got %q\nwant %q", got, want)
	}
}

// A change of the limits counts at once, also the end of them.
func TestRateChanges(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	f.put(t, &source.Source{ID: "pay", Merchants: []string{"m"}, Limits: source.Limits{RatePerSecond: 1e-9}})
	key := f.key(t, "pay", source.KindAPIKey)
	caller := f.client(t, bearer(key.Reveal()))
	try := func(name string) error {
		_, err := caller.submit(t, payment(name, final))
		return err
	}
	must(t, try("a"))
	if wait := retryDelay(t, try("b")); wait != 24*time.Hour {
		t.Errorf("told to wait %s", wait)
	}
	faster := *f.sources.Get("pay")
	faster.Limits = source.Limits{RatePerSecond: 10, Burst: 5}
	f.put(t, &faster)
	if wait := retryDelay(t, try("b")); wait < 99*time.Millisecond || wait > 101*time.Millisecond {
		t.Errorf("told to wait %s", wait)
	}
	free := *f.sources.Get("pay")
	free.Limits = source.Limits{}
	f.put(t, &free)
	must(t, try("b"))
}

// A source sees and changes its own only; what is another's does not exist for it.
func TestOthersNotificationsAreNotThere(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	f.put(t, &source.Source{ID: "other", Merchants: []string{"*"}, AllowNonTerminal: true})
	otherKey := f.key(t, "other", source.KindAPIKey)
	later := func(p *notifydv1.Notification) { final(p); p.BatchId = "batch" }
	for protocol, options := range protocols {
		pay, other, op := f.client(t, bearer(api.Reveal()), options...), f.client(t, bearer(otherKey.Reveal()), options...), f.client(t, bearer(operatorKey), options...)
		accepted, err := pay.submit(t, payment(protocol, later))
		must(t, err)
		get := func(c client, req *notifydv1.GetNotificationRequest) error {
			_, err := got(c.notifications.GetNotification(t.Context(), connect.NewRequest(req)))
			return err
		}
		byID := &notifydv1.GetNotificationRequest{Id: accepted.Id}
		byRequest := &notifydv1.GetNotificationRequest{Source: "pay", RequestId: protocol}
		for _, req := range []*notifydv1.GetNotificationRequest{byID, byRequest} {
			must(t, get(pay, req))
			must(t, get(op, req))
			wantError(t, "another's", get(other, req), connect.CodeNotFound, fmt.Sprintf("notification %q: not found", accepted.Id), "")
		}
		list := func(c client, of string) ([]string, error) {
			res, err := got(c.notifications.ListNotifications(t.Context(), connect.NewRequest(&notifydv1.ListNotificationsRequest{Filter: &notifydv1.NotificationFilter{Source: of, OrderId: "o-" + protocol}})))
			var ids []string
			for _, n := range res.GetNotifications() {
				ids = append(ids, n.Id)
			}
			return ids, err
		}
		for name, c := range map[string]struct {
			caller client
			source string
			want   []string
			denied bool
		}{
			"pay": {pay, "", []string{accepted.Id}, false}, "pay by name": {pay, "pay", []string{accepted.Id}, false},
			"other": {other, "", nil, false}, "other for pay": {other, "pay", nil, true}, "alice": {op, "", []string{accepted.Id}, false}, "alice for other": {op, "other", nil, false},
		} {
			ids, err := list(c.caller, c.source)
			if !slices.Equal(ids, c.want) || (err != nil) != c.denied {
				t.Errorf("%s lists %q, %v", name, ids, err)
			}
			if c.denied {
				wantError(t, name, err, connect.CodePermissionDenied, `filter.source: "pay": the caller is source "other", which sees its own only`, "filter.source")
			}
		}
		if res, err := got(other.notifications.ListNotifications(t.Context(), connect.NewRequest(&notifydv1.ListNotificationsRequest{}))); err != nil || len(res.Notifications) > 0 {
			t.Errorf("without a filter: %v, %v", res, err)
		}
		_, err = got(other.notifications.GetBatch(t.Context(), connect.NewRequest(&notifydv1.GetBatchRequest{BatchId: "batch", Source: "pay"})))
		wantError(t, "another's batch", err, connect.CodePermissionDenied, `source: "pay": the caller is source "other"`, "source")

		cancel := func(c client) *notifydv1.ChangeResult {
			res, err := got(c.notifications.CancelNotifications(t.Context(), connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{accepted.Id}})))
			must(t, err)
			return res.Results[0]
		}
		if r := cancel(other); r.Error.GetCode() != "not_found" {
			t.Errorf("another's was canceled: %v", r)
		}
		if r := cancel(pay); r.State != notifydv1.State_STATE_CANCELED {
			t.Errorf("its own was not canceled: %v", r)
		}
	}
}

// Until there is a row nobody knows whose it is: its source is told that it is accepted (P2), and nobody cancels it.
func TestOwnBeforeItsRow(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	api, _ := f.pay(t)
	m := *f.merchants.Get("m")
	m.Persist = 0
	_, err := f.memory.PutMerchant(t.Context(), &m, nil)
	must(t, err)
	must(t, f.LearnMerchants(t.Context()))
	pay := f.client(t, bearer(api.Reveal()))
	accepted, err := pay.submit(t, payment("a", final))
	must(t, err)
	res, err := got(pay.notifications.GetNotification(t.Context(), connect.NewRequest(&notifydv1.GetNotificationRequest{Id: accepted.Id})))
	if err != nil || res.Notification.State != notifydv1.State_STATE_ACCEPTED {
		t.Errorf("%v, %v", res, err)
	}
	canceled, err := got(pay.notifications.CancelNotifications(t.Context(), connect.NewRequest(&notifydv1.CancelNotificationsRequest{Ids: []string{accepted.Id}})))
	if err != nil || canceled.Results[0].Error.GetCode() != "failed_precondition" {
		t.Errorf("%v, %v", canceled, err)
	}
}

// Who stands on record for a change is who proved to be there.
func TestActor(t *testing.T) {
	for _, c := range []struct {
		caller      Caller
		named, want string
	}{
		{Caller{}, "bob", "bob"},
		{Caller{}, "", ""},
		{Caller{Operator: "alice"}, "", "alice"},
		{Caller{Operator: "alice"}, "alice", "alice"},
		{Caller{Operator: "console"}, "bob", "console/bob"},
		{Caller{Source: "pay"}, "", "source:pay"},
		{Caller{Source: "pay"}, "alice", "source:pay/alice"},
	} {
		if got := actor(context.WithValue(t.Context(), callerKey{}, c.caller), c.named); got != c.want {
			t.Errorf("%s names %q: %q, want %q", c.caller, c.named, got, c.want)
		}
	}
}
