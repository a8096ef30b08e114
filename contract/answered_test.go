package contract_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/smx509"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

// signedAnswer is an answer as a merchant signs it. Its signature was made by openssl.
type signedAnswer struct {
	name      string
	rule      merchant.Acknowledgement // with the signature's settings
	key       string                   // testdata/keys/<key>.pub.pem; empty: the secret apiV2, with which the requests are signed
	header    http.Header
	body      string
	signed    string // what openssl has signed, with the secret in it
	signature string // as it is in body or header
}

// Made by openssl with testdata/keys and apiV2.
const (
	md5Answer   = "394825E5C4585C3F3E4C1C4D34F8017A"
	rsaAnswer   = "sspTnQn+F7zZJQ84EOzG0y62s7MiZKmRbUtd6VKoUyqZB8c1XWcIR6QEBbOMG+6n+Dhyhxg8ijFfFbOdb4WTEuMMMSBF+vHLqP14FxiRTR+bvEYj9mFfW+zy4JyoHsbLHbOIJt+t/uoOBT7rvwsdCjOdburYB2FlR/onPdG6jMZZ+GN4IhRufa18Xdp+HLIHPj0jw89zZeMdm4eomFZnfmB2OcW07Z1Lk3t/NJdNqR+aUMaWj7jvITGB3YuxxqvQyWMj6ybDnqqZ9mj79YiiRPemBEjCB/wRIqqNtak1THpJ6Ogr+aZXAX/tW0LDXVtRMKVCobniOHXNuh6V4BwRWQ=="
	xmlAnswer   = "30BA28920AB47E25B1E6C3DC5259459C7FCA4B09498936EF9F83C3308E75FAF9"
	edAnswer    = "RGlwlEyuN7TrHPEYetwLKNQLmy6Xdrjv8Ons/pF3xV6Dw+exBp6vJzsoaaIpb+jJ0yUd4jPjhSeR5SxReNZjBw=="
	sm2Answer   = "5733176011D233AB5A0738A0CCD558E4B279353CFE536B73BA1F6961F5FBFA9F682CDFE20290C504F335057A22CE785793A3389FAFD96CE88DEAD97FCAC9466F"
	unionAnswer = "DicdDIYP2l9G74Rrhzjgf1AUUdi0qN0n2EvtGN8vlMicctZaWWQHNrHH7RMM6qOqZFN3SHHPYZFQmblfaHApOMHs2FpqyYeXZ5xNPG/yNIFyFc2b3djQgiv/p4DDUwW6XI9mmed2oz8fxKevPwwy9nzUv082K7XjmNOStlPvf0WZKy18p23Ad6I20FG7ill5hfw3CW+NdXDXaxA4AsWY5gx95P7u+JPNaktykBnTpzgNWtAfI0ItHJQ7Ipjwvy7wko/gzWWNarfIbbfvCg/kjGzbcsAypzFjOkCZmjUCxYvxaTFF+pX1h1bYNSW/f5ck1A++NY7QPgFCoWLZK6oIww=="
	idAnswer    = "ZuLNJtnCp2Us4lkaiAFn/hTD07RZHEUYKXmIXfl8Ulw="
	pathAnswer  = "a4d8848c6edddfe10a362a71ec3f19802ce0985a15cd8a406e6160c606aad130"
	ecAnswer    = "MEQCIDhmtEGEEVtHYvlm9jG9UQoB2B3S4oCfEM44HcKHFNHGAiAlvzQ3ig0lI+BJJrsU0ySqP/QKo5LFyDkMv7QWx41NBg=="
	gbkAnswer   = "fdf9fbb7a3403a879546284165feb319"
)

func agreed(value string, s merchant.AnswerSignature) merchant.Acknowledgement {
	return merchant.Acknowledgement{JSON: merchant.PathValue{Path: "$.code", Value: value}, Signature: s}
}

