package contract_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/merchant"
)

// bad is a contract with something wrong, and what is said of it: fields, each with a part of its rule.
type bad struct {
	name  string
	given merchant.Contract
	want  map[string]string
}

// of is a custom contract that can be compiled, changed in one point.
func of(change func(c *merchant.Contract)) merchant.Contract {
	c := merchant.Contract{
		Profile:  contract.Custom,
		Encoding: merchant.Encoding{Format: "form"},
		Signer:   merchant.Signer{Algorithm: "hmac-sha256", Input: "{sorted}", Field: "sign"},
	}
	change(&c)
	return c
}

func badSettings() []bad {
	type e = merchant.Encoding
	one := func(name, field, rule string, change func(c *merchant.Contract)) bad {
		return bad{name, of(change), map[string]string{field: rule}}
	}
	sealed := func(change func(c *merchant.Contract)) func(c *merchant.Contract) {
		return func(c *merchant.Contract) {
			c.Encoding = e{Format: "template", ContentType: "application/json", Template: `{{"c":{@ciphertext}}}`}
			c.Signer.Field, c.Signer.Input, c.Signer.Header = "", "{body}", "X-Sign"
			c.Encryption = merchant.Encryption{Algorithm: "aes-256-gcm", KeyID: "seal"}
			change(c)
		}
	}
	return []bad{
		{"no such profile", merchant.Contract{Profile: "paypal"}, map[string]string{"profile": `"paypal": must be one of standard, alipay`}},
		one("method", "encoding.method", `"DELETE": must be POST, GET or PUT`, func(c *merchant.Contract) { c.Encoding.Method = "DELETE" }),
		one("get with a body", "encoding.method", "GET has no body: the format must be query", func(c *merchant.Contract) { c.Encoding.Method = "GET" }),
		one("format", "encoding.format", `"yaml": must be one of raw, json`, func(c *merchant.Contract) { c.Encoding.Format = "yaml" }),
		one("charset", "encoding.charset", `"latin1": must be one of utf-8, gbk, gb18030`, func(c *merchant.Contract) { c.Encoding.Charset = "latin1" }),
		one("charset of raw", "encoding.charset", "is sent as it came", func(c *merchant.Contract) {
			c.Encoding, c.Signer.Field, c.Signer.Input, c.Signer.Header = e{Format: "raw", Charset: "gbk"}, "", "{body}", "X-Sign"
		}),
		one("source", "encoding.fields", `"a": the source "order_id": must begin with $`, func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"a": "order_id"} }),
		one("name of a source", "encoding.fields", `the name "@order": must be one of`, func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"a": "@order"} }),
		one("path of a source", "encoding.fields", "is missing after an index", func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"a": "$.a[0"} }),
		one("fields of raw", "encoding.fields", "the format raw has none", func(c *merchant.Contract) {
			c.Encoding, c.Signer.Field, c.Signer.Input, c.Signer.Header = e{Format: "raw", Fields: map[string]string{"a": "$.a"}}, "", "{body}", "X-Sign"
		}),
		one("template without one", "encoding.content_type", "must be set", func(c *merchant.Contract) { c.Encoding = e{Format: "template", Template: "a"}; c.Signer.Field = "sign" }),
		one("template of a form", "encoding.template", "only the format template has one", func(c *merchant.Contract) { c.Encoding.Template = "{$.a}" }),
		one("template's brace", "encoding.template", "a lone } at offset 1", func(c *merchant.Contract) {
			c.Encoding = e{Format: "template", ContentType: "text/plain", Template: "a}"}
		}),
		one("content type", "encoding.content_type", "must be a media type", func(c *merchant.Contract) {
			c.Encoding = e{Format: "template", ContentType: "text/plain\r\nX: y", Template: "a"}
		}),
		one("content type of a form", "encoding.content_type", "has its own", func(c *merchant.Contract) { c.Encoding.ContentType = "text/plain" }),
		one("root", "encoding.xml_root", "must be an XML name", func(c *merchant.Contract) { c.Encoding.Format, c.Encoding.XMLRoot = "xml", "1a" }),
		one("root of a form", "encoding.xml_root", "only the format xml has one", func(c *merchant.Contract) { c.Encoding.XMLRoot = "xml" }),
		one("cdata of a form", "encoding.cdata", "only the format xml has it", func(c *merchant.Contract) { c.Encoding.CDATA = true }),
		one("header's name", `encoding.headers["a b"]`, "is no header's name", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"a b": "x"} }),
		one("header of the engine", `encoding.headers["Content-Type"]`, "is written by the engine itself", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"Content-Type": "x"} }),
		one("header that sends again", `encoding.headers["Idempotency-Key"]`, "is written by the engine itself", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"Idempotency-Key": "{id}"} }),
		one("header's pattern", `encoding.headers["X-A"]`, "order", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"X-A": "{order}"} }),
		one("header's line end", `encoding.headers["X-A"]`, "must be printable ASCII", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"X-A": "a\r\nX-B: c"} }),
		one("header's characters", `encoding.headers["X-A"]`, "must be printable ASCII", func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"X-A": "茶"} }),
		one("header of the signature", `encoding.headers["x-sign"]`, "the signature goes there", func(c *merchant.Contract) {
			c.Signer.Field, c.Signer.Header, c.Encoding.Headers = "", "X-Sign", map[string]string{"x-sign": "a"}
		}),
		one("no algorithm", "signer.algorithm", "must be given with the profile custom", func(c *merchant.Contract) { c.Signer.Algorithm = "" }),
		one("algorithm", "signer.algorithm", `"sha3" must be one of`, func(c *merchant.Contract) { c.Signer.Algorithm = "sha3" }),
		one("none, and an input", "signer.input", "nothing is signed", func(c *merchant.Contract) { c.Signer = merchant.Signer{Algorithm: "none", Input: "{body}"} }),
		one("none, and a field", "signer.field", "nothing is signed", func(c *merchant.Contract) { c.Signer = merchant.Signer{Algorithm: "none", Field: "sign"} }),
		one("no input", "signer.input", "must say what is signed", func(c *merchant.Contract) { c.Signer.Input = "" }),
		one("input", "signer.input", "nothing", func(c *merchant.Contract) { c.Signer.Input = "{nothing}" }),
		one("input's path", "signer.input", "$.a[", func(c *merchant.Contract) { c.Signer.Input = "{$.a[}" }),
		one("input of the body with the signature in it", "signer.input", "{body} has the signature in it", func(c *merchant.Contract) { c.Signer.Input = "{body}" }),
		one("input of a body that there is none of", "signer.input", "the format query has none", func(c *merchant.Contract) {
			c.Encoding.Format, c.Signer.Input, c.Signer.Field, c.Signer.Header = "query", "{body}", "", "X-Sign"
		}),
		one("hash without a secret", "signer.input", "must have {secret} in it", func(c *merchant.Contract) { c.Signer.Algorithm = "md5" }),
		one("private key's secret", "signer.input", "secret", func(c *merchant.Contract) { c.Signer.Algorithm, c.Signer.Input = "rsa-sha256", "{sorted}&key={secret}" }),
		one("output", "signer.output", `"base32" must be one of`, func(c *merchant.Contract) { c.Signer.Output = "base32" }),
		one("nowhere", "signer.field", "must say where the signature goes", func(c *merchant.Contract) { c.Signer.Field = "" }),
		one("two places", "signer.header", "the signature goes to signer.field already", func(c *merchant.Contract) { c.Signer.Header = "X-Sign" }),
		one("header's value without a header", "signer.header_value", "there is no header", func(c *merchant.Contract) { c.Signer.HeaderValue = "{signature}" }),
		one("header's value without the signature", "signer.header_value", "must have {signature} in it", func(c *merchant.Contract) {
			c.Signer.Field, c.Signer.Header, c.Signer.HeaderValue = "", "X-Sign", "v1"
		}),
		one("signature's header", "signer.header", "is written by the engine itself", func(c *merchant.Contract) { c.Signer.Field, c.Signer.Header = "", "Host" }),
		one("field of raw", "signer.field", "the format raw has no fields", func(c *merchant.Contract) { c.Encoding = e{}; c.Signer.Input = "{sorted}" }),
		one("whole body", "signer.field", "$ is the whole body", func(c *merchant.Contract) { c.Encoding = e{}; c.Signer.Field = "$" }),
		one("path in a form", "signer.field", "a path is for the format raw", func(c *merchant.Contract) { c.Signer.Field = "$.sign" }),
		one("user id", "signer.algorithm", "are of sm2-sm3", func(c *merchant.Contract) { c.Signer.UserID = "a" }),
		one("raw signature", "signer.algorithm", "are of sm2-sm3", func(c *merchant.Contract) { c.Signer.RawSignature = true }),
		one("unsigned fields", "signer.unsigned_fields", "comes twice", func(c *merchant.Contract) { c.Signer.UnsignedFields = []string{"a", "a"} }),
		one("frozen", "signer.frozen", "gives another signature each time", func(c *merchant.Contract) { c.Signer.Algorithm, c.Signer.Frozen = "rsa-pss-sha256", true }),
		one("frozen, with the attempt in a field", "signer.frozen", `encoding.fields["n"] has the attempt's number`, func(c *merchant.Contract) {
			c.Encoding.Fields, c.Signer.Frozen = map[string]string{"n": "@attempt!"}, true
		}),
		one("frozen, with the attempt in the string", "signer.frozen", "signer.input has the attempt's number", func(c *merchant.Contract) {
			c.Signer.Input, c.Signer.Frozen = "{sorted}{attempt}", true
		}),
		one("frozen and encrypted", "signer.frozen", "anew for each attempt", sealed(func(c *merchant.Contract) { c.Signer.Frozen = true })),
		one("cipher", "encryption.algorithm", `"des" must be one of`, sealed(func(c *merchant.Contract) { c.Encryption.Algorithm = "des" })),
		one("cipher without a key", "encryption.key_id", "must name the key", sealed(func(c *merchant.Contract) { c.Encryption.KeyID = "" })),
		one("key without a cipher", "encryption.key_id", "has no use", func(c *merchant.Contract) { c.Encryption.KeyID = "seal" }),
		one("additional data of CBC", "encryption.associated_data", "sm4-cbc has none", sealed(func(c *merchant.Contract) {
			c.Encryption.Algorithm, c.Encryption.AssociatedData = "sm4-cbc", "a"
		})),
		one("additional data", "encryption.associated_data", "nothing", sealed(func(c *merchant.Contract) { c.Encryption.AssociatedData = "{nothing}" })),
		one("encrypted, and no template", "encoding.format", "must be template", sealed(func(c *merchant.Contract) { c.Encoding = e{Format: "raw"} })),
		one("encrypted, and not sent", "encoding.template", "must have {@ciphertext}", sealed(func(c *merchant.Contract) { c.Encoding.Template = "{{}}" })),
		one("encrypted into itself", `encoding.fields["c"]`, "not made yet", sealed(func(c *merchant.Contract) {
			c.Encoding.Fields, c.Encoding.Template = map[string]string{"c": "@seal_nonce"}, "{@ciphertext}"
		})),
		one("nothing encrypted", `encoding.fields["c"]`, "nothing is encrypted", func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"c": "@ciphertext"} }),
		one("no key, and its name", `encoding.headers["X-Key"]`, "no key signs", func(c *merchant.Contract) {
			c.Signer, c.Encoding.Headers = merchant.Signer{Algorithm: "none"}, map[string]string{"X-Key": "{key_id}"}
		}),
		one("status", "acknowledgement", "199: must be from 200 to 599", func(c *merchant.Contract) { c.Acknowledgement.Statuses = []uint32{199} }),
		one("final status", "acknowledgement", "410 is also an agreed status", func(c *merchant.Contract) {
			c.Acknowledgement = merchant.Acknowledgement{Statuses: []uint32{410}, FinalStatuses: []uint32{410}}
		}),
		one("two rules", "acknowledgement.body_contains", "an answer has one rule for its body, and acknowledgement.body_exact is given", func(c *merchant.Contract) {
			c.Acknowledgement = merchant.Acknowledgement{BodyExact: "a", BodyContains: "b"}
		}),
		one("expression", "acknowledgement.body_matches", "missing closing", func(c *merchant.Contract) { c.Acknowledgement.BodyMatches = "(" }),
		one("expression for anything", "acknowledgement.body_matches", "matches every body", func(c *merchant.Contract) { c.Acknowledgement.BodyMatches = "(?s).*" }),
		one("blanks where they are cut off", "acknowledgement.body_trimmed", "no white space", func(c *merchant.Contract) { c.Acknowledgement.BodyTrimmed = " ok" }),
		one("path of JSON", "acknowledgement.json", "a path begins with $", func(c *merchant.Contract) { c.Acknowledgement.JSON = merchant.PathValue{Path: "code", Value: "0"} }),
		one("path of XML", "acknowledgement.xml", "must be the names of elements", func(c *merchant.Contract) { c.Acknowledgement.XML = merchant.PathValue{Path: "a//b", Value: "0"} }),
		{"several at once", of(func(c *merchant.Contract) { c.Signer.Output, c.Encoding.Method = "base32", "DELETE" }), map[string]string{
			"signer.output": "base32", "encoding.method": "DELETE",
		}},
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, b := range badSettings() {
		t.Run(b.name, func(t *testing.T) { refused(t, b.given, b.want) })
	}
}

