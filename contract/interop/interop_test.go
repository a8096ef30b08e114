package interop

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gopayalipay "github.com/go-pay/gopay/alipay"
	gopaywechat "github.com/go-pay/gopay/wechat"
	gopaywechat3 "github.com/go-pay/gopay/wechat/v3"
	"github.com/smartwalle/alipay/v3"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stripe/stripe-go/v82/webhook"
	"github.com/wechatpay-apiv3/wechatpay-go/core/auth/verifiers"
	"github.com/wechatpay-apiv3/wechatpay-go/core/notify"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
	"notifyd/notification"
)

// callback is what arrives at a merchant: each call gives the request anew, since SDKs read its body.
type callback func() *http.Request

// told makes the callback of one notification with the keys given, newest first.
func told(t *testing.T, settings merchant.Contract, payload string, seal string, keys ...sign.Key) callback {
	t.Helper()
	c, err := contract.Compile(settings)
	if err != nil {
		t.Fatal(err)
	}
	use := contract.Keys{Seal: sign.NewSecret([]byte(seal))}
	for _, key := range keys {
		ready, err := c.Prepare("", key)
		if err != nil {
			t.Fatal(err)
		}
		ready.Serial, ready.SerialDecimal = serial, "5157"
		use.Sign = append(use.Sign, ready)
	}
	n := &notification.Notification{
		ID: notification.ID{1, 15: 2}, MerchantID: "m-1", EventType: "TRANSACTION.SUCCESS", NotifyURL: "https://merchant.example/notify",
		Body: []byte(payload), ContentType: "application/json", AcceptedAt: time.Now(),
	}
	if err := c.Check(n); err != nil {
		t.Fatal(err)
	}
	told := contract.Told{Notification: n, Number: 1, At: time.Now()}
	if _, err := rand.Read(told.Entropy[:]); err != nil {
		t.Fatal(err)
	}
	made, err := c.Request(t.Context(), told, use, func(_ context.Context, signer *sign.Signer, message []byte) ([]byte, error) {
		return signer.Sign(message)
	}, contract.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return func() *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), made.Method, made.URL, bytes.NewReader(made.Body))
		for _, h := range made.Headers {
			r.Header.Add(h.Name, h.Value)
		}
		return r
	}
}

// changed is the callback with an amount changed on the way.
func (c callback) changed(t *testing.T) callback {
	t.Helper()
	body := read(t, c())
	other := bytes.Replace(body, []byte("1050"), []byte("1051"), 1)
	if bytes.Equal(body, other) { // the amount is encrypted
		other = bytes.Replace(body, []byte("TRANSACTION.SUCCESS"), []byte("TRANSACTION.SUCCEST"), 1)
	}
	if bytes.Equal(body, other) {
		t.Fatalf("nothing to change in %s", body)
	}
	return func() *http.Request {
		r := c()
		r.Body = io.NopCloser(bytes.NewReader(other))
		r.ContentLength = int64(len(other))
		return r
	}
}

// accepts holds a merchant's check to the callback, to the same one changed, and to one that another key signed.
func accepts(t *testing.T, right, other callback, check func(*http.Request) error) {
	t.Helper()
	if err := check(right()); err != nil {
		t.Errorf("it is refused: %v", err)
	}
	if err := check(right.changed(t)()); err == nil {
		t.Error("it is accepted after a digit was changed")
	}
	if err := check(other()); err == nil {
		t.Error("it is accepted when another key signed it")
	}
}

