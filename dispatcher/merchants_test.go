package dispatcher

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"notifyd/ledger"
	"notifyd/merchant"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// numbered makes secrets that tell who made them.
type numbered struct {
	node string
	made int
}

func (n *numbered) Generate() string {
	n.made++
	return "whsec_" + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s, number %020d", n.node, n.made))
}

const elsewhere = "whsec_ZWxzZXdoZXJlIGFuZCBtb3JlIGxldHRlcnM="

// together is a ledger in which the first changes of all nodes come at once: each has read by then.
type together struct {
	*ledger.Memory
	first  sync.Once
	others *sync.WaitGroup
}

func (l *together) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	l.first.Do(func() {
		l.others.Done()
		l.others.Wait()
	})
	return l.Memory.PutMerchant(ctx, m, ifVersion)
}

// Nodes that make the same merchant at once all succeed, and the one secret that is told is the one that signs.
func TestMerchantMadeTwiceAtOnce(t *testing.T) {
	const nodes = 4 // the last one is overtaken by each of the others
	f := newFront(t, CallersConfig{})
	var reading, putting sync.WaitGroup
	reading.Add(nodes)
	var answers [nodes]*notifydv1.PutMerchantResponse
	for i := range nodes {
		node := newNode(t, CallersConfig{}, f.memory, f.clock)
		node.store = &together{Memory: f.memory, others: &reading}
		service := NewMerchantService(node.Dispatcher, &numbered{node: strconv.Itoa(i)}, nil)
		putting.Go(func() {
			res, err := service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{
				Merchant: &notifydv1.Merchant{Id: "new", NotifyUrl: "https://m.test/notify"},
			}))
			if err != nil {
				t.Errorf("node %d: %v", i, err)
				return
			}
			answers[i] = res.Msg
		})
	}
	putting.Wait()
	stored, err := f.memory.GetMerchant(t.Context(), "new")
	must(t, err)
	told := 0
	for i, answer := range answers {
		switch answer.GetGeneratedSecret() {
		case "":
		case stored.Secrets.SigningSecret:
			told++
		default:
			t.Errorf("node %d tells a secret that signs nothing", i)
		}
	}
	if told != 1 {
		t.Errorf("the secret is told %d times, want once", told)
	}
}

// changedOnce is a ledger in which another node changes the merchant just before the first change.
type changedOnce struct {
	*ledger.Memory
	change func(*merchant.Merchant)
}

func (o *changedOnce) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	if change := o.change; change != nil {
		o.change = nil
		known, err := o.GetMerchant(ctx, m.ID)
		if err != nil {
			return nil, err
		}
		change(known)
		if _, err := o.Memory.PutMerchant(ctx, known, nil); err != nil {
			return nil, err
		}
	}
	return o.Memory.PutMerchant(ctx, m, ifVersion)
}

// Whoever is overtaken begins again, and both changes stand; who gave an etag is told.
func TestOvertakenMerchantChangesBeginAgain(t *testing.T) {
	f := newFront(t, CallersConfig{})
	service := NewMerchantService(f.Dispatcher, &numbered{node: "a"}, nil)
	meanwhile := func(change func(*merchant.Merchant)) { f.store = &changedOnce{f.memory, change} }
	put := func(etag string) (*notifydv1.PutMerchantResponse, error) {
		return got(service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{
			Merchant: &notifydv1.Merchant{Id: "shop-1", NotifyUrl: "https://m.test/notify", Name: "put"}, Etag: etag,
		})))
	}
	first, err := put("")
	must(t, err)

	meanwhile(func(m *merchant.Merchant) {
		m.Paused, m.PauseReason, m.Secrets.SigningSecret = true, "dispute", elsewhere
	})
	second, err := put("")
	must(t, err)
	stored, err := f.memory.GetMerchant(t.Context(), "shop-1")
	must(t, err)
	if second.GeneratedSecret != "" || !second.Merchant.Paused || stored.Secrets.SigningSecret != elsewhere {
		t.Errorf("a pause and a secret that came in between: %v, secret %q", second, stored.Secrets.SigningSecret)
	}

	meanwhile(func(m *merchant.Merchant) { m.Name = "renamed" })
	resumed, err := got(service.ResumeMerchant(t.Context(), connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "shop-1"})))
	if err != nil || resumed.Merchant.Paused || resumed.Merchant.Name != "renamed" {
		t.Errorf("resumed: %v, %v", resumed, err)
	}

	meanwhile(func(m *merchant.Merchant) { m.Name = "renamed again" })
	_, err = put(resumed.GetMerchant().GetEtag())
	wantError(t, "an etag that was overtaken", err, connect.CodeAborted, "read it again", "")
	_, err = put(first.Merchant.Etag)
	wantError(t, "a stale etag", err, connect.CodeAborted, "read it again", "")
	_, err = put("0")
	wantError(t, "made twice", err, connect.CodeAborted, "read it again", "")
}

// What waited is released at the rate of the call, else at the merchant's own, else unbound; the rate stands in the
// settings, where a replacement of the merchant leaves it.
func TestResumeAtARate(t *testing.T) {
	f := newFront(t, CallersConfig{})
	service := NewMerchantService(f.Dispatcher, &numbered{node: "a"}, nil)
	put := func(m *notifydv1.Merchant) (*notifydv1.Merchant, error) {
		m.Id, m.NotifyUrl = "shop-1", "https://m.test/notify"
		res, err := got(service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: m})))
		return res.GetMerchant(), err
	}
	resume := func(perSecond float64) *notifydv1.Release {
		t.Helper()
		_, err := service.PauseMerchant(t.Context(), connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "shop-1", Reason: "dispute"}))
		must(t, err)
		res, err := got(service.ResumeMerchant(t.Context(), connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: "shop-1", ReleasePerSecond: perSecond})))
		must(t, err)
		return res.GetMerchant().GetRelease()
	}
	_, err := put(&notifydv1.Merchant{})
	must(t, err)
	if r := resume(0); r != nil {
		t.Errorf("without a rate: %v", r)
	}
	if r := resume(7); r.GetPerSecond() != 7 || !r.GetAcceptedBefore().AsTime().Equal(f.now()) {
		t.Errorf("at 7/s: %v", r)
	}
	m, err := put(&notifydv1.Merchant{Limits: &notifydv1.Limits{ReleasePerSecond: 3, OwnQueue: true}})
	must(t, err)
	if m.GetRelease().GetPerSecond() != 7 || m.GetLimits().GetReleasePerSecond() != 3 || !m.GetLimits().GetOwnQueue() {
		t.Errorf("after a replacement: %v", m)
	}
	if r := resume(0); r.GetPerSecond() != 3 {
		t.Errorf("at the merchant's own rate: %v", r)
	}
	_, err = put(&notifydv1.Merchant{Release: &notifydv1.Release{PerSecond: 1}})
	wantError(t, "an output field", err, connect.CodeInvalidArgument, "use ResumeMerchant", "merchant.release")
}
