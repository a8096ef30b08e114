package dispatcher

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/keys"
	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	toSign    = notifydv1.KeyPurpose_KEY_PURPOSE_SIGN
	toVerify  = notifydv1.KeyPurpose_KEY_PURPOSE_VERIFY
	tlsClient = notifydv1.KeyPurpose_KEY_PURPOSE_TLS_CLIENT
	live      = notifydv1.KeyState_KEY_STATE_LIVE
	retired   = notifydv1.KeyState_KEY_STATE_RETIRED
	pending   = notifydv1.KeyState_KEY_STATE_PENDING
)

type fakeMasterKeys struct{}

func (fakeMasterKeys) MasterKeys(context.Context) ([]ledger.MasterKey, error) {
	return []ledger.MasterKey{{ID: 7, InUse: true, Sealed: 3, Held: true}, {ID: 8, Held: true, MissingOn: 1}}, nil
}

const secretText = "0123456789abcdef-merchant-secret"

func secretKey(text string) *notifydv1.ImportedKey {
	return &notifydv1.ImportedKey{Content: []byte(text), Secret: true}
}

func (c client) importKey(t *testing.T, req *notifydv1.ImportKeyRequest) (*notifydv1.StoredKey, error) {
	t.Helper()
	res, err := got(c.keys.ImportKey(t.Context(), connect.NewRequest(req)))
	return res.GetKey(), err
}

func (c client) rotateKey(t *testing.T, req *notifydv1.RotateKeyRequest) (*notifydv1.RotateKeyResponse, error) {
	t.Helper()
	return got(c.keys.RotateKey(t.Context(), connect.NewRequest(req)))
}

func (c client) retireKey(t *testing.T, req *notifydv1.RetireKeyRequest) (*notifydv1.StoredKey, error) {
	t.Helper()
	res, err := got(c.keys.RetireKey(t.Context(), connect.NewRequest(req)))
	return res.GetKey(), err
}

func generating(algorithm string) *notifydv1.RotateKeyRequest_Generate {
	return &notifydv1.RotateKeyRequest_Generate{Generate: &notifydv1.GeneratedKey{Algorithm: algorithm}}
}

func states(k *notifydv1.StoredKey) (out []string) {
	for _, v := range k.GetVersions() {
		out = append(out, fmt.Sprintf("%d %s", v.Number, strings.TrimPrefix(v.State.String(), "KEY_STATE_")))
	}
	return out
}

