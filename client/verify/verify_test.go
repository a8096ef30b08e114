package verify_test

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"notifyd/client/verify"
	"notifyd/merchant"
	"notifyd/notification"
)

func TestWhatTheEngineMakesVerifies(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			m, v := s.made(t), s.verifier(t)
			c, err := v.VerifyMessage(m, at.Add(time.Minute))
			if err != nil {
				text, _ := v.StringToSign(m)
				t.Fatalf("%v\n%s %s\n%v\n%s\nstring-to-sign %q", err, m.Method, m.URL, m.Header, m.Body, text)
			}
			if id := (notification.ID{0xab, 15: 0xcd}).String(); !s.noID && c.ID != id && c.ID != "p" {
				t.Errorf("id %q", c.ID)
			}
			if s.name == "wechatpay-v3" && string(c.Resource) != order {
				t.Errorf("resource %s", c.Resource)
			}
			if c.Fields["subject"] != "" && (c.Fields["subject"] != "红 茶/&=+" || c.Fields["total_amount"] != "10.50" || c.Fields["passback"] != "a%20b") {
				t.Errorf("fields %v", c.Fields)
			}
		})
	}
}

// Every byte of what is signed, and every header, counts.
func TestTamperingIsSeen(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			m, v := s.made(t), s.verifier(t)
			good, err := v.VerifyMessage(m, at)
			if err != nil {
				t.Fatal(err)
			}
			for i := range m.Body {
				for _, bit := range []byte{1, 0x20, 0x80} {
					other := m
					other.Body = bytes.Clone(m.Body)
					other.Body[i] ^= bit
					got, err := v.VerifyMessage(other, at)
					if err == nil && !means(good, got, s) {
						t.Fatalf("byte %d (%q) can be changed: %s", i, m.Body[i], other.Body)
					}
					var e *verify.Error
					if err != nil && !errors.As(err, &e) {
						t.Fatalf("%T %v", err, err)
					}
				}
			}
			tamperHeaders(t, &s, v, m)
		})
	}
}

// means reports whether a callback says the same, although its bytes are others: a form's, XML's or JSON's way to write the
// same value, or what is not signed.
func means(good, got *verify.Callback, s sample) bool {
	if bytes.Equal(good.Body, got.Body) {
		return true
	}
	if good.Fields == nil || good.ID != got.ID || !good.Time.Equal(got.Time) {
		return false
	}
	return fmt.Sprint(good.Fields) == fmt.Sprint(got.Fields) && s.contract.Profile != "standard"
}

func tamperHeaders(t *testing.T, s *sample, v *verify.Verifier, m verify.Message) {
	t.Helper()
	for name, values := range m.Header {
		if name == "Content-Type" {
			continue
		}
		try := func(what string, change func(h http.Header)) {
			other := m
			other.Header = m.Header.Clone()
			change(other.Header)
			if _, err := v.VerifyMessage(other, at); err == nil && (s.name != "wechatpay-v3" || name != "Wechatpay-Signature-Type" || what != "gone") {
				t.Errorf("%s: %s is not seen", name, what)
			}
		}
		try("gone", func(h http.Header) { h.Del(name) })
		try("twice", func(h http.Header) { h.Add(name, values[0]) })
		if strings.Contains(values[0], "v1") { // several signatures: one that is good is enough
			try("every signature", func(h http.Header) { h.Set(name, strings.ReplaceAll(values[0], "v1", "v2")) })
			continue
		}
		for i := range values[0] {
			try(fmt.Sprintf("byte %d", i), func(h http.Header) {
				changed := []byte(values[0])
				changed[i] ^= 2
				h.Set(name, string(changed))
			})
		}
	}
}

