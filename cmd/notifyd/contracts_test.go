package main_test

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// One engine tells merchants in these ways. What a merchant checks here is checked without the engine's own code.
func TestContracts(t *testing.T) {
	w := start(t, scenario.DataDir(t))
	for name, run := range map[string]func(*testing.T, *world){
		"alipay: form, RSA2, body success":                alipayContract,
		"wechatpay-v3: encrypted, signed, status only":    weChatPayV3Contract,
		"stripe: two secrets while one replaces another":  stripeRotation,
		"custom: MD5 over sorted fields, GET, GBK":        customContract,
		"a key is rotated while notifications go out":     keyRotation,
		"a test call shows everything, and a wrong one":   testCalls,
		"what a contract cannot carry is not accepted":    notCarried,
		"settings that cannot work are refused by name":   badContracts,
		"a key that is retired holds, and breaks nothing": retiredKey,
		"a signed answer: nobody else's acknowledges":     signedAnswers,
		"an answer signed with a secret of its own":       answerSecret,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, &world{Engine: w.Engine, t: t, ctx: w.ctx})
		})
	}
}

// generate makes a key in the engine's store and returns its public half.
func (w *world) generate(name, algorithm string) crypto.PublicKey {
	w.t.Helper()
	made, err := w.Keys.GenerateKey(w.ctx, connect.NewRequest(&notifydv1.GenerateKeyRequest{
		Name: name, Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_SIGN, Key: &notifydv1.GeneratedKey{Algorithm: algorithm},
	}))
	if err != nil {
		w.t.Fatal(err)
	}
	return publicKey(w.t, made.Msg.Key.Versions[0].PublicKey)
}

func publicKey(t *testing.T, text string) crypto.PublicKey {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("%q is no PEM", text)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func verifiesRSA(t *testing.T, key crypto.PublicKey, message, signature string) bool {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(message))
	public, ok := key.(*rsa.PublicKey)
	return ok && rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], raw) == nil
}

// sortedPairs is what these platforms sign, made from a form as it came.
func sortedPairs(form url.Values, without ...string) string {
	var pairs []string
	for name := range form {
		if !slices.Contains(without, name) && form.Get(name) != "" {
			pairs = append(pairs, name+"="+form.Get(name))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func alipayContract(t *testing.T, w *world) {
	public := w.generate("alipay-platform", "rsa-2048")
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		if seen.Attempt == "1" {
			_, _ = io.WriteString(w, "<html>please log in: success</html>")
			return
		}
		_, _ = io.WriteString(w, "success")
	})
	w.merchant("alipay", m.URL, func(m *notifydv1.Merchant) {
		quick(100 * time.Millisecond)(m)
		m.Contract = &notifydv1.Contract{Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "alipay-platform"}}
	})
	n := draft("alipay", "payout", "alipay-1")
	n.Payload = `{"out_trade_no":"o-1","total_amount":10.50,"buyer_pay_amount":12345678901234567890,"subject":"红 茶 & more","body":""}`
	got := w.until(w.submit(n).Id, notifydv1.State_STATE_DELIVERED)
	seen := m.Seen()
	if len(seen) != 2 || len(got.Attempts) != 2 || got.Attempts[0].Reason != "wrong_answer" || !strings.Contains(got.Attempts[0].Detail, "log in") {
		t.Fatalf("%d requests, attempts %v", len(seen), got.Attempts)
	}
	for i, s := range seen {
		form, err := url.ParseQuery(string(s.Body))
		if err != nil {
			t.Fatal(err)
		}
		if form.Get("total_amount") != "10.50" || form.Get("buyer_pay_amount") != "12345678901234567890" || form.Get("subject") != "红 茶 & more" || form.Has("body") || form.Get("sign_type") != "RSA2" {
			t.Errorf("request %d: %v", i, form)
		}
		if !verifiesRSA(t, public, sortedPairs(form, "sign", "sign_type"), form.Get("sign")) {
			t.Errorf("request %d does not verify: %v", i, form)
		}
		if form.Set("total_amount", "10.51"); verifiesRSA(t, public, sortedPairs(form, "sign", "sign_type"), form.Get("sign")) {
			t.Errorf("request %d verifies with another amount", i)
		}
		if a := got.Attempts[i]; !bytes.Equal(a.Request.Body, s.Body) || !slices.Equal(a.KeyIds, []string{"alipay-platform/1"}) { // P5
			t.Errorf("on record: %q signed with %v, sent %q", a.Request.Body, a.KeyIds, s.Body)
		}
	}
}