// A name is imported, rotated and retired; each change holds on this node when it is answered and stays on record.
func TestKeysLife(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	c := f.client(t, bearer(operatorKey))
	put := &notifydv1.ImportKeyRequest{Name: "shop-md5", Purpose: toSign, MerchantId: "m", Key: secretKey(secretText), Note: "合同 7"}
	first, err := c.importKey(t, put)
	must(t, err)
	if v := first.Versions[0]; fmt.Sprint(states(first)) != "[1 LIVE]" || v.Algorithm != "symmetric" || v.CreatedBy != "alice" || v.Note != "合同 7" || !strings.HasPrefix(v.Fingerprint, "keyed:") {
		t.Fatalf("imported: %s", protojson.Format(first))
	}
	on := f.keys.Live("shop-md5", f.clock.now())
	if len(on) != 1 || string(on[0].Material.Secret()) != secretText {
		t.Fatal("it does not hold on this node when the answer is there")
	}
	again, err := c.importKey(t, put)
	if err != nil || !proto.Equal(again, first) {
		t.Errorf("the same call again: %v, %v", again, err)
	}
	put.Key = secretKey(secretText + "2")
	_, err = c.importKey(t, put)
	wantError(t, "another one under the name", err, connect.CodeAlreadyExists, "RotateKey", "")

	f.clock.advance(time.Hour)
	later := timestamppb.New(f.clock.now().Add(time.Hour))
	second, err := c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "shop-md5", Material: generating("symmetric"), ActiveFrom: later, Overlap: durationpb.New(time.Hour), Etag: first.Etag})
	must(t, err)
	if fmt.Sprint(states(second.Key)) != "[2 PENDING 1 LIVE]" || second.Key.Versions[1].RetireAt.AsTime() != later.AsTime().Add(time.Hour) {
		t.Errorf("rotated: %s", protojson.Format(second.Key))
	}
	made, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(second.Secret, "base64:"))
	must(t, err)
	for after, want := range map[time.Duration]string{0: "[1]", time.Hour: "[2 1]", 2 * time.Hour: "[2]"} {
		var numbers []int
		for _, k := range f.keys.Live("shop-md5", f.clock.now().Add(after)) {
			numbers = append(numbers, k.Version)
		}
		if fmt.Sprint(numbers) != want {
			t.Errorf("live %s later: %v, want %s", after, numbers, want)
		}
	}
	f.clock.advance(2 * time.Hour)
	if on := f.keys.Live("shop-md5", f.clock.now()); len(made) != keys.DefaultSecretBytes || string(on[0].Material.Secret()) != string(made) {
		t.Error("what was handed out is not what signs")
	}
	_, err = c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "shop-md5", Material: generating("ed25519"), Etag: first.Etag})
	wantError(t, "a stale etag", err, connect.CodeAborted, "read it again", "")
	third, err := c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "shop-md5", Material: generating("ed25519")})
	must(t, err)
	if third.Secret != "" || fmt.Sprint(states(third.Key)) != "[3 LIVE 2 LIVE 1 RETIRED]" || third.Key.Versions[1].RetireAt.AsTime() != f.clock.now().Add(defaultOverlap) {
		t.Errorf("rotated: %s", protojson.Format(third))
	}
	if block, _ := pem.Decode([]byte(third.Key.Versions[0].PublicKey)); block == nil || block.Type != "PUBLIC KEY" {
		t.Errorf("public key: %q", third.Key.Versions[0].PublicKey)
	}
	_, err = c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "shop-md5", Material: generating("ed25519")})
	wantError(t, "a third one at once", err, connect.CodeFailedPrecondition, "two versions are live at once already", "")
	ended, err := c.retireKey(t, &notifydv1.RetireKeyRequest{Name: "shop-md5", Number: 2, Reason: "leaked", Etag: third.Key.Etag})
	must(t, err)
	if fmt.Sprint(states(ended)) != "[3 LIVE 2 RETIRED 1 RETIRED]" || len(f.keys.Live("shop-md5", f.clock.now())) != 1 {
		t.Errorf("retired: %v", states(ended))
	}
	_, err = c.retireKey(t, &notifydv1.RetireKeyRequest{Name: "shop-md5", Number: 2, Reason: "x"})
	wantError(t, "retired twice", err, connect.CodeFailedPrecondition, "cannot be undone", "")
	_, err = c.retireKey(t, &notifydv1.RetireKeyRequest{Name: "shop-md5", Number: 9, Reason: "x"})
	wantError(t, "not there", err, connect.CodeNotFound, "shop-md5/9", "")

	// What is retired for long keeps no secret.
	f.clock.advance(25 * time.Hour)
	_, err = c.retireKey(t, &notifydv1.RetireKeyRequest{Name: "shop-md5", Number: 3, Reason: "closed", RetireAt: timestamppb.New(f.clock.now().Add(time.Hour))})
	must(t, err)
	for _, k := range f.keys.Get("shop-md5").Keys {
		if kept := k.Material.Secret() != nil || k.Material.Signer() != nil; kept != (k.Version == 3) {
			t.Errorf("version %d keeps its secret part: %v", k.Version, kept)
		}
	}

	var lines []string
	req := &notifydv1.ListKeyChangesRequest{Name: "shop-md5", PageSize: 2}
	for {
		res, err := got(c.keys.ListKeyChanges(t.Context(), connect.NewRequest(req)))
		must(t, err)
		for _, ch := range res.Changes {
			lines = append(lines, ch.By+" "+ch.What)
		}
		if req.PageToken = res.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if want := "[alice retire version 3: closed alice retire version 2: leaked alice rotate alice rotate alice import]"; fmt.Sprint(lines) != want {
		t.Errorf("changes %v, want %s", lines, want)
	}
	res, err := got(c.keys.GetKey(t.Context(), connect.NewRequest(&notifydv1.GetKeyRequest{Name: "shop-md5"})))
	must(t, err)
	shown := protojson.Format(res) + fmt.Sprint(f.lines.All())
	for _, hidden := range []string{secretText, string(made), second.Secret, base64.StdEncoding.EncodeToString([]byte(secretText))} {
		if strings.Contains(shown, hidden) {
			t.Error("a secret is shown again")
		}
	}
}

