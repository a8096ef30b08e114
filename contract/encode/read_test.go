package encode

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/simplifiedchinese"
)

func inGBK(tb testing.TB, text string) []byte {
	tb.Helper()
	encoded, err := simplifiedchinese.GBK.NewEncoder().Bytes([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return encoded
}

func TestDecode(t *testing.T) {
	for _, c := range []struct{ name, charset, written, want, says string }{
		{"nothing", "", "", "", ""},
		{"UTF-8", "utf-8", "茶", "茶", ""},
		{"no UTF-8", "utf-8", "a\xff", "", "offset 1 is not UTF-8"},
		{"GBK", "gbk", string(inGBK(t, "茶")), "茶", ""},
		{"GB18030", "gb18030", "\x810\x810", "\u0080", ""},
		{"GB18030 as GBK", "gbk", "\x810\x810", "", "not GBK"},
		{"half a character", "gbk", "\xb2", "", "not GBK"},
		{"the euro sign of Windows", "gbk", "\x80", "", "not GBK"},
		{"a byte order mark", "utf-8", "\ufeffa", "\ufeffa", ""},
		{"no charset", "big5", "a", "", "must be one of utf-8, gbk, gb18030"},
	} {
		got, err := Decode([]byte(c.written), c.charset)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) || string(got) != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestReaders(t *testing.T) {
	form := func(charset string) func(string) ([]Field, error) {
		return func(text string) ([]Field, error) { return ReadForm(text, charset) }
	}
	elements := func(charset string) func(string) ([]Field, error) {
		return func(text string) ([]Field, error) { return ReadXML([]byte(text), charset) }
	}
	members := func(text string) ([]Field, error) {
		payload, err := ReadJSON([]byte(text), "utf-8")
		if err != nil {
			return nil, err
		}
		return ReadMembers(payload)
	}
	for _, c := range []struct {
		name string
		read func(string) ([]Field, error)
		text string
		want []Field
		says string // of the error
	}{
		{"form", form("utf-8"), "a=1+%2B&&b=%E8%8C%B6&c", []Field{{"a", "1 +", KindString}, {"b", "茶", KindString}, {"c", "", KindString}}, ""},
		{"form in GBK", form("gbk"), "b=%B2%E8", []Field{{"b", "茶", KindString}}, ""},
		{"form, the bytes", form(""), "b=%B2%E8", []Field{{"b", "\xb2\xe8", KindString}}, ""},
		{"form in another charset", form("utf-8"), "b=%B2%E8", nil, `the field "b": the byte at offset 0`},
		{"a name in another charset", form("utf-8"), "%B2%E8=b", nil, "a field's name"},
		{"a byte order mark within", form("utf-8"), "a=%EF%BB%BF1", []Field{{"a", "\ufeff1", KindString}}, ""},
		{"twice", form(""), "a=1&b=2&a=1", nil, `the field "a" is there twice`},
		{"twice, written otherwise", form(""), "a=1&%61=1", nil, "twice"},
		{"half an escape", form(""), "a=%4", nil, "percent sign"},
		{"many", form(""), strings.Repeat("a&", 1001), nil, "more than 1000"},

		{"XML", elements("utf-8"), "<?xml version='1.0'?>\n<xml>\n <a> 1 </a><b><![CDATA[<]]>&amp;</b><c/></xml>\n", []Field{{"a", " 1 ", KindString}, {"b", "<&", KindString}, {"c", "", KindString}}, ""},
		{"XML in GBK", elements("gbk"), "<xml><a>\xb2\xe8</a></xml>", []Field{{"a", "茶", KindString}}, ""},
		{"XML that declares GBK", elements(""), "<?xml version='1.0' encoding='gb2312'?><xml><a>\xb2\xe8</a></xml>", []Field{{"a", "茶", KindString}}, ""},
		{"XML that declares another", elements(""), "<?xml version='1.0' encoding='big5'?><xml/>", nil, "must be one of"},
		{"what it declares does not count", elements("utf-8"), "<?xml version='1.0' encoding='big5'?><xml><a>茶</a></xml>", []Field{{"a", "茶", KindString}}, ""},
		{"an element twice", elements(""), "<xml><a/><a/></xml>", nil, "twice"},
		{"an element within another", elements(""), "<xml><a><b/></a></xml>", nil, "within another one"},
		{"text outside", elements(""), "<xml>x<a/></xml>", nil, "text outside"},
		{"a document type", elements(""), "<!DOCTYPE xml><xml/>", nil, "document type"},
		{"an entity", elements(""), "<xml><a>&b;</a></xml>", nil, "no XML"},
		{"two roots", elements(""), "<xml/><xml/>", nil, "2 root elements"},
		{"nothing", elements(""), "", nil, "0 root elements"},
		{"many elements", elements(""), "<xml>" + strings.Repeat("<a/>", 1001) + "</xml>", nil, "more than 1000"},

		{"JSON", members, "\ufeff{\"a\":10.50,\"b\":null,\"c\":{\"d\": 1},\"e\":\"\\u8336\",\"f\":true,\"g\":\"\"}", []Field{{"a", "10.50", KindNumber}, {"c", `{"d":1}`, KindJSON}, {"e", "茶", KindString}, {"f", "true", KindBool}, {"g", "", KindString}}, ""},
		{"a member twice", members, `{"a":1,"a":1}`, nil, "twice"},
		{"no object", members, `[1]`, nil, "is no object"},
	} {
		got, err := c.read(c.text)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want …%s…", c.name, err, c.says)
		}
		if c.says == "" {
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
	}
}

// FuzzRead: nothing panics; no name comes twice; and what was read in a charset can be signed in it.
func FuzzRead(f *testing.F) {
	f.Add("a=1&b=%B2%E8", uint8(1))
	f.Add("<xml><a>\xb2\xe8</a><b><![CDATA[x]]></b></xml>", uint8(2))
	f.Add(`{"a":"\u8336","b":1.0}`, uint8(0))
	f.Fuzz(func(t *testing.T, text string, which uint8) {
		charset := Charsets()[int(which)%len(Charsets())]
		sort, err := CompileSort(SortSettings{Charset: charset})
		if err != nil {
			t.Fatal(err)
		}
		check := func(fields []Field, err error, mayLack bool) {
			if err != nil {
				return
			}
			if err := unique(fields); err != nil {
				t.Error(err)
			}
			if _, err := sort.Append(nil, fields); err != nil && !mayLack {
				t.Errorf("%q: %v", text, err)
			}
		}
		fields, err := ReadForm(text, charset)
		check(fields, err, false)
		fields, err = ReadXML([]byte(text), charset)
		check(fields, err, charset != "utf-8") // &#x80; and the like
		fields, err = ReadXML([]byte(text), "")
		check(fields, err, true)
		if payload, err := ReadJSON([]byte(text), charset); err == nil {
			fields, err = ReadMembers(payload)
			check(fields, err, charset != "utf-8") // escapes
		}
	})
}
