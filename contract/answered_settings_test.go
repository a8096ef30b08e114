package contract_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/merchant"
)

func TestAnswerSignatureSettings(t *testing.T) {
	good := merchant.AnswerSignature{Algorithm: "hmac-sha256", Input: "{sorted}", Field: "sign"}
	for _, c := range []struct {
		name   string
		change func(s *merchant.AnswerSignature, c *merchant.Contract)
		field  string // empty: it is well
		rule   string
	}{
		{"good", func(*merchant.AnswerSignature, *merchant.Contract) {}, "", ""},
		{"nothing but none", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			*s = merchant.AnswerSignature{Algorithm: "none"}
		}, "", ""},
		{"none and more", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Algorithm = "none" }, "algorithm", "leave everything else empty"},
		{"no algorithm", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Algorithm = "" }, "algorithm", "must be given"},
		{"unknown algorithm", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Algorithm = "md4" }, "algorithm", `"md4" must be one of`},
		{"md5 without the secret", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Algorithm = "md5" }, "input", "must have {secret}"},
		{"a secret of a public key", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			s.Algorithm, s.KeyID, s.Input = "rsa-sha256", "k", "{sorted}{secret}"
		}, "input", "{secret}"},
		{"a public key without a name", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Algorithm = "ed25519" }, "key_id", "purpose verify"},
		{"requests without a secret", func(_ *merchant.AnswerSignature, c *merchant.Contract) { c.Signer = merchant.Signer{Algorithm: "none"} }, "key_id", "no secret"},
		{"requests signed with a private key", func(_ *merchant.AnswerSignature, c *merchant.Contract) { c.Signer.Algorithm = "rsa-sha256" }, "key_id", "rsa-sha256"},
		{"no input", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "" }, "input", "must say"},
		{"unknown name", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "{nonce}{sorted}" }, "input", "{nonce}"},
		{"nothing of the answer", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "{id}{secret}" }, "input", "something of the answer"},
		{"no place", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Field = "" }, "field", "must say where"},
		{"two places", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Header = "X-Sign" }, "header", "one of the two"},
		{"no header's name", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Field, s.Header = "", "X Sign" }, "header", "no header's name"},
		{"no header's name in the input", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "{header.X A}{sorted}" }, "input", "no header's name"},
		{"the signature's header in the input", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			s.Field, s.Header, s.Input = "", "X-Sign", "{header.x-sign}{body}"
		}, "input", "has the signature in it"},
		{"a field within the body that is signed", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "{body}" }, "input", "{body} has the signature in it"},
		{"a field within what is signed", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input, s.Field = "{$.head}", "$.head.sign" }, "input", "{$.head} has the signature in it"},
		{"the field itself", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input = "{$.sign}" }, "input", "{$.sign} has the signature in it"},
		{"a field beside what is signed", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input, s.Field = "{$.head}", "$.header" }, "", ""},
		{"a deep field beside {sorted}", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Field = "$.head.sign" }, "field", "members of the answer itself"},
		{"the whole body", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Field = "$" }, "field", "whole body"},
		{"no path", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input, s.Field = "{$.a}", "$." }, "field", "path"},
		{"a path of a form", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Format, s.Field = "form", "$.sign" }, "field", "a path is for JSON"},
		{"a path of XML in the input", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Format, s.Input = "xml", "{$.a}" }, "input", "is of JSON"},
		{"unknown output", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Output = "base32" }, "output", `"base32" must be one of`},
		{"unknown format", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Format = "query" }, "format", `"query": must be one of json, form, xml`},
		{"unknown charset", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Charset = "big5" }, "charset", `"big5": must be one of`},
		{"a format of nothing", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			s.Field, s.Header, s.Input, s.Format = "", "X-Sign", "{body}", "form"
		}, "format", "no use"},
		{"a charset of nothing", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			s.Field, s.Header, s.Input, s.Charset = "", "X-Sign", "{body}", "gbk"
		}, "charset", "no use"},
		{"unsigned fields of nothing", func(s *merchant.AnswerSignature, _ *merchant.Contract) {
			s.Input, s.UnsignedFields = "{$.a}", []string{"b"}
		}, "unsigned_fields", "{sorted}"},
		{"empty fields of nothing", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.Input, s.SignEmpty = "{$.a}", true }, "sign_empty", "{sorted}"},
		{"a field unsigned twice", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.UnsignedFields = []string{"b", "b"} }, "unsigned_fields", "twice"},
		{"a user id", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.UserID = "x" }, "user_id", "sm2-sm3"},
		{"r and s", func(s *merchant.AnswerSignature, _ *merchant.Contract) { s.RawSignature = true }, "raw_signature", "sm2-sm3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			settings := merchant.Contract{Profile: contract.Custom, Signer: merchant.Signer{Algorithm: "hmac-sha256", Input: "{body}", Header: "X-Sign"}}
			settings.Acknowledgement.Signature = good
			c.change(&settings.Acknowledgement.Signature, &settings)
			_, err := contract.Compile(settings)
			wrong := contract.Errors(err)
			switch {
			case c.field == "" && err != nil:
				t.Error(err)
			case c.field != "" && (len(wrong) != 1 || wrong[0].Field != "acknowledgement.signature."+c.field || !strings.Contains(wrong[0].Rule, c.rule)):
				t.Errorf("%v, want acknowledgement.signature.%s: …%s…", err, c.field, c.rule)
			}
		})
	}
}

