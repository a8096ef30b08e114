package contract_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
)

// ring has a generated key of each kind, under the algorithm's name; none has a certificate.
func ring(t *testing.T) *keys.Ring {
	t.Helper()
	r := keys.NewRing()
	for name, purpose := range map[string]keys.Purpose{"rsa-2048": keys.PurposeSign, "ed25519": keys.PurposeSign, "symmetric": keys.PurposeSign, "seal": keys.PurposeEncrypt} {
		algorithm := keys.Algorithm(name)
		if name == "seal" {
			algorithm = keys.Symmetric
		}
		key, err := keys.Generate(algorithm, 0)
		if err != nil {
			t.Fatal(err)
		}
		key.ActiveFrom, key.CreatedAt = at.Add(-time.Hour), at.Add(-time.Hour)
		set, err := (&keys.Set{Name: name, Purpose: purpose}).With(key, 0, at.Add(-time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		r.Learn(set)
	}
	return r
}

// TestCheckSettings: what a contract needs of its keys is checked before anything is accepted with it.
func TestCheckSettings(t *testing.T) {
	book := contract.NewBook(ring(t), sign.NewPool(1))
	const secret = "0123456789abcdef0123"
	for _, c := range []struct {
		name   string
		given  merchant.Contract
		secret string
		field  string // empty: it is well
		rule   string
	}{
		{"standard with a secret", merchant.Contract{}, whsec, "", ""},
		{"standard with a short secret", merchant.Contract{}, "short", "signer.secret", "must "},
		{"standard without a key", merchant.Contract{}, "", "signer.key_id", "must name a key"},
		{"standard with a stored key", merchant.Contract{Signer: merchant.Signer{Algorithm: "ed25519", KeyID: "ed25519"}}, "", "", ""},
		{"a key of another kind", merchant.Contract{Signer: merchant.Signer{Algorithm: "ed25519", KeyID: "rsa-2048"}}, "", "signer.key_id", "ed25519"},
		{"no such key", merchant.Contract{Profile: contract.Alipay, Signer: merchant.Signer{KeyID: "other"}}, "", "signer.key_id", "other"},
		{"a key for something else", merchant.Contract{Profile: contract.Stripe, Signer: merchant.Signer{KeyID: "seal"}}, "", "signer.key_id", "seal"},
		{"a secret for a private key", merchant.Contract{Profile: contract.Alipay, Signer: merchant.Signer{KeyID: "rsa-2048"}}, secret, "signer.secret", "signs with a private key"},
		{"alipay", merchant.Contract{Profile: contract.Alipay, Signer: merchant.Signer{KeyID: "rsa-2048"}}, "", "", ""},
		{"unionpay without a certificate", merchant.Contract{Profile: contract.UnionPay, Signer: merchant.Signer{KeyID: "rsa-2048"}}, "", "signer.key_id", "field certId has the certificate's serial number"},
		{"unionpay with a certId of the merchant's own", merchant.Contract{
			Profile: contract.UnionPay, Signer: merchant.Signer{KeyID: "rsa-2048"}, Encoding: merchant.Encoding{Fields: map[string]string{"certId": "=1", "a": "$.a"}},
		}, "", "", ""},
		{"wechatpay-v3 without a certificate", merchant.Contract{
			Profile: contract.WeChatPayV3, Signer: merchant.Signer{KeyID: "rsa-2048"}, Encryption: merchant.Encryption{KeyID: "seal"},
		}, "", "signer.key_id", "certificate's serial number"},
		{"a field with a certificate's number", of(func(c *merchant.Contract) {
			c.Signer.Algorithm, c.Signer.KeyID, c.Encoding.Fields = "rsa-sha256", "rsa-2048", map[string]string{"cert": "@serial!"}
		}), "", "signer.key_id", `encoding.fields["cert"] has the certificate's serial number`},
		{"a field with a certificate's number, and a secret", of(func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"cert": "@serial"} }), secret, "signer.key_id", "which a secret has not"},
		{"a field with the key's name, and it has none", of(func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"key": "@key_id!"} }), secret, "signer.key_id", `must be given: encoding.fields["key"] has it`},
		{"a field with the key's name", of(func(c *merchant.Contract) {
			c.Encoding.Fields, c.Signer.KeyID = map[string]string{"key": "@key_id!"}, "mine"
		}), secret, "", ""},
		{"nothing signed, and a secret", merchant.Contract{Profile: contract.Custom, Signer: merchant.Signer{Algorithm: "none"}}, secret, "signer.algorithm", "none signs nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := book.CheckSettings(&merchant.Merchant{ID: "tea-shop", Contract: c.given, Secrets: merchant.Secrets{SigningSecret: c.secret}}, at)
			wrong := contract.Errors(err)
			switch {
			case c.field == "" && err != nil:
				t.Errorf("%v", err)
			case c.field != "" && (len(wrong) != 1 || wrong[0].Field != c.field || !strings.Contains(wrong[0].Rule, c.rule)):
				t.Errorf("%v, want %s: …%s…", err, c.field, c.rule)
			case err != nil && c.secret != "" && strings.Contains(err.Error(), c.secret) && c.secret != "short":
				t.Errorf("%v shows the secret", err)
			}
		})
	}
}