// What is wrong is named by its field, and nothing of what was given is quoted.
func TestKeysBadInput(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	past := timestamppb.New(f.clock.now().Add(-time.Hour))
	base := func(change func(*notifydv1.ImportKeyRequest)) *notifydv1.ImportKeyRequest {
		req := &notifydv1.ImportKeyRequest{Name: "k", Purpose: toSign, Key: secretKey(secretText)}
		change(req)
		return req
	}
	for name, c2 := range map[string]struct {
		req         *notifydv1.ImportKeyRequest
		says, field string
	}{
		"no name":    {base(func(r *notifydv1.ImportKeyRequest) { r.Name = "" }), "", "name"},
		"a name":     {base(func(r *notifydv1.ImportKeyRequest) { r.Name = "a/b" }), "a/b", "name"},
		"no purpose": {base(func(r *notifydv1.ImportKeyRequest) { r.Purpose = 0 }), "", "purpose"},
		"no key":     {base(func(r *notifydv1.ImportKeyRequest) { r.Key = nil }), "", "key"},
		"nothing":    {base(func(r *notifydv1.ImportKeyRequest) { r.Key.Content = nil }), "", "key.content"},
		"HTML":       {base(func(r *notifydv1.ImportKeyRequest) { r.Key = &notifydv1.ImportedKey{Content: []byte("<html>login")} }), "not_a_key: it seems to be an HTML page", "key.content"},
		"too large":  {base(func(r *notifydv1.ImportKeyRequest) { r.Key.Content = make([]byte, keys.MaxImport+1) }), "", "key.content"},
		"short":      {base(func(r *notifydv1.ImportKeyRequest) { r.Key = secretKey("short-one") }), "too_small", "key.content"},
		"alias":      {base(func(r *notifydv1.ImportKeyRequest) { r.Key = &notifydv1.ImportedKey{Content: pkcs8PEM(t), Alias: "x"} }), "no_such_alias", "key.alias"},
		"no cert": {base(func(r *notifydv1.ImportKeyRequest) {
			r.Purpose, r.Key = tlsClient, &notifydv1.ImportedKey{Content: pkcs8PEM(t)}
		}), "no_certificate", "key.content"},
		"in the past":   {base(func(r *notifydv1.ImportKeyRequest) { r.ActiveFrom = past }), "is in the past", "active_from"},
		"control":       {base(func(r *notifydv1.ImportKeyRequest) { r.Note = "\x1b" }), "control characters", "note"},
		"control, id":   {base(func(r *notifydv1.ImportKeyRequest) { r.MerchantId = "\x1b" }), "control characters", "merchant_id"},
		"long password": {base(func(r *notifydv1.ImportKeyRequest) { r.Key.Password = strings.Repeat("p", 2000) }), "", "key.password"},
	} {
		_, err := c.importKey(t, c2.req)
		wantError(t, name, err, connect.CodeInvalidArgument, c2.says, c2.field)
		if err != nil && (strings.Contains(err.Error(), "short-one") || strings.Contains(err.Error(), "ppp") || strings.Contains(err.Error(), secretText)) {
			t.Errorf("%s: quoted: %v", name, err)
		}
	}
	for name, c2 := range map[string]struct {
		purpose     notifydv1.KeyPurpose
		key         *notifydv1.GeneratedKey
		says, field string
	}{
		"no algorithm":   {toSign, &notifydv1.GeneratedKey{}, "", "key.algorithm"},
		"MD5":            {toSign, &notifydv1.GeneratedKey{Algorithm: "md5"}, "md5", "key.algorithm"},
		"TLS":            {tlsClient, &notifydv1.GeneratedKey{Algorithm: "rsa-2048"}, "certificate", "key.algorithm"},
		"to verify":      {toVerify, &notifydv1.GeneratedKey{Algorithm: "ed25519"}, "public key", "key.algorithm"},
		"length of RSA":  {toSign, &notifydv1.GeneratedKey{Algorithm: "ed25519", SecretBytes: 32}, "symmetric only", "key.secret_bytes"},
		"a short secret": {toSign, &notifydv1.GeneratedKey{Algorithm: "symmetric", SecretBytes: 8}, "want 16 to 64", "key.secret_bytes"},
	} {
		_, err := c.keys.GenerateKey(t.Context(), connect.NewRequest(&notifydv1.GenerateKeyRequest{Name: "g", Purpose: c2.purpose, Key: c2.key}))
		wantError(t, name, err, connect.CodeInvalidArgument, c2.says, c2.field)
	}
	_, err := c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "gone", Material: generating("ed25519")})
	wantError(t, "rotate what is not there", err, connect.CodeNotFound, "gone", "")
	_, err = c.rotateKey(t, &notifydv1.RotateKeyRequest{Name: "gone"})
	wantError(t, "rotate to nothing", err, connect.CodeInvalidArgument, "", "material")
	_, err = c.keys.GetKey(t.Context(), connect.NewRequest(&notifydv1.GetKeyRequest{Name: "gone"}))
	wantError(t, "get what is not there", err, connect.CodeNotFound, "gone", "")
	_, err = c.keys.ListKeyChanges(t.Context(), connect.NewRequest(&notifydv1.ListKeyChangesRequest{PageToken: "x"}))
	wantError(t, "a token of somebody else", err, connect.CodeInvalidArgument, "not one of ours", "page_token")
}

func pkcs8PEM(t *testing.T) []byte {
	t.Helper()
	k, err := keys.Generate(keys.Ed25519, 0)
	must(t, err)
	sealings, err := (&keys.Set{Keys: []keys.Key{k}}).Sealings()
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: sealings[0].PKCS8})
}

