package ledger_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"notifyd/ledger"
	"notifyd/merchant"
)

func TestMasterKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	if _, err := ledger.LoadMasterKey(path, false); err == nil {
		t.Fatal("loaded a key that is not there")
	}
	var keys [8][]byte
	var starting sync.WaitGroup
	for i := range keys { // processes that start at once
		starting.Go(func() {
			var err error
			if keys[i], err = ledger.LoadMasterKey(path, true); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	for _, key := range keys {
		if !bytes.Equal(key, keys[0]) {
			t.Fatal("two processes have two keys")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ledger.LoadMasterKey(path, true); err == nil {
			t.Errorf("took a file of mode %o", mode)
		}
	}
}

func TestCipher(t *testing.T) {
	sealed, err := testKeys.Seal([]byte("secret"), []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := testKeys.Open(sealed, []byte("here")); err != nil || string(opened) != "secret" {
		t.Fatalf("opened %q, %v", opened, err)
	}
	if _, err := testKeys.Open(sealed, []byte("there")); err == nil {
		t.Error("opened elsewhere")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := testKeys.Open(sealed, []byte("here")); err == nil {
		t.Error("opened after a change")
	}
	if _, err := ledger.NewCipher([]byte(`{"key": "c2VjcmV0"}`)); err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("a broken keyset: %v", err)
	}
}

func TestSecretsAreSealedAtRest(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	for _, id := range []string{"a", "b"} {
		if _, err := l.PutMerchant(t.Context(), &merchant.Merchant{ID: id, Secrets: merchant.Secrets{SigningSecret: "whsec_" + id}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	admin := connect(t, url)
	var text string
	if err := admin.QueryRow(t.Context(), `select string_agg(settings || encode(secrets, 'escape'), '') from merchants`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "whsec_") {
		t.Fatal("a secret is stored in clear")
	}
	// One merchant's secrets under another's name do not open.
	if _, err := admin.Exec(t.Context(), `update merchants set secrets = (select secrets from merchants where id = 'a') where id = 'b'`); err != nil {
		t.Fatal(err)
	}
	if m, err := l.GetMerchant(t.Context(), "b"); err == nil {
		t.Fatalf("read %v", m)
	}
	m, err := l.GetMerchant(t.Context(), "a")
	if err != nil || m.Secrets.SigningSecret != "whsec_a" {
		t.Fatalf("read %v, %v", m, err)
	}
	if shown := fmt.Sprintf("%v %+v %#v", m.Secrets, *m, m.Secrets); strings.Contains(shown, "whsec_") {
		t.Fatal("a secret can be printed")
	}
}

func TestConfigValidate(t *testing.T) {
	fine := ledger.Config{URL: "host=x", Keys: testKeys}
	if err := fine.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*ledger.Config){
		"url":         func(c *ledger.Config) { c.URL = "" },
		"writers":     func(c *ledger.Config) { c.Writers = -1 },
		"max_conns":   func(c *ledger.Config) { c.MaxConns = 2 },
		"batch_rows":  func(c *ledger.Config) { c.BatchRows = 1_000_000 },
		"linger":      func(c *ledger.Config) { c.Linger = 1 << 40 },
		"retention":   func(c *ledger.Config) { c.Retention = 1 },
		"window":      func(c *ledger.Config) { c.Window = -1 },
		"queue_bytes": func(c *ledger.Config) { c.QueueBytes = 1 },
		"keys":        func(c *ledger.Config) { c.Keys = ledger.Cipher{} },
	} {
		c := fine
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
