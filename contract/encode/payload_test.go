package encode

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustParse(tb testing.TB, text string) *Payload {
	tb.Helper()
	payload, err := ParsePayload([]byte(text))
	if err != nil {
		tb.Fatalf("ParsePayload(%s): %v", text, err)
	}
	return payload
}

func mustPath(tb testing.TB, text string) *Path {
	tb.Helper()
	path, err := CompilePath(text)
	if err != nil {
		tb.Fatalf("CompilePath(%s): %v", text, err)
	}
	return path
}

// all are the payload's members.
func all(tb testing.TB, text string) []Field {
	tb.Helper()
	mapping, err := CompileMapping(nil, nil, false)
	if err != nil {
		tb.Fatal(err)
	}
	fields, err := mapping.Fields(mustParse(tb, text), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return fields
}

func TestValuesKeepTheirLiteralText(t *testing.T) {
	tests := []struct {
		name, value string
		text        string
		kind        Kind
	}{
		{"decimals", `10.50`, "10.50", KindNumber},
		{"more digits than a float has", `12345678901234567890`, "12345678901234567890", KindNumber},
		{"exponent", `1E+400`, "1E+400", KindNumber},
		{"minus nought", `-0`, "-0", KindNumber},
		{"true", `true`, "true", KindBool},
		{"false", `false`, "false", KindBool},
		{"null", `null`, "", KindNull},
		{"string", `"a b"`, "a b", KindString},
		{"empty string", `""`, "", KindString},
		{"number in a string", `"0010.50"`, "0010.50", KindString},
		{"escapes are decoded once", `"\\u4e2d\u4e2d\n\/"`, `\u4e2d中` + "\n/", KindString},
		{"escaped quote and backslash", `"\\\"}"`, `\"}`, KindString},
		{"a pair of surrogates", `"\uD83D\uDE00"`, "😀", KindString},
		{"a pair in small letters", `"\ud83d\ude00"`, "😀", KindString},
		{"the highest character", `"\uDBFF\uDFFF"`, "\U0010FFFF", KindString},
		{"just outside the surrogates", `"\uD7FF\uE000"`, "\uD7FF\uE000", KindString},
		{"nought", `"\u0000"`, "\x00", KindString},
		{"object", "{ \"b\" : 1.0 ,\n\"a\":[ ] }", `{"b":1.0,"a":[]}`, KindJSON},
		{"white space and escapes in its strings stay", `[ "a  b", "\u4e2d\/<" ]`, `["a  b","\u4e2d\/<"]`, KindJSON},
		{"empty object", `{ }`, `{}`, KindJSON},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := all(t, "\r\n\t {\"x\" :\t"+tt.value+" , \"after\":7} ")
			want := []Field{{"x", tt.text, tt.kind}, {"after", "7", KindNumber}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPayloadsThatAreRefused(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"duplicate key", `{"a":1,"a":1}`, `field "$.a": is in its object twice`},
		{"duplicate key deep within", `{"a":[0,{"b c":{"k":1,"\u006b":2}}]}`, `field "$.a[1]['b c'].k": is in its object twice`},
		{"duplicate empty key", `{"":1,"":1}`, `field "$['']"`},
		{"duplicate of many keys", "{" + keys(40) + `,"k7":1}`, `field "$.k7"`},
		{"first half of a pair", `{"a":"\ud83d"}`, `field "$.a": holds half of a surrogate pair, \ud83d`},
		{"first half twice", `["\ud83d\ud83d"]`, `field "$[0]": holds half`},
		{"first half, then another escape", `["\ud83d\n"]`, `holds half`},
		{"second half", `["\udE00"]`, `holds half`},
		{"halves in the wrong order", `["\ude00\ud83d"]`, `holds half`},
		{"half in a key", `{"\ud83d":1}`, `holds half`},
		{"not UTF-8", "{\"a\":\"b\xff\"}", "offset 7 is not UTF-8"},
		{"surrogate in UTF-8", "[\"\xed\xa0\x80\"]", "offset 2 is not UTF-8"},
		{"trailing garbage", `{"a":1} x`, "offset 9"},
		{"two values", `{}{}`, "not JSON at offset 3"},
		{"byte order mark", "\ufeff{}", "not JSON"},
		{"empty", ``, "not JSON"},
		{"cut", `{"a":`, "not JSON"},
		{"NaN", `[NaN]`, "not JSON"},
		{"leading nought", `[01]`, "not JSON"},
		{"control character", "[\"\n\"]", "not JSON"},
		{"too deep", strings.Repeat("[", 65) + strings.Repeat("]", 65), "is more than 64 levels deep"},
		{"much too deep", strings.Repeat(`{"a":`, 20000), "not JSON"},
		{"too long", `"` + strings.Repeat("a", MaxPayload) + `"`, "more than 262144"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParsePayload([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %s", err, tt.want)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	mustParse(t, strings.Repeat("[", 64)+strings.Repeat("]", 64))
}

func keys(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = `"k` + strconv.Itoa(i) + `":` + strconv.Itoa(i)
	}
	return strings.Join(list, ",")
}

func TestPaths(t *testing.T) {
	const text = `{"a":{"b":[{"c":10.50},[7]],"a.b":1,"it's\\":2,"":3,"订单":4},"n":null,"e":[]}`
	tests := []struct {
		path, want string
		found      bool
	}{
		{`$.a.b[0].c`, "10.50", true},
		{`$.a.b[1][0]`, "7", true},
		{`$['a']['b'][0]['c']`, "10.50", true},
		{`$.a['a.b']`, "1", true},
		{`$.a['it\'s\\']`, "2", true},
		{`$.a['']`, "3", true},
		{`$.a.订单`, "4", true},
		{`$.n`, "", true},
		{`$.e`, "[]", true},
		{`$.a.b[2]`, "", false},
		{`$.e[0]`, "", false},
		{`$.a[0]`, "", false},
		{`$.a.b.c`, "", false},
		{`$.n.x`, "", false},
		{`$.a.b[0].c.d`, "", false},
		{`$.A`, "", false},
	}
	payload := mustParse(t, text)
	for _, tt := range tests {
		field, found := payload.Get(mustPath(t, tt.path))
		if found != tt.found || field.Text != tt.want || found && field.Name != tt.path {
			t.Errorf("%s: %+v, %v; want %q, %v", tt.path, field, found, tt.want, tt.found)
		}
	}
	if whole, _ := payload.Get(mustPath(t, "$")); whole.Text != text {
		t.Errorf("$: %s", whole.Text)
	}
}

func TestPathsThatAreRefused(t *testing.T) {
	for _, text := range []string{
		"", "a", ".a", "$a", "$.", "$..a", "$.a.", "$.a[", "$.a[]", "$.a[-1]", "$.a[01]", "$.a[+1]", "$.a[100000]", "$.a[*]",
		"$['a", "$['a'", "$['a'x]", `$['a\n']`, `$['\`, "$.a b", "$.a!", "$.a|json", "$.a}", "$.a\x00", "$.a\u202e",
		"$['\xff']", "$.\xff", "$" + strings.Repeat(".a", 65), "$." + strings.Repeat("a", 600),
	} {
		if _, err := CompilePath(text); err == nil || !strings.HasPrefix(err.Error(), "path ") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func TestWithKeepsEveryOtherByte(t *testing.T) {
	tests := []struct{ name, text, path, want string }{
		{"replace a string", `{ "a" : "x" , "b":1.00}`, "$.a", `{ "a" : "S\"" , "b":1.00}`},
		{"replace an object", `{"a":{"b":[1]},"c":2}`, "$.a", `{"a":"S\"","c":2}`},
		{"replace an element", `[1, 2 ,3]`, "$[1]", `[1, "S\"" ,3]`},
		{"replace the whole", ` {} `, "$", ` "S\"" `},
		{"append", "{\"a\": 10.50\n}", "$.s", "{\"a\": 10.50,\"s\":\"S\\\"\"\n}"},
		{"into an empty object", `{ }`, "$.s", `{"s":"S\"" }`},
		{"make what is missing", `{"n":[{"i":{"a":{"b":1}}}]}`, "$.n[0].i.x.y", `{"n":[{"i":{"a":{"b":1},"x":{"y":"S\""}}}]}`},
		{
			"Adyen", `{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{"k":"v"},"amount":{"value":10.50}}}]}`,
			"$.notificationItems[0].NotificationRequestItem.additionalData.hmacSignature",
			`{"live":"false","notificationItems":[{"NotificationRequestItem":{"additionalData":{"k":"v","hmacSignature":"S\""},"amount":{"value":10.50}}}]}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mustParse(t, tt.text).With(mustPath(t, tt.path), `S"`)
			if err != nil || string(got) != tt.want {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestWithRefusesWhatCannotHoldIt(t *testing.T) {
	payload := mustParse(t, `{"a":1,"l":[],"n":null}`)
	for _, path := range []string{"$.a.b", "$.l[0]", "$.l.x", "$.n.x", "$.x[0]", "$[0]"} {
		if got, err := payload.With(mustPath(t, path), "S"); err == nil {
			t.Errorf("%s: %s", path, got)
		}
	}
	if _, err := payload.With(mustPath(t, "$.a"), "\xff"); err == nil {
		t.Error("a text that is not UTF-8 was taken")
	}
}

// value reads a text with the standard library, numbers as written; keys that come twice are an error.
func value(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		object := map[string]any{}
		for decoder.More() {
			key, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			name, _ := key.(string)
			if _, twice := object[name]; twice {
				return nil, errors.New("twice")
			}
			if object[name], err = value(decoder); err != nil {
				return nil, err
			}
		}
		_, err = decoder.Token()
		return object, err
	case json.Delim('['):
		list := []any{}
		for decoder.More() {
			element, err := value(decoder)
			if err != nil {
				return nil, err
			}
			list = append(list, element)
		}
		_, err = decoder.Token()
		return list, err
	}
	return token, nil
}

func standard(text string) (any, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	v, err := value(decoder)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing")
	}
	return v, nil
}

// tree is the payload as the standard library would give it.
func (p *Payload) tree(at int) any {
	n := p.nodes[at]
	switch n.kind {
	case KindString:
		return p.field(at, "").Text
	case KindNumber:
		return json.Number(p.field(at, "").Text)
	case KindBool:
		return p.field(at, "").Text == "true"
	case KindNull:
		return nil
	case KindJSON:
	}
	if n.array {
		list := []any{}
		for i := at + 1; i < int(n.after); i = int(p.nodes[i].after) {
			list = append(list, p.tree(i))
		}
		return list
	}
	object := map[string]any{}
	for i := at + 1; i < int(n.after); i = int(p.nodes[i].after) {
		object[p.nodes[i].name] = p.tree(i)
	}
	return object
}

func FuzzParsePayload(f *testing.F) {
	for _, seed := range []string{
		`{"a":[1.50,{"b":null}],"c":"\ud83d\ude00","d":true}`, `[]`, `"x"`, ` {"a" : 1 , "a":2}`, `"\ud83d"`, `[1,[2,[3]]]`, `{"":{"":""}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		payload, err := ParsePayload([]byte(text))
		want, wantErr := standard(text)
		if err != nil {
			return // stricter than the standard library: see the table of what is refused
		}
		if wantErr != nil {
			t.Fatalf("the standard library refuses %q: %v", text, wantErr)
		}
		if got := payload.tree(0); !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %s", text, cmp.Diff(want, got))
		}
		if whole := payload.field(0, ""); whole.Kind == KindJSON {
			if again, err := standard(whole.Text); err != nil || !reflect.DeepEqual(again, want) {
				t.Fatalf("%q compacted is %q: %v", text, whole.Text, err)
			}
		}
	})
}

func FuzzWith(f *testing.F) {
	f.Add(`{"a":{"b":1}}`, "$.a.c.d", "sig")
	f.Add(`{"a":[1,{"b":1}]}`, "$.a[1]['b']", "\x00\"")
	f.Fuzz(func(t *testing.T, text, pathText, signature string) {
		payload, err := ParsePayload([]byte(text))
		if err != nil {
			return
		}
		path, err := CompilePath(pathText)
		if err != nil {
			return
		}
		out, err := payload.With(path, signature)
		if err != nil {
			return
		}
		after, err := ParsePayload(out)
		if err != nil {
			if len(out) > MaxPayload || strings.Contains(err.Error(), "levels") {
				return
			}
			t.Fatalf("%q with %s: %q: %v", text, path, out, err)
		}
		if field, found := after.Get(path); !found || field.Text != signature || field.Kind != KindString {
			t.Fatalf("%q with %s: %q holds %+v", text, path, out, field)
		}
		if old := payload.find(path.steps); old >= 0 {
			n := payload.nodes[old]
			if !bytes.HasPrefix(out, []byte(text[:n.start])) || !bytes.HasSuffix(out, []byte(text[n.end:])) {
				t.Fatalf("%q with %s changed more: %q", text, path, out)
			}
		}
	})
}

func BenchmarkParsePayload(b *testing.B) {
	text := []byte(sample)
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParsePayload(text); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding json into a map", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			var into map[string]any
			if err := json.Unmarshal(text, &into); err != nil {
				b.Fatal(err)
			}
		}
	})
}
