package verify_test

import (
	"bytes"
	"crypto"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"notifyd/client/verify"
)

// Published examples: Standard Webhooks' specification, WeChat Pay v2's and Adyen's documentation.
func TestPublishedExamples(t *testing.T) {
	must := func(v *verify.Verifier, err error) *verify.Verifier {
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v2 := func(extra, sign string) verify.Message {
		return verify.Message{Body: []byte(`<xml><appid>wxd930ea5d5a258f4f</appid><mch_id>10000100</mch_id><device_info>1000</device_info><body>test</body><nonce_str>ibuaiVcKdpRxkhJA</nonce_str>` + extra + `<sign>` + sign + `</sign></xml>`)}
	}
	for name, c := range map[string]struct {
		v *verify.Verifier
		m verify.Message
	}{
		"standard": {must(verify.Standard("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")), verify.Message{
			Body: []byte(`{"test": 2432232314}`),
			Header: http.Header{
				"Webhook-Id": {"msg_p5jXN8AQM9LWM0D4loKWxJek"}, "Webhook-Timestamp": {"1614265330"},
				"Webhook-Signature": {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
			},
		}},
		"wechatpay-v2 md5":  {must(verify.WeChatPayV2(apiKey)), v2("", "9A0A8659F005D6984697E2CA0A9CF3B7")},
		"wechatpay-v2 hmac": {must(verify.WeChatPayV2(apiKey)), v2("", "6A9AE1657590FD6257D693A078E1C3E4BB6BA4DC30B23E0EE2496E54170DACD6")},
		"adyen": {must(verify.Adyen(adyenHM)), verify.Message{Body: []byte(`{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{"hmacSignature":"coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="},
			"amount":{"currency":"EUR","value":1130},"eventCode":"AUTHORISATION","merchantAccountCode":"TestMerchant","merchantReference":"TestPayment-1407325143704","pspReference":"7914073381342284","success":"true"}}]}`)}},
	} {
		if _, err := c.v.VerifyMessage(c.m, time.Unix(1614265330, 0)); err != nil {
			text, _ := c.v.StringToSign(c.m)
			t.Errorf("%s: %v %q", name, err, text)
		}
	}
}

// openssl runs it; the test is skipped where there is none.
func openssl(t *testing.T, in string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("there is no openssl")
	}
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = strings.NewReader(in)
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %v: %v %s", args, err, failed.String())
	}
	return out
}

func base64Of(t *testing.T, raw []byte) string {
	t.Helper()
	return strings.TrimSpace(string(openssl(t, string(raw), "base64", "-A")))
}