func signedAnswers() []signedAnswer {
	return []signedAnswer{
		{
			name: "JSON, MD5 and &key=",
			rule: agreed("SUCCESS", merchant.AnswerSignature{Algorithm: "md5", Input: "{sorted}&key={secret}", Output: "HEX", Field: "sign"}),
			body: `{"code":"SUCCESS","amount":10.50,"sign":"` + md5Answer + `","orderId":"o-1","note":"","none":null}`, signed: "amount=10.50&code=SUCCESS&orderId=o-1&key=" + apiV2,
			signature: md5Answer,
		},
		{
			name: "JSON, RSA2", key: "rsa",
			rule:      agreed("10000", merchant.AnswerSignature{Algorithm: "rsa-sha256", KeyID: "k", Input: "{sorted}", Field: "sign", UnsignedFields: []string{"sign_type"}}),
			body:      "\ufeff" + `{"code":"10000","msg":"\u7ea2茶 <&>","trade_no":"t-1","sign_type":"RSA2","sign":"` + rsaAnswer + `"}`,
			signed:    "code=10000&msg=红茶 <&>&trade_no=t-1",
			signature: rsaAnswer,
		},
		{
			name: "XML, HMAC-SHA256",
			rule: merchant.Acknowledgement{XML: merchant.PathValue{Path: "xml/return_code", Value: "SUCCESS"}, Signature: merchant.AnswerSignature{
				Algorithm: "hmac-sha256", Input: "{sorted}&key={secret}", Output: "HEX", Field: "sign", Format: "xml",
			}},
			body: "<xml>\n  <return_code><![CDATA[SUCCESS]]></return_code>\n  <return_msg>OK</return_msg><device_info/>\n" +
				"  <nonce_str>5K8264ILTKCH16CQ2502SI8ZNMTM67VS</nonce_str><sign>" + xmlAnswer + "</sign>\n</xml>\n",
			signed:    "nonce_str=5K8264ILTKCH16CQ2502SI8ZNMTM67VS&return_code=SUCCESS&return_msg=OK&key=" + apiV2,
			signature: xmlAnswer,
		},
		{
			name: "header, Ed25519", key: "ed25519",
			rule:   agreed("SUCCESS", merchant.AnswerSignature{Algorithm: "ed25519", KeyID: "k", Input: "{header.X-Timestamp}\n{body}\n", Header: "x-signature"}),
			header: http.Header{"X-Timestamp": {"1795395724"}, "X-Signature": {edAnswer}},
			body:   `{"code":"SUCCESS"}`, signed: "1795395724\n{\"code\":\"SUCCESS\"}\n",
			signature: edAnswer,
		},
		{
			name: "form in GBK, SM2 with a user id, r and s", key: "sm2",
			rule: merchant.Acknowledgement{BodyContains: "CODE=0000&", Signature: merchant.AnswerSignature{
				Algorithm: "sm2-sm3", KeyID: "k", Input: "{sorted}", Output: "HEX", Field: "SIGN", Format: "form", Charset: "gbk", UserID: "TEASHOP000000000", RawSignature: true,
			}},
			body:      "CODE=0000&MSG=%B3%C9%B9%A6&SIGN=" + sm2Answer + "\r\n",
			signed:    "CODE=0000&MSG=\xb3\xc9\xb9\xa6",
			signature: sm2Answer,
		},
		{
			name: "form, RSA over the hash", key: "rsa",
			rule: merchant.Acknowledgement{BodyContains: "respCode=00&", Signature: merchant.AnswerSignature{
				Algorithm: "rsa-sha256", KeyID: "k", Input: "{sorted_sha256}", Field: "signature", Format: "form",
			}},
			body:      "respCode=00&orderId=o-1&respMsg=%E6%88%90%E5%8A%9F&reserved=&signature=" + url.QueryEscape(unionAnswer),
			signed:    "16c51af725114c670dfbff1f95d2c7ab83ecb0fe7ce5a1e81d51b0308aa60a65",
			signature: unionAnswer,
		},
		{
			name:   "header, HMAC-SHA256 over what was told, the status and the body",
			rule:   agreed("SUCCESS", merchant.AnswerSignature{Algorithm: "hmac-sha256", Input: "{id}.{status}.{body}", Header: "X-Signature"}),
			header: http.Header{"X-Signature": {idAnswer}},
			body:   `{"code":"SUCCESS"}`, signed: "ntf_agjqaaaaaaaaaaaaaaaaaaaazu" + `.200.{"code":"SUCCESS"}`,
			signature: idAnswer,
		},
		{
			name: "JSON, two paths, SHA-256 with the secret at its end",
			rule: merchant.Acknowledgement{JSON: merchant.PathValue{Path: "$.data.code", Value: "SUCCESS"}, Signature: merchant.AnswerSignature{
				Algorithm: "sha256", Input: "{$.data.amount}:{$.data.code}{secret}", Output: "hex", Field: "$.data.sign",
			}},
			body: `{"data":{"amount":10.50,"code":"SUCCESS","sign":"` + pathAnswer + `"}}`, signed: "10.50:SUCCESS" + apiV2,
			signature: pathAnswer,
		},
		{
			name: "header, ECDSA over the status", key: "ecdsa",
			rule:   merchant.Acknowledgement{BodyTrimmed: "ok", Signature: merchant.AnswerSignature{Algorithm: "ecdsa-sha256", KeyID: "k", Input: "{status}\n{body}", Header: "X-Signature"}},
			header: http.Header{"X-Signature": {ecAnswer}},
			body:   "ok", signed: "200\nok", signature: ecAnswer,
		},
		{
			name: "JSON in GBK, MD5",
			rule: agreed("SUCCESS", merchant.AnswerSignature{Algorithm: "md5", Input: "{sorted}&key={secret}", Output: "hex", Field: "$.sign", Charset: "gbk"}),
			body: "{\"code\":\"SUCCESS\",\"msg\":\"\xb2\xe8\",\"sign\":\"" + gbkAnswer + "\"}", signed: "code=SUCCESS&msg=\xb2\xe8&key=" + apiV2,
			signature: gbkAnswer,
		},
	}
}

