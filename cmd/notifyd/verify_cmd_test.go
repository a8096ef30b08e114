package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const verifyAPIKey = "192006250b4c09247ec02edce69f6a2d"

// file writes one that a command reads, and returns its name.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// engineRequest is what the engine sends to a merchant of a contract.
func engineRequest(t *testing.T, settings merchant.Contract, key sign.Key, notifyURL, payload string) *http.Request {
	t.Helper()
	c, err := contract.Compile(settings)
	if err != nil {
		t.Fatal(err)
	}
	ready, err := c.Prepare("k", key)
	if err != nil {
		t.Fatal(err)
	}
	ready.Serial, ready.SerialDecimal = "4E5F", "20063"
	now := time.Now()
	told := contract.Told{Number: 1, At: now, Entropy: [32]byte{1}, Notification: &notification.Notification{
		ID: notification.ID{7}, MerchantID: "m", NotifyURL: notifyURL, Body: []byte(payload), AcceptedAt: now,
	}}
	pool := sign.NewPool(1)
	made, err := c.Request(t.Context(), told, contract.Keys{Sign: []contract.Key{ready}, Seal: sign.NewSecret([]byte(verifyAPIKey))},
		func(ctx context.Context, signer *sign.Signer, message []byte) ([]byte, error) {
			return pool.Sign(ctx, "m", signer, message)
		}, contract.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), made.Method, made.URL, bytes.NewReader(made.Body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range made.Headers {
		r.Header.Set(h.Name, h.Value)
	}
	return r
}

func textKey(t *testing.T, text string) sign.Key {
	t.Helper()
	secret, err := sign.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sign.SecretKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// freshRSA is a key, and a file with its public half.
func freshRSA(t *testing.T) (key sign.Key, public string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	if key, err = sign.PrivateKey(private); err != nil {
		t.Fatal(err)
	}
	return key, file(t, "public.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
}

func wire(t *testing.T, r *http.Request) string {
	t.Helper()
	text, err := httputil.DumpRequestOut(r, true)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runVerify runs a command line.
func runVerify(t *testing.T, in string, args ...string) (code int, printed string) {
	t.Helper()
	var commands struct {
		Verify verifyCmd `cmd:""`
	}
	parser, err := kong.New(&commands)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{"verify"}, args...)); err != nil {
		t.Fatal(err)
	}
	r := runner{in: strings.NewReader(in)}
	code = r.exec(t.Context(), &commands.Verify)
	return code, r.out.String() + r.err.String()
}

func TestVerifyCapturedRequests(t *testing.T) {
	rsaKey, public := freshRSA(t)
	whsec := sign.GenerateStandardSecret()
	secretFile, apiKey := file(t, "secret", whsec+"\n"), file(t, "api", verifyAPIKey+"\n")
	const payload = `{"a":1.50,"b":"x y","url":"https://x.example/"}`
	request := func(profile string, key sign.Key) string {
		settings := merchant.Contract{Profile: profile}
		if profile == contract.WeChatPayV3 {
			settings.Encryption.KeyID = "k"
		}
		return wire(t, engineRequest(t, settings, key, "https://shop.example/notify", payload))
	}
	standard, alipay := request(contract.Standard, textKey(t, whsec)), request(contract.Alipay, rsaKey)
	v3, v2 := request(contract.WeChatPayV3, rsaKey), request(contract.WeChatPayV2, textKey(t, verifyAPIKey))
	for name, c := range map[string]struct {
		in   string
		args string
		code int
		says []string
	}{
		"standard":         {standard, "--secret-file " + secretFile, 0, []string{"VERIFIED (standard)  ntf_"}},
		"line feeds only":  {strings.ReplaceAll(standard, "\r\n", "\n"), "--secret-file " + secretFile, 0, []string{"VERIFIED"}},
		"too old":          {standard, "--secret-file " + secretFile + " --at 2036-01-01T00:00:00Z", 1, []string{"time        FAILED: timestamp: is", "signature   ok", "NOT VERIFIED"}},
		"any age":          {standard, "--secret-file " + secretFile + " --tolerance 0s --at 2036-01-01T00:00:00Z", 0, []string{"VERIFIED"}},
		"written again":    {strings.Replace(strings.Replace(standard, `{"a":1.50,`, `{"a": 1.50,`, 1), "Content-Length: 47", "Content-Length: 48", 1), "--secret-file " + secretFile, 1, []string{"this fits: the body was parsed and written again; it was sent without white space"}},
		"an editor's line": {standard + "\n", "--secret-file " + secretFile, 0, []string{"note: the file has 48 bytes behind the head and Content-Length says 47"}},
		"another secret":   {standard, "--secret-file " + file(t, "x", sign.GenerateStandardSecret()), 1, []string{"signature   FAILED: no signature matches", "Verify the very bytes"}},
		"before":           {standard, "--secret-file " + file(t, "x", sign.GenerateStandardSecret()) + " --before-secret-file " + secretFile, 1, []string{"this fits: it was signed with a key of before the rotation"}},
		"alipay":           {alipay, "--profile alipay --public-key-file " + public + " --show", 0, []string{"string-to-sign", "a=1.50&b=x y&charset=utf-8&", "VERIFIED"}},
		"wechatpay-v3":     {v3, "--profile wechatpay-v3 --public-key-file 4E5F=" + public + " --decryption-key-file " + apiKey, 0, []string{"decryption  ok", "decrypted: " + payload}},
		"unknown serial":   {v3, "--profile wechatpay-v3 --public-key-file 77=" + public + " --decryption-key-file " + apiKey, 1, []string{"is of no key that is here", "another serial number"}},
		"wechatpay-v2":     {v2, "--profile wechatpay-v2 --show --secret-file " + apiKey, 0, []string{"&key=[secret]"}},
		"own string":       {v2, "--profile wechatpay-v2 --secret-file " + apiKey + " --string-to-sign " + file(t, "s", "a=1.50&b=x+y"), 1, []string{"is the first that differs", `b=x» y`, `b=x»+y`}},
		"no request":       {"hello", "--secret-file " + secretFile, exitUsage, []string{"want an HTTP request"}},
		"no secret":        {standard, "", exitUsage, []string{"needs a secret", "--secret-file"}},
		"a private key":    {standard, "--profile alipay --public-key-file " + file(t, "p", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), exitUsage, []string{"never leaves the platform"}},
		"no such file":     {standard, "--secret-file /nowhere/x", exitUsage, []string{"/nowhere/x"}},
		"unknown profile":  {standard, "--profile paypal", exitUsage, []string{"must be one of standard"}},
		"custom":           {standard, "--profile custom", exitUsage, []string{"needs --settings"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, printed := runVerify(t, c.in, append(strings.Fields(c.args), "--request=-")...)
			if code != c.code {
				t.Errorf("exit code %d, want %d:\n%s", code, c.code, printed)
			}
			wants(t, "it", printed, c.says...)
			if strings.Contains(printed, whsec[6:]) || strings.Contains(printed, verifyAPIKey) {
				t.Errorf("a secret is printed:\n%s", printed)
			}
		})
	}
}

func TestVerifyOtherSources(t *testing.T) {
	whsec := sign.GenerateStandardSecret()
	t.Setenv(verifySecretVariable, whsec)
	r := engineRequest(t, merchant.Contract{Profile: contract.Standard}, textKey(t, whsec), "https://shop.example/notify", `{"a":1}`)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	asAttempt := func(number int32, id string) *notifydv1.Attempt {
		a := &notifydv1.Attempt{Number: number, StartedAt: timestamppb.Now(), Request: &notifydv1.HttpRequest{Method: r.Method, Url: r.URL.String(), Body: body}}
		for name := range r.Header {
			value := r.Header.Get(name)
			if name == "Webhook-Id" && id != "" {
				value = id
			}
			a.Request.Headers = append(a.Request.Headers, &notifydv1.Header{Name: name, Value: value})
		}
		return a
	}
	text := func(m *notifydv1.GetNotificationResponse) string {
		out, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	both := &notifydv1.GetNotificationResponse{Attempts: []*notifydv1.Attempt{asAttempt(1, ""), asAttempt(2, "ntf_other")}}
	if code, printed := runVerify(t, text(both), "--attempt=-", "--number=1"); code != 0 {
		t.Errorf("exit code %d: %s", code, printed)
	}
	code, printed := runVerify(t, text(both), "--attempt=-", "--json")
	var got verified
	if err := json.Unmarshal([]byte(printed), &got); err != nil || code != 1 || got.Verified || got.Reason != "mismatch" || !strings.Contains(got.Mistake, "webhook-id is of another attempt") {
		t.Errorf("exit code %d %v: %s", code, err, printed)
	}
	if code, printed := runVerify(t, text(&notifydv1.GetNotificationResponse{Masked: true, Attempts: both.Attempts}), "--attempt=-"); code != exitUsage || !strings.Contains(printed, "hidden") {
		t.Errorf("masked: exit code %d: %s", code, printed)
	}
	args := []string{"--body-file=-"}
	for name := range r.Header {
		args = append(args, "--header="+name+": "+r.Header.Get(name))
	}
	if code, printed := runVerify(t, string(body), args...); code != 0 {
		t.Errorf("exit code %d: %s", code, printed)
	}
	if code, _ := runVerify(t, "", args[0], "--attempt=-"); code != exitUsage {
		t.Errorf("two sources: exit code %d", code)
	}
	if code, _ := runVerify(t, ""); code != exitUsage {
		t.Errorf("no source: exit code %d", code)
	}
}

func TestVerifyCustomSettings(t *testing.T) {
	settings := file(t, "contract.json", `{"profile":"custom","encoding":{"format":"form"},"signer":{"algorithm":"md5","input":"{sorted}&key={secret}","field":"sign","output":"HEX"}}`)
	r := engineRequest(t, merchant.Contract{Profile: contract.Custom, Encoding: merchant.Encoding{Format: "form"}, Signer: merchant.Signer{
		Algorithm: "md5", Input: "{sorted}&key={secret}", Field: "sign", Output: "HEX",
	}}, textKey(t, verifyAPIKey), "https://shop.example/notify", `{"a":1}`)
	if code, printed := runVerify(t, wire(t, r), "--settings="+settings, "--secret-file="+file(t, "s", verifyAPIKey), "--request=-"); code != 0 {
		t.Errorf("exit code %d: %s", code, printed)
	}
	if code, printed := runVerify(t, "", "--settings="+file(t, "c", `{"signer":{"algorythm":"md5"}}`), "--request=-"); code != exitUsage || !strings.Contains(printed, "algorythm") {
		t.Errorf("exit code %d: %s", code, printed)
	}
}

func TestListenPlaysEachProfile(t *testing.T) {
	rsaKey, public := freshRSA(t)
	apiKey := file(t, "api", verifyAPIKey)
	adyenKey := strings.Repeat("0123456789ABCDEF", 4)
	adyenPayload := `{"notificationItems":[{"NotificationRequestItem":{"eventCode":"A","success":"true","pspReference":"p","merchantReference":"r","merchantAccountCode":"a","amount":{"value":1,"currency":"EUR"}}}]}`
	for profile, c := range map[string]struct {
		side    merchantSide
		key     sign.Key
		payload string
		status  int
		body    string
	}{
		"alipay":       {merchantSide{PublicKeyFile: []string{public}}, rsaKey, `{"a":1}`, 200, "success"},
		"wechatpay-v2": {merchantSide{SecretFile: []string{apiKey}}, textKey(t, verifyAPIKey), `{"a":1}`, 200, "<return_code><![CDATA[SUCCESS]]>"},
		"wechatpay-v3": {merchantSide{PublicKeyFile: []string{"4E5F=" + public}, DecryptionKeyFile: []string{apiKey}}, rsaKey, `{"a":1}`, 204, ""},
		"unionpay":     {merchantSide{PublicKeyFile: []string{"20063=" + public}}, rsaKey, `{"a":1}`, 200, "ok"},
		"stripe":       {merchantSide{SecretFile: []string{apiKey}}, textKey(t, "text:"+verifyAPIKey), `{"a":1}`, 200, "success"},
		"adyen":        {merchantSide{SecretFile: []string{file(t, "adyen", adyenKey)}}, textKey(t, "hex:"+adyenKey), adyenPayload, 200, "[accepted]"},
	} {
		t.Run(profile, func(t *testing.T) {
			c.side.Profile = profile
			l := listenAs(t, func(cmd *listenCmd) { cmd.merchantSide = c.side })
			settings := merchant.Contract{Profile: profile}
			if profile == contract.WeChatPayV3 {
				settings.Encryption.KeyID = "k"
			}
			ask := func(change func(r *http.Request)) (int, string) {
				r := engineRequest(t, settings, c.key, l.url+"/notify", c.payload)
				change(r)
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return resp.StatusCode, string(text)
			}
			if status, body := ask(func(*http.Request) {}); status != c.status || !strings.Contains(body, c.body) {
				t.Errorf("answered %d %q: %s", status, body, l.out.String())
			}
			if status, _ := ask(func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
			}); status != http.StatusUnauthorized && status != http.StatusBadRequest {
				t.Errorf("another body was answered with %d", status)
			}
			if code := l.end(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			wants(t, "the greeting", l.out.String(), strconv.Quote(profile)[1:len(profile)+1], "  verified  ", "NOT VERIFIED")
		})
	}
	var r runner
	if code := r.exec(t.Context(), &listenCmd{Addr: "127.0.0.1:0", merchantSide: merchantSide{Profile: "alipay"}}); code != exitUsage {
		t.Errorf("no key: exit code %d", code)
	}
}
