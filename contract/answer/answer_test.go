package answer

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding/simplifiedchinese"
)

func mustCompile(tb testing.TB, rule Rule) *Acknowledgement {
	tb.Helper()
	a, err := Compile(rule)
	if err != nil {
		tb.Fatalf("Compile(%+v): %v", rule, err)
	}
	return a
}

func gbk(tb testing.TB, text string) string {
	tb.Helper()
	encoded, err := simplifiedchinese.GBK.NewEncoder().String(text)
	if err != nil {
		tb.Fatal(err)
	}
	return encoded
}

const login = "<!DOCTYPE html>\n<html><head><title>login success</title></head><body>Sign in: SUCCESS [accepted] {\"code\":\"SUCCESS\"}" +
	"<xml><return_code>SUCCESS</return_code></xml></body></html>"

// TestPlatforms: what real platforms take as their merchants' word, and what they do not.
func TestPlatforms(t *testing.T) {
	wechat := Rule{Body: Body{Kind: BodyXML, Path: "xml/return_code", Value: "SUCCESS"}}
	wechatV3 := Rule{Statuses: []int{200, 204}}
	unionpay := Rule{Statuses: []int{200, 302}}
	alipay := Rule{Statuses: []int{200}, Body: Body{Kind: BodyExact, Value: "success"}}
	jeepay := Rule{Body: Body{Kind: BodyFold, Value: "SUCCESS"}}
	roncoo := Rule{Statuses: []int{200, 201, 202, 203, 204, 205, 206}, Body: Body{Kind: BodyExact, Value: "success"}}
	adyen := Rule{Body: Body{Kind: BodyContains, Value: "[accepted]"}}
	code := Rule{Body: Body{Kind: BodyJSON, Path: "$.code", Value: "SUCCESS"}}
	strike := Rule{Final: []int{410, 501}, Abort: true}
	tests := []struct {
		name   string
		rule   Rule
		status int
		body   string
		want   Verdict
	}{
		{"Alipay", alipay, 200, "success", Acknowledged},
		{"Alipay, a line feed", alipay, 200, "success\n", WrongAnswer},
		{"Alipay, a byte order mark", alipay, 200, "\ufeffsuccess", WrongAnswer},
		{"Alipay, capitals", alipay, 200, "SUCCESS", WrongAnswer},
		{"Alipay, quotes", alipay, 200, `"success"`, WrongAnswer},
		{"Alipay, fail", alipay, 200, "fail", WrongAnswer},
		{"Alipay, nothing", alipay, 200, "", WrongAnswer},
		{"Alipay, a login page", alipay, 200, login, WrongAnswer},
		{"Alipay, a redirect", alipay, 302, "success", NotAgreed},
		{"Alipay, an error page", alipay, 500, "success", NotAgreed},
		{"Antom", Rule{Body: Body{Kind: BodyTrimmed, Value: "SUCCESS"}}, 200, "SUCCESS\r\n", Acknowledged},

		{"WeChat v2", wechat, 200, "<xml><return_code><![CDATA[SUCCESS]]></return_code><return_msg><![CDATA[OK]]></return_msg></xml>", Acknowledged},
		{"WeChat v2, without CDATA", wechat, 200, "<xml>\n  <return_code> SUCCESS </return_code>\n</xml>\n", Acknowledged},
		{"WeChat v2, declared", wechat, 200, `<?xml version="1.0" encoding="UTF-8"?><xml><return_code>SUCCESS</return_code></xml>`, Acknowledged},
		{"WeChat v2, a byte order mark", wechat, 200, "\ufeff<xml><return_code>SUCCESS</return_code></xml>", Acknowledged},
		{"WeChat v2, fail", wechat, 200, "<xml><return_code><![CDATA[FAIL]]></return_code></xml>", WrongAnswer},
		{"WeChat v2, ok", wechat, 200, "ok", WrongAnswer},
		{"WeChat v2, JSON", wechat, 200, `{"return_code":"SUCCESS"}`, WrongAnswer},
		{"WeChat v2, stray characters", wechat, 200, "<xml><return_code>SUCCESS</return_code></xml>x", WrongAnswer},
		{"WeChat v2, a login page", wechat, 200, login, WrongAnswer},
		{"WeChat v2, GBK", wechat, 200, gbk(t, `<?xml version="1.0" encoding="GBK"?><xml><return_code>SUCCESS</return_code><return_msg>成功</return_msg></xml>`), Acknowledged},

		{"WeChat v3, 200", wechatV3, 200, `{"code":"FAIL"}`, Acknowledged},
		{"WeChat v3, 204", wechatV3, 204, "", Acknowledged},
		{"WeChat v3, 202", wechatV3, 202, "", NotAgreed},

		{"UnionPay, 200", unionpay, 200, login, Acknowledged},
		{"UnionPay, 302", unionpay, 302, "", Acknowledged},
		{"UnionPay, 301", unionpay, 301, "", NotAgreed},

		{"jeepay", jeepay, 200, "success", Acknowledged},
		{"jeepay, mixed", jeepay, 200, "\r\n Success ", Acknowledged},
		{"jeepay, long s", jeepay, 200, "ſucceſſ", WrongAnswer},
		{"jeepay, a login page", jeepay, 200, login, WrongAnswer},
		{"roncoo", roncoo, 206, "success", Acknowledged},
		{"roncoo, 207", roncoo, 207, "success", NotAgreed},

		{"Adyen", adyen, 200, "[accepted]", Acknowledged},
		{"Adyen, with more", adyen, 202, "ok [accepted]\n", Acknowledged},
		{"Adyen, any success", Rule{}, 202, "", Acknowledged},
		{"Adyen, accepted", adyen, 200, "accepted", WrongAnswer},

		{"JSON", code, 200, `{"code":"SUCCESS","message":"成功"}`, Acknowledged},
		{"JSON, in GBK", code, 200, gbk(t, `{"message":"誠成功","code":"SUCCESS"}`), Acknowledged},
		{"JSON, a byte order mark", code, 200, "\ufeff{\"code\":\"SUCCESS\"}", Acknowledged},
		{"JSON, escaped", code, 200, `{"code":"\u0053UCCESS"}`, Acknowledged},
		{"JSON, fail", code, 200, `{"code":"FAIL"}`, WrongAnswer},
		{"JSON, twice", code, 200, `{"code":"SUCCESS","code":"FAIL"}`, WrongAnswer},
		{"JSON, deeper", code, 200, `{"data":{"code":"SUCCESS"}}`, WrongAnswer},
		{"JSON, garbage behind", code, 200, `{"code":"SUCCESS"}}`, WrongAnswer},
		{"JSON, an array", code, 200, `{"code":["SUCCESS"]}`, WrongAnswer},
		{"JSON, a login page", code, 200, login, WrongAnswer},

		{"opted out", strike, 410, "", Refused},
		{"opted out, 501", strike, 501, "", Refused},
		{"not found", strike, 404, "", NotAgreed},
		{"410 where nothing was agreed", Rule{}, 410, "", NotAgreed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := mustCompile(t, tt.rule).Judge(Answer{Status: tt.status, Body: []byte(tt.body)})
			if got.Verdict != tt.want {
				t.Errorf("%s (%s), want %s", got.Verdict, got.Why, tt.want)
			}
			checkWhy(t, got)
		})
	}
}

