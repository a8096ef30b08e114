package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/ledger"
	"notifyd/merchant"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/source"
)

const (
	apiKind  = notifydv1.SourceKeyKind_SOURCE_KEY_KIND_API_KEY
	hmacKind = notifydv1.SourceKeyKind_SOURCE_KEY_KIND_HMAC
)

func (c client) putSource(t *testing.T, p *notifydv1.Source, etag string) (*notifydv1.Source, error) {
	t.Helper()
	res, err := got(c.sources.PutSource(t.Context(), connect.NewRequest(&notifydv1.PutSourceRequest{Source: p, Etag: etag})))
	return res.GetSource(), err
}

func (c client) createKey(t *testing.T, req *notifydv1.CreateSourceKeyRequest) (*notifydv1.CreateSourceKeyResponse, error) {
	t.Helper()
	return got(c.sources.CreateSourceKey(t.Context(), connect.NewRequest(req)))
}

func (c client) revoke(t *testing.T, sourceID, keyID string) error {
	t.Helper()
	_, err := c.sources.RevokeSourceKey(t.Context(), connect.NewRequest(&notifydv1.RevokeSourceKeyRequest{SourceId: sourceID, KeyId: keyID}))
	return err
}

func full(id string) *notifydv1.Source {
	return &notifydv1.Source{
		Id: id, Name: "支付服务", Merchants: []string{"shop-*", "m"}, Certificates: []string{"dns:" + id + ".example"}, AllowNonTerminal: true,
		Limits: &notifydv1.SourceLimits{RatePerSecond: 1.5, Burst: 3, MaxRequestBytes: 1 << 20}, Disabled: true,
	}
}

// What is put is what is got; etags guard it; pages have all.
func TestPutGetListSources(t *testing.T) {
	f := newFront(t, CallersConfig{})
	for name, options := range protocols {
		c := f.client(t, nobody, options...)
		id := strings.ReplaceAll(name, " ", "-")
		stored, err := c.putSource(t, full(id), "0")
		must(t, err)
		want := full(id)
		want.Version, want.Etag, want.UpdatedAt = stored.Version, etagOf(stored.Version), timestamppb.New(f.clock.now())
		res, err := got(c.sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: id})))
		must(t, err)
		for what, s := range map[string]*notifydv1.Source{"put": stored, "got": res.Source} {
			if !proto.Equal(s, want) {
				t.Errorf("%s\n     %s\nwant %s", what, protojson.Format(s), protojson.Format(want))
			}
		}
		_, err = c.putSource(t, full(id), "0")
		wantError(t, "made twice", err, connect.CodeAborted, fmt.Sprintf("source %q: the settings have changed meanwhile; read it again", id), "")
		replaced, err := c.putSource(t, &notifydv1.Source{Id: id, Merchants: []string{"*"}}, stored.Etag)
		if err != nil || replaced.Name != "" || replaced.Limits != nil || replaced.Disabled || replaced.Version <= stored.Version {
			t.Errorf("%v, %v", replaced, err)
		}
		_, err = c.putSource(t, full(id), stored.Etag)
		wantError(t, "a stale etag", err, connect.CodeAborted, "read it again", "")
		_, err = c.putSource(t, full(id), "x")
		wantError(t, "an etag of others", err, connect.CodeInvalidArgument, `etag: "x": is not one of ours`, "etag")
		_, err = got(c.sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: "none"})))
		wantError(t, "none", err, connect.CodeNotFound, `source "none": not found`, "")
	}
	c := f.client(t, nobody)
	for i := range 5 {
		_, err := c.putSource(t, &notifydv1.Source{Id: fmt.Sprint("s", i), Merchants: []string{"m"}}, "")
		must(t, err)
	}
	var ids []string
	for token, first := "", true; token != "" || first; first = false {
		res, err := got(c.sources.ListSources(t.Context(), connect.NewRequest(&notifydv1.ListSourcesRequest{PageSize: 2, PageToken: token})))
		must(t, err)
		for _, s := range res.Sources {
			ids = append(ids, s.Id)
		}
		token = res.NextPageToken
	}
	if len(ids) != len(protocols)+5 || !slices.IsSorted(ids) || len(slices.Compact(ids)) != len(ids) {
		t.Errorf("pages: %q", ids)
	}
}

