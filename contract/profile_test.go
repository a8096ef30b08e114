package contract_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
	"notifyd/notification"
)

var at = time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)

func told(payload string) contract.Told {
	return contract.Told{Number: 2, At: at, Entropy: [32]byte{1, 2, 3}, Notification: &notification.Notification{
		ID: notification.ID{0xab, 15: 0xcd}, MerchantID: "m-1", EventType: "payment.succeeded", OrderID: "o-1", OrderStatus: "SUCCESS",
		NotifyURL: "https://merchant.example/notify?x=1", Body: []byte(payload), AcceptedAt: at.Add(-time.Hour),
	}}
}

func directly(_ context.Context, signer *sign.Signer, message []byte) ([]byte, error) {
	return signer.Sign(message)
}

func secretKey(tb testing.TB, c *contract.Contract, text string) contract.Key {
	tb.Helper()
	secret, err := sign.ParseSecret(text)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := sign.SecretKey(secret)
	if err != nil {
		tb.Fatal(err)
	}
	ready, err := c.Prepare("k-1", key)
	if err != nil {
		tb.Fatal(err)
	}
	return ready
}

var testRSA, _ = rsa.GenerateKey(rand.Reader, 2048)

func rsaKey(t *testing.T, c *contract.Contract) contract.Key {
	t.Helper()
	key, err := sign.PrivateKey(testRSA)
	if err != nil {
		t.Fatal(err)
	}
	ready, err := c.Prepare("rsa/1", key)
	if err != nil {
		t.Fatal(err)
	}
	ready.Serial, ready.SerialDecimal = "4E5F", "20063"
	return ready
}

func compiled(t *testing.T, settings merchant.Contract) *contract.Contract {
	t.Helper()
	c, err := contract.Compile(settings)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func made(t *testing.T, c *contract.Contract, told contract.Told, keys contract.Keys) contract.Request {
	t.Helper()
	r, err := c.Request(t.Context(), told, keys, directly, contract.Options{Trace: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func headerOf(r contract.Request, name string) string {
	for _, h := range r.Headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

func TestAlipay(t *testing.T) {
	c := compiled(t, merchant.Contract{Profile: contract.Alipay})
	r := made(t, c, told(`{"out_trade_no":"o-1","total_amount":10.50,"subject":"红 茶","empty":""}`), contract.Keys{Sign: []contract.Key{rsaKey(t, c)}})
	form, err := url.ParseQuery(string(r.Body))
	if err != nil {
		t.Fatal(err)
	}
	if form.Get("total_amount") != "10.50" || form.Get("sign_type") != "RSA2" || form.Get("sign") == "" || form.Has("empty") || form.Get("notify_time") != "2026-11-23 09:02:03" {
		t.Errorf("%v", form)
	}
	if got := string(r.Signed); !strings.HasPrefix(got, "charset=utf-8&notify_id=ntf_") || !strings.HasSuffix(got, "&out_trade_no=o-1&subject=红 茶&total_amount=10.50&version=1.0") {
		t.Errorf("signed %q", got)
	}
}

func TestWeChatPayV2(t *testing.T) {
	c := compiled(t, merchant.Contract{Profile: contract.WeChatPayV2})
	r := made(t, c, told(`{"appid":"wx1","total_fee":1050}`), contract.Keys{Sign: []contract.Key{secretKey(t, c, "192006250b4c09247ec02edce69f6a2d")}})
	if got := string(r.Signed); got != "appid=wx1&nonce_str=01020300000000000000000000000000&sign_type=MD5&total_fee=1050&key=[secret]" {
		t.Errorf("signed %q", got)
	}
	if !strings.Contains(string(r.Body), "<appid><![CDATA[wx1]]></appid>") || !strings.Contains(string(r.Body), "<sign><![CDATA[") {
		t.Errorf("%s", r.Body)
	}
}

func TestWeChatPayV3(t *testing.T) {
	c := compiled(t, merchant.Contract{Profile: contract.WeChatPayV3, Encryption: merchant.Encryption{KeyID: "apiv3"}})
	payload := `{"out_trade_no":"o-1","amount":{"total":1050}}`
	seal := sign.NewSecret([]byte("0123456789abcdef0123456789abcdef"))
	r := made(t, c, told(payload), contract.Keys{Sign: []contract.Key{rsaKey(t, c)}, Seal: seal})
	var envelope struct {
		ID       string `json:"id"`
		Resource struct {
			Ciphertext     []byte `json:"ciphertext"`
			AssociatedData string `json:"associated_data"`
			Nonce          string `json:"nonce"`
		} `json:"resource"`
	}
	if err := json.Unmarshal(r.Body, &envelope); err != nil {
		t.Fatal(err, string(r.Body))
	}
	sealer, err := sign.NewSealer(sign.AES256GCM, seal)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := sealer.Open([]byte(envelope.Resource.Nonce), envelope.Resource.Ciphertext, []byte(envelope.Resource.AssociatedData))
	if err != nil || string(plain) != payload {
		t.Errorf("%q %v", plain, err)
	}
	want := headerOf(r, "Wechatpay-Timestamp") + "\n" + headerOf(r, "Wechatpay-Nonce") + "\n" + string(r.Body) + "\n"
	if string(r.Signed) != want || headerOf(r, "Wechatpay-Serial") != "4E5F" {
		t.Errorf("signed %q", r.Signed)
	}
}

func TestOthers(t *testing.T) {
	for profile, want := range map[string]string{
		contract.Standard: "{id}.1795395723.{body}", contract.Stripe: "1795395723.{body}",
	} {
		c := compiled(t, merchant.Contract{Profile: profile})
		r := made(t, c, told(`{"a":1}`), contract.Keys{Sign: []contract.Key{secretKey(t, c, "0123456789abcdef0123456789abcdef"), secretKey(t, c, "fedcba98765432100123456789abcdef")}})
		want = strings.NewReplacer("{id}", notification.ID{0xab, 15: 0xcd}.String(), "{body}", `{"a":1}`).Replace(want)
		if string(r.Signed) != want {
			t.Errorf("%s: signed %q, want %q", profile, r.Signed, want)
		}
		t.Log(r.Headers)
	}
	c := compiled(t, merchant.Contract{Profile: contract.UnionPay})
	r := made(t, c, told(`{"orderId":"o-1","txnAmt":"1050"}`), contract.Keys{Sign: []contract.Key{rsaKey(t, c)}})
	t.Log(string(r.Body), string(r.Signed))
	c = compiled(t, merchant.Contract{Profile: contract.Adyen})
	r = made(t, c, told(`{"live":"false","notificationItems":[{"NotificationRequestItem":{"eventCode":"AUTHORISATION","success":"true","pspReference":"p","merchantReference":"r","merchantAccountCode":"a","amount":{"value":1130,"currency":"EUR"}}}]}`), contract.Keys{Sign: []contract.Key{secretKey(t, c, "hex:44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056")}})
	if string(r.Signed) != "p::a:r:1130:EUR:AUTHORISATION:true" {
		t.Errorf("signed %q", r.Signed)
	}
	t.Log(string(r.Body))
}
