package verify_test

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"notifyd/client/verify"
	"notifyd/contract"
	"notifyd/merchant"
)

// signed is a Standard Webhooks message of a body, with whatever key.
func signed(key []byte, id, timestamp string, body []byte) verify.Message {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "." + string(body)))
	return verify.Message{Method: "POST", Body: body, Header: http.Header{
		"Webhook-Id": {id}, "Webhook-Timestamp": {timestamp}, "Webhook-Signature": {"v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}}
}

func TestExplainFindsTheCommonMistakes(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	const now = "1795395723"
	standard, err := verify.Standard(whsec)
	if err != nil {
		t.Fatal(err)
	}
	withBody := func(sent, came string) verify.Message {
		m := signed(key, "n1", now, []byte(sent))
		m.Body = []byte(came)
		return m
	}
	const compact = `{"b":"茶/<&>","a":[1.50,{"c":"x: y, z"}]}`
	python := `{"b": "\u8336/<&>", "a": [1.50, {"c": "x: y, z"}]}`
	for want, m := range map[string]verify.Message{
		"lost a newline":             withBody("{}\n", "{}"),
		"white space at its end":     withBody("{}", "{}\r\n"),
		"CR LF for LF":               withBody("{\n}", "{\r\n}"),
		"lost the CR":                withBody("{\r\n}", "{\n}"),
		"byte order mark":            withBody("{}", "\xef\xbb\xbf{}"),
		"sent without white space":   withBody(compact, "{\n \"b\": \"茶/<&>\",\n \"a\": [1.50, {\"c\":\"x: y, z\"}]\n}"),
		`with \/ as /`:               withBody(`{"b":"/"}`, `{"b":"\/"}`),
		`with / as \/`:               withBody(`{"b":"\/"}`, `{"b":"/"}`),
		"beyond ASCII as they are":   withBody(`{"b":"茶𝄞\"\\u8336"}`, `{"b":"\u8336\ud834\udd1e\"\\u8336"}`),
		"as \\u escapes":             withBody(`{"b":"\u8336\ud834\udd1e"}`, `{"b":"茶𝄞"}`),
		"<, > and & as they are":     withBody(`{"b":"<&>"}`, `{"b":"\u003c\u0026\u003e"}`),
		"blank behind each colon":    withBody(strings.ReplaceAll(python, `\u8336`, "茶"), compact),
		"indented by 2":              withBody("{\n  \"a\": 1\n}", `{"a":1}`),
		"sorted by name":             withBody(`{"a":1.50,"b":2}`, `{"b":2,"a":1.50}`),
		"whsec_ included":            signed([]byte(whsec), "n1", now, []byte("{}")),
		"text behind its prefix":     signed([]byte(whsec[6:]), "n1", now, []byte("{}")),
		"a newline at its end":       signed([]byte(whsec+"\n"), "n1", now, []byte("{}")),
		"key of before the rotation": signed([]byte("another key of before"), "n1", now, []byte("{}")),
		"signed in milliseconds": func() verify.Message {
			m := signed(key, "n1", now+"000", []byte("{}"))
			m.Header.Set("webhook-timestamp", now)
			return m
		}(),
		"webhook-id is of another": func() verify.Message {
			m := signed(key, "n2", now, []byte("{}"))
			m.Header.Set("webhook-id", "n1")
			return m
		}(),
		"written as hex":             func() verify.Message { m := signed(key, "n1", now, []byte("{}")); inHex(m.Header); return m }(),
		"base64url, and must be":     func() verify.Message { m := signed(key, "n1", now, []byte("{}")); inURL(m.Header); return m }(),
		"body is of another attempt": withBody("other", "{}"),
		"signed as an empty one":     withBody("", "{}"),
		"":                           withBody("never", "known"),
	} {
		x := standard.Explain(m, at, verify.Hints{
			Before:   verify.Keys{Secrets: []string{"whsec_" + base64.StdEncoding.EncodeToString([]byte("another key of before"))}},
			Attempts: []verify.Message{{Header: http.Header{"Webhook-Id": {"n2"}}, Body: []byte("other")}},
		})
		if x.Err == nil || !strings.Contains(x.Mistake, want) || (x.Mistake == "") != (want == "") {
			t.Errorf("%v %q, want %q", x.Err, x.Mistake, want)
		}
	}
}

func inHex(h http.Header) {
	raw, _ := base64.StdEncoding.DecodeString(h.Get("webhook-signature")[3:])
	h.Set("webhook-signature", "v1,"+hex.EncodeToString(raw))
}

func inURL(h http.Header) {
	raw, _ := base64.StdEncoding.DecodeString(h.Get("webhook-signature")[3:])
	h.Set("webhook-signature", "v1,"+base64.RawURLEncoding.EncodeToString(raw))
}

func TestExplainFindsMistakesOfSorting(t *testing.T) {
	const settingsInput = "{sorted}&key={secret}"
	v, err := verify.Custom(verify.Settings{Format: "form", Algorithm: "md5", Input: settingsInput, Field: "sign", UnsignedFields: []string{"sign_type"}, Output: "HEX"}, verify.Keys{Secrets: []string{apiKey}})
	if err != nil {
		t.Fatal(err)
	}
	for want, text := range map[string]string{
		"without regard to case":     "a=1&B=x y&note=2&key=" + apiKey,
		"not sorted":                 "note=2&a=1&B=x y&key=" + apiKey,
		"fields without a value":     "B=x y&a=1&e=&note=2&key=" + apiKey,
		"URL-encoded":                "B=x+y&a=1&note=2&key=" + apiKey,
		"that are not signed":        "B=x y&a=1&note=2&sign_type=MD5&key=" + apiKey,
		"are missing at the end":     "B=x y&a=1&note=2",
		"without &key=":              "B=x y&a=1&note=2" + apiKey,
		"secret is in upper case":    "B=x y&a=1&note=2&key=" + strings.ToUpper(apiKey),
		"as hex, and must be as HEX": "B=x y&a=1&note=2&key=" + apiKey,
	} {
		sum := md5.Sum([]byte(text))
		signature := strings.ToUpper(hex.EncodeToString(sum[:]))
		if strings.HasPrefix(want, "as hex") {
			signature = strings.ToLower(signature)
		}
		m := verify.Message{Method: "POST", Body: []byte("note=2&a=1&B=x+y&e=&sign_type=MD5&sign=" + signature)}
		x := v.Explain(m, at, verify.Hints{})
		if x.Err == nil || !strings.Contains(x.Mistake, want) {
			t.Errorf("%v %q, want %q", x.Err, x.Mistake, want)
		}
		if got := string(x.StringToSign); got != "B=x y&a=1&note=2&key=[secret]" {
			t.Errorf("string-to-sign %q", got)
		}
	}
}

func TestExplainOfPublicKeys(t *testing.T) {
	s := sample{name: "alipay", contract: merchant.Contract{Profile: contract.Alipay}, payload: order, keys: []any{testRSA}}
	m := s.made(t)
	twice := m
	twice.Body = bytes.ReplaceAll(m.Body, []byte("%2B"), []byte("+"))
	other, err := verify.Alipay(otherRSA.Public())
	if err != nil {
		t.Fatal(err)
	}
	if x := other.Explain(m, at, verify.Hints{Before: verify.Keys{Public: []crypto.PublicKey{rsaPublic}}}); !strings.Contains(x.Mistake, "before the rotation") {
		t.Errorf("%v %q", x.Err, x.Mistake)
	}
	own, err := verify.Alipay(rsaPublic)
	if err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(m.Body, []byte("&sign=")); bytes.Contains(m.Body[at:], []byte("%2B")) { // nearly every signature has one
		twice.Body = append(bytes.Clone(m.Body[:at]), bytes.ReplaceAll(m.Body[at:], []byte("%2B"), []byte("+"))...)
		if x := own.Explain(twice, time.Time{}, verify.Hints{}); !strings.Contains(x.Mistake, "has become a blank") {
			t.Errorf("%v %q", x.Err, x.Mistake)
		}
	}
	union := sample{name: "unionpay", contract: merchant.Contract{Profile: contract.UnionPay}, payload: order, keys: []any{testRSA}}
	v, err := verify.UnionPay(map[string]crypto.PublicKey{"77": rsaPublic})
	if err != nil {
		t.Fatal(err)
	}
	if x := v.Explain(union.made(t), at, verify.Hints{}); reason(x.Err) != verify.UnknownKey || !strings.Contains(x.Mistake, "another serial number") {
		t.Errorf("%v %q", x.Err, x.Mistake)
	}
}

func TestExplainComparesTheStringToSign(t *testing.T) {
	v, err := verify.WeChatPayV2(apiKey)
	if err != nil {
		t.Fatal(err)
	}
	s := sample{name: "wechatpay-v2", contract: merchant.Contract{Profile: contract.WeChatPayV2}, payload: `{"B":"1","a":"2"}`, keys: []any{apiKey}}
	m := s.made(t)
	ours, err := v.StringToSign(m)
	if err != nil {
		t.Fatal(err)
	}
	same := strings.ReplaceAll(string(ours), "[secret]", apiKey)
	if x := v.Explain(m, at, verify.Hints{StringToSign: []byte(same)}); x.Err != nil || x.Difference != nil || x.Mistake != "" {
		t.Errorf("the same: %v %v %q", x.Err, x.Difference, x.Mistake)
	}
	folded := strings.Replace(strings.Replace(same, "B=1&", "", 1), "a=2&", "a=2&B=1&", 1)
	x := v.Explain(m, at, verify.Hints{StringToSign: []byte(folded)})
	if x.Difference == nil || x.Difference.Offset != 0 || !strings.Contains(x.Mistake, "your string-to-sign: the fields are sorted without regard to case") {
		t.Errorf("%v %q", x.Difference, x.Mistake)
	}
	x = v.Explain(m, at, verify.Hints{StringToSign: []byte(same + "x")})
	if x.Difference == nil || x.Difference.Offset != len(ours) || strings.Contains(x.Difference.String(), apiKey[:8]) || !strings.Contains(x.Difference.String(), "here it ends") {
		t.Errorf("%v", x.Difference)
	}
	if d := verify.Compare([]byte("a\nbc"), []byte("a\nbd")); d.Offset != 3 || d.Line != 2 || d.Column != 2 || d.Ours != `"a\nb»c"` || d.Yours != `"a\nb»d"` {
		t.Errorf("%+v", d)
	}
}