func read(t *testing.T, r *http.Request) []byte {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func secret(t *testing.T, text string) sign.Key {
	t.Helper()
	parsed, err := sign.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.SecretKey(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func private(t *testing.T) (*rsa.PrivateKey, sign.Key) {
	t.Helper()
	made, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

// publicText is a public key as merchants copy it into their settings: base64 without PEM's lines.
func publicText(t *testing.T, key *rsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

var errNotValid = errors.New("the signature is not valid")

func valid(ok bool, err error) error {
	if err == nil && !ok {
		return errNotValid
	}
	return err
}

const (
	serial = "1425"
	first  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	second = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
	apiV2  = "192006250b4c09247ec02edce69f6a2d"
	apiV3  = "0123456789abcdef0123456789ABCDEF"

	event = `{"id":"evt_1","object":"event","api_version":"2025-08-27.basil","amount":1050,"note":"红茶 & <tea>"}`
	trade = `{"app_id":"2021","out_trade_no":"o-1","trade_no":"t-1","trade_status":"TRADE_SUCCESS","total_amount":1050,"subject":"红 茶+&=%","none":null,"empty":""}`
)

func TestStandardWebhooks(t *testing.T) {
	settings := merchant.Contract{Profile: contract.Standard}
	for name, keys := range map[string][]sign.Key{
		"one secret":   {secret(t, first)},
		"two secrets":  {secret(t, second), secret(t, first)},
		"the next one": {secret(t, first), secret(t, second)},
	} {
		t.Run(name, func(t *testing.T) {
			accepts(t, told(t, settings, event, "", keys...), told(t, settings, event, "", secret(t, second)), func(r *http.Request) error {
				wh, err := standardwebhooks.NewWebhook(first)
				if err != nil {
					return err
				}
				return wh.Verify(read(t, r), r.Header)
			})
		})
	}
}

func TestStripe(t *testing.T) {
	settings := merchant.Contract{Profile: contract.Stripe}
	// Stripe's SDKs take the whole text, whsec_ included, as the key.
	mine, next := secret(t, "text:"+first), secret(t, "text:"+second)
	for name, keys := range map[string][]sign.Key{"one secret": {mine}, "two secrets": {next, mine}} {
		t.Run(name, func(t *testing.T) {
			accepts(t, told(t, settings, event, "", keys...), told(t, settings, event, "", next), func(r *http.Request) error {
				_, err := webhook.ConstructEventWithOptions(read(t, r), r.Header.Get("Stripe-Signature"), first,
					webhook.ConstructEventOptions{IgnoreAPIVersionMismatch: true})
				return err
			})
		})
	}
}

func TestAlipay(t *testing.T) {
	for name, settings := range map[string]merchant.Contract{
		"RSA2":        {Profile: contract.Alipay},
		"RSA":         {Profile: contract.Alipay, Signer: merchant.Signer{Algorithm: "rsa-sha1"}},
		"RSA2 frozen": {Profile: contract.Alipay, Signer: merchant.Signer{Frozen: true}},
	} {
		t.Run(name, func(t *testing.T) {
			ours, key := private(t)
			_, stranger := private(t)
			right, other := told(t, settings, trade, "", key), told(t, settings, trade, "", stranger)
			t.Run("smartwalle", func(t *testing.T) {
				if settings.Signer.Algorithm != "" {
					t.Skip("it knows RSA2 only")
				}
				client, err := alipay.New("2021", base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PrivateKey(ours)), false)
				if err != nil {
					t.Fatal(err)
				}
				if err := client.LoadAliPayPublicKey(publicText(t, ours)); err != nil {
					t.Fatal(err)
				}
				accepts(t, right, other, func(r *http.Request) error {
					if err := r.ParseForm(); err != nil {
						return err
					}
					got, err := client.DecodeNotification(r.Form)
					if err == nil && (got.Subject != "红 茶+&=%" || got.NotifyId == "" || got.NotifyTime == "") {
						t.Errorf("it reads %+v", got)
					}
					return err
				})
			})
			t.Run("gopay", func(t *testing.T) {
				accepts(t, right, other, func(r *http.Request) error {
					got, err := gopayalipay.ParseNotifyToBodyMap(r)
					if err != nil {
						return err
					}
					return valid(gopayalipay.VerifySign(publicText(t, ours), got))
				})
			})
		})
	}
}

func TestWeChatPayV2(t *testing.T) {
	const payload = `{"appid":"wx1","mch_id":"1","out_trade_no":"o-1","total_fee":1050,"result_code":"SUCCESS","attach":"红茶 <&> ]]>","none":null,"empty":""}`
	for algorithm, word := range map[string]string{"md5": "MD5", "hmac-sha256": "HMAC-SHA256"} {
		t.Run(word, func(t *testing.T) {
			settings := merchant.Contract{Profile: contract.WeChatPayV2, Signer: merchant.Signer{Algorithm: algorithm}}
			accepts(t, told(t, settings, payload, "", secret(t, apiV2)), told(t, settings, payload, "", secret(t, apiV3)), func(r *http.Request) error {
				got, err := gopaywechat.ParseNotifyToBodyMap(r)
				if err != nil {
					return err
				}
				if got.Get("attach") != "红茶 <&> ]]>" || got.Get("sign_type") != word {
					t.Errorf("it reads %v", got)
				}
				return valid(gopaywechat.VerifySign(apiV2, word, maps.Clone(got)))
			})
		})
	}
}

func TestWeChatPayV3(t *testing.T) {
	const payload = `{"out_trade_no":"o-1","attach":"红茶 <&>","amount":{"total":1050,"currency":"CNY"}}`
	ours, key := private(t)
	_, stranger := private(t)
	settings := merchant.Contract{Profile: contract.WeChatPayV3, Encryption: merchant.Encryption{KeyID: "apiv3"}}
	right, other := told(t, settings, payload, apiV3, key), told(t, settings, payload, apiV3, stranger)
	type resource struct {
		Number string `json:"out_trade_no"`
		Amount struct {
			Total json.Number `json:"total"`
		} `json:"amount"`
	}

	t.Run("wechatpay-go", func(t *testing.T) {
		verifier := verifiers.NewSHA256WithRSAPubkeyVerifier(serial, ours.PublicKey)
		handler, err := notify.NewRSANotifyHandler(apiV3, verifier)
		if err != nil {
			t.Fatal(err)
		}
		accepts(t, right, other, func(r *http.Request) error {
			var got resource
			envelope, err := handler.ParseNotifyRequest(t.Context(), r, &got)
			if err != nil {
				return err
			}
			if got.Number != "o-1" || got.Amount.Total != "1050" || envelope.EventType != "TRANSACTION.SUCCESS" || envelope.Resource.Plaintext != payload || envelope.CreateTime == nil {
				t.Errorf("it reads %+v %+v", envelope, got)
			}
			return nil
		})
		if _, err := notify.NewEmptyHandler().AddRSAWithAESGCM(verifier, otherCipher(t)).ParseNotifyRequest(t.Context(), right(), &resource{}); err == nil {
			t.Error("it is decrypted with another key")
		}
	})
	t.Run("gopay", func(t *testing.T) {
		accepts(t, right, other, func(r *http.Request) error {
			got, err := gopaywechat3.V3ParseNotify(r)
			if err != nil {
				return err
			}
			if err := got.VerifySignByPK(&ours.PublicKey); err != nil {
				return err
			}
			var read resource
			if err := got.DecryptCipherTextToStruct(apiV3, &read); err != nil {
				return err
			}
			if read.Number != "o-1" {
				t.Errorf("it reads %+v", read)
			}
			return nil
		})
	})
}

func otherCipher(t *testing.T) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher([]byte(strings.Repeat("x", 32)))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

// Adyen's library for Go cannot be had from every mirror: the one for Node is asked, where it is installed.
func TestAdyen(t *testing.T) {
	const validator = "@adyen/api-library/lib/src/utils/hmacValidator"
	node := func(script string, stdin []byte) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "node", "-e", script)
		cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join("..", "..", ".tools", "node_modules")+string(os.PathListSeparator)+os.Getenv("NODE_PATH"))
		cmd.Stdin = bytes.NewReader(stdin)
		return cmd.CombinedOutput()
	}
	if _, err := node("require('"+validator+"')", nil); err != nil {
		t.Skip("node with @adyen/api-library is not here")
	}
	const key = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
	const body = `{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{"shopperName":"红茶"},"eventCode":"AUTHORISATION","success":"true",` +
		`"pspReference":"7914073381342284","originalReference":"","merchantReference":"a:b\\c","merchantAccountCode":"Merchant","amount":{"value":1050,"currency":"EUR"}}}]}`
	const script = `
		const {default: Validator} = require('` + validator + `');
		const item = JSON.parse(require('fs').readFileSync(0)).notificationItems[0].NotificationRequestItem;
		console.log(new Validator().validateHMAC(item, '` + key + `'));`
	settings := merchant.Contract{Profile: contract.Adyen}
	accepts(t, told(t, settings, body, "", secret(t, "hex:"+key)), told(t, settings, body, "", secret(t, first)), func(r *http.Request) error {
		out, err := node(script, read(t, r))
		if said := strings.TrimSpace(string(out)); err != nil || said != "true" && said != "false" {
			t.Fatalf("%v: %s", err, out)
		}
		return valid(strings.TrimSpace(string(out)) == "true", nil)
	})
}

// A form that every reader takes apart alike.
func TestUnionPayIsAPlainForm(t *testing.T) {
	_, key := private(t)
	settings := merchant.Contract{Profile: contract.UnionPay}
	got, err := url.ParseQuery(string(read(t, told(t, settings, `{"orderId":"o-1","txnAmt":"1050","reserved":"{a=b&c=d}"}`, "", key)())))
	if err != nil || got.Get("reserved") != "{a=b&c=d}" || got.Get("certId") != "5157" || got.Get("signMethod") != "01" {
		t.Errorf("%v %v", got, err)
	}
}
