package ledger_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
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

func TestSettingsSnapshot(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	path := filepath.Join(t.TempDir(), "settings.json")
	if _, err := l.LoadSettings(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	for _, id := range []string{"b", "a"} {
		if _, err := l.PutMerchant(t.Context(), &merchant.Merchant{ID: id, NotifyURL: "https://" + id + ".example", Secrets: merchant.Secrets{SigningSecret: "whsec_" + id}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.SaveSettings(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutSource(t.Context(), &source.Source{ID: "pay"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutAccessRule(t.Context(), &access.Rule{ID: "merchant/a/block", Subject: access.Subject{Kind: access.KindMerchant, ID: "a"}, Effect: access.EffectBlock, Mode: access.ModeHold}, nil); err != nil {
		t.Fatal(err)
	}
	platform, err := (&keys.Set{Name: "platform", Purpose: keys.PurposeSign}).With(generate(t, keys.Ed25519), 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutKeys(t.Context(), platform, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.SaveSettings(t.Context(), path); err != nil { // over the one before
		t.Fatal(err)
	}
	wantMerchants, err := l.MerchantsSince(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	wantSources, err := l.SourcesSince(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	wantAccess, err := l.AccessRulesSince(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKeys, err := l.KeysSince(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := l.LoadSettings(path)
	if err != nil || len(loaded.Keys) != 1 || len(loaded.Merchants) != 2 || len(loaded.Sources) != 1 || len(loaded.Access) != 1 {
		t.Fatalf("loaded %+v, %v", loaded, err)
	}
	if diff := cmp.Diff(ledger.Settings{Merchants: wantMerchants, Sources: wantSources, Access: wantAccess, Keys: wantKeys}, loaded); diff != "" {
		t.Errorf("(-ledger +file)\n%s", diff)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte("whsec_")) {
		t.Error("a secret is in clear")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":                   {nil, "damaged"},
		"cut":                     {content[:len(content)/2], "damaged"},
		"another notify URL":      {bytes.Replace(content, []byte("https://a.example"), []byte("https://x.example"), 1), "damaged"},
		"without a merchant":      {bytes.Replace(content, []byte(`"merchants":[`), []byte(`"merchants":[],"gone":[`), 1), "damaged"},
		"of a version to come":    {bytes.Replace(content, []byte(`"format":1`), []byte(`"format":2`), 1), "format is 2, want 1"},
		"sealed by somebody else": {bytes.Replace(content, []byte(`"seal":"`), []byte(`"seal":"AAAA`), 1), "another master key"},
	} {
		if bytes.Equal(c.content, content) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := l.LoadSettings(path); err == nil || !strings.Contains(err.Error(), c.want) || !cmp.Equal(s, ledger.Settings{}) || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}

	text, err := ledger.GenerateMasterKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := ledger.NewCipher(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	stranger, err := ledger.Open(t.Context(), ledger.Config{URL: shared.database(t), Keys: other})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.LoadSettings(path); err == nil || !strings.Contains(err.Error(), "another master key") {
		t.Errorf("another master key: %v", err)
	}
	if err := l.SaveSettings(t.Context(), filepath.Join(t.TempDir(), "no", "folder")); err == nil {
		t.Error("saved into a folder that is not there")
	}
}
