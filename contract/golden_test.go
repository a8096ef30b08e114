package contract_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"flag"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
	"notifyd/notification"
)

var update = flag.Bool("update", false, "write contract/testdata/golden anew")

// golden is one callback whose every byte is fixed: keys, time and randomness are.
type golden struct {
	name     string
	settings merchant.Contract
	payload  string
	key      string // a secret's text; empty: testdata/keys/rsa.pem; whsk: the Ed25519 key
	seal     string
}

const (
	whsec   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	apiV2   = "192006250b4c09247ec02edce69f6a2d"
	apiV3   = "0123456789abcdef0123456789ABCDEF"
	adyen   = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
	edwards = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

	paid       = `{"order_id":"o-1","status":"SUCCESS","amount":"10.50","currency":"CNY","note":"红茶 <&>"}`
	alipayPaid = `{"app_id":"2021001","out_trade_no":"o-1","trade_no":"t-1","trade_status":"TRADE_SUCCESS","total_amount":10.50,"subject":"红 茶 + 10%","body":""}`
	wechatPaid = `{"appid":"wx1","mch_id":"1900000109","out_trade_no":"o-1","transaction_id":"4200000001","total_fee":1050,"result_code":"SUCCESS","return_code":"SUCCESS","attach":"红茶 <&>","device_info":""}`
	unionPaid  = `{"merId":"777290058110048","orderId":"o-1","txnTime":"20261123090203","txnAmt":"1050","currencyCode":"156","respCode":"00","respMsg":"成功","queryId":"1","reserved":""}`
	adyenPaid  = `{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{},"amount":{"currency":"EUR","value":1130},"eventCode":"AUTHORISATION","eventDate":"2026-11-23T02:02:03+01:00","merchantAccountCode":"TestMerchant","merchantReference":"TestPayment-1407325143704","pspReference":"7914073381342284","success":"true"}}]}`
)

func goldens() []golden {
	return []golden{
		{name: "standard", settings: merchant.Contract{Profile: contract.Standard}, payload: paid, key: whsec},
		{name: "standard-ed25519", settings: merchant.Contract{Profile: contract.Standard, Signer: merchant.Signer{Algorithm: "ed25519"}}, payload: paid, key: edwards},
		{name: "alipay", settings: merchant.Contract{Profile: contract.Alipay}, payload: alipayPaid},
		{name: "alipay-gbk", settings: merchant.Contract{Profile: contract.Alipay, Encoding: merchant.Encoding{Charset: "gbk"}}, payload: alipayPaid},
		{name: "wechatpay-v2", settings: merchant.Contract{Profile: contract.WeChatPayV2}, payload: wechatPaid, key: apiV2},
		{name: "wechatpay-v2-hmac", settings: merchant.Contract{Profile: contract.WeChatPayV2, Signer: merchant.Signer{Algorithm: "hmac-sha256"}}, payload: wechatPaid, key: apiV2},
		{
			name: "wechatpay-v3", settings: merchant.Contract{Profile: contract.WeChatPayV3, Encryption: merchant.Encryption{KeyID: "apiv3"}},
			payload: `{"out_trade_no":"o-1","trade_state":"SUCCESS","amount":{"total":1050,"currency":"CNY"},"attach":"红茶"}`, seal: apiV3,
		},
		{name: "unionpay", settings: merchant.Contract{Profile: contract.UnionPay}, payload: unionPaid},
		{name: "stripe", settings: merchant.Contract{Profile: contract.Stripe}, payload: `{"id":"evt_1","object":"event","amount":1050,"currency":"cny"}`, key: whsec},
		{name: "adyen", settings: merchant.Contract{Profile: contract.Adyen}, payload: adyenPaid, key: adyen},
	}
}

func goldenNotification(payload string) *notification.Notification {
	return &notification.Notification{
		ID: notification.ID{0x01, 0x93, 15: 0xcd}, MerchantID: "tea-shop", Scene: "scan", EventType: "TRANSACTION.SUCCESS", OrderID: "o-1", OrderStatus: "SUCCESS",
		NotifyURL: "https://merchant.example/notify", Body: []byte(payload), ContentType: "application/json", AcceptedAt: time.Date(2026, 11, 23, 1, 2, 0, 0, time.UTC),
	}
}

func goldenTold(payload string, number int) contract.Told {
	return contract.Told{
		Notification: goldenNotification(payload), Number: number, At: time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC).Add(time.Duration(number-1) * time.Minute),
		Entropy: [32]byte{byte(number), 0x5a, 0xf0, 16: byte(number), 17: 0x11, 18: 0x22, 19: 0x33, 31: 9},
	}
}