// What openssl signs is written out here by hand, and not by the engine.
func TestWhatOpenSSLSignsVerifies(t *testing.T) {
	private := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(private, openssl(t, "", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"), 0o600); err != nil {
		t.Fatal(err)
	}
	public, err := verify.ParsePublicKey(openssl(t, "", "pkey", "-in", private, "-pubout"))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := verify.ParsePublicKey(openssl(t, "", "req", "-new", "-x509", "-key", private, "-subj", "/CN=platform", "-set_serial", "68759585092", "-days", "3"))
	if err != nil || certificate.SerialDecimal != "68759585092" {
		t.Fatalf("%+v %v", certificate, err)
	}
	byRSA := func(text string) string { return base64Of(t, openssl(t, text, "dgst", "-sha256", "-sign", private)) }

	alipay, err := verify.Alipay(public)
	if err != nil {
		t.Fatal(err)
	}
	text := "Z=1&notify_id=n1&notify_time=2026-11-23 09:02:03&subject=红 茶&total_amount=10.50"
	byCertificate, err := verify.New("alipay", verify.Settings{}, verify.Keys{BySerial: map[string]crypto.PublicKey{certificate.Serial: certificate.PublicKey}})
	if err != nil {
		t.Fatal(err)
	}
	form := "total_amount=10.50&subject=%E7%BA%A2+%E8%8C%B6&notify_id=n1&Z=1&notify_time=2026-11-23+09%3A02%3A03&sign_type=RSA2&sign=" + url.QueryEscape(byRSA(text))
	if c, err := alipay.VerifyMessage(verify.Message{Body: []byte(form)}, at); err != nil || c.ID != "n1" || !c.Time.Equal(at) {
		t.Errorf("alipay: %+v %v", c, err)
	}
	if _, err := byCertificate.VerifyMessage(verify.Message{Body: []byte(form)}, at); err != nil {
		t.Errorf("alipay with a certificate: %v", err)
	}

	union, err := verify.UnionPay(map[string]crypto.PublicKey{certificate.SerialDecimal: certificate.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	digest := strings.Fields(string(openssl(t, "certId=68759585092&orderId=o-1&signMethod=01&txnAmt=1050", "dgst", "-sha256", "-r")))[0]
	form = "txnAmt=1050&signMethod=01&orderId=o-1&certId=68759585092&signature=" + url.QueryEscape(byRSA(digest))
	if c, err := union.VerifyMessage(verify.Message{Body: []byte(form)}, at); err != nil || c.Serial != "68759585092" || c.Fields["txnAmt"] != "1050" {
		t.Errorf("unionpay: %+v %v", c, err)
	}

	stripe, err := verify.Stripe("whsec_test")
	if err != nil {
		t.Fatal(err)
	}
	mac := strings.Fields(string(openssl(t, `1795395723.{"id":"evt"}`, "dgst", "-sha256", "-hmac", "whsec_test", "-r")))[0]
	m := verify.Message{Body: []byte(`{"id":"evt"}`), Header: http.Header{"Stripe-Signature": {"t=1795395723,v0=00,v1=" + mac}}}
	if _, err := stripe.VerifyMessage(m, at); err != nil {
		t.Errorf("stripe: %v", err)
	}

	// The ciphertext is of node's crypto: AES-256-GCM of {"paid":true}, the key apiV3, the nonce 123456789012, the data "transaction".
	v3, err := verify.WeChatPayV3(map[string]crypto.PublicKey{certificate.Serial: certificate.PublicKey}, apiV3)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"id":"EV-1","resource_type":"encrypt-resource","resource":{"algorithm":"AEAD_AES_256_GCM","ciphertext":"` + nodeCiphertext + `","nonce":"123456789012","associated_data":"transaction"}}`
	m = verify.Message{Body: []byte(body), Header: http.Header{
		"Wechatpay-Timestamp": {"1795395723"}, "Wechatpay-Nonce": {"abc"}, "Wechatpay-Serial": {certificate.Serial},
		"Wechatpay-Signature": {byRSA("1795395723\nabc\n" + body + "\n")},
	}}
	if c, err := v3.VerifyMessage(m, at); err != nil || c.ID != "EV-1" || string(c.Resource) != `{"paid":true}` {
		t.Errorf("wechatpay-v3: %+v %v", c, err)
	}
}

const nodeCiphertext = "8ni5ks8cEmQn7XSAe53F7Ip09J16vq+trW+elqg="

func TestParsePublicKey(t *testing.T) {
	private := string(openssl(t, "", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"))
	text := openssl(t, private, "pkey", "-pubout")
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	sm2Key := openssl(t, string(openssl(t, "", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2")), "pkey", "-pubout")
	for name, text := range map[string][]byte{
		"PEM": text, "base64 alone": []byte(strings.Join(lines[1:len(lines)-1], "")), "PKCS#1": openssl(t, private, "rsa", "-RSAPublicKey_out"), "SM2": sm2Key,
	} {
		if _, err := verify.ParsePublicKey(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{"nothing": "", "a private key": private, "text": "hello"} {
		if _, err := verify.ParsePublicKey([]byte(text)); err == nil || strings.Contains(err.Error(), lines[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