// certified makes a key with a certificate, as an operator would.
func certified(t *testing.T) (content []byte, public crypto.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "both.pem")
	out, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=platform", "-keyout", file, "-out", filepath.Join(dir, "cert.pem")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content = readFile(t, file)
	certificate := readFile(t, filepath.Join(dir, "cert.pem"))
	block, _ := pem.Decode(certificate)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return append(content, certificate...), parsed.PublicKey
}

func weChatPayV3Contract(t *testing.T, w *world) {
	const apiV3 = "0123456789abcdef0123456789abcdef"
	content, public := certified(t)
	for _, k := range []*notifydv1.ImportKeyRequest{
		{Name: "wechat-platform", Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_SIGN, Key: &notifydv1.ImportedKey{Content: content}},
		{Name: "wechat-apiv3", Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_ENCRYPT, Key: &notifydv1.ImportedKey{Content: []byte(apiV3), Secret: true}},
	} {
		if _, err := w.Keys.ImportKey(w.ctx, connect.NewRequest(k)); err != nil {
			t.Fatal(err)
		}
	}
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, _ scenario.Seen) { w.WriteHeader(http.StatusNoContent) })
	w.merchant("wechat", m.URL, func(m *notifydv1.Merchant) {
		m.Contract = &notifydv1.Contract{Profile: "wechatpay-v3", Signer: &notifydv1.Signer{KeyId: "wechat-platform"}, Encryption: &notifydv1.Encryption{KeyId: "wechat-apiv3"}}
	})
	n := draft("wechat", "scan", "wechat-1")
	w.until(w.submit(n).Id, notifydv1.State_STATE_DELIVERED)
	s := m.Seen()[0]
	message := s.Header.Get("Wechatpay-Timestamp") + "\n" + s.Header.Get("Wechatpay-Nonce") + "\n" + string(s.Body) + "\n"
	if !verifiesRSA(t, public, message, s.Header.Get("Wechatpay-Signature")) || s.Header.Get("Wechatpay-Serial") == "" {
		t.Errorf("does not verify: %v", s.Header)
	}
	var envelope struct {
		ID       string
		Resource struct {
			Ciphertext      []byte
			Nonce           string
			Associated_data string //nolint:revive // the field's name
		}
	}
	if err := json.Unmarshal(s.Body, &envelope); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher([]byte(apiV3))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, []byte(envelope.Resource.Nonce), envelope.Resource.Ciphertext, []byte(envelope.Resource.Associated_data))
	if err != nil || string(plain) != n.Payload {
		t.Errorf("%q %v", plain, err)
	}
}

func stripeRotation(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	contract := func(secret string) func(*notifydv1.Merchant) {
		return func(m *notifydv1.Merchant) {
			m.Contract = &notifydv1.Contract{Profile: "stripe", Signer: &notifydv1.Signer{Secret: secret, Rotation: durationpb.New(time.Hour)}}
		}
	}
	w.merchant("stripe", m.URL, contract("whsec_the_first_secret"))
	w.until(w.submit(draft("stripe", "payout", "stripe-1")).Id, notifydv1.State_STATE_DELIVERED)
	w.merchant("stripe", m.URL, contract("whsec_the_second_secret"))
	w.until(w.submit(draft("stripe", "payout", "stripe-2")).Id, notifydv1.State_STATE_DELIVERED)
	for i, secrets := range [][]string{{"whsec_the_first_secret"}, {"whsec_the_second_secret", "whsec_the_first_secret"}} {
		s := m.Seen()[i]
		parts := strings.Split(s.Header.Get("Stripe-Signature"), ",")
		at, ok := strings.CutPrefix(parts[0], "t=")
		if !ok || len(parts) != 1+len(secrets) {
			t.Fatalf("request %d: %v", i, parts)
		}
		for k, secret := range secrets {
			mac := hmac.New(sha256.New, []byte(secret))
			mac.Write([]byte(at + "." + string(s.Body)))
			if want := "v1=" + hex.EncodeToString(mac.Sum(nil)); parts[1+k] != want {
				t.Errorf("request %d, secret %d: %s, want %s", i, k, parts[1+k], want)
			}
		}
	}
}