func publicOf(tb testing.TB, name string) sign.Key {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "keys", name+".pub.pem"))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	parsed, err := smx509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := sign.PublicKey(parsed)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// asked is a contract whose answers are signed, the keys, and the merchant's rule for the answer to goldenTold.
func (s signedAnswer) asked(tb testing.TB) (*contract.Contract, contract.Keys) {
	tb.Helper()
	c, err := contract.Compile(merchant.Contract{
		Profile: contract.Custom, Signer: merchant.Signer{Algorithm: "hmac-sha256", Input: "{body}", Header: "X-Sign"}, Acknowledgement: s.rule,
	})
	if err != nil {
		tb.Fatal(err)
	}
	keys := contract.Keys{Sign: []contract.Key{secretKey(tb, c, apiV2)}}
	if s.key != "" {
		key, err := c.PrepareAnswer("answers/1", publicOf(tb, s.key))
		if err != nil {
			tb.Fatal(err)
		}
		keys.Answer = append(keys.Answer, key)
	}
	return c, keys
}

func (s signedAnswer) answer() answer.Answer {
	return answer.Answer{Status: 200, Header: s.header.Values, Body: []byte(s.body)}
}

func (s signedAnswer) judge(tb testing.TB, given answer.Answer) answer.Judgement {
	tb.Helper()
	c, keys := s.asked(tb)
	return c.Acknowledgement(goldenTold(paid, 1), keys).Judge(given)
}