func checkWhy(t *testing.T, j Judgement) {
	t.Helper()
	if (j.Verdict == WrongAnswer) != (j.Why != "") {
		t.Errorf("%s with the sentence %q", j.Verdict, j.Why)
	}
	if len(j.Why) > maxWhy || !utf8.ValidString(j.Why) || strings.ContainsFunc(j.Why, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("sentence of %d bytes: %q", len(j.Why), j.Why)
	}
}

func TestBodies(t *testing.T) {
	number := Body{Kind: BodyJSON, Path: "$.data[0].ret", Value: "0"}
	deep := Body{Kind: BodyXML, Path: "/a/b/c", Value: "ok"}
	tests := []struct {
		name string
		body Body
		came string
		want Verdict
	}{
		{"a number", number, `{"data":[{"ret":0}]}`, Acknowledged},
		{"a number in a string", number, `{"data":[{"ret":"0"}]}`, Acknowledged},
		{"a number written otherwise", number, `{"data":[{"ret":0.0}]}`, WrongAnswer},
		{"a boolean", Body{Kind: BodyJSON, Path: "$.ok", Value: "true"}, `{"ok": true}`, Acknowledged},
		{"null", Body{Kind: BodyJSON, Path: "$.ok", Value: "null"}, `{"ok": null}`, WrongAnswer},
		{"the whole", Body{Kind: BodyJSON, Path: "$", Value: "ok"}, `"ok"`, Acknowledged},
		{"an object", Body{Kind: BodyJSON, Path: "$", Value: "{}"}, `{}`, WrongAnswer},
		{"half a surrogate pair", Body{Kind: BodyJSON, Path: "$.a", Value: "x"}, `{"a":"x","b":"\ud800"}`, WrongAnswer},

		{"regular expression", Body{Kind: BodyRegexp, Value: `^(ok|OK)\s*$`}, "ok\n", Acknowledged},
		{"regular expression, anywhere", Body{Kind: BodyRegexp, Value: `(?i)succ[a-z]+`}, "x SUCCESS", Acknowledged},
		{"regular expression, not", Body{Kind: BodyRegexp, Value: `^ok$`}, "okay", WrongAnswer},
		{"regular expression, nothing", Body{Kind: BodyRegexp, Value: `^$`}, "", Acknowledged},
		{"regular expression, too long", Body{Kind: BodyRegexp, Value: `ok`}, "ok" + strings.Repeat(" ", 4<<10), WrongAnswer},

		{"deep", deep, "<a><b><x/><c>ok</c></b></a>", Acknowledged},
		{"name space", deep, `<n:a xmlns:n="u"><b><c>ok</c></b></n:a>`, Acknowledged},
		{"comment and CDATA within", deep, "<a><b><c>o<!-- x --><![CDATA[k]]></c></b></a>", Acknowledged},
		{"second branch", deep, "<a><b/><b><c>ok</c></b></a>", Acknowledged},
		{"a name deeper down", deep, "<a><x><b><c>ok</c></b></x></a>", WrongAnswer},
		{"another root", deep, "<z><a><b><c>ok</c></b></a></z>", WrongAnswer},
		{"element twice", deep, "<a><b><c>ok</c><c>no</c></b></a>", WrongAnswer},
		{"element twice, elsewhere", deep, "<a><b><c>ok</c></b><b><c>no</c></b></a>", WrongAnswer},
		{"element within", deep, "<a><b><c>ok<d/></c></b></a>", WrongAnswer},
		{"two roots", deep, "<a><b><c>ok</c></b></a><a/>", WrongAnswer},
		{"not closed", deep, "<a><b><c>ok</c></b>", WrongAnswer},
		{"a definition", deep, `<!DOCTYPE a [<!ENTITY k "k">]><a><b><c>o&k;</c></b></a>`, WrongAnswer},
		{"unknown entity", deep, `<a><b><c>o&k;</c></b></a>`, WrongAnswer},
		{"very deep", deep, strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100), WrongAnswer},
		{"an unknown charset", deep, `<?xml version="1.0" encoding="x"?><a><b><c>ok</c></b></a>`, WrongAnswer},
		{"GBK not declared", deep, gbk(t, "<a m='成功'><b><c>ok</c></b></a>"), Acknowledged},
		{"GBK declared, ASCII only", deep, `<?xml version="1.0" encoding="gb2312"?><a><b><c>ok</c></b></a>`, Acknowledged},
		{"empty", deep, "", WrongAnswer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := mustCompile(t, Rule{Body: tt.body}).Judge(Answer{Status: 200, Body: []byte(tt.came)})
			if got.Verdict != tt.want {
				t.Errorf("%s (%s), want %s", got.Verdict, got.Why, tt.want)
			}
			checkWhy(t, got)
		})
	}
}