func customContract(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, _ scenario.Seen) { _, _ = io.WriteString(w, `{"code":"OK"}`) })
	put := func(m *notifydv1.Merchant) {
		m.Contract = &notifydv1.Contract{
			Profile:         "custom",
			Encoding:        &notifydv1.Encoding{Format: "query", Charset: "gbk", Fields: map[string]string{"orderNo": "$.order!", "amount": "$.amount!", "name": "$.name", "attempt": "@attempt"}},
			Signer:          &notifydv1.Signer{Algorithm: "md5", Secret: "s3cr3t", Input: "{sorted}&key={secret}", Field: "sign", Output: "HEX"},
			Acknowledgement: &notifydv1.Acknowledgement{Json: &notifydv1.PathValue{Path: "$.code", Value: "OK"}},
		}
	}
	w.merchant("custom", m.URL+"?shop=7", put)
	n := draft("custom", "payout", "custom-1")
	n.Payload = `{"order":"o-1","amount":10.50,"name":"茶"}`
	got := w.until(w.submit(n).Id, notifydv1.State_STATE_DELIVERED)
	s, a := m.Seen()[0], got.Attempts[0]
	if s.Method != http.MethodGet || len(s.Body) != 0 || !strings.Contains(a.Request.Url, "?shop=7&amount=10.50&attempt=1&name=%B2%E8&orderNo=o-1&sign=") {
		t.Errorf("%s %s %q", s.Method, a.Request.Url, s.Body)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `printf 'amount=10.50&attempt=1&name=\262\350&orderNo=o-1&key=s3cr3t' | openssl md5 -r`).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ToUpper(strings.Fields(string(out))[0]); !strings.HasSuffix(a.Request.Url, "sign="+want) {
		t.Errorf("%s, want the sign %s", a.Request.Url, want)
	}
	n = draft("custom", "payout", "custom-2")
	n.Payload = `{"order":"o-2","amount":1,"name":"🍵"}`
	if _, err := w.trySubmit(n); code(err) != connect.CodeInvalidArgument || !names(err, "notification.payload") || !strings.Contains(err.Error(), "name") {
		t.Errorf("a character that GBK does not have: %v", err)
	}
	n.Payload = `{"order":"o-2"}`
	if _, err := w.trySubmit(n); code(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "amount") {
		t.Errorf("a field that must be there: %v", err)
	}
}

func keyRotation(t *testing.T, w *world) {
	first := w.generate("rotating", "rsa-2048")
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, _ scenario.Seen) { _, _ = io.WriteString(w, "success") })
	w.merchant("rotating", m.URL, func(m *notifydv1.Merchant) {
		m.Contract = &notifydv1.Contract{Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "rotating"}}
	})
	tell := func(id string) (keyID string, form url.Values) {
		got := w.until(w.submit(draft("rotating", "payout", id)).Id, notifydv1.State_STATE_DELIVERED)
		form, err := url.ParseQuery(string(got.Attempts[0].Request.Body))
		if err != nil {
			t.Fatal(err)
		}
		return got.Attempts[0].KeyIds[0], form
	}
	if id, form := tell("rotating-1"); id != "rotating/1" || !verifiesRSA(t, first, sortedPairs(form, "sign", "sign_type"), form.Get("sign")) {
		t.Errorf("before: %s", id)
	}
	rotated, err := w.Keys.RotateKey(w.ctx, connect.NewRequest(&notifydv1.RotateKeyRequest{
		Name: "rotating", Material: &notifydv1.RotateKeyRequest_Generate{Generate: &notifydv1.GeneratedKey{Algorithm: "rsa-2048"}}, Overlap: durationpb.New(time.Hour),
	}))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(rotated.Msg.Key.Versions, func(v *notifydv1.KeyVersion) bool { return v.Number == 2 })
	second := publicKey(t, rotated.Msg.Key.Versions[at].PublicKey)
	for i, end := 0, time.Now().Add(10*time.Second); ; i++ {
		id, form := tell(fmt.Sprintf("rotating-2-%d", i))
		if id == "rotating/2" {
			if !verifiesRSA(t, second, sortedPairs(form, "sign", "sign_type"), form.Get("sign")) {
				t.Error("the new one does not verify")
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s signs still", id)
		}
	}
}