// TestSignedAnswers: what openssl has signed acknowledges; with any other byte in what is signed, or in the signature, it does not.
func TestSignedAnswers(t *testing.T) {
	for _, s := range signedAnswers() {
		t.Run(s.name, func(t *testing.T) {
			if got := s.judge(t, s.answer()); got.Verdict != answer.Acknowledged {
				t.Fatalf("%s: %s", got.Verdict, got.Why)
			}
			refused := func(what string, given answer.Answer, says string) {
				t.Helper()
				got := s.judge(t, given)
				if got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, "expected a signature in the ") || !strings.Contains(got.Why, says) || strings.Contains(got.Why, apiV2) || len(got.Why) > 640 {
					t.Errorf("%s: %s: %s, want …%s…", what, got.Verdict, got.Why, says)
				}
			}
			other := s
			if s.header != nil {
				other.header = reheaded(s.header, s.signature, swapped(s.signature))
			} else {
				other.body = strings.Replace(s.body, swapless(s.signature), swapless(swapped(s.signature)), 1)
			}
			refused("another signature", other.answer(), "it is not the "+s.rule.Signature.Algorithm+" of ")

			given := s.answer()
			if strings.Contains(s.signed, "10.50") {
				given.Body = bytes.Replace(given.Body, []byte("10.50"), []byte("10.51"), 1)
				refused("one digit", given, "10.51")
			}
			given = s.answer()
			given.Truncated = true
			if got := s.judge(t, given); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, "too long to be read as a whole") {
				t.Errorf("truncated: %s: %s", got.Verdict, got.Why)
			}
			if s.header != nil {
				given = s.answer()
				given.Header = nil
				refused("no headers", given, "no headers")
				given.Header = http.Header{"X-Timestamp": {"1795395724"}}.Values
				refused("no signature", given, `the answer has no header "`)
				twice := s.header.Clone()
				twice.Add("X-Signature", s.signature)
				given.Header = twice.Values
				refused("two signatures", given, "is there 2 times")
				given.Header = reheaded(s.header, s.signature, "?").Values
				refused("unreadable", given, `"?" is not written as base64`)
			}
			c, keys := s.asked(t)
			keys.Answer, keys.Sign = nil, nil
			if got := c.Acknowledgement(goldenTold(paid, 1), keys).Judge(s.answer()); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, "no key") {
				t.Errorf("without a key: %s: %s", got.Verdict, got.Why)
			}
		})
	}
}

// reheaded is a header with another value.
func reheaded(header http.Header, from, to string) http.Header {
	other := header.Clone()
	for name, values := range other {
		other[name] = slices.Clone(values)
		for i := range values {
			other[name][i] = strings.Replace(values[i], from, to, 1)
		}
	}
	return other
}

// TestSignedAnswersByOpenSSL: the strings and signatures of the table belong together, and not to another string.
func TestSignedAnswersByOpenSSL(t *testing.T) {
	for _, s := range signedAnswers() {
		t.Run(s.name, func(t *testing.T) {
			if err := s.byOpenSSL(t, s.signed); err != nil {
				t.Error(err)
			}
			if s.byOpenSSL(t, s.signed+".") == nil {
				t.Error("another string is taken")
			}
		})
	}
}