func refused(t *testing.T, given merchant.Contract, want map[string]string) {
	t.Helper()
	_, err := contract.Compile(given)
	got := map[string]string{}
	for _, wrong := range contract.Errors(err) {
		got[wrong.Field] = wrong.Rule
	}
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("refused is %q, want %q", got, want)
	}
	for field, rule := range want {
		if !strings.Contains(got[field], rule) {
			t.Errorf("%s: %q, want %q in it", field, got[field], rule)
		}
	}
}

// TestProfilesFix: what a profile fixes is refused, with the field's name; what it leaves open is not.
func TestProfilesFix(t *testing.T) {
	settings := map[string]func(c *merchant.Contract){
		"encoding.method":            func(c *merchant.Contract) { c.Encoding.Method = "PUT" },
		"encoding.format":            func(c *merchant.Contract) { c.Encoding.Format = "json" },
		"encoding.charset":           func(c *merchant.Contract) { c.Encoding.Charset = "gbk" },
		"encoding.fields":            func(c *merchant.Contract) { c.Encoding.Fields = map[string]string{"a": "$.a"} },
		"encoding.template":          func(c *merchant.Contract) { c.Encoding.Template = "a" },
		"encoding.content_type":      func(c *merchant.Contract) { c.Encoding.ContentType = "text/plain" },
		"encoding.xml_root":          func(c *merchant.Contract) { c.Encoding.XMLRoot = "a" },
		"encoding.cdata":             func(c *merchant.Contract) { c.Encoding.CDATA = true },
		"encoding.omit_empty":        func(c *merchant.Contract) { c.Encoding.OmitEmpty = true },
		"encoding.headers":           func(c *merchant.Contract) { c.Encoding.Headers = map[string]string{"X-Shop": "tea"} },
		"signer.algorithm":           func(c *merchant.Contract) { c.Signer.Algorithm = "hmac-sha512" },
		"signer.input":               func(c *merchant.Contract) { c.Signer.Input = "{sorted}" },
		"signer.output":              func(c *merchant.Contract) { c.Signer.Output = "hex" },
		"signer.field":               func(c *merchant.Contract) { c.Signer.Field = "sign" },
		"signer.header":              func(c *merchant.Contract) { c.Signer.Header = "X-Sign" },
		"signer.header_value":        func(c *merchant.Contract) { c.Signer.HeaderValue = "{signature}" },
		"signer.unsigned_fields":     func(c *merchant.Contract) { c.Signer.UnsignedFields = []string{"a"} },
		"signer.sign_empty":          func(c *merchant.Contract) { c.Signer.SignEmpty = true },
		"signer.user_id":             func(c *merchant.Contract) { c.Signer.UserID = "a" },
		"signer.raw_signature":       func(c *merchant.Contract) { c.Signer.RawSignature = true },
		"signer.frozen":              func(c *merchant.Contract) { c.Signer.Frozen = true },
		"encryption.algorithm":       func(c *merchant.Contract) { c.Encryption.Algorithm, c.Encryption.KeyID = "sm4-gcm", "k" },
		"encryption.associated_data": func(c *merchant.Contract) { c.Encryption.AssociatedData = "{id}" },
	}
	form := []string{"encoding.charset", "encoding.fields", "encoding.headers", "encoding.omit_empty", "signer.frozen"} // omit_empty is on already
	open := map[string][]string{
		contract.Standard:    {"encoding.headers"},
		contract.Alipay:      form,
		contract.WeChatPayV2: {"encoding.cdata", "encoding.fields", "encoding.headers", "encoding.omit_empty", "signer.frozen"},
		contract.WeChatPayV3: {"encoding.fields", "encoding.headers", "encryption.associated_data"},
		contract.UnionPay:    form,
		contract.Stripe:      {"encoding.headers"},
		contract.Adyen:       {"encoding.headers"},
	}
	for profile, leaves := range open {
		for setting, set := range settings {
			c := merchant.Contract{Profile: profile}
			if profile == contract.WeChatPayV3 {
				c.Encryption.KeyID = "apiv3"
			}
			set(&c)
			_, err := contract.Compile(c)
			if free := slices.Contains(leaves, setting); free != (err == nil) {
				t.Errorf("%s: %s: %v, want it left open: %v", profile, setting, err, free)
				continue
			}
			if err == nil {
				continue
			}
			wrong := contract.Errors(err)
			if !slices.ContainsFunc(wrong, func(w *contract.FieldError) bool { return w.Field == setting && strings.Contains(w.Rule, profile) }) {
				t.Errorf("%s: %s: %v does not name the field and the profile", profile, setting, err)
			}
		}
	}
}