// FuzzAnswerSettings: what is refused is so by field and rule; with what is taken, no answer panics or is shown too long.
func FuzzAnswerSettings(f *testing.F) {
	f.Add("{sorted}&key={secret}", "sign", "", "xml", "gbk", []byte("<xml><a>1</a><sign>00</sign></xml>"))
	f.Add("{$.a.b[0]}{secret}", "$.c.d", "", "json", "", []byte(`{"a":{"b":[1]},"c":{"d":"00"}}`))
	f.Add("{secret}{header.X-A}{status}{id}{order_id}", "", "x-b", "", "", []byte("x"))
	f.Add("{secret}{sorted_sha256}", "a", "", "form", "gb18030", []byte("a=00&b=%B2%E8"))
	f.Fuzz(func(t *testing.T, input, field, header, format, charset string, body []byte) {
		s := signedAnswer{rule: merchant.Acknowledgement{
			XML:       merchant.PathValue{Path: "a/b", Value: "1"},
			Signature: merchant.AnswerSignature{Algorithm: "md5", Input: input, Output: "hex", Field: field, Header: header, Format: format, Charset: charset},
		}}
		if bytes.ContainsAny(body, "{") {
			s.rule.XML, s.rule.JSON = merchant.PathValue{}, merchant.PathValue{Path: "$.a", Value: "1"}
		}
		if len(body)%2 == 0 {
			s.rule.XML, s.rule.JSON = merchant.PathValue{}, merchant.PathValue{}
		}
		_, err := contract.Compile(merchant.Contract{Acknowledgement: s.rule})
		if err != nil {
			if len(contract.Errors(err)) == 0 {
				t.Errorf("%v is no list of fields", err)
			}
			for _, wrong := range contract.Errors(err) {
				if !strings.HasPrefix(wrong.Field, "acknowledgement.") || wrong.Rule == "" {
					t.Errorf("%v names another field, or no rule", wrong)
				}
			}
			return
		}
		values := http.Header{"X-A": {"a"}, http.CanonicalHeaderKey(header): {"00"}}
		got := s.judge(t, answer.Answer{Status: 200, Header: values.Values, Body: body})
		if got.Verdict == answer.Acknowledged || len(got.Why) > 640 || strings.Contains(got.Why, apiV2) {
			t.Errorf("%s: %q", got.Verdict, got.Why)
		}
	})
}