func (s signedAnswer) byOpenSSL(t *testing.T, signed string) error {
	t.Helper()
	message, public := file(t, "message", []byte(signed)), filepath.Join("testdata", "keys", s.key+".pub.pem")
	args := []string{"dgst", "-r", "-sha256", message}
	switch s.rule.Signature.Algorithm {
	case "md5":
		args = []string{"dgst", "-r", "-md5", message}
	case "hmac-sha256":
		args = []string{"dgst", "-r", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:" + hex.EncodeToString([]byte(apiV2)), message}
	case "sha256":
	case "sm2-sm3":
		der, err := hex.DecodeString("30440220" + s.signature[:64] + "0220" + s.signature[64:])
		if err != nil {
			t.Fatal(err)
		}
		_, err = openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-digest", "sm3", "-pkeyopt", "distid:"+s.rule.Signature.UserID, "-sigfile", file(t, "signature", der), "-in", message)
		return err
	case "ed25519":
		_, err := openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", file(t, "signature", unbase64(t, s.signature)), "-in", message)
		return err
	default:
		_, err := openssl("dgst", "-sha256", "-verify", public, "-signature", file(t, "signature", unbase64(t, s.signature)), message)
		return err
	}
	out, err := openssl(args...)
	if err != nil {
		t.Fatal(err, out)
	}
	sum, _, _ := strings.Cut(out, " ")
	raw, _ := hex.DecodeString(sum)
	if !slices.Contains([]string{sum, strings.ToUpper(sum), base64.StdEncoding.EncodeToString(raw)}, s.signature) {
		return fmt.Errorf("openssl makes %s, the answer has %s", sum, s.signature)
	}
	return nil
}

// TestAnswersThatAreNotWhatWasSigned: each is the table's first answer or another one, changed by whoever stands in between.
func TestAnswersThatAreNotWhatWasSigned(t *testing.T) {
	all := map[string]signedAnswer{}
	for _, s := range signedAnswers() {
		s.rule = merchant.Acknowledgement{Signature: s.rule.Signature} // a rule of the body would speak first
		all[s.name] = s
	}
	const md5, xml, form, head, id = "JSON, MD5 and &key=", "XML, HMAC-SHA256", "form in GBK, SM2 with a user id, r and s", "header, Ed25519", "header, HMAC-SHA256 over what was told, the status and the body"
	for _, c := range []struct {
		what, of, from, to, says string
	}{
		{"another code", md5, "SUCCESS", "FAIL", ""},
		{"a field more", md5, `"note":""`, `"note":"x"`, "note=x"},
		{"a field less", md5, `"orderId":"o-1",`, ``, "does not"},
		{"a field twice", md5, `"note":""`, `"code":"FAIL"`, "twice"},
		{"the signature twice", md5, `"note":""`, `"sign":"` + md5Answer + `"`, "twice"},
		{"a number written otherwise", md5, "10.50", "10.5", "amount=10.5&"},
		{"small digits", md5, md5Answer, strings.ToLower(md5Answer), "is not written as HEX"},
		{"half a signature", md5, md5Answer, md5Answer[:30], "it is not the md5"},
		{"an empty signature", md5, md5Answer, "", "it is missing"},
		{"a signature that is null", md5, `"` + md5Answer + `"`, "null", "it is missing"},
		{"no signature", md5, `"sign"`, `"sing"`, "it is missing"},
		{"no JSON", md5, "}", "", "cannot be read as json"},
		{"bytes that do not print", md5, `"o-1"`, `"o\u0000\u202e"`, `o\x00\u202e`},
		{"a long one", md5, `"note":""`, `"Note":"` + strings.Repeat("é", 500) + `"`, "bytes that begin with "},
		{"an element twice", xml, "<device_info/>", "<return_code>SUCCESS</return_code>", "twice"},
		{"an element within", xml, "<device_info/>", "<a><b/></a>", "within another"},
		{"a document type", xml, "<xml>", "<!DOCTYPE xml><xml>", "document type"},
		{"another root", xml, "OK", "OK</return_msg></xml><xml><return_msg>", ""},
		{"not UTF-8", xml, "OK", "\xff", "not UTF-8"},
		{"a field twice in a form", form, "MSG", "MSG=&MSG", "twice"},
		{"half an escape", form, "%A6", "%A", "percent"},
		{"half a character", form, "%B9%A6", "%B9", "not GBK"},
		{"a byte that readers do not agree on", form, "%B9%A6", "%80", "not GBK"},
		{"another body under a header", head, `"}`, `" }`, ""},
	} {
		s := all[c.of]
		given := s.answer()
		if !bytes.Contains(given.Body, []byte(c.from)) {
			t.Fatalf("%s: no %s in %s", c.what, c.from, given.Body)
		}
		given.Body = bytes.ReplaceAll(given.Body, []byte(c.from), []byte(c.to))
		got := s.judge(t, given)
		if c.says == "does not" {
			c.says = "amount=10.50&code=SUCCESS&key=[secret]"
		}
		if got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, c.says) || strings.Contains(got.Why, apiV2) || len(got.Why) > 640 {
			t.Errorf("%s: %s: %s, want …%s…", c.what, got.Verdict, got.Why, c.says)
		}
	}

	other := all[id]
	c, keys := other.asked(t)
	told := goldenTold(paid, 1)
	told.Notification.ID[15]++
	if got := c.Acknowledgement(told, keys).Judge(other.answer()); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, told.Notification.ID.String()) {
		t.Errorf("another notification's answer: %s: %s", got.Verdict, got.Why)
	}
	if got := c.Acknowledgement(goldenTold(paid, 7), keys).Judge(other.answer()); got.Verdict != answer.Acknowledged {
		t.Errorf("another attempt's answer: %s: %s", got.Verdict, got.Why)
	}
	given := other.answer()
	given.Status = 201
	if got := other.judge(t, given); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, ".201.") {
		t.Errorf("another status: %s: %s", got.Verdict, got.Why)
	}
	stamped := all[head]
	stamped.header = stamped.header.Clone()
	stamped.header.Set("X-Timestamp", "1795395725")
	if got := stamped.judge(t, stamped.answer()); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, `1795395725\n`) {
		t.Errorf("another timestamp: %s: %s", got.Verdict, got.Why)
	}
	stamped.header.Del("X-Timestamp")
	if got := stamped.judge(t, stamped.answer()); got.Verdict != answer.WrongAnswer || !strings.Contains(got.Why, `no header "X-Timestamp"`) {
		t.Errorf("no timestamp: %s: %s", got.Verdict, got.Why)
	}
}