func TestSourcesThatAreRefused(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	_, err := c.putSource(t, full("taken"), "")
	must(t, err)
	for field, x := range map[string]struct {
		change func(*notifydv1.Source)
		told   string
	}{
		"source.id":                     {func(s *notifydv1.Source) { s.Id = "a\nb" }, `"a\nb": control characters are not allowed`},
		"source.name":                   {func(s *notifydv1.Source) { s.Name = "\x00" }, `control characters are not allowed`},
		"source.merchants":              {func(s *notifydv1.Source) { s.Merchants = nil }, ""},
		"source.merchants[1]":           {func(s *notifydv1.Source) { s.Merchants = []string{"m", "*m"} }, `"*m": * is allowed at the end only`},
		"source.certificates[0]":        {func(s *notifydv1.Source) { s.Certificates = []string{"CN=pay"} }, `"CN=pay": want dns:<name>, uri:<URI> or subject:<RFC 2253 subject>`},
		"source.limits.rate_per_second": {func(s *notifydv1.Source) { s.Limits.RatePerSecond = -1 }, ""},
		"source.limits.burst":           {func(s *notifydv1.Source) { s.Limits.RatePerSecond = 0 }, "3: has no effect without rate_per_second"},
		"source.keys":                   {func(s *notifydv1.Source) { s.Keys = []*notifydv1.SourceKey{{}} }, "is output only; use CreateSourceKey and RevokeSourceKey"},
		"source.etag":                   {func(s *notifydv1.Source) { s.Etag = "1" }, "is output only; give it as the request's etag"},
		"source.version":                {func(s *notifydv1.Source) { s.Version = 1 }, "is output only"},
		"source.updated_at":             {func(s *notifydv1.Source) { s.UpdatedAt = timestamppb.Now() }, "is output only"},
	} {
		p := full("refused")
		x.change(p)
		_, err := c.putSource(t, p, "")
		wantError(t, field, err, connect.CodeInvalidArgument, x.told, field)
	}
	p := full("refused")
	p.Certificates = []string{"uri:x", "dns:taken.example"}
	_, err = c.putSource(t, p, "")
	wantError(t, "a certificate of another", err, connect.CodeFailedPrecondition, `source.certificates[1]: "dns:taken.example": proves source "taken" already`, "")
	for field, req := range map[string]*notifydv1.CreateSourceKeyRequest{
		"source_id":  {Kind: apiKind},
		"kind":       {SourceId: "taken"},
		"label":      {SourceId: "taken", Kind: apiKind, Label: "\n"},
		"expires_at": {SourceId: "taken", Kind: apiKind, ExpiresAt: timestamppb.New(f.clock.now())},
	} {
		_, err := c.createKey(t, req)
		wantError(t, field, err, connect.CodeInvalidArgument, "", field)
	}
	_, err = c.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "taken", Kind: apiKind, ExpiresAt: &timestamppb.Timestamp{Seconds: 1 << 60}})
	wantError(t, "the end of time", err, connect.CodeInvalidArgument, "expires_at", "expires_at")
	_, err = c.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "none", Kind: apiKind})
	wantError(t, "a key of nobody", err, connect.CodeNotFound, `source "none": not found`, "")
	wantError(t, "revoke nothing", c.revoke(t, "taken", "k"), connect.CodeNotFound, `key "k": not found`, "")
	wantError(t, "revoke of nobody", c.revoke(t, "none", "k"), connect.CodeNotFound, `source "none": not found`, "")
}

