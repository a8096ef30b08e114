package merchant

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/notification"
)

// A scene's settings override the merchant's own, field by field where that is meant, and nothing else changes.
func TestForScene(t *testing.T) {
	m := &Merchant{
		ID: "m", NotifyURL: "https://m.test/", Persist: notification.PersistStream, Schedule: Schedule{Name: "alipay", LeastAttempts: 2},
		Timeouts: Timeouts{Connect: time.Second, Total: 10 * time.Second, Grace: 5 * time.Second},
		Contract: Contract{Profile: "standard", Signer: Signer{KeyID: "k1"}},
		Scenes: map[string]SceneSettings{
			"scan": {
				NotifyURL: "https://m.test/scan", Persist: notification.PersistAfter, Schedule: Schedule{Gaps: []time.Duration{time.Second}},
				Timeouts: Timeouts{Total: 2 * time.Second, NoGrace: true}, Acknowledgement: Acknowledgement{BodyExact: "ok"},
			},
			"payout": {},
		},
	}
	if m.ForScene("recharge") != m {
		t.Error("a scene without settings of its own gets a copy")
	}
	if p := m.ForScene("payout"); p.NotifyURL != m.NotifyURL || p.Timeouts != m.Timeouts || p.Schedule.Name != "alipay" || p.Persist != m.Persist {
		t.Errorf("empty settings changed %+v", p)
	}
	s := m.ForScene("scan")
	if s.NotifyURL != "https://m.test/scan" || s.Persist != notification.PersistAfter || s.Schedule.Name != "" || s.Schedule.LeastAttempts != 0 || len(s.Schedule.Gaps) != 1 {
		t.Errorf("%+v", s)
	}
	if want := (Timeouts{Connect: time.Second, Total: 2 * time.Second, NoGrace: true}); s.Timeouts != want {
		t.Errorf("timeouts %+v, want %+v", s.Timeouts, want)
	}
	if s.Contract.Acknowledgement.BodyExact != "ok" || s.Contract.Signer.KeyID != "k1" || m.Contract.Acknowledgement.BodyExact != "" || m.NotifyURL != "https://m.test/" {
		t.Errorf("contract %+v, the merchant's own %+v", s.Contract, m.Contract)
	}
}

// A scene keeps what it says nothing of.
func TestAcknowledgementsLaidOver(t *testing.T) {
	signed, none := AnswerSignature{Algorithm: "md5", UnsignedFields: []string{"a"}}, AnswerSignature{Algorithm: "none"}
	own := Acknowledgement{BodyExact: "ok", FinalStatuses: []uint32{410}, Signature: signed}
	for name, c := range map[string]struct{ given, want Acknowledgement }{
		"nothing":      {Acknowledgement{}, own},
		"a body":       {Acknowledgement{BodyTrimmed: "done"}, Acknowledgement{BodyTrimmed: "done", FinalStatuses: []uint32{410}, Signature: signed}},
		"a last word":  {Acknowledgement{FinalAbortMessage: true}, Acknowledgement{BodyExact: "ok", FinalAbortMessage: true, Signature: signed}},
		"a signature":  {Acknowledgement{Signature: AnswerSignature{Algorithm: "ed25519"}}, Acknowledgement{BodyExact: "ok", FinalStatuses: []uint32{410}, Signature: AnswerSignature{Algorithm: "ed25519"}}},
		"no signature": {Acknowledgement{Signature: none}, Acknowledgement{BodyExact: "ok", FinalStatuses: []uint32{410}, Signature: none}},
	} {
		if diff := cmp.Diff(c.want, own.With(c.given)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, one := range []AnswerSignature{signed, none, {Header: "a"}, {SignEmpty: true}, {Charset: "gbk"}} {
		if one.IsZero() || (Acknowledgement{Signature: one}).IsZero() {
			t.Errorf("%+v is nothing", one)
		}
	}
}

// Whoever learns what in whatever order: the newest version stays, and nobody is forgotten.
func TestRegistryKeepsTheNewest(t *testing.T) {
	r := NewRegistry()
	if r.Get("m") != nil || r.Version() != 0 {
		t.Fatal("not empty")
	}
	var learning sync.WaitGroup
	for version := int64(1); version <= 50; version++ {
		learning.Go(func() {
			r.Learn(&Merchant{ID: "m", Version: version}, &Merchant{ID: fmt.Sprint("m", version), Version: version})
		})
	}
	learning.Wait()
	if got := r.Get("m"); got.Version != 50 || r.Len() != 51 || r.Version() != 50 {
		t.Errorf("version %d, %d merchants, newest %d", got.Version, r.Len(), r.Version())
	}
	r.Learn(&Merchant{ID: "m", Version: 7})
	if got := r.Get("m"); got.Version != 50 {
		t.Errorf("an older version replaced it: %d", got.Version)
	}
}

// No way of formatting shows a secret (P11).
func TestSecretsAreNotShown(t *testing.T) {
	m := Merchant{ID: "m", Secrets: Secrets{SigningSecret: "whsec_dG9wIHNlY3JldA=="}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, m); strings.Contains(text, "whsec") {
			t.Errorf("%s shows it: %s", verb, text)
		}
	}
}