// TestOneReading: a body that says one thing in GBK and another in UTF-8 is judged in the charset that it was signed in.
func TestOneReading(t *testing.T) {
	// In GBK \xAD\x5D is one character, so that the first section ends behind the success; in UTF-8 a comment hides the failure.
	const body = "<xml><x><![CDATA[\xE4\xB8\xAD]]></x><return_code>SUCCESS</return_code><x><!-- ]]></x><return_code>FAIL</return_code><sign>%s</sign><?p --></x> ?></xml>"
	out, err := openssl("dgst", "-r", "-md5", file(t, "message", []byte("return_code=FAIL&key="+apiV2)))
	if err != nil {
		t.Fatal(err, out)
	}
	sum, _, _ := strings.Cut(out, " ")
	says := func(code string) signedAnswer {
		return signedAnswer{body: fmt.Sprintf(body, sum), rule: merchant.Acknowledgement{
			XML:       merchant.PathValue{Path: "xml/return_code", Value: code},
			Signature: merchant.AnswerSignature{Algorithm: "md5", Input: "{sorted}&key={secret}", Output: "hex", Field: "sign", Format: "xml", Charset: "gbk", UnsignedFields: []string{"x"}},
		}}
	}
	signed, forged := says("FAIL"), says("SUCCESS")
	if got := signed.judge(t, signed.answer()); got.Verdict != answer.Acknowledged {
		t.Fatalf("what was signed: %s: %s", got.Verdict, got.Why)
	}
	if got := forged.judge(t, forged.answer()); got.Verdict != answer.WrongAnswer {
		t.Errorf("what was not: %s", got.Verdict)
	}
	forged.rule.Signature = merchant.AnswerSignature{}
	if got := forged.judge(t, forged.answer()); got.Verdict != answer.Acknowledged {
		t.Errorf("the forgery is none: %s", got.Why)
	}
}

// TestUnsignedIsNotTheLastWord: what would end a notification has to be signed, too.
func TestUnsignedIsNotTheLastWord(t *testing.T) {
	s := signedAnswers()[6]
	s.rule.FinalStatuses, s.rule.FinalAbortMessage = []uint32{410}, true
	abort := http.Header{"Webhook-Delivery": {"abort-message"}}
	for _, c := range []struct {
		what   string
		status int
		header http.Header
		body   string
		want   answer.Verdict
	}{
		{"410", 410, nil, "", answer.NotAgreed},
		{"500 and the header", 500, abort, "", answer.NotAgreed},
		{"200 with another body and the header", 200, abort, "no", answer.WrongAnswer},
		{"410 with an answer's signature to 200", 410, s.header, s.body, answer.NotAgreed},
		{"410 that is signed", 410, http.Header{"X-Signature": {sealed(t, ".410.gone")}}, "gone", answer.Refused},
		{"500 that is signed, and the header", 500, http.Header{"X-Signature": {sealed(t, ".500.")}, "Webhook-Delivery": {"abort-message"}}, "", answer.Aborted},
	} {
		if got := s.judge(t, answer.Answer{Status: c.status, Header: c.header.Values, Body: []byte(c.body)}); got.Verdict != c.want {
			t.Errorf("%s: %s, want %s", c.what, got.Verdict, c.want)
		}
	}
}