func TestATruncatedBodyIsNoWholeAnswer(t *testing.T) {
	tests := []struct {
		body Body
		came string
		want Verdict
	}{
		{Body{}, "x", Acknowledged},
		{Body{Kind: BodyContains, Value: "ok"}, "<ok>", Acknowledged},
		{Body{Kind: BodyExact, Value: "ok"}, "ok", WrongAnswer},
		{Body{Kind: BodyTrimmed, Value: "ok"}, "ok", WrongAnswer},
		{Body{Kind: BodyFold, Value: "ok"}, "ok", WrongAnswer},
		{Body{Kind: BodyRegexp, Value: "^ok$"}, "ok", WrongAnswer},
		{Body{Kind: BodyJSON, Path: "$", Value: "1"}, "1", WrongAnswer},
		{Body{Kind: BodyXML, Path: "a", Value: "1"}, "<a>1</a>", WrongAnswer},
	}
	for _, tt := range tests {
		got := mustCompile(t, Rule{Body: tt.body}).Judge(Answer{Status: 200, Body: []byte(tt.came), Truncated: true})
		if got.Verdict != tt.want {
			t.Errorf("%s: %s, want %s", tt.body.Kind, got.Verdict, tt.want)
		}
		checkWhy(t, got)
	}
}

func TestFinalAnswers(t *testing.T) {
	rule := Rule{Final: []int{410}, Abort: true, Body: Body{Kind: BodyTrimmed, Value: "ok"}}
	abort := http.Header{"Webhook-Delivery": {" Abort-Message"}}
	tests := []struct {
		name   string
		rule   Rule
		status int
		body   string
		header http.Header
		want   Verdict
	}{
		{"the agreed answer goes first", rule, 200, "ok", abort, Acknowledged},
		{"another body and the header", rule, 200, "no", abort, Aborted},
		{"an error and the header", rule, 500, "ok", abort, Aborted},
		{"the status goes before the header", rule, 410, "ok", abort, Refused},
		{"the header where it does not count", Rule{}, 500, "", abort, NotAgreed},
		{"another word", rule, 500, "", http.Header{"Webhook-Delivery": {"retry"}}, NotAgreed},
		{"no header", rule, 500, "", nil, NotAgreed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := Answer{Status: tt.status, Body: []byte(tt.body)}
			if tt.header != nil {
				a.Header = tt.header.Values
			}
			if got := mustCompile(t, tt.rule).Judge(a); got.Verdict != tt.want {
				t.Errorf("%s, want %s", got.Verdict, tt.want)
			}
		})
	}
}