func readKey(tb testing.TB) sign.Key {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "keys", "rsa.pem"))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	signer, _ := parsed.(crypto.Signer)
	key, err := sign.PrivateKey(signer)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func (g golden) signKey(tb testing.TB) sign.Key {
	tb.Helper()
	switch {
	case g.key == "":
		return readKey(tb)
	case strings.HasPrefix(g.key, "whsk_"):
		key, err := sign.ParseWebhookKey(g.key)
		if err != nil {
			tb.Fatal(err)
		}
		return key
	}
	text := g.key
	switch g.settings.Profile { // as each platform writes its secrets
	case contract.Stripe:
		text = "text:" + text
	case contract.Adyen:
		text = "hex:" + text
	}
	secret, err := sign.ParseSecret(text)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := sign.SecretKey(secret)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func (g golden) keys(tb testing.TB, c *contract.Contract) contract.Keys {
	tb.Helper()
	ready, err := c.Prepare("k/1", g.signKey(tb))
	if err != nil {
		tb.Fatal(err)
	}
	ready.Serial, ready.SerialDecimal = "5157F09EFDC096DE15EBE81A47057A72", "108127284018126404371404571458519570034"
	return contract.Keys{Sign: []contract.Key{ready}, Seal: sign.NewSecret([]byte(g.seal))}
}

func (g golden) made(tb testing.TB, number int) contract.Request {
	tb.Helper()
	c, err := contract.Compile(g.settings)
	if err != nil {
		tb.Fatal(err)
	}
	told := goldenTold(g.payload, number)
	if err := c.Check(told.Notification); err != nil {
		tb.Fatal(err)
	}
	r, err := c.Request(tb.Context(), told, g.keys(tb, c), directly, contract.Options{Trace: true})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// text is the whole request as a person reads it: its bytes are those of the wire, but for the ends of the head's lines.
func text(r contract.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s\n", r.Method, r.URL)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s: %s\n", h.Name, h.Value)
	}
	b.WriteByte('\n')
	b.Write(r.Body)
	return b.Bytes()
}

func TestGolden(t *testing.T) {
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			r := g.made(t, 1)
			for ending, got := range map[string][]byte{".request": text(r), ".signed": r.Signed} {
				path := filepath.Join("testdata", "golden", g.name+ending)
				if *update {
					if err := os.WriteFile(path, got, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			}
		})
	}
}

// TestGoldenByOpenSSL takes the signature out of each golden request, and openssl checks it over the golden string.
func TestGoldenByOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatalf("openssl is needed to check signatures independently: %v", err)
	}
	keyHex := func(g golden) string { return "hexkey:" + hex.EncodeToString(g.signKey(t).Secret().Bytes()) }
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			r := g.made(t, 1)
			signature := signatureOf(t, g.name, r)
			signed := r.Signed
			if masked, found := bytes.CutSuffix(signed, []byte("[secret]")); found {
				signed = append(masked, g.key...)
			}
			for _, c := range []struct {
				what    string
				message []byte
				valid   bool
			}{{"the string", signed, true}, {"another string", append(slices.Clone(signed), '.'), false}} {
				message := file(t, "message", c.message)
				var err error
				switch {
				case g.key == "":
					_, err = openssl("dgst", "-sha256", "-verify", "testdata/keys/rsa.pub.pem", "-signature", file(t, "signature", unbase64(t, signature)), message)
				case strings.HasPrefix(g.key, "whsk_"):
					der, _ := x509.MarshalPKIXPublicKey(g.signKey(t).Public().(ed25519.PublicKey)) //nolint:forcetypeassert // it is one
					public := file(t, "public.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
					_, err = openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", file(t, "signature", unbase64(t, strings.TrimPrefix(signature, "v1a,"))), "-in", message)
				default:
					args := []string{"dgst", "-r", "-sha256", "-mac", "HMAC", "-macopt", keyHex(g), message}
					if g.name == "wechatpay-v2" {
						args = []string{"dgst", "-r", "-md5", message}
					}
					var out string
					out, err = openssl(args...)
					sum, _, _ := strings.Cut(out, " ")
					raw, _ := hex.DecodeString(sum)
					if err == nil && !slices.Contains([]string{sum, strings.ToUpper(sum), base64.StdEncoding.EncodeToString(raw), "v1," + base64.StdEncoding.EncodeToString(raw)}, signature) {
						err = fmt.Errorf("openssl makes %s, the request has %s", sum, signature)
					}
				}
				if (err == nil) != c.valid {
					t.Errorf("over %s: %v", c.what, err)
				}
			}
		})
	}
}