func testCalls(t *testing.T, w *world) {
	m := scenario.NewMerchant(t)
	secret := w.merchant("tested", m.URL, nil)
	call := func(req *notifydv1.TestMerchantRequest) *notifydv1.TestMerchantResponse {
		req.Id = "tested"
		res, err := w.Merchants.TestMerchant(w.ctx, connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	verifies := func(s scenario.Seen) bool {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, raw)
		mac.Write([]byte(s.ID + "." + s.Header.Get("webhook-timestamp") + "." + string(s.Body)))
		return s.Header.Get("webhook-signature") == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	right := call(&notifydv1.TestMerchantRequest{})
	s := m.Seen()[0]
	if a := right.Attempt; a.Outcome != notifydv1.Outcome_OUTCOME_DELIVERED || a.Kind != notifydv1.AttemptKind_ATTEMPT_KIND_TEST || a.HttpStatus != 200 || !bytes.Equal(a.Request.Body, s.Body) || a.RemoteAddr == "" || a.Phases == nil {
		t.Errorf("attempt: %v", a)
	}
	if !verifies(s) || right.AcceptedWrongSignature || right.Signed != s.ID+"."+s.Header.Get("webhook-timestamp")+"."+string(s.Body) {
		t.Errorf("the test call does not verify, or shows something else: %q", right.Signed)
	}
	wrong := call(&notifydv1.TestMerchantRequest{WrongSignature: true})
	if verifies(m.Seen()[1]) || !wrong.AcceptedWrongSignature {
		t.Errorf("a merchant that acknowledges anything: %v", wrong)
	}
	m.Answer(func(w http.ResponseWriter, s scenario.Seen) {
		if !verifies(s) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	if wrong = call(&notifydv1.TestMerchantRequest{WrongSignature: true}); wrong.AcceptedWrongSignature || wrong.Attempt.HttpStatus != http.StatusUnauthorized {
		t.Errorf("a merchant that verifies: %v", wrong)
	}
	if right = call(&notifydv1.TestMerchantRequest{Payload: `{"mine":1}`}); right.Attempt.Outcome != notifydv1.Outcome_OUTCOME_DELIVERED || string(m.Seen()[3].Body) != `{"mine":1}` {
		t.Errorf("a payload of the caller's: %v", right)
	}
	if _, err := w.Merchants.TestMerchant(w.ctx, connect.NewRequest(&notifydv1.TestMerchantRequest{Id: "tested", NotifyUrl: "http://10.0.0.1/"})); code(err) != connect.CodeFailedPrecondition {
		t.Errorf("a private address: %v", err)
	}
	if _, err := w.Notifications.GetNotification(w.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: s.ID})); code(err) != connect.CodeNotFound {
		t.Errorf("a test call is kept: %v", err)
	}
}

func notCarried(t *testing.T, w *world) {
	w.generate("carrying", "rsa-2048")
	m := scenario.NewMerchant(t)
	w.merchant("carrying", m.URL, func(m *notifydv1.Merchant) {
		m.Contract = &notifydv1.Contract{Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "carrying"}}
	})
	for payload, rule := range map[string]string{
		`{"a":1,"a":2}`: "twice", `[1,2]`: "object", `{"sign":"mine"}`: "sign",
	} {
		n := draft("carrying", "payout", "carrying-"+rule)
		n.Payload = payload
		if _, err := w.trySubmit(n); code(err) != connect.CodeInvalidArgument || !names(err, "notification.payload") || !strings.Contains(err.Error(), rule) {
			t.Errorf("%s: %v", payload, err)
		}
	}
	n := draft("carrying", "payout", "carrying-body")
	n.Payload, n.Body, n.ContentType = "", []byte("a=1"), "application/x-www-form-urlencoded"
	if _, err := w.trySubmit(n); code(err) != connect.CodeInvalidArgument {
		t.Errorf("a body that is no JSON: %v", err)
	}
	if len(m.Seen()) != 0 {
		t.Error("the merchant was told")
	}
}

func badContracts(t *testing.T, w *world) {
	w.generate("elliptic", "ecdsa-p256")
	w.generate("uncertified", "rsa-2048")
	for field, contract := range map[string]*notifydv1.Contract{
		"signer.key_id":                {Profile: "alipay"},
		"signer.key_id ":               {Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "nobody's"}},
		"signer.key_id  ":              {Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "elliptic"}},
		"signer.key_id   ":             {Profile: "unionpay", Signer: &notifydv1.Signer{KeyId: "uncertified"}},
		"signer.secret":                {Profile: "alipay", Signer: &notifydv1.Signer{Secret: "text"}},
		"signer.algorithm":             {Profile: "custom"},
		"signer.input":                 {Profile: "custom", Signer: &notifydv1.Signer{Algorithm: "md5", Secret: "s", Input: "{body}", Header: "X-Sign"}},
		"signer.input ":                {Profile: "custom", Signer: &notifydv1.Signer{Algorithm: "hmac-sha256", Secret: "s", Input: "{boddy}", Header: "X-Sign"}},
		"encoding.format":              {Profile: "stripe", Encoding: &notifydv1.Encoding{Format: "xml"}, Signer: &notifydv1.Signer{Secret: "s"}},
		"encoding.template":            {Profile: "custom", Encoding: &notifydv1.Encoding{Format: "template", Template: "{@nothing}", ContentType: "text/plain"}, Signer: &notifydv1.Signer{Algorithm: "none"}},
		"encoding.fields":              {Profile: "alipay", Encoding: &notifydv1.Encoding{Fields: map[string]string{"a": "$."}}, Signer: &notifydv1.Signer{KeyId: "uncertified"}},
		"acknowledgement.body_matches": {Acknowledgement: &notifydv1.Acknowledgement{BodyMatches: "("}},
		"encryption.key_id":            {Profile: "wechatpay-v3", Signer: &notifydv1.Signer{KeyId: "uncertified"}},
		"acknowledgement.signature.key_id": {Acknowledgement: &notifydv1.Acknowledgement{Signature: &notifydv1.AnswerSignature{
			Algorithm: "rsa-sha256", KeyId: "uncertified", Input: "{body}", Header: "X-Signature", // a key to sign with
		}}},
		"acknowledgement.signature.input": {Acknowledgement: &notifydv1.Acknowledgement{Signature: &notifydv1.AnswerSignature{
			Algorithm: "md5", Input: "{body}", Header: "X-Signature",
		}}},
	} {
		_, err := w.Merchants.PutMerchant(w.ctx, connect.NewRequest(&notifydv1.PutMerchantRequest{Merchant: &notifydv1.Merchant{Id: "bad-contract", Contract: contract}}))
		if code(err) != connect.CodeInvalidArgument || !names(err, "merchant.contract."+strings.TrimSpace(field)) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func retiredKey(t *testing.T, w *world) {
	w.generate("retiring", "rsa-2048")
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, _ scenario.Seen) { _, _ = io.WriteString(w, "success") })
	w.merchant("retiring", m.URL, func(m *notifydv1.Merchant) {
		quick(slices.Repeat([]time.Duration{200 * time.Millisecond}, 3)...)(m)
		m.Contract = &notifydv1.Contract{Profile: "alipay", Signer: &notifydv1.Signer{KeyId: "retiring"}}
	})
	if _, err := w.Keys.RetireKey(w.ctx, connect.NewRequest(&notifydv1.RetireKeyRequest{Name: "retiring", Number: 1, Reason: "a test"})); err != nil {
		t.Fatal(err)
	}
	id := w.submit(draft("retiring", "payout", "retiring-1")).Id
	scenario.Within(t, 20*time.Second, "attempts without a key are on record", func() bool {
		got := w.get(id)
		return len(got.Attempts) > 0 && got.Attempts[0].Reason == "signing_key" && !got.Attempts[0].Counted
	})
	if _, err := w.Keys.RotateKey(w.ctx, connect.NewRequest(&notifydv1.RotateKeyRequest{
		Name: "retiring", Material: &notifydv1.RotateKeyRequest_Generate{Generate: &notifydv1.GeneratedKey{Algorithm: "rsa-2048"}},
	})); err != nil {
		t.Fatal(err)
	}
	w.until(id, notifydv1.State_STATE_DELIVERED)
}