func TestTimes(t *testing.T) {
	s := samples()[0]
	m, v := s.made(t), s.verifier(t)
	for _, c := range []struct {
		after     time.Duration
		tolerance time.Duration
		want      verify.Reason
	}{
		{5 * time.Minute, verify.DefaultTolerance, ""},
		{5*time.Minute + time.Second, verify.DefaultTolerance, verify.TooOld},
		{-5 * time.Minute, verify.DefaultTolerance, ""},
		{-5*time.Minute - time.Second, verify.DefaultTolerance, verify.TooNew},
		{1000 * time.Hour, 0, ""},
	} {
		v.Tolerance = c.tolerance
		_, err := v.VerifyMessage(m, at.Add(c.after))
		if got := reason(err); got != c.want {
			t.Errorf("%v: %v", c.after, err)
		}
	}
	for _, text := range []string{"x", "-1", "+1795395723", "1e9", "99999999999999999999", " 1795395723"} {
		m.Header.Set("webhook-timestamp", text)
		if _, err := v.VerifyMessage(m, at); reason(err) != verify.Malformed {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func reason(err error) verify.Reason {
	if e, ok := errors.AsType[*verify.Error](err); ok {
		return e.Reason
	}
	return ""
}

func TestRefusals(t *testing.T) {
	byName := func(name string) sample {
		for _, s := range samples() {
			if s.name == name {
				return s
			}
		}
		t.Fatal(name)
		return sample{}
	}
	form := func(change func(f url.Values)) func(m *verify.Message) {
		return func(m *verify.Message) {
			f, _ := url.ParseQuery(string(m.Body))
			change(f)
			m.Body = []byte(f.Encode())
		}
	}
	for name, c := range map[string]struct {
		of     string
		change func(m *verify.Message)
		want   verify.Reason
		says   string
	}{
		"no headers":             {"standard", func(m *verify.Message) { m.Header = http.Header{} }, verify.Missing, "webhook-id, webhook-timestamp, webhook-signature missing"},
		"no signature":           {"standard", func(m *verify.Message) { m.Header.Set("webhook-signature", "v2,xx") }, verify.Malformed, "webhook-signature"},
		"another signature":      {"standard", func(m *verify.Message) { m.Header.Set("webhook-signature", "v1,"+strings.Repeat("A", 43)+"=") }, verify.Mismatch, "no signature matches"},
		"unreadable signature":   {"standard", func(m *verify.Message) { m.Header.Set("webhook-signature", "v1,?") }, verify.Mismatch, "base64"},
		"two times":              {"stripe", func(m *verify.Message) { m.Header.Set("Stripe-Signature", "t=1,"+m.Header.Get("Stripe-Signature")) }, verify.Malformed, "two values"},
		"no time":                {"stripe", func(m *verify.Message) { m.Header.Set("Stripe-Signature", "v1=00") }, verify.Missing, "timestamp"},
		"unknown serial":         {"wechatpay-v3", func(m *verify.Message) { m.Header.Set("Wechatpay-Serial", "77") }, verify.UnknownKey, `"77"`},
		"no sign":                {"alipay", form(func(f url.Values) { f.Del("sign") }), verify.Missing, "sign"},
		"an added field":         {"alipay", form(func(f url.Values) { f.Set("a", "b") }), verify.Mismatch, ""},
		"an added empty field":   {"alipay", form(func(f url.Values) { f.Set("a", "") }), verify.Mismatch, ""},
		"a field twice":          {"alipay", form(func(f url.Values) { f.Add("out_trade_no", "o-2") }), verify.BadBody, "twice"},
		"a weaker algorithm":     {"alipay", form(func(f url.Values) { f.Set("sign_type", "RSA") }), verify.Malformed, "sign_type"},
		"another certId":         {"unionpay", form(func(f url.Values) { f.Set("certId", "1") }), verify.UnknownKey, "serial"},
		"no certId":              {"unionpay", form(func(f url.Values) { f.Del("certId") }), verify.Missing, "serial"},
		"no signMethod":          {"unionpay", form(func(f url.Values) { f.Del("signMethod") }), verify.Malformed, "signMethod"},
		"half an escape":         {"alipay", func(m *verify.Message) { m.Body = append(m.Body, "&a=%4"...) }, verify.BadBody, "percent"},
		"a document type":        {"wechatpay-v2", func(m *verify.Message) { m.Body = append([]byte(`<!DOCTYPE a [<!ENTITY x "y">]>`), m.Body...) }, verify.BadBody, "document type"},
		"two roots":              {"wechatpay-v2", func(m *verify.Message) { m.Body = append(m.Body, "<xml></xml>"...) }, verify.BadBody, "root"},
		"no XML":                 {"wechatpay-v2", func(m *verify.Message) { m.Body = []byte("<xml") }, verify.BadBody, "XML"},
		"an unknown sign_type":   {"wechatpay-v2", func(m *verify.Message) { m.Body = bytes.Replace(m.Body, []byte("MD5"), []byte("MD6"), 1) }, verify.Malformed, "sign_type"},
		"two items":              {"adyen", func(m *verify.Message) { m.Body = bytes.Replace(m.Body, []byte("}]}"), []byte("},{}]}"), 1) }, verify.BadBody, "more than one item"},
		"no JSON":                {"adyen", func(m *verify.Message) { m.Body = []byte("x") }, verify.BadBody, "body"},
		"a member twice":         {"adyen", func(m *verify.Message) { m.Body = append([]byte(`{"live":"true",`), m.Body[1:]...) }, verify.BadBody, "body"},
		"another registered URL": {"custom square", func(m *verify.Message) { m.URL += "/" }, verify.Mismatch, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := byName(c.of)
			m := s.made(t)
			c.change(&m)
			_, err := s.verifier(t).VerifyMessage(m, at)
			if reason(err) != c.want || !strings.Contains(err.Error(), c.says) || !errors.Is(err, &verify.Error{Reason: c.want}) {
				t.Errorf("%v, want %s %q", err, c.want, c.says)
			}
		})
	}
}

func TestAnotherDecryptionKey(t *testing.T) {
	s := samples()[8]
	s.verify.Decryption = []string{strings.Repeat("x", 32)}
	if _, err := s.verifier(t).VerifyMessage(s.made(t), at); reason(err) != verify.Undecryptable {
		t.Error(err)
	}
	s.verify.Decryption = append(s.verify.Decryption, apiV3)
	if _, err := s.verifier(t).VerifyMessage(s.made(t), at); err != nil {
		t.Error(err)
	}
}

func TestVerifyReadsTheBodyOnceForBoth(t *testing.T) {
	s := samples()[0]
	s.contract.Profile = "standard"
	v := s.verifier(t)
	v.Tolerance = 0
	m := s.made(t)
	r := httptest.NewRequest(http.MethodPost, "/notify", bytes.NewReader(m.Body))
	r.Header = m.Header
	if c, err := v.Verify(r); err != nil || string(c.Body) != order {
		t.Fatal(err)
	}
	if _, err := v.Verify(r); err != nil {
		t.Errorf("again: %v", err)
	}
	v.MaxBody = int64(len(order) - 1)
	if _, err := v.Verify(r); reason(err) != verify.BadBody {
		t.Errorf("too long: %v", err)
	}
	if _, err := (&verify.Verifier{}).VerifyMessage(m, at); err == nil {
		t.Error("the zero value verifies")
	}
}

func TestBadKeysAndSettings(t *testing.T) {
	base := verify.Settings{Algorithm: "hmac-sha256", Input: "{body}", Header: "X"}
	change := func(do func(s *verify.Settings)) verify.Settings { s := base; do(&s); return s }
	secret := verify.Keys{Secrets: []string{apiKey}}
	for name, c := range map[string]struct {
		profile string
		s       verify.Settings
		k       verify.Keys
		says    string
	}{
		"unknown profile":     {"paypal", verify.Settings{}, secret, "must be one of standard"},
		"no key":              {"standard", verify.Settings{}, verify.Keys{}, "needs a secret"},
		"no public key":       {"alipay", verify.Settings{}, secret, "secret 1"},
		"a wrong secret":      {"standard", verify.Settings{}, secret, "whsec_"},
		"no hex":              {"adyen", verify.Settings{}, verify.Keys{Secrets: []string{"xyz"}}, "hex"},
		"no decryption key":   {"wechatpay-v3", verify.Settings{}, verify.Keys{BySerial: weChatSerial}, "decryption key"},
		"a short one":         {"wechatpay-v3", verify.Settings{}, verify.Keys{BySerial: weChatSerial, Decryption: []string{"short"}}, "decryption key 1"},
		"no serial":           {"unionpay", verify.Settings{}, verify.Keys{BySerial: map[string]crypto.PublicKey{"": rsaPublic}}, "serial number"},
		"no place":            {"custom", change(func(s *verify.Settings) { s.Header = "" }), secret, "where the signature is"},
		"two places":          {"custom", change(func(s *verify.Settings) { s.Field = "sign" }), secret, "where the signature is"},
		"not carried":         {"custom", change(func(s *verify.Settings) { s.Input = "{nonce}{body}" }), secret, "{nonce}"},
		"no pattern":          {"custom", change(func(s *verify.Settings) { s.Input = "{body" }), secret, "input"},
		"no input":            {"custom", change(func(s *verify.Settings) { s.Input = "" }), secret, "input"},
		"a nested place":      {"custom", change(func(s *verify.Settings) { s.Header, s.Field, s.Input = "", "$.head.sign", "{sorted}" }), secret, "$.head.sign"},
		"unknown algorithm":   {"custom", change(func(s *verify.Settings) { s.Algorithm = "md4" }), secret, "md4"},
		"another's algorithm": {"stripe", verify.Settings{Algorithm: "md5"}, secret, "md5"},
		"unknown charset":     {"alipay", verify.Settings{Charset: "big5"}, secret, "big5"},
		"a query's body":      {"custom", change(func(s *verify.Settings) { s.Format = "query" }), secret, "{body}: the format query has none"},
		"template's fields":   {"custom", change(func(s *verify.Settings) { s.Format, s.Input = "template", "{sorted}" }), secret, "template"},
	} {
		if _, err := verify.New(c.profile, c.s, c.k); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), apiKey) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	s := samples()[0]
	v := s.verifier(t)
	text, _ := json.Marshal(s.verify)
	all := fmt.Sprintf("%v %+v %#v %s %v %+v %#v", s.verify, s.verify, s.verify, text, v, v, *v)
	if strings.Contains(all, whsec[6:]) || strings.Contains(all, "0123456789abcdef") {
		t.Error(all)
	}
}

func TestWhatIsNotSignedIsNotShown(t *testing.T) {
	s := sample{name: "custom", contract: merchant.Contract{
		Profile: "custom", Encoding: merchant.Encoding{Format: "form", Headers: map[string]string{"X-Id": "{id}", "X-Time": "{timestamp}"}},
		Signer: merchant.Signer{Algorithm: "md5", Input: "{sorted}{secret}", Field: "sign", UnsignedFields: []string{"subject"}, Output: "hex"},
	}, payload: order, keys: []any{apiKey}, verify: verify.Keys{Secrets: []string{apiKey}}, settings: verify.Settings{
		Format: "form", Headers: map[string]string{"X-Id": "{id}", "X-Time": "{timestamp}"}, Algorithm: "md5", Input: "{sorted}{secret}", Field: "sign", UnsignedFields: []string{"subject"}, Output: "hex",
	}}
	c, err := s.verifier(t).VerifyMessage(s.made(t), at.Add(time.Hour))
	if err != nil || c.ID != "" || !c.Time.IsZero() || c.Fields["subject"] != "" || c.Fields["out_trade_no"] != "o-1" {
		t.Errorf("%+v %v", c, err)
	}
}

// A time or an id that {sorted} leaves out can be of anybody.
func TestUnsignedFieldsAreNeitherTimeNorID(t *testing.T) {
	for _, c := range []struct {
		name       string
		fields     map[string]string
		unsigned   []string
		body       string
		signed     string
		wantID     string
		wantTime   bool
		wantAmount string
	}{
		{"signed", map[string]string{"ts": "@timestamp", "nid": "@id"}, nil, `{"amount":"1","nid":"n-1","ts":"1900000000"}`, "amount=1&nid=n-1&ts=1900000000", "n-1", true, "1"},
		{"unsigned", map[string]string{"ts": "@timestamp", "nid": "@id"}, []string{"ts", "nid"}, `{"amount":"1","nid":"forged","ts":"1900000000"}`, "amount=1", "", false, "1"},
		{"one of them", map[string]string{"ts": "@timestamp", "nid": "@id"}, []string{"ts"}, `{"amount":"1","nid":"n-1","ts":"1900000000"}`, "amount=1&nid=n-1", "n-1", false, "1"},
		{"paths", map[string]string{"$.h.ts": "@timestamp", "$['h']['nid']": "@id!"}, nil, `{"amount":"1","h":{"ts":1900000000,"nid":"n-1"}}`, `amount=1&h={"ts":1900000000,"nid":"n-1"}`, "n-1", true, "1"},
		{"paths in a member that is unsigned", map[string]string{"$.h.ts": "@timestamp", "$['h']['nid']": "@id!"}, []string{"h"}, `{"amount":"1","h":{"ts":1900000000,"nid":"forged"}}`, "amount=1", "", false, "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := verify.Custom(verify.Settings{Format: "json", Fields: c.fields, UnsignedFields: c.unsigned, Algorithm: "hmac-sha256", Input: "{sorted}", Header: "X-Sign"}, verify.Keys{Secrets: []string{apiKey}})
			if err != nil {
				t.Fatal(err)
			}
			h := hmac.New(sha256.New, []byte(apiKey))
			h.Write([]byte(c.signed))
			m := verify.Message{Method: "POST", URL: "https://m.example/n", Body: []byte(c.body), Header: http.Header{"X-Sign": {base64.StdEncoding.EncodeToString(h.Sum(nil))}}}
			got, err := v.VerifyMessage(m, time.Unix(1900000000, 0))
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != c.wantID || got.Time.IsZero() == c.wantTime || got.Fields["amount"] != c.wantAmount {
				t.Errorf("%+v", got)
			}
			for _, name := range c.unsigned {
				if _, shown := got.Fields[name]; shown {
					t.Errorf("%s is shown: %v", name, got.Fields)
				}
			}
		})
	}
}

// The registered URL's own query is part of a URL that is signed.
func TestSignedQueryOfARegisteredURL(t *testing.T) {
	s := sample{name: "custom", contract: merchant.Contract{
		Profile: "custom", Encoding: merchant.Encoding{Format: "query"}, Signer: merchant.Signer{Algorithm: "hmac-sha256", Input: "{url}", Header: "X-Sign"},
	}, payload: order, keys: []any{apiKey}, verify: verify.Keys{Secrets: []string{apiKey}}, settings: verify.Settings{
		Format: "query", Algorithm: "hmac-sha256", Input: "{url}", Header: "X-Sign",
	}}
	m := s.made(t)
	for _, registered := range []string{"", "https://merchant.example/notify?x=1"} {
		v := s.verifier(t)
		v.URL = registered
		if _, err := v.VerifyMessage(m, at); err != nil {
			t.Errorf("registered %q: %v", registered, err)
		}
		other := m
		other.URL = strings.Replace(m.URL, "x=1", "x=2", 1)
		if _, err := v.VerifyMessage(other, at); err == nil {
			t.Errorf("registered %q: another query is taken: %s", registered, other.URL)
		}
	}
}