// signatureOf reads the signature out of a request as a merchant does, with readers that are not ours.
func signatureOf(t *testing.T, name string, r contract.Request) string {
	t.Helper()
	form := func(field string) string {
		values, err := url.ParseQuery(string(r.Body))
		if err != nil {
			t.Fatal(err)
		}
		return values.Get(field)
	}
	switch profile, _, _ := strings.Cut(name, "-"); profile {
	case "standard":
		return headerOf(r, "webhook-signature")
	case "alipay":
		return form("sign")
	case "unionpay":
		return form("signature")
	case "stripe":
		_, signature, _ := strings.Cut(headerOf(r, "Stripe-Signature"), ",v1=")
		return signature
	case "adyen":
		var body struct {
			Items []struct {
				Item struct {
					More struct {
						Signature string `json:"hmacSignature"`
					} `json:"additionalData"`
				} `json:"NotificationRequestItem"`
			} `json:"notificationItems"`
		}
		if err := json.Unmarshal(r.Body, &body); err != nil {
			t.Fatal(err)
		}
		return body.Items[0].Item.More.Signature
	}
	if name == "wechatpay-v3" {
		return headerOf(r, "Wechatpay-Signature")
	}
	var body struct {
		Sign string `xml:"sign"`
	}
	if err := xml.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	return body.Sign
}

// Adyen's own example, as its documentation and its libraries' tests have it.
func TestAdyensPublishedExample(t *testing.T) {
	g := goldens()[slices.IndexFunc(goldens(), func(g golden) bool { return g.name == "adyen" })]
	r := g.made(t, 1)
	if got, want := string(r.Signed), "7914073381342284::TestMerchant:TestPayment-1407325143704:1130:EUR:AUTHORISATION:true"; got != want {
		t.Errorf("signed %q, want %q", got, want)
	}
	if got, want := signatureOf(t, "adyen", r), "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

func TestFrozenAndFresh(t *testing.T) {
	for _, g := range goldens() {
		c := g.settings
		c.Signer.Frozen = true
		_, err := contract.Compile(c)
		frozen := err == nil
		if may := slices.Contains([]string{contract.Alipay, contract.WeChatPayV2, contract.UnionPay}, c.Profile); may != frozen {
			t.Errorf("%s: may be frozen: %v, want %v", g.name, frozen, may)
		}
		fresh := g
		if g.settings.Profile != contract.UnionPay && g.settings.Profile != contract.Adyen { // nothing of theirs tells the attempts apart
			if bytes.Equal(text(fresh.made(t, 1)), text(fresh.made(t, 2))) {
				t.Errorf("%s: fresh, and the same request twice", g.name)
			}
		}
		if frozen {
			g.settings = c
			if a, b := g.made(t, 1), g.made(t, 2); !bytes.Equal(text(a), text(b)) {
				t.Errorf("%s: frozen, and another request the second time:\n%s\n%s", g.name, text(a), text(b))
			}
		}
	}
}

// TestTwoKeys: only profiles whose header can carry several signatures sign with each live key.
func TestTwoKeys(t *testing.T) {
	for _, g := range goldens() {
		c := compiled(t, g.settings)
		keys := g.keys(t, c)
		keys.Sign, keys.SealID = append(keys.Sign, keys.Sign[0]), "s/1"
		r := made(t, c, goldenTold(g.payload, 1), keys)
		want := 1
		if p := g.settings.Profile; p == contract.Standard || p == contract.Stripe {
			want = 2
		}
		if got := len(r.KeyIDs) - strings.Count(strings.Join(r.KeyIDs, " "), "s/1"); got != want {
			t.Errorf("%s: signed with %d keys, want %d (%v)", g.name, got, want, r.KeyIDs)
		}
	}
}

func TestWrongOnPurpose(t *testing.T) {
	for _, g := range goldens() {
		c := compiled(t, g.settings)
		keys := g.keys(t, c)
		var signatures []string
		for _, wrong := range []bool{false, true} {
			r, err := c.Request(context.Background(), goldenTold(g.payload, 1), keys, directly, contract.Options{Wrong: wrong})
			if err != nil {
				t.Fatal(err)
			}
			signatures = append(signatures, signatureOf(t, g.name, r))
		}
		if signatures[0] == signatures[1] || len(signatures[0]) != len(signatures[1]) {
			t.Errorf("%s: %q", g.name, signatures)
		}
	}
}

func openssl(args ...string) (string, error) {
	out, err := exec.Command("openssl", args...).CombinedOutput()
	return string(out), err
}

func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func unbase64(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Every profile has a golden, but custom, which has the examples.
func TestGoldensAreComplete(t *testing.T) {
	have := map[string]bool{contract.Custom: true}
	for _, g := range goldens() {
		have[g.settings.Profile] = true
	}
	if got, want := slices.Sorted(maps.Keys(have)), slices.Sorted(slices.Values(contract.Profiles())); !slices.Equal(got, want) {
		t.Errorf("goldens for %v, want %v", got, want)
	}
}