// signedAnswers is a merchant that signs what it answers with a key of its own, whose certificate the platform has.
func signedAnswers(t *testing.T, w *world) {
	content, _ := certified(t)
	private, certificate := apart(t, content)
	imported := &notifydv1.ImportedKey{Content: certificate}
	if _, err := w.Keys.ImportKey(w.ctx, connect.NewRequest(&notifydv1.ImportKeyRequest{Name: "shop-answers", Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_VERIFY, MerchantId: "answering", Key: imported})); err != nil {
		t.Fatal(err)
	}
	m := scenario.NewMerchant(t)
	sign := func(w http.ResponseWriter, seen scenario.Seen, of string, private *rsa.PrivateKey) {
		const body = `{"code":"OK"}`
		sum := sha256.Sum256([]byte(of + "\n" + seen.Header.Get("webhook-timestamp") + "\n" + body))
		signature, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Timestamp", seen.Header.Get("webhook-timestamp"))
		w.Header().Set("X-Signature", base64.StdEncoding.EncodeToString(signature))
		_, _ = io.WriteString(w, body)
	}
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		switch seen.Attempt {
		case "1":
			_, _ = io.WriteString(w, `{"code":"OK"}`)
		case "2":
			w.WriteHeader(http.StatusGone)
		case "3":
			sign(w, seen, "another", private)
		default:
			sign(w, seen, seen.ID, private)
		}
	})
	w.merchant("answering", m.URL, func(m *notifydv1.Merchant) {
		quick(slices.Repeat([]time.Duration{100 * time.Millisecond}, 5)...)(m)
		m.Contract = &notifydv1.Contract{Profile: "standard", Acknowledgement: &notifydv1.Acknowledgement{
			Json: &notifydv1.PathValue{Path: "$.code", Value: "OK"},
			Signature: &notifydv1.AnswerSignature{
				Algorithm: "rsa-sha256", KeyId: "shop-answers", Input: "{id}\n{header.X-Timestamp}\n{body}", Header: "X-Signature",
			},
		}}
	})
	id := w.submit(draft("answering", "payout", "answering-1")).Id
	got := w.until(id, notifydv1.State_STATE_DELIVERED)
	if len(got.Attempts) != 4 || got.Attempts[3].Reason != "acknowledged" {
		t.Fatalf("%v", got.Attempts)
	}
	for i, want := range []struct{ reason, detail string }{
		{"wrong_answer", `expected a signature in the header "X-Signature"; the answer has no header "X-Signature"`},
		{"http_client_error", "answered 410"}, // final of standard, if the merchant had signed it
		{"wrong_answer", `it is not the rsa-sha256 of "` + id + `\n`},
	} {
		if a := got.Attempts[i]; a.Reason != want.reason || !strings.Contains(a.Detail, want.detail) {
			t.Errorf("attempt %d: %s: %s, want %s: …%s…", i+1, a.Reason, a.Detail, want.reason, want.detail)
		}
	}

	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) { sign(w, seen, seen.ID, private) })
	test := func() *notifydv1.Attempt {
		res, err := w.Merchants.TestMerchant(w.ctx, connect.NewRequest(&notifydv1.TestMerchantRequest{Id: "answering"}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.Attempt
	}
	if a := test(); a.Outcome != notifydv1.Outcome_OUTCOME_DELIVERED {
		t.Errorf("a test call: %v", a)
	}
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) { sign(w, seen, "another", private) })
	if a := test(); a.Reason != "wrong_answer" || !strings.Contains(a.Detail, "it is not the rsa-sha256 of") {
		t.Errorf("a test call that is answered wrongly: %v", a)
	}

	if _, err := w.Keys.RetireKey(w.ctx, connect.NewRequest(&notifydv1.RetireKeyRequest{Name: "shop-answers", Number: 1, Reason: "a test"})); err != nil {
		t.Fatal(err)
	}
	before := len(m.Seen())
	id = w.submit(draft("answering", "payout", "answering-2")).Id
	scenario.Within(t, 20*time.Second, "nobody is asked what could not be verified", func() bool {
		got := w.get(id)
		return len(got.Attempts) > 0 && got.Attempts[0].Reason == "signing_key" && !got.Attempts[0].Counted
	})
	if len(m.Seen()) != before {
		t.Error("the merchant was asked")
	}
	content, _ = certified(t)
	next, certificate := apart(t, content)
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) { sign(w, seen, seen.ID, next) })
	if _, err := w.Keys.RotateKey(w.ctx, connect.NewRequest(&notifydv1.RotateKeyRequest{Name: "shop-answers", Material: &notifydv1.RotateKeyRequest_Import{Import: &notifydv1.ImportedKey{Content: certificate}}})); err != nil {
		t.Fatal(err)
	}
	w.until(id, notifydv1.State_STATE_DELIVERED)
}