// One key takes over from the other: two live, a third is refused, the old one ends by itself or is revoked.
func TestRotation(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	op := f.client(t, bearer(operatorKey))
	_, err := op.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, "")
	must(t, err)
	request := 0
	works := func(kind notifydv1.SourceKeyKind, secret string) bool {
		prove := bearer(secret)
		if kind == hmacKind {
			prove = signed(secret, f.clock.now)
		}
		request++
		_, err := f.client(t, prove, connect.WithGRPC()).submit(t, payment(strconv.Itoa(request), final))
		return err == nil
	}
	for _, kind := range []notifydv1.SourceKeyKind{apiKind, hmacKind} {
		word := source.Kind(kind).String()
		old, err := op.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: kind, Label: "old", ExpiresAt: timestamppb.New(f.clock.now().Add(time.Hour))})
		must(t, err)
		next, err := op.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: kind})
		must(t, err)
		if !works(kind, old.Secret) || !works(kind, next.Secret) {
			t.Errorf("%s: of two live keys one does not work", word)
		}
		_, err = op.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: kind})
		wantError(t, "a third "+word, err, connect.CodeFailedPrecondition, fmt.Sprintf(`source "pay" has 2 live %ss already: %s (old) and %s; revoke one first`, word, old.Key.Id, next.Key.Id), "")

		// Neither settings nor reading touch keys, and nothing shows a secret again.
		put, err := op.putSource(t, &notifydv1.Source{Id: "pay", Name: "pay", Merchants: []string{"m"}}, "")
		must(t, err)
		res, err := got(op.sources.ListSources(t.Context(), connect.NewRequest(&notifydv1.ListSourcesRequest{})))
		must(t, err)
		text := protojson.Format(put) + protojson.Format(res)
		for _, made := range []*notifydv1.CreateSourceKeyResponse{old, next} {
			if !strings.Contains(text, made.Key.Id) || strings.Contains(text, made.Secret[strings.LastIndexByte(made.Secret, '_')+1:]) {
				t.Errorf("%s: shown as %s", word, text)
			}
		}
		f.clock.advance(time.Hour)
		if works(kind, old.Secret) || !works(kind, next.Secret) {
			t.Errorf("%s: the old one works after its end, or the other does not", word)
		}
		third, err := op.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: kind})
		must(t, err) // the expired one does not count
		must(t, op.revoke(t, "pay", next.Key.Id))
		if works(kind, next.Secret) || !works(kind, third.Secret) {
			t.Errorf("%s: the revoked one works, or the other does not", word)
		}
		wantError(t, "revoked twice", op.revoke(t, "pay", next.Key.Id), connect.CodeNotFound, fmt.Sprintf("key %q: not found", next.Key.Id), "")
		if !slices.ContainsFunc(f.sources.Get("pay").Keys, func(k source.Key) bool { return k.ID == old.Key.Id }) {
			t.Errorf("%s: the expired one is not shown any more", word)
		}
		f.clock.advance(expiredKeysFor)
		_, err = op.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, put.Etag)
		wantError(t, "settings from before a key came", err, connect.CodeAborted, "read it again", "")
		put, err = op.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, "")
		must(t, err)
		for _, k := range put.Keys {
			if k.Id == old.Key.Id {
				t.Errorf("%s: expired a month ago, and still there", word)
			}
		}
	}
}

// Two nodes that make keys at once make two, whoever comes first; and nobody's change undoes another's.
func TestKeysOnTwoNodes(t *testing.T) {
	one := newFront(t, CallersConfig{})
	nodes := []*front{one, newNode(t, CallersConfig{}, one.memory, one.clock)}
	c := one.client(t, nobody)
	_, err := c.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, "")
	must(t, err)
	var mu sync.Mutex
	var secrets []string
	var calling sync.WaitGroup
	for i := range 6 {
		node := nodes[i%2].client(t, nobody)
		calling.Go(func() {
			switch made, err := node.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: apiKind}); {
			case err == nil:
				mu.Lock()
				defer mu.Unlock()
				secrets = append(secrets, made.Secret)
			case connect.CodeOf(err) != connect.CodeFailedPrecondition:
				t.Error(err)
			}
		})
		calling.Go(func() {
			if _, err := node.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}, Name: strconv.Itoa(i)}, ""); err != nil {
				t.Error(err)
			}
		})
	}
	calling.Wait()
	if len(secrets) != liveKeys {
		t.Fatalf("%d keys were made", len(secrets))
	}
	for i, node := range nodes {
		must(t, node.LearnSources(t.Context()))
		for _, secret := range secrets {
			if _, err := node.client(t, bearer(secret)).submit(t, payment(secret[:19], final)); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		}
	}
}

// A change made here does not hide one that was made elsewhere just before it, of a source or of a merchant.
func TestNoChangeIsMissed(t *testing.T) {
	f := newFront(t, CallersConfig{})
	f.sourceStore = &overtaken{Memory: f.memory}
	f.store = &overtaken{Memory: f.memory}
	c := f.client(t, nobody)
	_, err := c.putSource(t, &notifydv1.Source{Id: "here", Merchants: []string{"m"}}, "")
	must(t, err)
	_, err = c.merchants.PauseMerchant(t.Context(), connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: "m"}))
	must(t, err)
	must(t, errors.Join(f.LearnSources(t.Context()), f.LearnMerchants(t.Context())))
	if f.sources.Get("here") == nil || f.sources.Get("elsewhere") == nil {
		t.Error("a source's change is missed")
	}
	if !f.merchants.Get("m").Paused || f.merchants.Get("elsewhere") == nil {
		t.Error("a merchant's change is missed")
	}
}

// overtaken is a ledger in which another node is a little quicker each time.
type overtaken struct{ *ledger.Memory }

func (o *overtaken) PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error) {
	if _, err := o.Memory.PutSource(ctx, &source.Source{ID: "elsewhere"}, nil); err != nil {
		return nil, err
	}
	return o.Memory.PutSource(ctx, s, ifVersion)
}

