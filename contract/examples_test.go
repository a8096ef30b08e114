package contract_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/text/encoding/simplifiedchinese"
	"google.golang.org/protobuf/encoding/protojson"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// example is one of docs/contracts/examples as MerchantService reads it.
func example(t *testing.T, name string) *merchant.Merchant {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(pages, "examples", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, name+".json", text)
}

func parsed(t *testing.T, where string, text []byte) *merchant.Merchant {
	t.Helper()
	var request notifydv1.PutMerchantRequest
	if err := protojson.Unmarshal(text, &request); err != nil {
		t.Fatalf("%s: is no body of PutMerchant: %v", where, err)
	}
	if err := protovalidate.Validate(&request); err != nil {
		t.Errorf("%s: %v", where, err)
	}
	m := &merchant.Merchant{ID: request.Merchant.Id, NotifyURL: request.Merchant.NotifyUrl, Secrets: merchant.Secrets{SigningSecret: request.Merchant.Contract.GetSigner().GetSecret()}}
	if signer := request.Merchant.Contract.Signer; signer != nil {
		signer.Secret = ""
	}
	// The stored settings have the proto's names.
	stored, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(request.Merchant.Contract)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(stored))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m.Contract); err != nil {
		t.Fatal(err)
	}
	return m
}

// sorted is the text that many platforms sign, made from what has arrived: without the signature and without empty values.
func sorted(values map[string]string, without ...string) string {
	var names []string
	for name, value := range values {
		if value != "" && !slices.Contains(without, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = name + "=" + values[name]
	}
	return strings.Join(names, "&")
}

func values(t *testing.T, query string) map[string]string {
	t.Helper()
	parsed, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name, list := range parsed {
		if len(list) != 1 {
			t.Errorf("%s comes %d times", name, len(list))
		}
		all[name] = list[0]
	}
	return all
}

// exampleReader takes apart what has arrived as the merchant of an example does: what was signed, and the signature in hexadecimal
// digits or base64.
var exampleReaders = map[string]func(t *testing.T, r contract.Request, secret string) (signed, signature string){
	"square": func(_ *testing.T, r contract.Request, _ string) (string, string) {
		return "https://tea.example/hooks/square?shop=1" + string(r.Body), headerOf(r, "x-square-hmacsha256-signature")
	},
	"razorpay": func(_ *testing.T, r contract.Request, _ string) (string, string) {
		return string(r.Body), headerOf(r, "X-Razorpay-Signature")
	},
	"coinbase": func(_ *testing.T, r contract.Request, _ string) (string, string) {
		return string(r.Body), headerOf(r, "X-CC-Webhook-Signature")
	},
	"payu": func(t *testing.T, r contract.Request, secret string) (string, string) {
		words := map[string]string{}
		for word := range strings.SplitSeq(headerOf(r, "OpenPayu-Signature"), ";") {
			name, value, _ := strings.Cut(word, "=")
			words[name] = value
		}
		if words["sender"] != "checkout" || words["algorithm"] != "MD5" || words["content"] != "DOCUMENT" {
			t.Errorf("OpenPayu-Signature: %v", words)
		}
		return string(r.Body) + secret, words["signature"]
	},
	"md5-form": func(t *testing.T, r contract.Request, secret string) (string, string) {
		form := values(t, string(r.Body))
		if form["amount"] != "10.50" || form["mchNo"] != "tea-shop" || form["reqTime"] != "1795395723000" || form["subject"] != "红茶 <&>=" {
			t.Errorf("form %v", form)
		}
		return sorted(form, "sign") + "&key=" + secret, form["sign"]
	},
	"md5-get": func(t *testing.T, r contract.Request, secret string) (string, string) {
		at, err := url.Parse(r.URL)
		if err != nil || r.Method != http.MethodGet || len(r.Body) > 0 {
			t.Fatal(err, r.Method, r.URL)
		}
		query := values(t, at.RawQuery)
		if query["shop"] != "7" || query["remark"] != "红茶 <&>=" {
			t.Errorf("query %v", query)
		}
		return sorted(query, "sign", "shop") + "&paySecret=" + secret, query["sign"] // shop is the URL's own
	},
	"md5-json": func(t *testing.T, r contract.Request, secret string) (string, string) {
		var members map[string]any
		decoder := json.NewDecoder(bytes.NewReader(r.Body))
		decoder.UseNumber()
		if err := decoder.Decode(&members); err != nil {
			t.Fatal(err)
		}
		texts := map[string]string{}
		for name, value := range members {
			texts[name] = fmt.Sprint(value)
		}
		return sorted(texts, "sign") + "&key=" + secret, texts["sign"]
	},
	"signed-answer": func(_ *testing.T, r contract.Request, _ string) (string, string) {
		return headerOf(r, "X-Id") + "." + headerOf(r, "X-Timestamp") + "." + string(r.Body), headerOf(r, "X-Signature")
	},
	"sm2-bank": func(t *testing.T, r contract.Request, _ string) (string, string) {
		form := values(t, string(r.Body)) // the names are ASCII, the values in GBK
		remark, err := simplifiedchinese.GBK.NewDecoder().String(form["REMARK"])
		if err != nil || remark != "红茶 <&>=" || form["TRANTIME"] != "2026-11-23 09:02:03" {
			t.Errorf("form %v", form)
		}
		return sorted(form, "SIGN"), form["SIGN"]
	},
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(pages, "examples", "*.json"))
	if err != nil || len(files) != len(exampleReaders) {
		t.Fatalf("%d examples, and tests of %d (%v)", len(files), len(exampleReaders), err)
	}
	const payload = `{"order_id":"o-1","amount":10.50,"status":"SUCCESS","note":"红茶 <&>=","sign":"an old one"}`
	for name, reader := range exampleReaders {
		t.Run(name, func(t *testing.T) {
			m := example(t, name)
			c := compiled(t, m.Contract)
			private, key := exampleKey(t, m)
			ready, err := c.Prepare("k/1", key)
			if err != nil {
				t.Fatal(err)
			}
			told := goldenTold(payload, 1)
			told.Notification.NotifyURL = m.NotifyURL
			if err := c.Check(told.Notification); err != nil {
				t.Fatal(err)
			}
			r := made(t, c, told, contract.Keys{Sign: []contract.Key{ready}})
			signed, signature := reader(t, r, m.Secrets.SigningSecret)
			if got := strings.ReplaceAll(string(r.Signed), "[secret]", m.Secrets.SigningSecret); got != signed {
				t.Errorf("signed %q, the merchant makes %q", got, signed)
			}
			if err := checkedByOpenSSL(t, m, private, signed, signature); err != nil {
				t.Error(err)
			}
			if checkedByOpenSSL(t, m, private, signed+".", signature) == nil {
				t.Error("the signature is one of another string")
			}
		})
	}
}

