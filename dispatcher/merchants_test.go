package dispatcher

import (
	"context"
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
	return fmt.Sprintf("whsec_%s_%d", n.node, n.made)
}

func (*numbered) Check(string) error { return nil }

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
		service := NewMerchantService(node.Dispatcher, &numbered{node: strconv.Itoa(i)})
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
	service := NewMerchantService(f.Dispatcher, &numbered{node: "a"})
	meanwhile := func(change func(*merchant.Merchant)) { f.store = &changedOnce{f.memory, change} }
	put := func(etag string) (*notifydv1.PutMerchantResponse, error) {
		return got(service.PutMerchant(t.Context(), connect.NewRequest(&notifydv1.PutMerchantRequest{
			Merchant: &notifydv1.Merchant{Id: "shop-1", NotifyUrl: "https://m.test/notify", Name: "put"}, Etag: etag,
		})))
	}
	first, err := put("")
	must(t, err)

	meanwhile(func(m *merchant.Merchant) {
		m.Paused, m.PauseReason, m.Secrets.SigningSecret = true, "dispute", "whsec_elsewhere"
	})
	second, err := put("")
	must(t, err)
	stored, err := f.memory.GetMerchant(t.Context(), "shop-1")
	must(t, err)
	if second.GeneratedSecret != "" || !second.Merchant.Paused || stored.Secrets.SigningSecret != "whsec_elsewhere" {
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