// TestSignedRule: where answers have to be signed, only what is signed settles anything; the rest is what it is otherwise.
func TestSignedRule(t *testing.T) {
	rule := mustCompile(t, Rule{Final: []int{410}, Abort: true, Body: Body{Kind: BodyTrimmed, Value: "ok"}})
	abort := http.Header{"Webhook-Delivery": {"abort-message"}}
	const why = "expected a signature"
	tests := []struct {
		name           string
		status         int
		body           string
		header         http.Header
		good, bad      Verdict
		asked, badsWhy string // whether the signature is looked at
	}{
		{"the agreed answer", 200, "ok", nil, Acknowledged, WrongAnswer, "asked", why},
		{"another body", 200, "no", nil, WrongAnswer, WrongAnswer, "", "expected the body"},
		{"another status", 500, "ok", nil, NotAgreed, NotAgreed, "", ""},
		{"a final status", 410, "", nil, Refused, NotAgreed, "asked", ""},
		{"an error and the header", 500, "", abort, Aborted, NotAgreed, "asked", ""},
		{"another body and the header", 200, "no", abort, Aborted, WrongAnswer, "asked", "expected the body"},
		{"the agreed answer and the header", 200, "ok", abort, Acknowledged, WrongAnswer, "asked", why},
	}
	for _, tt := range tests {
		given := Answer{Status: tt.status, Body: []byte(tt.body), Header: tt.header.Values}
		for says, want := range map[string]Verdict{"": tt.good, why: tt.bad} {
			asked := ""
			got := rule.Signed(func(came Answer) string {
				asked = "asked"
				return says
			}).Judge(given)
			if got.Verdict != want || asked != tt.asked || says != "" && !strings.HasPrefix(got.Why, tt.badsWhy) {
				t.Errorf("%s, %q: %s (%s), asked %q; want %s", tt.name, says, got.Verdict, got.Why, asked, want)
			}
			checkWhy(t, got)
		}
		if got := rule.Judge(given).Verdict; got != tt.good {
			t.Errorf("%s: the rule itself has changed: %s", tt.name, got)
		}
	}
	loud := rule.Signed(func(Answer) string { return "\x00\u202e\xff" + strings.Repeat("é", 1000) })
	checkWhy(t, loud.Judge(Answer{Status: 200, Body: []byte("ok")}))
}