func exampleKey(t *testing.T, m *merchant.Merchant) (*sm2.PrivateKey, sign.Key) {
	t.Helper()
	if m.Secrets.SigningSecret == "" {
		private, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, err := sign.PrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return private, key
	}
	secret, err := sign.ParseSecret(m.Secrets.SigningSecret)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.SecretKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return nil, key
}

// checkedByOpenSSL holds a signature to a string, with the merchant's algorithm and secret or public key.
func checkedByOpenSSL(t *testing.T, m *merchant.Merchant, private *sm2.PrivateKey, signed, signature string) error {
	t.Helper()
	message := file(t, "message", []byte(signed))
	secret := "hexkey:" + hex.EncodeToString([]byte(m.Secrets.SigningSecret))
	args := []string{"dgst", "-r", "-sha256", "-mac", "HMAC", "-macopt", secret, message}
	switch m.Contract.Signer.Algorithm {
	case "md5":
		args = []string{"dgst", "-r", "-md5", message}
	case "sm2-sm3":
		der, err := smx509.MarshalPKIXPublicKey(&private.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(signature)
		if err != nil || len(raw) != 64 || signature != strings.ToUpper(signature) {
			return fmt.Errorf("the signature %s is not 64 bytes in HEX", signature)
		}
		both, err := asn1.Marshal([]*big.Int{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
		if err != nil {
			t.Fatal(err)
		}
		public := file(t, "public.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		if out, err := openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-digest", "sm3", "-pkeyopt", "distid:"+m.Contract.Signer.UserID,
			"-sigfile", file(t, "signature", both), "-in", message); err != nil {
			return fmt.Errorf("openssl refuses: %w: %s", err, out)
		}
		return nil
	}
	out, err := openssl(args...)
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	sum, _, _ := strings.Cut(out, " ")
	raw, err := hex.DecodeString(sum)
	if err != nil {
		t.Fatal(err)
	}
	output, err := sign.ParseEncoding(m.Contract.Signer.Output)
	if err != nil {
		t.Fatal(err)
	}
	if want := output.Encode(raw); want != signature {
		return fmt.Errorf("openssl makes %s, the request has %s", want, signature)
	}
	return nil
}

func TestExamplesAnswers(t *testing.T) {
	for _, c := range []struct {
		example string
		status  int
		body    string
		want    answer.Verdict
	}{
		{"square", 204, "", answer.Acknowledged},
		{"coinbase", 200, "", answer.Acknowledged},
		{"coinbase", 201, "", answer.NotAgreed},
		{"payu", 202, "", answer.NotAgreed},
		{"md5-form", 200, " SUCCESS\n", answer.Acknowledged},
		{"md5-form", 200, "fail", answer.WrongAnswer},
		{"md5-form", 200, "<html>login</html>", answer.WrongAnswer},
		{"md5-get", 200, "SUCCESS", answer.WrongAnswer},
		{"md5-get", 200, "success\n", answer.Acknowledged},
		{"md5-json", 200, `{"code":0}`, answer.Acknowledged},
		{"md5-json", 200, `{"code":"0"}`, answer.Acknowledged},
		{"md5-json", 200, `{"code":1}`, answer.WrongAnswer},
		{"signed-answer", 200, `{"code":"SUCCESS"}`, answer.WrongAnswer}, // it is not signed
		{"sm2-bank", 200, "<resp><code>0000</code></resp>", answer.Acknowledged},
		{"sm2-bank", 200, "0000", answer.WrongAnswer},
	} {
		m := example(t, c.example)
		if got := judged(t, m, c.status, c.body).Verdict; got != c.want {
			t.Errorf("%s: %d %q is %s, want %s", c.example, c.status, c.body, got, c.want)
		}
	}
}

// judged is the verdict on an answer of a merchant.
func judged(t *testing.T, m *merchant.Merchant, status int, body string) answer.Judgement {
	t.Helper()
	rule := contract.NewBook(keys.NewRing(), nil).Acknowledgement(m, goldenTold(paid, 1))
	if rule == nil {
		t.Fatalf("%+v: has no rule", m.Contract)
	}
	return rule.Judge(answer.Answer{Status: status, Body: []byte(body)})
}

// TestPageOfSignedAnswers: the answer that the page shows acknowledges under the settings beside it; openssl has signed the string.
func TestPageOfSignedAnswers(t *testing.T) {
	m := example(t, "signed-answer")
	shown := map[string]string{}
	for _, b := range blocks(t, "README.md") {
		if b.name == "signed-answer" {
			shown[b.language] = strings.TrimSuffix(b.text, "\n")
		}
	}
	head, body, _ := strings.Cut(shown["http"], "\n\n")
	response, err := http.ReadResponse(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := checkedByOpenSSL(t, m, nil, shown["text"], response.Header.Get("X-Signature")); err != nil {
		t.Error(err)
	}
	rule := contract.NewBook(keys.NewRing(), nil).Acknowledgement(m, goldenTold(paid, 1))
	given := answer.Answer{Status: response.StatusCode, Header: response.Header.Values, Body: []byte(body)}
	if got := rule.Judge(given); got.Verdict != answer.Acknowledged {
		t.Errorf("%s: %s", got.Verdict, got.Why)
	}
	response.Header.Set("X-Timestamp", "0")
	if got := rule.Judge(given); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, strings.Replace(strconv.Quote(shown["text"]), "1795395724", "0", 1)) {
		t.Errorf("another time: %s: %s", got.Verdict, got.Why)
	}
}