func TestListStoredKeys(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	for name, merchant := range map[string]string{"a-1": "", "a-2": "m", "b-1": "m"} {
		_, err := c.keys.GenerateKey(t.Context(), connect.NewRequest(&notifydv1.GenerateKeyRequest{Name: name, Purpose: toSign, MerchantId: merchant, Key: &notifydv1.GeneratedKey{Algorithm: "sm2"}}))
		must(t, err)
	}
	_, err := c.importKey(t, &notifydv1.ImportKeyRequest{Name: "v", Purpose: toVerify, Key: secretKey(secretText)})
	must(t, err)
	for want, req := range map[string]*notifydv1.KeyServiceListKeysRequest{
		"[a-1 a-2 b-1 v]": {}, "[a-1 a-2]": {NamePrefix: "a-"}, "[a-2 b-1]": {MerchantId: "m"}, "[v]": {Purpose: toVerify},
		"[]": {ExpiringBefore: timestamppb.New(f.clock.now().Add(10000 * time.Hour))},
	} {
		for _, size := range []int32{0, 1, 2} {
			req.PageSize, req.PageToken = size, ""
			var names []string
			for {
				res, err := got(c.keys.ListKeys(t.Context(), connect.NewRequest(req)))
				must(t, err)
				for _, k := range res.Keys {
					names = append(names, k.Name)
				}
				if req.PageToken = res.NextPageToken; req.PageToken == "" {
					break
				}
			}
			if fmt.Sprint(names) != want {
				t.Errorf("%v: %v, want %s", req, names, want)
			}
		}
	}
	res, err := got(c.keys.GetMasterKeys(t.Context(), connect.NewRequest(&notifydv1.GetMasterKeysRequest{})))
	if err != nil || len(res.Keys) != 2 || !res.Keys[0].InUse || res.Keys[1].MissingOn != 1 {
		t.Errorf("%v, %v", res, err)
	}
}

// Of imports under one name on two nodes one wins; the others are told.
func TestKeysRaceOverNodes(t *testing.T) {
	f := newFront(t, CallersConfig{})
	other := newNode(t, CallersConfig{}, f.memory, f.clock)
	clients := []client{f.client(t, nobody), other.client(t, nobody)}
	var won atomic.Int32
	var importing sync.WaitGroup
	for i := range 20 {
		importing.Go(func() {
			_, err := clients[i%2].keys.ImportKey(t.Context(), connect.NewRequest(&notifydv1.ImportKeyRequest{Name: "k", Purpose: toSign, Key: secretKey(fmt.Sprintf("%s%d", secretText, i))}))
			switch code := connect.CodeOf(err); {
			case err == nil:
				won.Add(1)
			case code != connect.CodeAborted && code != connect.CodeAlreadyExists:
				t.Error(err)
			}
		})
	}
	importing.Wait()
	if won.Load() != 1 {
		t.Errorf("%d have won", won.Load())
	}
	must(t, errors.Join(f.LearnKeys(t.Context()), other.LearnKeys(t.Context())))
	if a, b := f.keys.Get("k"), other.keys.Get("k"); a.Newest().Fingerprint != b.Newest().Fingerprint {
		t.Error("two nodes have two keys")
	}
}

// Only operators have anything to do with keys.
func TestKeysAreForOperators(t *testing.T) {
	cfg, _ := alice(t)
	f := newFront(t, cfg)
	_, err := f.client(t, nobody).importKey(t, &notifydv1.ImportKeyRequest{Name: "k", Purpose: toSign, Key: secretKey(secretText)})
	if connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("somebody: %v", err)
	}
}

// Each threshold is told once, whoever looks.
func TestExpiriesAreToldOnce(t *testing.T) {
	f := newFront(t, CallersConfig{})
	other := newNode(t, CallersConfig{}, f.memory, f.clock)
	end := f.clock.now().Add(31 * 24 * time.Hour)
	k, err := keys.Generate(keys.Ed25519, 0)
	must(t, err)
	k.NotAfter, k.ActiveFrom = end, f.clock.now()
	set, err := (&keys.Set{Name: "client", Purpose: keys.PurposeTLSClient}).With(k, 0, f.clock.now())
	must(t, err)
	_, err = f.memory.PutKeys(t.Context(), set, nil)
	must(t, err)
	must(t, errors.Join(f.LearnKeys(t.Context()), other.LearnKeys(t.Context())))
	var days []string
	for range 40 {
		for _, node := range []*front{f, other} {
			node.tellExpiries(t.Context(), map[keys.Expiring]bool{}) // as after a restart
		}
		f.clock.advance(24 * time.Hour)
	}
	for _, node := range []*front{f, other} {
		for _, line := range node.lines.FilterField(zap.String("key", "client")).All() {
			days = append(days, fmt.Sprint(line.ContextMap()["within_days"]))
		}
	}
	if fmt.Sprint(days) != "[30 14 7 1 0]" {
		t.Errorf("told at %v", days)
	}
}
