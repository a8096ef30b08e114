package contract_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
	"notifyd/notification"
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
	byHMAC := merchant.Signer{Algorithm: "hmac-sha256", Input: "{body}", Header: "X-Sign"}
	signed := func(change func(*merchant.Signer)) merchant.Signer {
		s := byHMAC
		change(&s)
		return s
	}
	for name, settings := range map[string]merchant.Contract{
		"wechatpay-v2":           {Profile: contract.WeChatPayV2},
		"a field":                {Profile: contract.Custom, Encoding: merchant.Encoding{Format: "json", Fields: map[string]string{"n": "@nonce!"}}, Signer: byHMAC},
		"a template":             {Profile: contract.Custom, Encoding: merchant.Encoding{Format: "template", ContentType: "text/plain", Template: "n={@nonce|url}"}, Signer: byHMAC},
		"a header":               {Profile: contract.Custom, Encoding: merchant.Encoding{Headers: map[string]string{"X-Nonce": "n-{nonce}"}}, Signer: byHMAC},
		"the signature's header": {Profile: contract.Custom, Signer: signed(func(s *merchant.Signer) { s.HeaderValue = "n={nonce},s={signature}" })},
		"what is signed":         {Profile: contract.Custom, Signer: signed(func(s *merchant.Signer) { s.Input = "{nonce}{body}" })},
		"what is encrypted": {
			Profile: contract.Custom, Signer: byHMAC, Encryption: merchant.Encryption{Algorithm: "aes-256-gcm", KeyID: "seal"},
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
	rule := contract.NewBook(keys.NewRing(), sign.NewPool(1)).Acknowledgement(m.ForScene("refund"), contract.Told{Notification: &notification.Notification{Scene: "refund"}})
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

// answered is a merchant that signs its answers over their body.
func answered(signature merchant.AnswerSignature) *merchant.Merchant {
	signature.Input, signature.Header = "{body}", "X-Signature"
	return &merchant.Merchant{
		ID: "tea-shop", Version: 1, Contract: merchant.Contract{Acknowledgement: merchant.Acknowledgement{Signature: signature}}, Secrets: merchant.Secrets{SigningSecret: whsec},
	}
}

// verifying is a ring with a key that answers are signed with, and that key.
func verifying(t *testing.T, merchantID string) (*keys.Ring, *keys.Set, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := (&keys.Set{Name: "answers", Purpose: keys.PurposeVerify, MerchantID: merchantID}).With(imported(t, public, keys.PurposeVerify), 0, at.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r := ring(t)
	r.Learn(set)
	return r, set, private
}

func imported(t *testing.T, public ed25519.PublicKey, purpose keys.Purpose) keys.Key {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Import(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), keys.Options{Purpose: purpose})
	if err != nil {
		t.Fatal(err)
	}
	key.ActiveFrom, key.CreatedAt = at.Add(-time.Hour), at.Add(-time.Hour)
	return key
}

// TestAnswerKeyIsChecked: a key that answers cannot be verified with is refused with the settings.
func TestAnswerKeyIsChecked(t *testing.T) {
	r, set, _ := verifying(t, "tea-shop")
	book := contract.NewBook(r, sign.NewPool(1))
	for _, c := range []struct{ name, algorithm, key, merchant, rule string }{
		{"well", "ed25519", "answers", "tea-shop", ""},
		{"the secret of the requests", "hmac-sha256", "", "tea-shop", ""},
		{"another kind", "rsa-sha256", "answers", "tea-shop", "must be of kind rsa, is an ed25519 public key"},
		{"another merchant's", "ed25519", "answers", "coffee-shop", "there is no such key"},
		{"another purpose", "ed25519", "ed25519", "tea-shop", "want one for verify"},
		{"none", "ed25519", "nobody's", "tea-shop", "there is no such key"},
	} {
		m := answered(merchant.AnswerSignature{Algorithm: c.algorithm, KeyID: c.key})
		m.ID = c.merchant
		wrong := contract.Errors(book.CheckSettings(m, at))
		switch {
		case c.rule == "" && len(wrong) > 0:
			t.Errorf("%s: %v", c.name, wrong)
		case c.rule != "" && (len(wrong) != 1 || wrong[0].Field != "acknowledgement.signature.key_id" || !strings.Contains(wrong[0].Rule, c.rule)):
			t.Errorf("%s: %v, want …%s…", c.name, wrong, c.rule)
		}
	}
	retired, err := set.Retire(1, at, at)
	if err != nil {
		t.Fatal(err)
	}
	retired.Version++
	r.Learn(retired)
	if err := book.CheckSettings(answered(merchant.AnswerSignature{Algorithm: "ed25519", KeyID: "answers"}), at); err == nil || !strings.Contains(err.Error(), "no version of it is in use") {
		t.Errorf("retired: %v", err)
	}
}

// TestAnswerKeysAsTheyAreImported: what the key store makes of a public key fits the algorithm that it is for.
func TestAnswerKeysAsTheyAreImported(t *testing.T) {
	for name, algorithm := range map[string]string{"rsa": "rsa-sha256", "ecdsa": "ecdsa-sha256", "ed25519": "ed25519", "sm2": "sm2-sm3"} {
		content, err := os.ReadFile(filepath.Join("testdata", "keys", name+".pub.pem"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := keys.Import(content, keys.Options{Purpose: keys.PurposeVerify})
		if err != nil {
			t.Fatal(err)
		}
		set, err := (&keys.Set{Name: name, Purpose: keys.PurposeVerify}).With(key, 0, at)
		if err != nil {
			t.Fatal(err)
		}
		r := keys.NewRing()
		r.Learn(set)
		if err := contract.NewBook(r, sign.NewPool(1)).CheckSettings(answered(merchant.AnswerSignature{Algorithm: algorithm, KeyID: name}), at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAnswersOverARotation: the keys that were in use when it was asked verify an answer; where none is, nobody is asked.
func TestAnswersOverARotation(t *testing.T) {
	r, set, first := verifying(t, "")
	book := contract.NewBook(r, sign.NewPool(1))
	m := answered(merchant.AnswerSignature{Algorithm: "ed25519", KeyID: "answers"})
	asked := func(when time.Time) contract.Told {
		n := told(`{"a":1}`)
		n.At = when
		return n
	}
	judge := func(when time.Time, key ed25519.PrivateKey) answer.Verdict {
		t.Helper()
		signature := base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte("ok")))
		return book.Acknowledgement(m, asked(when)).Judge(answer.Answer{Status: 200, Header: http.Header{"X-Signature": {signature}}.Values, Body: []byte("ok")}).Verdict
	}
	public, second, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	next := imported(t, public, keys.PurposeVerify)
	next.ActiveFrom = at
	if set, err = set.With(next, time.Minute, at); err != nil {
		t.Fatal(err)
	}
	set.Version++
	r.Learn(set)
	for _, c := range []struct {
		when          time.Duration
		first, second answer.Verdict
	}{
		{-time.Second, answer.Acknowledged, answer.WrongAnswer},
		{0, answer.Acknowledged, answer.Acknowledged},
		{time.Minute - 1, answer.Acknowledged, answer.Acknowledged},
		{time.Minute, answer.WrongAnswer, answer.Acknowledged},
	} {
		if got := [2]answer.Verdict{judge(at.Add(c.when), first), judge(at.Add(c.when), second)}; got != [2]answer.Verdict{c.first, c.second} {
			t.Errorf("%s after the change: %v", c.when, got)
		}
	}
	if _, err := book.Request(t.Context(), m, asked(at), contract.Options{}); err != nil {
		t.Error(err)
	}
	if _, err := book.Request(t.Context(), m, asked(at.Add(-2*time.Hour)), contract.Options{}); !errors.Is(err, contract.ErrNoKey) || !strings.Contains(err.Error(), `"answers"`) {
		t.Errorf("before its time: %v", err)
	}
	if got := judge(at.Add(-2*time.Hour), first); got != answer.WrongAnswer {
		t.Errorf("before its time: %s", got)
	}
}

// TestAnswersWithTheRequestsSecret: while one secret replaces another, an answer may be signed with either.
func TestAnswersWithTheRequestsSecret(t *testing.T) {
	book := contract.NewBook(keys.NewRing(), sign.NewPool(1))
	m := answered(merchant.AnswerSignature{Algorithm: "hmac-sha256"})
	const before = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	m.Secrets.PreviousSecret, m.Secrets.PreviousUntil = before, at.Add(time.Minute)
	for _, c := range []struct {
		when   time.Duration
		secret string
		want   answer.Verdict
	}{
		{0, whsec, answer.Acknowledged},
		{0, before, answer.Acknowledged},
		{time.Minute, whsec, answer.Acknowledged},
		{time.Minute, before, answer.WrongAnswer},
	} {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(c.secret, "whsec_"))
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, raw)
		mac.Write([]byte("ok"))
		n := told(`{"a":1}`)
		n.At = at.Add(c.when)
		header := http.Header{"X-Signature": {base64.StdEncoding.EncodeToString(mac.Sum(nil))}}
		if got := book.Acknowledgement(m, n).Judge(answer.Answer{Status: 200, Header: header.Values, Body: []byte("ok")}); got.Verdict != c.want {
			t.Errorf("%s, %s: %s, want %s", c.when, c.secret, got.Verdict, c.want)
		}
	}
}

// TestSceneAndTheSignature: a scene that has a rule of its own keeps the signature, replaces it, or says that there is none.
func TestSceneAndTheSignature(t *testing.T) {
	book := contract.NewBook(keys.NewRing(), sign.NewPool(1))
	m := answered(merchant.AnswerSignature{Algorithm: "hmac-sha256"})
	m.Scenes = map[string]merchant.SceneSettings{
		"body": {Acknowledgement: merchant.Acknowledgement{BodyExact: "ok"}},
		"none": {Acknowledgement: merchant.Acknowledgement{Signature: merchant.AnswerSignature{Algorithm: "none"}}},
		"own":  {Acknowledgement: merchant.Acknowledgement{Signature: merchant.AnswerSignature{Algorithm: "md5", Input: "{body}{secret}", Header: "X-Own"}}},
	}
	for scene, want := range map[string]string{"": "X-Signature", "body": "X-Signature", "none": "", "own": "X-Own"} {
		n := told(`{"a":1}`)
		n.Notification.Scene = scene
		got := book.Acknowledgement(m.ForScene(scene), n).Judge(answer.Answer{Status: 200, Header: http.Header{}.Values, Body: []byte("ok")})
		if (got.Verdict == answer.Acknowledged) != (want == "") || !strings.Contains(got.Why, want) {
			t.Errorf("%q: %s: %s, want %q", scene, got.Verdict, got.Why, want)
		}
	}
}

// TestUnsignedAnswersCostNothing: a rule without a signature is the same for every answer.
func TestUnsignedAnswersCostNothing(t *testing.T) {
	book := contract.NewBook(keys.NewRing(), sign.NewPool(1))
	m := answered(merchant.AnswerSignature{})
	m.Contract = merchant.Contract{}
	n := told(`{"a":1}`)
	if allocations := testing.AllocsPerRun(100, func() { book.Acknowledgement(m, n) }); allocations > 0 {
		t.Errorf("%v allocations", allocations)
	}
}

// TestEqualSettingsShareAContract: ten thousand merchants with the profile's settings are one contract in memory; one that
// changes its settings changes nobody else's.
func TestEqualSettingsShareAContract(t *testing.T) {
	t.Parallel()
	book := contract.NewBook(ring(t), sign.NewPool(1))
	told := contract.Told{Notification: &notification.Notification{Scene: "payout"}, At: at}
	rule := func(id string, version int64, body string) *answer.Acknowledgement {
		m := &merchant.Merchant{ID: id, Version: version, Secrets: merchant.Secrets{SigningSecret: whsec}}
		m.Contract.Acknowledgement.BodyExact = body
		got := book.Acknowledgement(m, told)
		if got == nil {
			t.Fatalf("%s has no contract", id)
		}
		return got
	}
	a, b := rule("a", 1, ""), rule("b", 1, "")
	if a != b {
		t.Error("two merchants with equal settings have a contract each")
	}
	if changed := rule("a", 2, "OK"); changed == a || changed == rule("b", 1, "") {
		t.Error("changed settings have the contract of those before")
	}
	if back := rule("a", 3, ""); back != rule("b", 1, "") {
		t.Error("settings that are equal again have a contract of their own")
	}
}