// TestReadInACharset: with a charset JSON and XML are read in no other, whatever they declare.
func TestReadInACharset(t *testing.T) {
	tests := []struct {
		name, charset, body string
		want                Verdict
	}{
		{"JSON in GBK", "gbk", gbk(t, `{"code":"SUCCESS","m":"成功"}`), Acknowledged},
		{"JSON in GBK as UTF-8", "utf-8", gbk(t, `{"code":"SUCCESS","m":"成功"}`), WrongAnswer},
		{"a byte order mark", "utf-8", "\ufeff{\"code\":\"SUCCESS\"}", Acknowledged},
		{"XML in GBK", "gbk", gbk(t, "<xml><code>SUCCESS</code><m>成功</m></xml>"), Acknowledged},
		{"XML in GBK that declares UTF-8", "gbk", gbk(t, "<?xml version='1.0' encoding='UTF-8'?><xml><code>SUCCESS</code><m>成功</m></xml>"), Acknowledged},
		{"XML in UTF-8 that declares GBK", "utf-8", "<?xml version='1.0' encoding='GBK'?><xml><code>SUCCESS</code><m>成功</m></xml>", Acknowledged},
		{"XML in GBK that declares it, as UTF-8", "utf-8", gbk(t, "<?xml version='1.0' encoding='GBK'?><xml><code>SUCCESS</code><m>成功</m></xml>"), WrongAnswer},
		{"half a character", "gbk", "<xml><code>SUCCESS</code><m>\xb3</m></xml>", WrongAnswer},
	}
	for _, tt := range tests {
		rule := Body{Kind: BodyJSON, Path: "$.code", Value: "SUCCESS", Charset: tt.charset}
		if strings.HasPrefix(tt.body, "<") {
			rule = Body{Kind: BodyXML, Path: "xml/code", Value: "SUCCESS", Charset: tt.charset}
		}
		if got := mustCompile(t, Rule{Body: rule}).Judge(Answer{Status: 200, Body: []byte(tt.body)}); got.Verdict != tt.want {
			t.Errorf("%s: %s (%s), want %s", tt.name, got.Verdict, got.Why, tt.want)
		}
	}
}

func TestStatuses(t *testing.T) {
	any2xx := mustCompile(t, Rule{})
	for status, want := range map[int]Verdict{0: NotAgreed, 199: NotAgreed, 200: Acknowledged, 299: Acknowledged, 300: NotAgreed, 302: NotAgreed, 503: NotAgreed, -1: NotAgreed} {
		if got := any2xx.Judge(Answer{Status: status}); got.Verdict != want {
			t.Errorf("%d: %s, want %s", status, got.Verdict, want)
		}
	}
}

