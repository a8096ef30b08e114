package verify_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"notifyd/client/verify"
	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
	"notifyd/notification"
)

var at = time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)

const (
	whsec   = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	apiKey  = "192006250b4c09247ec02edce69f6a2d"
	apiV3   = "0123456789abcdef0123456789abcdef"
	adyenHM = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"

	order = `{"out_trade_no":"o-1","total_amount":10.50,"subject":"红 茶/&=+","passback":"a%20b"}`
	items = `{"live":"false","notificationItems":[{"NotificationRequestItem":{"eventCode":"AUTHORISATION","success":"true","pspReference":"p","merchantReference":"r","merchantAccountCode":"a","amount":{"value":1130,"currency":"EUR"}}}]}`
)

var (
	testRSA, _     = rsa.GenerateKey(rand.Reader, 2048)
	otherRSA, _    = rsa.GenerateKey(rand.Reader, 2048)
	_, testEd, _   = ed25519.GenerateKey(rand.Reader)
	testSM2, _     = sm2.GenerateKey(rand.Reader)
	whpk           = "whpk_" + base64.StdEncoding.EncodeToString(testEd.Public().(ed25519.PublicKey))
	otherWhsec     = sign.GenerateStandardSecret()
	rsaPublic      = testRSA.Public()
	weChatSerial   = map[string]crypto.PublicKey{"4e5f": testRSA.Public()}
	unionPaySerial = map[string]crypto.PublicKey{"20063": testRSA.Public()}
)

// sample is a contract with what both sides have of it.
type sample struct {
	name     string
	contract merchant.Contract
	settings verify.Settings
	payload  string
	keys     []any // secrets' texts and private keys, newest first
	verify   verify.Keys
	noID     bool
}

func samples() []sample {
	custom := func(name string, c merchant.Contract, s verify.Settings, key any, k verify.Keys) sample {
		c.Profile = contract.Custom
		s.Format, s.Charset, s.Headers, s.Fields = c.Encoding.Format, c.Encoding.Charset, c.Encoding.Headers, c.Encoding.Fields
		g := c.Signer
		s.Algorithm, s.Input, s.Output, s.Field, s.Header, s.HeaderValue = g.Algorithm, g.Input, g.Output, g.Field, g.Header, g.HeaderValue
		s.UnsignedFields, s.SignEmpty, s.UserID, s.RawSignature = g.UnsignedFields, g.SignEmpty, g.UserID, g.RawSignature
		return sample{name: "custom " + name, contract: c, settings: s, payload: order, keys: []any{key}, verify: k, noID: true}
	}
	signer := func(algorithm, input string) merchant.Signer {
		return merchant.Signer{Algorithm: algorithm, Input: input}
	}
	in := func(s merchant.Signer, field, header, output string) merchant.Signer {
		s.Field, s.Header, s.Output = field, header, output
		return s
	}
	secret := verify.Keys{Secrets: []string{apiKey}}
	sm2Signer := in(signer("sm2-sm3", "{sorted}"), "sign", "", "hex")
	sm2Signer.UserID, sm2Signer.RawSignature = "N00200000000000", true
	bearer := in(signer("hmac-sha512", "{timestamp_ms}.{nonce}.{body}"), "", "Authorization", "base64url")
	bearer.HeaderValue = "HMAC ts={timestamp_ms},n={nonce},s={signature}"
	return []sample{
		{name: "standard", contract: merchant.Contract{Profile: contract.Standard}, payload: order, keys: []any{whsec}, verify: verify.Keys{Secrets: []string{whsec}}},
		{name: "standard", contract: merchant.Contract{Profile: contract.Standard}, payload: order, keys: []any{otherWhsec, whsec}, verify: verify.Keys{Secrets: []string{whsec}}},
		{name: "standard", contract: merchant.Contract{Profile: contract.Standard, Signer: merchant.Signer{Algorithm: "ed25519"}}, payload: order, keys: []any{testEd}, verify: verify.Keys{Secrets: []string{whpk}}},
		{name: "alipay", contract: merchant.Contract{Profile: contract.Alipay}, payload: order, keys: []any{testRSA}, verify: verify.Keys{Public: []crypto.PublicKey{rsaPublic}}},
		{name: "alipay", contract: merchant.Contract{Profile: contract.Alipay, Encoding: merchant.Encoding{Charset: "gbk"}}, payload: order, keys: []any{testRSA}, verify: verify.Keys{Public: []crypto.PublicKey{rsaPublic}}},
		{name: "alipay", contract: merchant.Contract{Profile: contract.Alipay, Signer: merchant.Signer{Algorithm: "rsa-sha1", Frozen: true}}, settings: verify.Settings{Algorithm: "rsa-sha1"}, payload: order, keys: []any{testRSA}, verify: verify.Keys{Public: []crypto.PublicKey{rsaPublic}}},
		{name: "wechatpay-v2", contract: merchant.Contract{Profile: contract.WeChatPayV2}, payload: order, keys: []any{apiKey}, verify: secret, noID: true},
		{name: "wechatpay-v2", contract: merchant.Contract{Profile: contract.WeChatPayV2, Signer: merchant.Signer{Algorithm: "hmac-sha256"}}, payload: order, keys: []any{apiKey}, verify: secret, noID: true},
		{name: "wechatpay-v3", contract: merchant.Contract{Profile: contract.WeChatPayV3, Encryption: merchant.Encryption{KeyID: "apiv3"}}, payload: order, keys: []any{testRSA}, verify: verify.Keys{BySerial: weChatSerial, Decryption: []string{apiV3}}},
		{name: "unionpay", contract: merchant.Contract{Profile: contract.UnionPay}, payload: order, keys: []any{testRSA}, verify: verify.Keys{BySerial: unionPaySerial}, noID: true},
		{name: "stripe", contract: merchant.Contract{Profile: contract.Stripe}, payload: order, keys: []any{otherWhsec, whsec}, verify: verify.Keys{Secrets: []string{whsec}}, noID: true},
		{name: "adyen", contract: merchant.Contract{Profile: contract.Adyen}, payload: items, keys: []any{"hex:" + adyenHM}, verify: verify.Keys{Secrets: []string{adyenHM}}},
		custom("square", merchant.Contract{Signer: in(signer("hmac-sha256", "{url}{body}"), "", "x-square-hmacsha256-signature", "base64")}, verify.Settings{}, apiKey, secret),
		custom("razorpay", merchant.Contract{Signer: in(signer("hmac-sha256", "{body}"), "", "X-Razorpay-Signature", "hex")}, verify.Settings{}, apiKey, secret),
		custom("md5 form", merchant.Contract{Encoding: merchant.Encoding{Format: "form"}, Signer: in(signer("md5", "{sorted}&key={secret}"), "sign", "", "HEX")}, verify.Settings{}, apiKey, secret),
		custom("md5 json", merchant.Contract{Encoding: merchant.Encoding{Format: "json"}, Signer: in(signer("md5", "{sorted}&key={secret}"), "sign", "", "hex")}, verify.Settings{}, apiKey, secret),
		custom("md5 in the JSON body", merchant.Contract{Encoding: merchant.Encoding{Format: "raw"}, Signer: in(signer("md5", "{sorted}&key={secret}"), "$.sign", "", "hex")}, verify.Settings{}, apiKey, secret),
		custom("md5 query", merchant.Contract{Encoding: merchant.Encoding{Format: "query"}, Signer: in(signer("md5", "{sorted}&key={secret}"), "sign", "", "hex")}, verify.Settings{}, apiKey, secret),
		custom("xml gbk", merchant.Contract{Encoding: merchant.Encoding{Format: "xml", Charset: "gbk"}, Signer: in(signer("sha256", "{sorted}{secret}"), "sign", "", "hex")}, verify.Settings{}, apiKey, secret),
		custom("sm2 form gb18030", merchant.Contract{Encoding: merchant.Encoding{Format: "form", Charset: "gb18030"}, Signer: sm2Signer}, verify.Settings{}, testSM2, verify.Keys{Public: []crypto.PublicKey{testSM2.Public()}}),
		custom("header pattern", merchant.Contract{Signer: bearer}, verify.Settings{}, apiKey, secret),
		custom("timestamp field", merchant.Contract{
			Encoding: merchant.Encoding{Format: "json", Fields: map[string]string{"ts": "@timestamp", "no": "$.out_trade_no", "id": "@id"}},
			Signer:   in(signer("hmac-sha256", "{timestamp}|{merchant_id}|{body}"), "", "X-Sign", "hex"),
		}, verify.Settings{Values: map[string]string{"merchant_id": "m-1"}}, apiKey, secret),
	}
}