func TestProfilesHeadersAreTheirOwn(t *testing.T) {
	for profile, header := range map[string]string{
		contract.Standard: "Webhook-ID", contract.WeChatPayV3: "wechatpay-serial", contract.Stripe: "stripe-signature",
	} {
		c := merchant.Contract{Profile: profile, Encoding: merchant.Encoding{Headers: map[string]string{header: "a"}}, Encryption: merchant.Encryption{KeyID: "k"}}
		if profile != contract.WeChatPayV3 {
			c.Encryption = merchant.Encryption{}
		}
		if _, err := contract.Compile(c); len(contract.Errors(err)) != 1 || !strings.Contains(err.Error(), header) {
			t.Errorf("%s: %v", profile, err)
		}
	}
}

// TestProfilesAnswers: what acknowledges by each profile's own word, and what is final.
func TestProfilesAnswers(t *testing.T) {
	const login = "<html><form>success? log in</form></html>"
	for _, c := range []struct {
		profile string
		status  int
		body    string
		want    answer.Verdict
	}{
		{contract.Standard, 204, "", answer.Acknowledged},
		{contract.Standard, 302, "", answer.NotAgreed},
		{contract.Standard, 410, "", answer.Refused},
		{contract.Alipay, 200, "success", answer.Acknowledged},
		{contract.Alipay, 200, "success\n", answer.WrongAnswer},
		{contract.Alipay, 200, "\ufeffsuccess", answer.WrongAnswer},
		{contract.Alipay, 200, login, answer.WrongAnswer},
		{contract.Alipay, 201, "success", answer.NotAgreed},
		{contract.Alipay, 410, "", answer.NotAgreed},
		{contract.WeChatPayV2, 200, "<xml><return_code><![CDATA[SUCCESS]]></return_code></xml>", answer.Acknowledged},
		{contract.WeChatPayV2, 200, "<xml><return_code>FAIL</return_code></xml>", answer.WrongAnswer},
		{contract.WeChatPayV2, 200, "success", answer.WrongAnswer},
		{contract.WeChatPayV2, 200, login, answer.WrongAnswer},
		{contract.WeChatPayV3, 200, `{"code":"FAIL"}`, answer.Acknowledged},
		{contract.WeChatPayV3, 204, "", answer.Acknowledged},
		{contract.WeChatPayV3, 202, "", answer.NotAgreed},
		{contract.UnionPay, 200, login, answer.Acknowledged},
		{contract.UnionPay, 302, "", answer.Acknowledged},
		{contract.UnionPay, 301, "", answer.NotAgreed},
		{contract.Stripe, 299, "", answer.Acknowledged},
		{contract.Stripe, 410, "", answer.NotAgreed},
		{contract.Adyen, 202, "", answer.Acknowledged},
		{contract.Adyen, 200, "[accepted]", answer.Acknowledged},
	} {
		settings := merchant.Contract{Profile: c.profile}
		if c.profile == contract.WeChatPayV3 {
			settings.Encryption.KeyID = "k"
		}
		if got := judged(t, &merchant.Merchant{Contract: settings}, c.status, c.body).Verdict; got != c.want {
			t.Errorf("%s: %d %q is %s, want %s", c.profile, c.status, c.body, got, c.want)
		}
	}
}
