package encode

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/simplifiedchinese"
)

const sample = `{"trade_no":"2026112322001400000001","out_trade_no":"A-1001","trade_status":"TRADE_SUCCESS","total_amount":10.50,` +
	`"seller_id":"2088101122136241","subject":"Tee & Brot 茶","gmt_payment":"2026-11-23 08:50:59","refund":null,"test":false,` +
	`"fund_bill_list":[ {"amount" : 10.50, "fundChannel":"ALIPAYACCOUNT"} ],"passback_params":"","buyer_logon_id":"ali***@example.com"}`

var names = Names{"notify_id": KindString, "attempt": KindNumber, "notify_time": KindString}

func engine(name string) (string, bool) {
	text, found := map[string]string{"notify_id": "ntf_1", "attempt": "2"}[name]
	return text, found
}

func mustCompile(tb testing.TB, s Settings) *Encoding {
	tb.Helper()
	e, err := Compile(s, names)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func TestFormats(t *testing.T) {
	fields := all(t, `{"s":"a b&=<]]>中","n":10.50,"big":12345678901234567890,"t":true,"z":null,"e":"","o":{"k" : [1, "x y"]}}`)
	tests := []struct {
		name        string
		settings    Settings
		body        string
		contentType string
	}{
		{
			"json",
			Settings{Format: "json"},
			`{"s":"a b&=<]]>中","n":10.50,"big":12345678901234567890,"t":true,"z":null,"e":"","o":{"k":[1,"x y"]}}`, "application/json",
		},
		{
			"form",
			Settings{Format: "form"},
			`s=a+b%26%3D%3C%5D%5D%3E%E4%B8%AD&n=10.50&big=12345678901234567890&t=true&e=&o=%7B%22k%22%3A%5B1%2C%22x+y%22%5D%7D`,
			"application/x-www-form-urlencoded; charset=utf-8",
		},
		{
			"form in GBK",
			Settings{Format: "form", Charset: "GBK"},
			`s=a+b%26%3D%3C%5D%5D%3E%D6%D0&n=10.50&big=12345678901234567890&t=true&e=&o=%7B%22k%22%3A%5B1%2C%22x+y%22%5D%7D`,
			"application/x-www-form-urlencoded; charset=GBK",
		},
		{
			"xml",
			Settings{Format: "xml", Root: "notify"},
			`<notify><s>a b&amp;=&lt;]]&gt;中</s><n>10.50</n><big>12345678901234567890</big><t>true</t><e></e>` +
				`<o>{&#34;k&#34;:[1,&#34;x y&#34;]}</o></notify>`, "text/xml; charset=utf-8",
		},
		{
			"xml with CDATA",
			Settings{Format: "xml", CDATA: true},
			`<xml><s><![CDATA[a b&=<]]]]><![CDATA[>中]]></s><n>10.50</n><big>12345678901234567890</big><t>true</t><e><![CDATA[]]></e>` +
				`<o><![CDATA[{"k":[1,"x y"]}]]></o></xml>`, "text/xml; charset=utf-8",
		},
		{
			"xml in GB18030",
			Settings{Format: "xml", Charset: "gb18030", CDATA: true},
			`<?xml version="1.0" encoding="GB18030"?><xml><s><![CDATA[a b&=<]]]]><![CDATA[>` + "\xd6\xd0" +
				`]]></s><n>10.50</n><big>12345678901234567890</big><t>true</t><e><![CDATA[]]></e>` +
				`<o><![CDATA[{"k":[1,"x y"]}]]></o></xml>`, "text/xml; charset=GB18030",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := mustCompile(t, tt.settings).Encode(Input{URL: "https://m.example/n", Fields: fields})
			if err != nil {
				t.Fatal(err)
			}
			want := Request{URL: "https://m.example/n", Body: []byte(tt.body), ContentType: tt.contentType}
			if diff := cmp.Diff(want, out); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRawIsSentAsItCame(t *testing.T) {
	e := mustCompile(t, Settings{Format: "raw"})
	raw := []byte("\xff not even text")
	out, err := e.Encode(Input{Raw: raw, ContentType: "application/octet-stream"})
	if err != nil || !bytes.Equal(out.Body, raw) || out.ContentType != "application/octet-stream" {
		t.Errorf("%+v, %v", out, err)
	}
	if out, _ = e.Encode(Input{Raw: []byte(`{}`)}); out.ContentType != "application/json" {
		t.Errorf("content type %s", out.ContentType)
	}
}

func TestQueryKeepsWhatIsThere(t *testing.T) {
	e := mustCompile(t, Settings{Format: "query", Charset: "gbk"})
	some := []Field{{"b", "1 中", KindString}, {"z", "", KindNull}, {"c", "&", KindString}}
	tests := []struct {
		url    string
		fields []Field
		want   string
	}{
		{"https://m.example/n", some, "https://m.example/n?b=1+%D6%D0&c=%26"},
		{"https://m.example", some, "https://m.example?b=1+%D6%D0&c=%26"},
		{"https://m.example/n?", some, "https://m.example/n?b=1+%D6%D0&c=%26"},
		{"https://m.example/n?a=%20x", some, "https://m.example/n?a=%20x&b=1+%D6%D0&c=%26"},
		{"https://m.example/n?a&", some, "https://m.example/n?a&b=1+%D6%D0&c=%26"},
		{"https://m.example/n?a=1#f?x", some, "https://m.example/n?a=1&b=1+%D6%D0&c=%26#f?x"},
		{"https://m.example/n#f?x", some, "https://m.example/n?b=1+%D6%D0&c=%26#f?x"},
		{"https://m.example/n?a=1#f", some[1:2], "https://m.example/n?a=1#f"},
		{"https://m.example/n", nil, "https://m.example/n"},
	}
	for _, tt := range tests {
		out, err := e.Encode(Input{URL: tt.url, Fields: tt.fields})
		if diff := cmp.Diff(Request{URL: tt.want}, out); diff != "" || err != nil {
			t.Errorf("%s: %v %s", tt.url, err, diff)
		}
	}
}

func TestTemplate(t *testing.T) {
	payload := mustParse(t, `{"id":"A\"<1","amount":10.50,"o":{"x":[1, 2]},"n":null,"中":"茶 x"}`)
	tests := []struct{ name, text, contentType, want string }{
		{"json by default", `{{"id":{$.id},"amount":{$.amount},"o":{$.o},"n":{$.n},"m":{$.missing},"try":{@attempt}}}`, "application/json", `{"id":"A\"<1","amount":10.50,"o":{"x":[1,2]},"n":null,"m":null,"try":2}`},
		{"within a JSON string", `{{"t":"order {$.id|jsontext} paid {$.amount|jsontext}"}}`, "application/vnd.x+json", `{"t":"order A\"<1 paid 10.50"}`},
		{"xml by default", `<a b="{$.id}">{$.o}{$.n}</a>`, "text/xml; charset=utf-8", `<a b="A&#34;&lt;1">{&#34;x&#34;:[1,2]}</a>`},
		{"url by default", `id={$.id}&t={$['中']}`, "application/x-www-form-urlencoded", `id=A%22%3C1&t=%E8%8C%B6+x`},
		{"as it is", `{@notify_id!}|{$.id!}|{$.o.x[1]}`, "text/plain", `ntf_1|A"<1|2`},
		{"braces", `{{}}{{{$.amount}}}`, "text/plain", `{}{10.50}`},
		{"no placeholder", `pong`, "text/plain", `pong`},
		{"a brace in a quoted name", `[{$['}']|json}]`, "text/plain", `[null]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := mustCompile(t, Settings{Format: "template", Template: tt.text, ContentType: tt.contentType})
			out, err := e.Encode(Input{Payload: payload, Values: engine})
			if err != nil || string(out.Body) != tt.want || out.ContentType != tt.contentType {
				t.Errorf("%s, %s, %v; want %s", out.Body, out.ContentType, err, tt.want)
			}
		})
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	tests := []struct {
		name     string
		settings Settings
		want     string
	}{
		{"no format", Settings{}, `format: "": must be one of raw, json`},
		{"format", Settings{Format: "yaml"}, `format: "yaml"`},
		{"charset", Settings{Format: "json", Charset: "big5"}, `charset: "big5": must be one of utf-8, gbk, gb18030`},
		{"raw with a charset", Settings{Format: "raw", Charset: "gbk"}, `sent as it came`},
		{"root", Settings{Format: "xml", Root: "1a"}, `xml_root: "1a": must be an XML name`},
		{"root elsewhere", Settings{Format: "json", Root: "a"}, `only the format xml`},
		{"CDATA elsewhere", Settings{Format: "form", CDATA: true}, `only the format xml`},
		{"template elsewhere", Settings{Format: "form", Template: "x"}, `only the format template`},
		{"content type elsewhere", Settings{Format: "form", ContentType: "text/plain"}, `has its own`},
		{"content type missing", Settings{Format: "template", Template: "x"}, `content_type: must be set`},
		{"content type", Settings{Format: "template", Template: "x", ContentType: "text"}, ``},
		{"content type with a line", Settings{Format: "raw", ContentType: "text/plain\r\nX: y"}, `must be a media type`},
		{"content type with another charset", Settings{Format: "template", Template: "x", ContentType: "text/plain; charset=utf-8", Charset: "gbk"}, `its charset must be that of the setting, GBK`},
		{"no template", Settings{Format: "template", ContentType: "text/plain"}, `template: must be set`},
		{"long template", Settings{Format: "template", ContentType: "text/plain", Template: strings.Repeat("a", 65<<10)}, `more than 65536`},
		{"placeholder", Settings{Format: "template", ContentType: "text/plain", Template: "ab{id}"}, `the placeholder at offset 2: must begin with $`},
		{"constant", Settings{Format: "template", ContentType: "text/plain", Template: "{=a}"}, `must begin with`},
		{"unknown name", Settings{Format: "template", ContentType: "text/plain", Template: "{@key}"}, `the name "@key": must be one of attempt`},
		{"open brace", Settings{Format: "template", ContentType: "text/plain", Template: "a{$.a"}, `} is missing after "$.a"`},
		{"lone brace", Settings{Format: "template", ContentType: "text/plain", Template: "a}b"}, `a lone } at offset 1`},
		{"brace at the end", Settings{Format: "template", ContentType: "text/plain", Template: "a{"}, `offset 1`},
		{"escape", Settings{Format: "template", ContentType: "text/plain", Template: "{$.a|html}"}, `must follow one of json, jsontext, xml, url, none`},
		{"escape without end", Settings{Format: "template", ContentType: "text/plain", Template: "{$.a|json"}, `must follow one of`},
		{"not UTF-8", Settings{Format: "template", ContentType: "text/plain", Template: "\xff"}, `not UTF-8`},
		{"what the charset lacks", Settings{Format: "template", ContentType: "text/plain", Charset: "gbk", Template: "x😀"}, `template: it holds '😀' (U+1F600), which GBK cannot carry`},
		{"many placeholders", Settings{Format: "template", ContentType: "text/plain", Template: strings.Repeat("{$}", 257)}, `more than 256`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "content type" {
				tt.settings.ContentType = "text/"
				tt.want = "must be a media type"
			}
			_, err := Compile(tt.settings, names)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %s", err, tt.want)
			}
			if of := new(SettingError); !errors.As(err, &of) || of.Setting == "" {
				t.Errorf("%#v names no setting", err)
			}
		})
	}
}

func TestFieldsThatCannotBeEncoded(t *testing.T) {
	tests := []struct {
		name     string
		settings Settings
		field    Field
		want     string
	}{
		{"GBK lacks it", Settings{Format: "form", Charset: "gbk"}, Field{"subject", "茶😀", KindString}, `field "subject": holds '😀' (U+1F600), which GBK cannot carry`},
		{"GBK has no euro", Settings{Format: "json", Charset: "gbk"}, Field{"subject", "茶 5 €", KindString}, `holds '€' (U+20AC)`},
		{"private use", Settings{Format: "json", Charset: "gb18030"}, Field{"a", "\ue5e5", KindString}, `holds '\ue5e5' (U+E5E5), which GB18030 cannot carry`},
		{"at the end of GBK's table", Settings{Format: "form", Charset: "gbk"}, Field{"a", "茶⺁", KindString}, `holds '⺁' (U+2E81), which GBK cannot carry`},
		{"revisions of GB18030 differ", Settings{Format: "form", Charset: "gb18030"}, Field{"a", "ḿ", KindString}, `U+1E3F`},
		{"in a name", Settings{Format: "query", Charset: "gbk"}, Field{"é😀", "1", KindString}, `U+1F600`},
		{"in a nested object", Settings{Format: "json", Charset: "gbk"}, Field{"o", `{"a":"😀"}`, KindJSON}, `field "o": holds`},
		{"in XML", Settings{Format: "xml", Charset: "gbk"}, Field{"o", `ø`, KindString}, `U+00F8`},
		{"not UTF-8 in JSON", Settings{Format: "json"}, Field{"a", "\xff", KindString}, `field "a": is not UTF-8`},
		{"not UTF-8 in a form", Settings{Format: "form"}, Field{"a", "\xff", KindString}, `field "a": is not UTF-8`},
		{"not UTF-8 in XML", Settings{Format: "xml"}, Field{"a", "<\xff", KindString}, `field "a": is not UTF-8`},
		{"control character in XML", Settings{Format: "xml"}, Field{"a", "x\x01", KindString}, `field "a": holds U+0001, which XML cannot carry`},
		{"nought in CDATA", Settings{Format: "xml", CDATA: true}, Field{"a", "\x00", KindString}, `U+0000`},
		{"no character", Settings{Format: "xml"}, Field{"a", "\uFFFE", KindString}, `U+FFFE`},
		{"name with a space", Settings{Format: "xml"}, Field{"a b", "1", KindString}, `field "a b": must be an XML name`},
		{"name with markup", Settings{Format: "xml"}, Field{"a><b", "1", KindString}, `must be an XML name`},
		{"empty name", Settings{Format: "xml"}, Field{"", "1", KindString}, `field "": must be an XML name`},
		{"no number", Settings{Format: "json"}, Field{"a", "1,\"b\":2", KindNumber}, `is not the kind of JSON value`},
		{"empty number", Settings{Format: "json"}, Field{"a", "", KindNumber}, `is not the kind of JSON value`},
		{"no boolean", Settings{Format: "json"}, Field{"a", "1", KindBool}, `is not the kind of JSON value`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := mustCompile(t, tt.settings).Encode(Input{URL: "https://m.example", Fields: []Field{tt.field}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%q, error %v, want %s", out, err, tt.want)
			}
			if wrong := new(FieldError); !errors.As(err, &wrong) || wrong.Field != tt.field.Name {
				t.Errorf("%#v is no FieldError of the field", err)
			}
		})
	}
	twice := []Field{{"sign", "1", KindString}, {"b", "1", KindString}, {"sign", "2", KindString}}
	for _, format := range []string{"json", "form", "query", "xml"} {
		_, err := mustCompile(t, Settings{Format: format}).Encode(Input{Fields: twice})
		if err == nil || !strings.Contains(err.Error(), `field "sign": comes twice`) {
			t.Errorf("%s: error %v", format, err)
		}
	}
}

func TestQueryRefusesWhatTheURLHolds(t *testing.T) {
	for _, tt := range []struct{ url, charset, field, want string }{
		{"https://m.example/n?amount=1&sign=x", "", "amount", ""},
		{"https://m.example/n?shop=1&%61mount#f", "", "amount", ""},
		{"https://m.example/n?a+b=1", "", "a b", ""},
		{"https://m.example/n?%B2%E8=1", "gbk", "茶", ""},
		{"https://m.example/n?%zz=1&%=2", "", "%zz", ""},
		{"https://m.example/n?amounts=1&Amount=2&x=amount", "", "amount", "https://m.example/n?amounts=1&Amount=2&x=amount&amount=1"},
		{"https://m.example/n#?amount=1", "", "amount", "https://m.example/n?amount=1#?amount=1"},
	} {
		e := mustCompile(t, Settings{Format: "query", Charset: tt.charset})
		out, err := e.Encode(Input{URL: tt.url, Fields: []Field{{tt.field, "1", KindString}}})
		if wrong := new(FieldError); tt.want == "" && (!errors.As(err, &wrong) || wrong.Field != tt.field || !strings.Contains(wrong.Rule, "notify URL")) {
			t.Errorf("%s: %q, error %v", tt.url, out.URL, err)
		}
		if tt.want != "" && (err != nil || out.URL != tt.want) {
			t.Errorf("%s: %q, error %v", tt.url, out.URL, err)
		}
		if _, err := e.Encode(Input{URL: tt.url, Fields: []Field{{tt.field, "", KindNull}}}); err != nil {
			t.Errorf("%s: a null, which is left out: %v", tt.url, err)
		}
	}
}

func TestSorted(t *testing.T) {
	mixed := []Field{
		{"b", "2", KindString},
		{"B", "1", KindString},
		{"_x", "u", KindString},
		{"a1", "", KindString},
		{"1", "d", KindNumber},
		{"a_b", "10.50", KindNumber},
		{"aB", "中 &", KindString},
		{"z", "", KindNull},
		{"sign", "s", KindString},
		{"sign_type", "RSA2", KindString},
		{"a", `{"x":1}`, KindJSON},
	}
	tests := []struct {
		name     string
		settings SortSettings
		want     string
	}{
		{"bytes", SortSettings{}, `1=d&B=1&_x=u&a={"x":1}&a1=&aB=中 &&a_b=10.50&b=2&sign=s&sign_type=RSA2`},
		{"Alipay", SortSettings{LeaveOut: []string{"sign", "sign_type"}, LeaveOutEmpty: true}, `1=d&B=1&_x=u&a={"x":1}&aB=中 &&a_b=10.50&b=2`},
		{"values encoded", SortSettings{URLEncode: true, LeaveOut: []string{"a", "sign", "sign_type"}}, `1=d&B=1&_x=u&a1=&aB=%E4%B8%AD+%26&a_b=10.50&b=2`},
		{"in GBK", SortSettings{Charset: "gbk", Order: []string{"aB"}}, "aB=\xd6\xd0 &"},
		{"given order", SortSettings{Order: []string{"b", "B", "missing", "z", "a1", "1"}}, `b=2&B=1&a1=&1=d`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := CompileSort(tt.settings)
			if err != nil {
				t.Fatal(err)
			}
			before := append([]Field(nil), mixed...)
			got, err := s.Append([]byte(">"), mixed)
			if err != nil || string(got) != ">"+tt.want {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
			if diff := cmp.Diff(before, mixed); diff != "" {
				t.Errorf("the fields have changed: %s", diff)
			}
		})
	}
}

func TestSortedRefuses(t *testing.T) {
	for _, settings := range []SortSettings{
		{Charset: "latin1"},
		{Order: []string{"a", "a"}},
		{LeaveOut: []string{""}},
		{Order: []string{"a"}, LeaveOut: []string{"a"}},
		{Order: make([]string, 300)},
	} {
		if _, err := CompileSort(settings); err == nil {
			t.Errorf("%+v was taken", settings)
		}
	}
	s, err := CompileSort(SortSettings{Charset: "gbk"})
	if err != nil {
		t.Fatal(err)
	}
	for _, fields := range [][]Field{{{"a", "1", KindString}, {"b", "", KindString}, {"a", "2", KindString}}, {{"a", "€", KindString}}} {
		if got, err := s.Append(nil, fields); err == nil {
			t.Errorf("%s", got)
		}
	}
}

// schemes are the charsets as another reader has them.
var schemes = map[string]interface{ Bytes([]byte) ([]byte, error) }{
	"gbk":     simplifiedchinese.GBK.NewDecoder(),
	"gb18030": simplifiedchinese.GB18030.NewDecoder(),
}

func decoded(t *testing.T, charset string, body []byte) string {
	t.Helper()
	if scheme := schemes[charset]; scheme != nil {
		out, err := scheme.Bytes(body)
		if err != nil {
			t.Fatal(err)
		}
		body = out
	}
	return string(body)
}

// FuzzFormats: what is encoded, read with the standard library, is what it was.
func FuzzFormats(f *testing.F) {
	for i, text := range []string{"a b+&=%", "中文 10.50", "<]]>\r\n\t'\"&", "\x00\u2028😀", "\xff", "é€ḿ\ue5e5"} {
		f.Add("name", text, byte(i))
	}
	f.Fuzz(func(t *testing.T, name, text string, pick byte) {
		charset := Charsets()[int(pick)%3]
		fields := []Field{{name, text, KindString}, {name + "2", "10.50", KindNumber}}
		if out, err := mustCompile(t, Settings{Format: "form", Charset: charset}).Encode(Input{Fields: fields}); err == nil {
			values, err := url.ParseQuery(string(out.Body))
			got := url.Values{}
			for k, v := range values {
				got.Set(decoded(t, charset, []byte(k)), decoded(t, charset, []byte(v[0])))
			}
			if diff := cmp.Diff(url.Values{name: {text}, name + "2": {"10.50"}}, got); diff != "" || err != nil {
				t.Errorf("form: %s: %v %s", out.Body, err, diff)
			}
		} else if charset == "utf-8" && utf8.ValidString(name) && utf8.ValidString(text) {
			t.Errorf("form: %v", err)
		}
		checkQuery(t, charset, fields)
		checkSorted(t, charset, fields)
		if out, err := mustCompile(t, Settings{Format: "json", Charset: charset}).Encode(Input{Fields: fields}); err == nil {
			got := map[string]any{}
			decoder := json.NewDecoder(strings.NewReader(decoded(t, charset, out.Body)))
			decoder.UseNumber()
			err := decoder.Decode(&got)
			if diff := cmp.Diff(map[string]any{name: text, name + "2": json.Number("10.50")}, got); diff != "" || err != nil {
				t.Errorf("json: %s: %v %s", out.Body, err, diff)
			}
		}
		for _, cdata := range []bool{false, true} {
			out, err := mustCompile(t, Settings{Format: "xml", Charset: charset, CDATA: cdata}).Encode(Input{Fields: fields})
			if err != nil {
				continue
			}
			decoder := xml.NewDecoder(bytes.NewReader(out.Body))
			decoder.CharsetReader = func(label string, input io.Reader) (io.Reader, error) {
				if strings.EqualFold(label, "gbk") {
					return simplifiedchinese.GBK.NewDecoder().Reader(input), nil
				}
				return simplifiedchinese.GB18030.NewDecoder().Reader(input), nil
			}
			var got struct {
				Elements []struct {
					XMLName xml.Name
					Text    string `xml:",chardata"`
				} `xml:",any"`
			}
			err = decoder.Decode(&got)
			if err != nil || len(got.Elements) != 2 || got.Elements[0].XMLName.Local != name || got.Elements[0].Text != text || got.Elements[1].Text != "10.50" {
				t.Errorf("xml: %s: %v %+v", out.Body, err, got)
			}
		}
	})
}

// checkQuery reads the notify URL as net/url does: what was there has stayed, the fields are behind it.
func checkQuery(t *testing.T, charset string, fields []Field) {
	t.Helper()
	out, err := mustCompile(t, Settings{Format: "query", Charset: charset}).Encode(Input{URL: "https://m.example/n?%20kept=a%26b#here", Fields: fields})
	if err != nil {
		return
	}
	read, err := url.Parse(out.URL)
	if err != nil {
		t.Fatalf("%s: %v", out.URL, err)
	}
	added, found := strings.CutPrefix(read.RawQuery, "%20kept=a%26b&")
	values, err := url.ParseQuery(added)
	if !found || err != nil || read.Fragment != "here" || len(values) != len(fields) {
		t.Fatalf("%s: %v %v", out.URL, values, err)
	}
	for name, value := range values {
		at := slices.IndexFunc(fields, func(f Field) bool { return f.Name == decoded(t, charset, []byte(name)) })
		if at < 0 || decoded(t, charset, []byte(value[0])) != fields[at].Text {
			t.Errorf("%s: %q is not a field", out.URL, name)
		}
	}
}

// checkSorted: no order of the fields makes another text.
func checkSorted(t *testing.T, charset string, fields []Field) {
	t.Helper()
	s, err := CompileSort(SortSettings{Charset: charset})
	if err != nil {
		t.Fatal(err)
	}
	one, err := s.Append(nil, fields)
	if err != nil {
		return
	}
	sorted := slices.SortedFunc(slices.Values(fields), func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
	var want []string
	for _, f := range sorted {
		want = append(want, f.Name+"="+f.Text)
	}
	if got := decoded(t, charset, one); got != strings.Join(want, "&") {
		t.Errorf("%q, want %q", got, want)
	}
	slices.Reverse(fields)
	defer slices.Reverse(fields)
	if other, err := s.Append(nil, fields); err != nil || !bytes.Equal(one, other) {
		t.Errorf("%q and %q, %v", one, other, err)
	}
}

func FuzzCompileTemplate(f *testing.F) {
	f.Add(`{{"a":{$.a|json},"b":"{@notify_id|jsontext}"}}`, "application/json", `{"a":1}`)
	f.Add(`{$['a}']!|url}}}`, "text/xml", `{"a}":"x"}`)
	f.Fuzz(func(t *testing.T, text, contentType, payload string) {
		e, err := Compile(Settings{Format: "template", Template: text, ContentType: contentType}, names)
		if err != nil {
			return
		}
		p, err := ParsePayload([]byte(payload))
		if err != nil {
			return
		}
		out, err := e.Encode(Input{Payload: p, Values: engine})
		if err == nil && !utf8.Valid(out.Body) {
			t.Errorf("%q", out.Body)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	payload, err := ParsePayload([]byte(sample))
	if err != nil {
		b.Fatal(err)
	}
	mapping, err := CompileMapping(nil, nil, true)
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range []Settings{
		{Format: "json"}, {Format: "form"}, {Format: "form", Charset: "gbk"}, {Format: "xml", CDATA: true},
	} {
		b.Run(s.Format+s.Charset, func(b *testing.B) {
			e := mustCompile(b, s)
			b.ReportAllocs()
			for b.Loop() {
				fields, err := mapping.Fields(payload, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := e.Encode(Input{URL: "https://m.example/", Fields: fields}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("sorted", func(b *testing.B) {
		s, err := CompileSort(SortSettings{LeaveOut: []string{"sign", "sign_type"}, LeaveOutEmpty: true})
		if err != nil {
			b.Fatal(err)
		}
		fields, err := mapping.Fields(payload, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Append(nil, fields); err != nil {
				b.Fatal(err)
			}
		}
	})
}