// made is a message as the engine makes it.
func (s *sample) made(tb testing.TB) verify.Message {
	tb.Helper()
	c, err := contract.Compile(s.contract)
	if err != nil {
		tb.Fatalf("%s: %v", s.name, err)
	}
	told := contract.Told{Number: 2, At: at, Entropy: [32]byte{1, 2, 3}, Notification: &notification.Notification{
		ID: notification.ID{0xab, 15: 0xcd}, MerchantID: "m-1", EventType: "payment.succeeded", OrderID: "o-1",
		NotifyURL: "https://merchant.example/notify?x=1", Body: []byte(s.payload), AcceptedAt: at.Add(-time.Hour),
	}}
	keys := contract.Keys{Seal: sign.NewSecret([]byte(apiV3))}
	for _, one := range s.keys {
		keys.Sign = append(keys.Sign, prepared(tb, s, c, one))
	}
	r, err := c.Request(tb.Context(), told, keys, func(_ context.Context, signer *sign.Signer, message []byte) ([]byte, error) {
		return signer.Sign(message)
	}, contract.Options{})
	if err != nil {
		tb.Fatalf("%s: %v", s.name, err)
	}
	m := verify.Message{Method: r.Method, URL: r.URL, Header: http.Header{}, Body: r.Body}
	for _, h := range r.Headers {
		m.Header.Set(h.Name, h.Value)
	}
	return m
}

func prepared(tb testing.TB, s *sample, c *contract.Contract, one any) contract.Key {
	tb.Helper()
	var key sign.Key
	var err error
	switch one := one.(type) {
	case string:
		if s.contract.Profile == contract.Stripe {
			one = "text:" + one
		}
		var secret sign.Secret
		if secret, err = sign.ParseSecret(one); err == nil {
			key, err = sign.SecretKey(secret)
		}
	case crypto.Signer:
		key, err = sign.PrivateKey(one)
	}
	if err != nil {
		tb.Fatal(err)
	}
	ready, err := c.Prepare("k", key)
	if err != nil {
		tb.Fatalf("%s: %v", s.name, err)
	}
	ready.Serial, ready.SerialDecimal = "4E5F", "20063"
	return ready
}

func (s *sample) verifier(tb testing.TB) *verify.Verifier {
	tb.Helper()
	v, err := verify.New(s.contract.Profile, s.settings, s.verify)
	if err != nil {
		tb.Fatalf("%s: %v", s.name, err)
	}
	if s.settings.Format == "query" {
		v.URL = "https://merchant.example/notify?x=1"
	}
	return v
}