// apart is a private key, and its certificate's PEM.
func apart(t *testing.T, content []byte) (private *rsa.PrivateKey, certificate []byte) {
	t.Helper()
	block, certificate := pem.Decode(content)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	private, _ = parsed.(*rsa.PrivateKey)
	return private, certificate
}

// answerSecret is a merchant that signs a field of its answer with a secret that signs no request.
func answerSecret(t *testing.T, w *world) {
	const secret = "what-only-answers-are-signed-with"
	if _, err := w.Keys.ImportKey(w.ctx, connect.NewRequest(&notifydv1.ImportKeyRequest{
		Name: "shop-secret", Purpose: notifydv1.KeyPurpose_KEY_PURPOSE_VERIFY, Key: &notifydv1.ImportedKey{Content: []byte(secret), Secret: true},
	})); err != nil {
		t.Fatal(err)
	}
	m := scenario.NewMerchant(t)
	m.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		amount := "10.50"
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte("amount=" + amount + "&code=0&orderId=" + seen.ID + "&key=" + secret))
		if seen.Attempt == "1" {
			amount = "10.51"
		}
		_, _ = fmt.Fprintf(w, `{"orderId":%q,"code":0,"amount":%s,"sign":%q}`, seen.ID, amount, hex.EncodeToString(mac.Sum(nil)))
	})
	w.merchant("answering-secret", m.URL, func(m *notifydv1.Merchant) {
		quick(100 * time.Millisecond)(m)
		m.Contract = &notifydv1.Contract{Profile: "standard", Acknowledgement: &notifydv1.Acknowledgement{
			Json:      &notifydv1.PathValue{Path: "$.code", Value: "0"},
			Signature: &notifydv1.AnswerSignature{Algorithm: "hmac-sha256", KeyId: "shop-secret", Input: "{sorted}&key={secret}", Output: "hex", Field: "sign"},
		}}
	})
	got := w.until(w.submit(draft("answering-secret", "payout", "answering-secret-1")).Id, notifydv1.State_STATE_DELIVERED)
	if len(got.Attempts) != 2 || got.Attempts[0].Reason != "wrong_answer" || !strings.Contains(got.Attempts[0].Detail, "amount=10.51&code=0&") || strings.Contains(got.Attempts[0].Detail, secret) {
		t.Errorf("%v", got.Attempts)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