// TestNoncesDiffer: whoever asks for a nonce, or for something encrypted, gets another one in each request.
func TestNoncesDiffer(t *testing.T) {
	book := contract.NewBook(ring(t), sign.NewPool(1))
	hmac := merchant.Signer{Algorithm: "hmac-sha256", Input: "{body}", Header: "X-Sign"}
	signed := func(change func(*merchant.Signer)) merchant.Signer {
		s := hmac
		change(&s)
		return s
	}
	for name, settings := range map[string]merchant.Contract{
		"wechatpay-v2":           {Profile: contract.WeChatPayV2},
		"a field":                {Profile: contract.Custom, Encoding: merchant.Encoding{Format: "json", Fields: map[string]string{"n": "@nonce!"}}, Signer: hmac},
		"a template":             {Profile: contract.Custom, Encoding: merchant.Encoding{Format: "template", ContentType: "text/plain", Template: "n={@nonce|url}"}, Signer: hmac},
		"a header":               {Profile: contract.Custom, Encoding: merchant.Encoding{Headers: map[string]string{"X-Nonce": "n-{nonce}"}}, Signer: hmac},
		"the signature's header": {Profile: contract.Custom, Signer: signed(func(s *merchant.Signer) { s.HeaderValue = "n={nonce},s={signature}" })},
		"what is signed":         {Profile: contract.Custom, Signer: signed(func(s *merchant.Signer) { s.Input = "{nonce}{body}" })},
		"what is encrypted": {
			Profile: contract.Custom, Signer: hmac, Encryption: merchant.Encryption{Algorithm: "aes-256-gcm", KeyID: "seal"},
			Encoding: merchant.Encoding{Format: "template", ContentType: "text/plain", Template: "{@seal_nonce}.{@ciphertext}"},
		},
	} {
		m := &merchant.Merchant{ID: name, Version: 1, Contract: settings, Secrets: merchant.Secrets{SigningSecret: "0123456789abcdef0123"}}
		requests := map[string]bool{}
		for range 3 {
			n := told(`{"a":1}`)
			n.Entropy = [32]byte{}
			r, err := book.Request(t.Context(), m, n, contract.Options{})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			requests[fmt.Sprint(r.Headers, string(r.Body))] = true
		}
		if len(requests) != 3 {
			t.Errorf("%s: %d of 3 requests differ", name, len(requests))
		}
	}
}

// TestSceneOverTheRule: a scene that only says what is final keeps what acknowledges.
func TestSceneOverTheRule(t *testing.T) {
	m := &merchant.Merchant{
		ID: "m-1", Contract: merchant.Contract{Acknowledgement: merchant.Acknowledgement{BodyExact: "success"}}, Secrets: merchant.Secrets{SigningSecret: whsec},
		Scenes: map[string]merchant.SceneSettings{"refund": {Acknowledgement: merchant.Acknowledgement{FinalStatuses: []uint32{501}}}},
	}
	rule := contract.NewBook(keys.NewRing(), sign.NewPool(1)).Acknowledgement(m.ForScene("refund"), "refund")
	for _, c := range []struct {
		given answer.Answer
		want  answer.Verdict
	}{
		{answer.Answer{Status: 200, Body: []byte("<html>error</html>")}, answer.WrongAnswer},
		{answer.Answer{Status: 200, Body: []byte("success")}, answer.Acknowledged},
		{answer.Answer{Status: 501}, answer.Refused},
	} {
		if got := rule.Judge(c.given).Verdict; got != c.want {
			t.Errorf("%d %s: %s, want %s", c.given.Status, c.given.Body, got, c.want)
		}
	}
}

// TestOursIsNotPermanent: a key without the certificate that a contract needs, and settings that cannot be worked with, are ours
// to mend; a URL that is too long is refused before anything is accepted.
func TestOursIsNotPermanent(t *testing.T) {
	r := ring(t)
	book := contract.NewBook(r, sign.NewPool(1))
	request := func(settings merchant.Contract, payload string) error {
		m := &merchant.Merchant{ID: "m-1", Contract: settings, Secrets: merchant.Secrets{SigningSecret: "0123456789abcdef0123"}}
		if settings.Signer.KeyID != "" {
			m.Secrets = merchant.Secrets{}
		}
		if err := book.Check(m, told(payload).Notification); err != nil {
			return err
		}
		_, err := book.Request(t.Context(), m, told(payload), contract.Options{})
		return err
	}
	if err := request(merchant.Contract{Profile: contract.UnionPay, Signer: merchant.Signer{KeyID: "rsa-2048"}}, `{"a":1}`); !errors.Is(err, contract.ErrNoKey) {
		t.Errorf("no certificate: %v", err)
	}
	if err := request(merchant.Contract{Profile: "of a later version"}, `{"a":1}`); !errors.Is(err, contract.ErrSettings) {
		t.Errorf("unknown profile: %v", err)
	}
	query := merchant.Contract{Profile: contract.Custom, Encoding: merchant.Encoding{Format: "query"}, Signer: merchant.Signer{Algorithm: "hmac-sha256", Input: "{sorted}", Field: "sign"}}
	var refused *contract.EncodeError
	if err := request(query, `{"a":"`+strings.Repeat("x", 3000)+`"}`); !errors.As(err, &refused) {
		t.Errorf("a long query: %v", err)
	}
}