func TestWhySaysWhatCame(t *testing.T) {
	tests := []struct {
		body Body
		came string
		want string
	}{
		{Body{Kind: BodyExact, Value: "success"}, "fail\n", `expected the body exactly "success"; "fail\n" came`},
		{Body{Kind: BodyTrimmed, Value: "ok"}, "", `expected the body "ok", white space around it apart; no body came`},
		{Body{Kind: BodyJSON, Path: "$.code", Value: "SUCCESS"}, `{"code":"FAIL"}`, `expected JSON with "SUCCESS" at "$.code"; "{\"code\":\"FAIL\"}" came`},
		{Body{Kind: BodyXML, Path: "/xml/return_code", Value: "SUCCESS"}, "ok", `expected XML with "SUCCESS" in "xml/return_code"; "ok" came`},
		{
			Body{Kind: BodyContains, Value: "[accepted]"},
			strings.Repeat("\x00", 1000),
			`expected a body with "[accepted]" in it; 1000 bytes came, which begin with "` + strings.Repeat(`\x00`, 39) + `\x0…"`,
		},
	}
	for _, tt := range tests {
		if got := mustCompile(t, Rule{Body: tt.body}).Judge(Answer{Status: 200, Body: []byte(tt.came)}); got.Why != tt.want {
			t.Errorf("%s\nwant %s", got.Why, tt.want)
		}
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	tests := []struct {
		name string
		rule Rule
		want string
	}{
		{"status", Rule{Statuses: []int{100}}, "statuses: 100: must be from 200 to 599"},
		{"final status", Rule{Final: []int{204}}, "final: 204: must be from 300 to 599"},
		{"both", Rule{Statuses: []int{410}, Final: []int{410}}, "final: 410 is also an agreed status"},
		{"charset for exact", Rule{Body: Body{Kind: BodyExact, Value: "ok", Charset: "gbk"}}, "only the kinds json and xml"},
		{"charset", Rule{Body: Body{Kind: BodyJSON, Value: "x", Path: "$", Charset: "big5"}}, `charset: "big5"`},
		{"many statuses", Rule{Statuses: make([]int, 65)}, "more than 64"},
		{"kind", Rule{Body: Body{Kind: "equals", Value: "x"}}, `kind "equals": must be one of none, exact`},
		{"no value", Rule{Body: Body{Kind: BodyContains}}, `value: must be set for the kind "contains"`},
		{"value for none", Rule{Body: Body{Value: "ok"}}, "the kind none has none"},
		{"path for exact", Rule{Body: Body{Kind: BodyExact, Value: "ok", Path: "$.a"}}, "only the kinds json and xml"},
		{"white space", Rule{Body: Body{Kind: BodyTrimmed, Value: "ok\n"}}, "white space at its ends"},
		{"long value", Rule{Body: Body{Kind: BodyExact, Value: strings.Repeat("a", 1025)}}, "more than 1024"},
		{"not UTF-8", Rule{Body: Body{Kind: BodyExact, Value: "\xff"}}, "not UTF-8"},
		{"regular expression", Rule{Body: Body{Kind: BodyRegexp, Value: "("}}, "missing closing"},
		{"huge regular expression", Rule{Body: Body{Kind: BodyRegexp, Value: "(a{30}){30}"}}, "more than 200"},
		{"matches everything", Rule{Body: Body{Kind: BodyRegexp, Value: "(success)?"}}, "matches every body"},
		{"JSON path", Rule{Body: Body{Kind: BodyJSON, Value: "x", Path: "code"}}, `path "code": a path begins with $`},
		{"no JSON path", Rule{Body: Body{Kind: BodyJSON, Value: "x"}}, `path ""`},
		{"no XML path", Rule{Body: Body{Kind: BodyXML, Value: "x"}}, `path ""`},
		{"XML path", Rule{Body: Body{Kind: BodyXML, Value: "x", Path: "xml//a"}}, `path "xml//a"`},
		{"XML path with a prefix", Rule{Body: Body{Kind: BodyXML, Value: "x", Path: "n:a"}}, `path "n:a"`},
		{"deep XML path", Rule{Body: Body{Kind: BodyXML, Value: "x", Path: strings.Repeat("a/", 64) + "a"}}, `more than 64 steps`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Compile(tt.rule); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

// FuzzJudge: no answer panics or makes a sentence that cannot be shown, and none is acknowledged without the agreed value in it.
func FuzzJudge(f *testing.F) {
	rules := []Body{
		{},
		{Kind: BodyExact, Value: "SUCCESS"},
		{Kind: BodyTrimmed, Value: "SUCCESS"},
		{Kind: BodyFold, Value: "SUCCESS"},
		{Kind: BodyContains, Value: "SUCCESS"},
		{Kind: BodyRegexp, Value: "^SUCCESS$"},
		{Kind: BodyJSON, Path: "$.return_code", Value: "SUCCESS"},
		{Kind: BodyXML, Path: "xml/return_code", Value: "SUCCESS"},
	}
	compiled := make([]*Acknowledgement, len(rules))
	for i, b := range rules {
		compiled[i] = mustCompile(f, Rule{Body: b, Final: []int{410}, Abort: true})
	}
	for _, seed := range []string{
		"SUCCESS", `{"return_code":"SUCCESS"}`, "<xml><return_code><![CDATA[SUCCESS]]></return_code></xml>", login, "\xff\xfe", "\ufeff{}",
		"<?xml version='1.0' encoding='GBK'?><xml>\xb3\xc9<return_code>SUCCESS</return_code></xml>",
	} {
		f.Add(200, []byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, status int, came []byte, cut bool) {
		for i, a := range compiled {
			got := a.Judge(Answer{Status: status, Body: came, Truncated: cut})
			checkWhy(t, got)
			if got.Verdict != Acknowledged || i == 0 {
				continue
			}
			// An escape or an entity may stand for any of the letters in JSON and XML.
			plain := !bytes.ContainsAny(came, `\&`) && !bytes.Contains(came, []byte("<!"))
			if cut && i != 4 || plain && !bytes.Contains(bytes.ToUpper(came), []byte("SUCCESS")) {
				t.Errorf("%+v acknowledges %q", rules[i], came)
			}
		}
	})
}

// FuzzCompile: a rule that is taken judges without a panic.
func FuzzCompile(f *testing.F) {
	for _, kind := range Bodies() {
		f.Add(kind, "SUCCESS", "$.code", []byte("x"))
	}
	f.Add(BodyXML, "SUCCESS", "/xml/code", []byte("<xml><code>SUCCESS</code></xml>"))
	f.Add(BodyRegexp, "^(a+)+$", "", []byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"))
	f.Fuzz(func(t *testing.T, kind, value, path string, came []byte) {
		a, err := Compile(Rule{Body: Body{Kind: kind, Value: value, Path: path}})
		if err != nil {
			return
		}
		checkWhy(t, a.Judge(Answer{Status: 200, Body: came}))
	})
}

func BenchmarkJudge(b *testing.B) {
	tests := []struct {
		body Body
		came string
	}{
		{Body{Kind: BodyTrimmed, Value: "success"}, "success\n"},
		{Body{Kind: BodyJSON, Path: "$.code", Value: "SUCCESS"}, `{"code":"SUCCESS","message":"OK"}`},
		{Body{Kind: BodyXML, Path: "xml/return_code", Value: "SUCCESS"}, "<xml><return_code><![CDATA[SUCCESS]]></return_code><return_msg><![CDATA[OK]]></return_msg></xml>"},
		{Body{Kind: BodyRegexp, Value: "(a?b?c?d?){18}SUCCESS$"}, strings.Repeat("abcd", 1<<10)},
	}
	for _, tt := range tests {
		b.Run(tt.body.Kind, func(b *testing.B) {
			a := mustCompile(b, Rule{Body: tt.body})
			b.ReportAllocs()
			for b.Loop() {
				a.Judge(Answer{Status: 200, Body: []byte(tt.came)})
			}
		})
	}
}
