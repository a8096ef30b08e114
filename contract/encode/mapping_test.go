package encode

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMapping(t *testing.T) {
	payload := mustParse(t, `{"order":{"id":"A1","amount":10.50,"note":"","gone":null},"list":[1]}`)
	tests := []struct {
		name    string
		sources map[string]string
		empty   bool // leave out
		want    []Field
		err     string
	}{
		{
			"in the byte order of the names",
			map[string]string{"b": "$.order.id", "a_": "$.order.amount!", "aB": "@attempt", "a1": "=x!", "a": "$.list"},
			false,
			[]Field{{"a", "[1]", KindJSON}, {"a1", "x!", KindString}, {"aB", "2", KindNumber}, {"a_", "10.50", KindNumber}, {"b", "A1", KindString}},
			"",
		},
		{
			"what is missing is left out",
			map[string]string{"a": "$.nothing", "b": "@notify_time", "c": "$.order.note", "d": "$.order.gone", "e": "="},
			false,
			[]Field{{"c", "", KindString}, {"d", "", KindNull}, {"e", "", KindString}},
			"",
		},
		{"what is empty too", map[string]string{"c": "$.order.note", "d": "$.order.gone", "e": "=", "f": "=1"}, true, []Field{{"f", "1", KindString}}, ""},
		{"required path", map[string]string{"fee": "$.order.fee!"}, false, nil, `field "fee": is required, and the payload has no $.order.fee`},
		{"required and null", map[string]string{"fee": "$.order.gone!"}, false, nil, `field "fee": is required`},
		{"required name", map[string]string{"at": "@notify_time!"}, false, nil, `field "at": is required, and the notification has no @notify_time`},
		{"required and empty", map[string]string{"n": "$.order.note!"}, true, nil, `field "n": is required and empty`},
		{"required and empty, where that may be", map[string]string{"n": "$.order.note!"}, false, []Field{{"n", "", KindString}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := CompileMapping(tt.sources, names, tt.empty)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Fields(payload, engine)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %s", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		})
	}
}

func TestMappingWithoutPayload(t *testing.T) {
	m, err := CompileMapping(map[string]string{"id": "@notify_id"}, names, false)
	if err != nil || m.UsesPayload() {
		t.Fatal(err, m.UsesPayload())
	}
	if got, err := m.Fields(nil, engine); err != nil || len(got) != 1 {
		t.Error(got, err)
	}
	for _, sources := range []map[string]string{nil, {"a": "$.a"}} {
		if m, err = CompileMapping(sources, names, false); err != nil || !m.UsesPayload() {
			t.Fatal(err)
		}
		if _, err := m.Fields(nil, engine); err == nil {
			t.Errorf("%v: fields out of nothing", sources)
		}
	}
	if m, err = CompileMapping(nil, nil, false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Fields(mustParse(t, `[1]`), nil); err == nil || !strings.Contains(err.Error(), "no object") {
		t.Errorf("error %v", err)
	}
}

func TestMappingsThatAreRefused(t *testing.T) {
	tests := []struct{ target, source, want string }{
		{"", "$.a", `the name ""`},
		{"\xff", "$.a", "must be UTF-8"},
		{"x", "", "must begin with $"},
		{"x", "a", "must begin with $"},
		{"x", "$.a!!", `unexpected "!"`},
		{"x", "$.a|json", `unexpected "|json"`},
		{"x", "$.", "a name is missing"},
		{"x", "@secret", `the name "@secret": must be one of attempt, notify_id, notify_time`},
		{"x", "@", `must be one of`},
		{"x", "=\xff", "not UTF-8"},
	}
	for _, tt := range tests {
		_, err := CompileMapping(map[string]string{tt.target: tt.source}, names, false)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q from %q: error %v, want %s", tt.target, tt.source, err, tt.want)
		}
	}
	many := map[string]string{}
	for i := range 257 {
		many[strings.Repeat("a", i+1)] = "=1"
	}
	if _, err := CompileMapping(many, nil, false); err == nil {
		t.Error("257 fields were taken")
	}
}

func TestAMappingCannotBlowUpAPayload(t *testing.T) {
	sources := map[string]string{}
	for i := range 256 {
		sources[strings.Repeat("a", i+1)] = "$"
	}
	m, err := CompileMapping(sources, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	payload := mustParse(t, `{"a":"`+strings.Repeat("x", 200<<10)+`"}`)
	if _, err := m.Fields(payload, nil); err == nil || !strings.Contains(err.Error(), "longer than 1048576 bytes") {
		t.Errorf("error %v", err)
	}
	e := mustCompile(t, Settings{Format: "template", ContentType: "text/plain", Template: strings.Repeat("{$}", 256)})
	if _, err := e.Encode(Input{Payload: payload}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("error %v", err)
	}
}

func FuzzCompileMapping(f *testing.F) {
	f.Add("x", "$.a['b'][0]!", `{"a":{"b":[1]}}`)
	f.Add("x", "=constant", `{}`)
	f.Add("x", "@notify_id!", `{}`)
	f.Fuzz(func(t *testing.T, target, source, payload string) {
		m, err := CompileMapping(map[string]string{target: source}, names, false)
		if err != nil {
			return
		}
		p, err := ParsePayload([]byte(payload))
		if err != nil {
			return
		}
		fields, err := m.Fields(p, engine)
		if err == nil && len(fields) > 1 {
			t.Errorf("%+v", fields)
		}
	})
}