// sealed is what openssl signs of the golden notification's id and a text.
func sealed(t *testing.T, text string) string {
	t.Helper()
	out, err := openssl("dgst", "-r", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString([]byte(apiV2)), file(t, "message", []byte(goldenTold("", 1).Notification.ID.String()+text)))
	if err != nil {
		t.Fatal(err, out)
	}
	sum, _, _ := strings.Cut(out, " ")
	raw, _ := hex.DecodeString(sum)
	return base64.StdEncoding.EncodeToString(raw)
}

// TestTruncatedBeyondWhatIsSigned: where nothing of the body is signed, or judged, its end may be missing.
func TestTruncatedBeyondWhatIsSigned(t *testing.T) {
	s := signedAnswers()[6]
	s.rule = merchant.Acknowledgement{Signature: merchant.AnswerSignature{Algorithm: "hmac-sha256", Input: "{id}.{status}.", Header: "X-Signature"}}
	given := answer.Answer{Status: 200, Header: http.Header{"X-Signature": {sealed(t, ".200.")}}.Values, Body: []byte("<html>"), Truncated: true}
	if got := s.judge(t, given); got.Verdict != answer.Acknowledged {
		t.Errorf("%s: %s", got.Verdict, got.Why)
	}
}

// TestNotAnswerable: a notification whose answer could never verify is not accepted.
func TestNotAnswerable(t *testing.T) {
	c := compiled(t, merchant.Contract{Acknowledgement: merchant.Acknowledgement{Signature: merchant.AnswerSignature{Algorithm: "hmac-sha256", Input: "{order_id}{body}", Header: "X-Signature"}}})
	told := goldenTold(paid, 1)
	if err := c.Check(told.Notification); err != nil {
		t.Error(err)
	}
	told.Notification.OrderID = ""
	if err := c.Check(told.Notification); err == nil || !strings.Contains(err.Error(), "{order_id} has no value") {
		t.Errorf("without an order: %v", err)
	}
}

// FuzzSignedAnswer: no answer panics or makes a sentence that cannot be shown; and none acknowledges that says, or is told, anything
// else than what was signed.
func FuzzSignedAnswer(f *testing.F) {
	type rule struct {
		s signedAnswer
		a *answer.Acknowledgement
	}
	var rules []rule
	for i, s := range signedAnswers() {
		c, keys := s.asked(f)
		rules = append(rules, rule{s, c.Acknowledgement(goldenTold(paid, 1), keys)})
		f.Add(uint8(i), 200, s.signature, []byte(s.body), false)
	}
	f.Fuzz(func(t *testing.T, which uint8, status int, signature string, body []byte, cut bool) {
		r := rules[int(which)%len(rules)]
		header := http.Header{"X-Timestamp": {"1795395724"}, "X-Signature": {signature}}
		got := r.a.Judge(answer.Answer{Status: status, Header: header.Values, Body: body, Truncated: cut})
		if len(got.Why) > 640 || strings.Contains(got.Why, apiV2) {
			t.Errorf("%q", got.Why)
		}
		if got.Verdict != answer.Acknowledged {
			return
		}
		if cut || r.s.header != nil && string(body) != r.s.body && r.s.rule.Signature.Input != "{status}\n{body}" || r.s.header == nil && !bytes.Contains(body, []byte("o-1")) && strings.Contains(r.s.body, "o-1") && !bytes.ContainsAny(body, `\&%`) {
			t.Errorf("%s: %q acknowledges", r.s.name, body)
		}
	})
}

func BenchmarkSignedAnswer(b *testing.B) {
	for _, s := range signedAnswers() {
		b.Run(s.name, func(b *testing.B) {
			c, keys := s.asked(b)
			b.ReportAllocs()
			for b.Loop() {
				if got := c.Acknowledgement(goldenTold(paid, 1), keys).Judge(s.answer()); got.Verdict != answer.Acknowledged {
					b.Fatal(got.Why)
				}
			}
		})
	}
}
