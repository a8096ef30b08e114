package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/access"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/source"
)

func generate(t *testing.T, algorithm keys.Algorithm) keys.Key {
	t.Helper()
	k, err := keys.Generate(algorithm, 0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// openWith opens a node with the keyset in a file. It does not run: tests turn and reseal themselves.
func openWith(t *testing.T, url, file string) (*ledger.Postgres, error) {
	t.Helper()
	raw, err := ledger.LoadMasterKey(file, false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ledger.NewCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{URL: url, Keys: c})
	if err == nil {
		t.Cleanup(l.Close)
	}
	return l, err
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// putOfEach puts one of everything that is sealed, and merchants.
func putOfEach(t *testing.T, l *ledger.Postgres, merchants int) {
	t.Helper()
	for i := range merchants {
		must[*merchant.Merchant](t)(l.PutMerchant(t.Context(), &merchant.Merchant{ID: fmt.Sprintf("m%03d", i), Secrets: merchant.Secrets{SigningSecret: "whsec_x"}}, nil))
	}
	must[*source.Source](t)(l.PutSource(t.Context(), &source.Source{ID: "pay"}, nil))
	must[*access.Rule](t)(l.PutAccessRule(t.Context(), &access.Rule{ID: "merchant/a/block", Subject: access.Subject{Kind: access.KindMerchant, ID: "a"}, Effect: access.EffectBlock, Mode: access.ModeHold}, nil))
	set, err := (&keys.Set{Name: "platform", Purpose: keys.PurposeSign}).With(generate(t, keys.Symmetric), 0, time.Now())
	must[*keys.Set](t)(set, err)
	must[*keys.Set](t)(l.PutKeys(t.Context(), set, nil))
}

// Rotation with two nodes: the new key comes into use when both hold it, what is sealed is sealed anew through a death in the
// middle, and the old key may go when nothing needs it.
func TestMasterKeyRotation(t *testing.T) {
	url, dir := shared.database(t), t.TempDir()
	files := [2]string{filepath.Join(dir, "a.key"), filepath.Join(dir, "b.key")}
	raw := must[[]byte](t)(ledger.LoadMasterKey(files[0], true))
	if err := os.WriteFile(files[1], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := must[*ledger.Postgres](t)(openWith(t, url, files[0])), must[*ledger.Postgres](t)(openWith(t, url, files[1]))
	const rows = 130
	putOfEach(t, a, rows)
	old := must[[]ledger.MasterKey](t)(a.MasterKeys(t.Context()))
	if len(old) != 1 || !old[0].InUse || old[0].Sealed != rows+4 || !old[0].Held {
		t.Fatalf("before: %+v", old)
	}

	id := must[uint32](t)(ledger.AddMasterKey(files[0]))
	if err := ledger.DropMasterKey(files[0], id); err == nil {
		t.Error("dropped the primary")
	}
	a2 := must[*ledger.Postgres](t)(openWith(t, url, files[0])) // the first node, started again
	if turned := must[bool](t)(a2.TurnMasterKey(t.Context())); turned {
		t.Fatal("in use, though others lack it")
	}
	must[*merchant.Merchant](t)(a2.PutMerchant(t.Context(), &merchant.Merchant{ID: "meanwhile"}, nil))
	if _, err := b.GetMerchant(t.Context(), "meanwhile"); err != nil {
		t.Fatalf("the node without the new key meets what it cannot open: %v", err)
	}
	stranger := filepath.Join(dir, "c.key") // has the old key, and not the new one
	if err := os.WriteFile(stranger, raw, 0o600); err != nil {
		t.Fatal(err)
	}

	// The others have ended, or have it by now.
	newer, err := os.ReadFile(files[0])
	must[[]byte](t)(newer, err)
	if err := os.WriteFile(files[1], newer, 0o600); err != nil {
		t.Fatal(err)
	}
	forget(t, url)
	b2 := must[*ledger.Postgres](t)(openWith(t, url, files[1]))
	if turned := must[bool](t)(b2.TurnMasterKey(t.Context())); !turned {
		t.Fatal("not in use, though everybody has it")
	}
	if turned := must[bool](t)(a2.TurnMasterKey(t.Context())); turned {
		t.Error("turned twice")
	}
	if _, err := openWith(t, url, stranger); !errors.Is(err, ledger.ErrOtherMasterKey) {
		t.Fatalf("a node without the key in use starts: %v", err)
	}
	snapshot := filepath.Join(dir, "settings.json")
	before := must[[]*merchant.Merchant](t)(a2.MerchantsSince(t.Context(), 0))

	// Dies after the first transaction: the ledger is at the mercy of the next one.
	dying, die := context.WithCancel(t.Context())
	n, err := a2.ResealUntil(dying, die)
	if err == nil || n == 0 || n >= rows {
		t.Fatalf("resealed %d, %v", n, err)
	}
	half := must[[]ledger.MasterKey](t)(b2.MasterKeys(t.Context()))
	if len(half) != 2 || half[0].InUse || !half[1].InUse || half[0].Sealed == 0 || half[1].Sealed < int64(n) {
		t.Fatalf("half way: %+v", half)
	}
	if n := must[int](t)(b2.Reseal(t.Context())); n == 0 {
		t.Fatal("nothing was left to do")
	}
	if n := must[int](t)(b2.Reseal(t.Context())); n != 0 {
		t.Errorf("%d sealed again", n)
	}
	done := must[[]ledger.MasterKey](t)(b2.MasterKeys(t.Context()))
	if done[0].Sealed != 0 || done[1].Sealed != rows+5 {
		t.Fatalf("done: %+v", done)
	}
	if got := must[[]access.Change](t)(b2.AccessChanges(t.Context(), "", 0, 10)); len(got) != 1 {
		t.Errorf("%d changes of rules are kept, want 1: sealing anew is none", len(got))
	}
	if got := must[[]ledger.KeyChange](t)(b2.KeyChanges(t.Context(), "", 0, 10)); len(got) != 1 {
		t.Errorf("%d changes of keys are kept, want 1", len(got))
	}

	if err := ledger.DropMasterKey(files[1], 4711); err == nil || !strings.Contains(err.Error(), "there is no key 4711") {
		t.Errorf("dropped what is not there: %v", err)
	}
	if err := ledger.DropMasterKey(files[1], old[0].ID); err != nil {
		t.Fatal(err)
	}
	alone := must[*ledger.Postgres](t)(openWith(t, url, files[1]))
	after := must[[]*merchant.Merchant](t)(alone.MerchantsSince(t.Context(), 0))
	if diff := cmp.Diff(byID(before), byID(after)); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
	if k := must[[]*keys.Set](t)(alone.KeysSince(t.Context(), 0)); len(k) != 1 || k[0].Newest().Material.Secret() == nil {
		t.Errorf("keys: %v", k)
	}
	if err := alone.SaveSettings(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	if s, err := alone.LoadSettings(snapshot); err != nil || len(s.Keys) != 1 {
		t.Errorf("the snapshot: %v", err)
	}
}

// A key that still seals something is missed by a start.
func TestMasterKeyDroppedTooEarly(t *testing.T) {
	url, file := shared.database(t), filepath.Join(t.TempDir(), "a.key")
	must[[]byte](t)(ledger.LoadMasterKey(file, true))
	first := must[*ledger.Postgres](t)(openWith(t, url, file))
	putOfEach(t, first, 1)
	old := must[[]ledger.MasterKey](t)(first.MasterKeys(t.Context()))[0].ID
	must[uint32](t)(ledger.AddMasterKey(file))
	forget(t, url)
	second := must[*ledger.Postgres](t)(openWith(t, url, file))
	if !must[bool](t)(second.TurnMasterKey(t.Context())) {
		t.Fatal("not turned")
	}
	if err := ledger.DropMasterKey(file, old); err != nil {
		t.Fatal(err)
	}
	if _, err := openWith(t, url, file); !errors.Is(err, ledger.ErrOtherMasterKey) || !strings.Contains(err.Error(), strconv.FormatUint(uint64(old), 10)) {
		t.Fatalf("started: %v", err)
	}
	content, err := os.ReadFile(file)
	must[[]byte](t)(content, err)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 || bytes.Contains(content, strconv.AppendUint(nil, uint64(old), 10)) {
		t.Errorf("left behind: %v", left)
	}
}

func byID(list []*merchant.Merchant) map[string]merchant.Secrets {
	out := map[string]merchant.Secrets{}
	for _, m := range list {
		out[m.ID] = m.Secrets
	}
	return out
}

// forget ends all processes, as far as the ledger knows.
func forget(t *testing.T, url string) {
	t.Helper()
	if _, err := connect(t, url).Exec(t.Context(), `delete from master_key_holders`); err != nil {
		t.Fatal(err)
	}
}

// Somebody with the database, and without the master key, cannot have a key used for something else.
func TestKeysAreBoundToTheirPurpose(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	putOfEach(t, l, 0)
	admin := connect(t, url)
	var text string
	if err := admin.QueryRow(t.Context(), `select settings || encode(secrets, 'escape') from keys`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	stored := must[[]*keys.Set](t)(l.KeysSince(t.Context(), 0))
	if secret := string(stored[0].Newest().Material.Secret()); secret == "" || strings.Contains(text, secret) {
		t.Fatal("a secret is stored in clear")
	}
	for _, change := range []string{
		`replace(settings, '"purpose":"sign"', '"purpose":"verify"')`,
		`replace(settings, '"name":"platform"', '"name":"platform","merchant_id":"x"')`,
		`replace(settings, '"fingerprint":"keyed:', '"fingerprint":"keyed:0')`,
	} {
		tag, err := admin.Exec(t.Context(), `update keys set settings = `+change)
		if err != nil || tag.RowsAffected() != 1 {
			t.Fatal(err)
		}
		if _, err := l.KeysSince(t.Context(), 0); err == nil {
			t.Errorf("read after %s", change)
		}
		var was string
		if err := admin.QueryRow(t.Context(), `select after from key_changes order by number limit 1`).Scan(&was); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Exec(t.Context(), `update keys set settings = $1`, was); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.KeysSince(t.Context(), 0); err != nil {
		t.Errorf("as it was: %v", err)
	}
	for _, statement := range []string{`delete from keys`, `truncate keys`, `update key_changes set after = '{}'`, `delete from key_changes`, `truncate key_changes`} {
		if _, err := admin.Exec(t.Context(), statement); err == nil {
			t.Errorf("done: %s", statement)
		}
	}
}