func (o *overtaken) PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error) {
	if _, err := o.Memory.PutMerchant(ctx, &merchant.Merchant{ID: "elsewhere"}, nil); err != nil {
		return nil, err
	}
	return o.Memory.PutMerchant(ctx, m, ifVersion)
}

// Whoever is overtaken on the same source begins again, and both changes stand; who gave an etag is told.
func TestOvertakenChangesBeginAgain(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	first, err := c.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, "")
	must(t, err)
	once := func() { f.sourceStore = &renamedOnce{Memory: f.memory} }
	once()
	made, err := c.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: apiKind})
	if err != nil || made.Source.Name != "renamed" || len(made.Source.Keys) != 1 {
		t.Fatalf("%v, %v", made, err)
	}
	once()
	put, err := c.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}, Name: "put"}, "")
	if err != nil || put.Name != "put" || len(put.Keys) != 1 {
		t.Fatalf("%v, %v", put, err)
	}
	once()
	must(t, c.revoke(t, "pay", made.Key.Id))
	_, err = c.putSource(t, &notifydv1.Source{Id: "pay", Merchants: []string{"m"}}, first.Etag)
	wantError(t, "with an etag", err, connect.CodeAborted, "read it again", "")
}

// renamedOnce is a ledger in which somebody else gives the source another name just before the first change.
type renamedOnce struct {
	*ledger.Memory
	done bool
}

func (o *renamedOnce) PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error) {
	if !o.done {
		o.done = true
		known, err := o.GetSource(ctx, s.ID)
		if err != nil {
			return nil, err
		}
		known.Name = "renamed"
		if _, err := o.Memory.PutSource(ctx, known, nil); err != nil {
			return nil, err
		}
	}
	return o.Memory.PutSource(ctx, s, ifVersion)
}

// A revoked key dies on each node within about a second; while the ledger is away the last snapshot serves.
func TestRevokedElsewhere(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		store := &failingSources{Sources: w.memory}
		w.sourceStore = store
		secret := source.NewSecret(source.KindAPIKey)
		with := (&source.Source{ID: "pay", Merchants: []string{"m"}}).WithKey(source.Key{ID: secret.KeyID, Kind: secret.Kind}, secret.Kept())
		_, err := w.memory.PutSource(t.Context(), with, nil)
		must(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = w.Run(ctx) }()
		known := func() bool {
			pass(1100 * time.Millisecond)
			synctest.Wait()
			s, _ := w.sources.ByKey(secret.KeyID)
			return s != nil
		}
		if !known() {
			t.Error("not learned")
		}
		store.fail.Store(true)
		_, err = w.memory.PutSource(t.Context(), with.WithoutKeys(func(source.Key) bool { return true }), nil)
		must(t, err)
		if !known() {
			t.Error("the last snapshot does not serve")
		}
		store.fail.Store(false)
		if known() {
			t.Error("a revoked key lives on")
		}
		stop()
		<-ended
	})
}

// What cannot be read or stored is UNAVAILABLE, to be tried again.
func TestSourcesWithoutALedger(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	_, err := c.putSource(t, full("pay"), "")
	must(t, err)
	f.sourceStore = brokenSources{}
	_, err = c.putSource(t, full("pay"), "")
	wantCode(t, err, connect.CodeUnavailable, true)
	_, err = got(c.sources.GetSource(t.Context(), connect.NewRequest(&notifydv1.GetSourceRequest{Id: "pay"})))
	wantCode(t, err, connect.CodeUnavailable, true)
	_, err = got(c.sources.ListSources(t.Context(), connect.NewRequest(&notifydv1.ListSourcesRequest{})))
	wantCode(t, err, connect.CodeUnavailable, true)
	f.sourceStore = contested{f.memory}
	_, err = c.createKey(t, &notifydv1.CreateSourceKeyRequest{SourceId: "pay", Kind: apiKind})
	wantError(t, "always overtaken", err, connect.CodeAborted, "read it again", "")
}

type brokenSources struct{}

func (brokenSources) PutSource(context.Context, *source.Source, *int64) (*source.Source, error) {
	return nil, errDown
}

func (brokenSources) ListSources(context.Context, string, int) ([]*source.Source, error) {
	return nil, errDown
}

func (brokenSources) SourcesSince(context.Context, int64) ([]*source.Source, error) {
	return nil, errDown
}

// contested is a store in which others are always quicker.
type contested struct{ *ledger.Memory }

func (contested) PutSource(context.Context, *source.Source, *int64) (*source.Source, error) {
	return nil, errors.Join(errors.New("put source"), ledger.ErrConflict)
}
