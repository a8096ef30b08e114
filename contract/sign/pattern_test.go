package sign

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPatternsAreFilled(t *testing.T) {
	values := map[string]string{
		"id": "ntf_1", "timestamp": "1414277957", "nonce": "abc", "body": `{"id":"{id}"}`, "sorted": "a=1&b=2", "secret": "s3cret", "$.a.b": "10.50", "$.c[0]": "",
	}
	for pattern, want := range map[string]string{
		"":                               "",
		"nothing to fill":                "nothing to fill",
		"{id}.{timestamp}.{body}":        `ntf_1.1414277957.{"id":"{id}"}`,
		"{timestamp}\n{nonce}\n{body}\n": "1414277957\nabc\n{\"id\":\"{id}\"}\n",
		"{sorted}&key={secret}":          "a=1&b=2&key=s3cret",
		"{$.a.b}:{$.c[0]}":               "10.50:",
		"{id}{id}{id}":                   "ntf_1ntf_1ntf_1",
		`{{"id":"{id}"}}`:                `{"id":"ntf_1"}`,
		"{{{id}}}":                       "{ntf_1}",
		"{{id}}":                         "{id}",
		"元{id}元":                         "元ntf_1元",
		strings.Repeat("{id}", 20):       strings.Repeat("ntf_1", 20), // more than Append has room for at hand
	} {
		if got := string(filled(t, pattern, values)); got != want {
			t.Errorf("%q becomes %q, want %q", pattern, got, want)
		}
	}
}

func TestPatternsThatAreRefused(t *testing.T) {
	for pattern, want := range map[string]string{
		"{timestmp}.{body}":       "pattern: {timestmp} at 1 must be one of {timestamp}, {body}, {$.*}",
		"t={}":                    "pattern: {} at 3 must be one of {timestamp}, {body}, {$.*}",
		"{$.}":                    "pattern: {$.} at 1 must be one of {timestamp}, {body}, {$.*}",
		"{body":                   "pattern: { at 1 is not closed; a brace of its own is written {{",
		"v1={body{body}":          "pattern: { at 4 is not closed; a brace of its own is written {{",
		"{body\n}":                "pattern: { at 1 is not closed; a brace of its own is written {{",
		"{body}}":                 "pattern: } at 7 closes nothing; a brace of its own is written }}",
		"{":                       "pattern: { at 1 is not closed; a brace of its own is written {{",
		strings.Repeat("a", 4097): "pattern: 4097 bytes must be at most 4096",
	} {
		if _, err := CompilePattern(pattern, []string{"timestamp", "body", "$.*"}); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", pattern, err, want)
		}
	}
}

func TestPatternSaysWhatItUses(t *testing.T) {
	pattern, err := CompilePattern("{$.b}.{timestamp}.{$.a}.{timestamp}", []string{"timestamp", "nonce", "$.*"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"$.b", "timestamp", "$.a"}, pattern.Names()); diff != "" {
		t.Error(diff)
	}
	if !pattern.Uses("timestamp") || pattern.Uses("nonce") {
		t.Error("it uses timestamp and not nonce")
	}
}

func TestValueThatIsMissing(t *testing.T) {
	pattern, err := CompilePattern("{id}.{body}", []string{"id", "body"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := pattern.Append([]byte("before"), func(name string) ([]byte, bool) { return nil, name == "id" })
	if err == nil || err.Error() != "pattern: {body} has no value" || string(got) != "before" {
		t.Errorf("%q, %v", got, err)
	}
}

// The headers of Standard Webhooks and of Stripe while two keys are live.
func TestSignaturesOfSeveralKeys(t *testing.T) {
	signatures := []map[string]string{{"version": "v1", "signature": "aaa="}, {"version": "v1a", "signature": "bbb="}}
	value := func(i int, name string) ([]byte, bool) { value, ok := signatures[i][name]; return []byte(value), ok }
	for _, c := range []struct{ before, each, separator, want string }{
		{"", "{version},{signature}", " ", "v1,aaa= v1a,bbb="},
		{"t=1492774577", ",v1={signature}", "", "t=1492774577,v1=aaa=,v1=bbb="},
	} {
		pattern, err := CompilePattern(c.each, []string{"version", "signature"})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pattern.AppendEach([]byte(c.before), 2, c.separator, value); err != nil || string(got) != c.want {
			t.Errorf("%q (%v), want %q", got, err, c.want)
		}
	}
}

// Where there is room, nothing is copied but into it.
func TestAppendTakesTheRoomThereIs(t *testing.T) {
	pattern, err := CompilePattern("{id}.{body}", []string{"id", "body"})
	if err != nil {
		t.Fatal(err)
	}
	value := func(string) ([]byte, bool) { return []byte("0123456789"), true }
	room := make([]byte, 3, 24) // 3 + 10 + 1 + 10
	got, err := pattern.Append(room, value)
	if err != nil || len(got) != 24 || &got[0] != &room[0] {
		t.Errorf("%d bytes, moved: %v (%v)", len(got), &got[0] != &room[0], err)
	}
}

func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"{id}.{timestamp}.{body}", "{{{id}}}", "{$.a.b}:{$.c}", "}{", "{sorted}&key={secret}"} {
		f.Add(seed)
	}
	allowed := []string{"id", "timestamp", "body", "$.*"}
	f.Fuzz(func(t *testing.T, text string) {
		pattern, err := CompilePattern(text, allowed)
		if err != nil {
			return
		}
		// With each placeholder's own text as its value, and braces doubled again, it is what it was.
		back := strings.Builder{}
		for _, part := range pattern.parts {
			if part.name != "" {
				back.WriteString("{" + part.name + "}")
				continue
			}
			back.WriteString(strings.NewReplacer("{", "{{", "}", "}}").Replace(part.literal))
		}
		if back.String() != text {
			t.Errorf("%q reads as %q", text, back.String())
		}
		out, err := pattern.Append(nil, func(name string) ([]byte, bool) { return []byte(name), true })
		if err != nil || len(out) > len(text) {
			t.Errorf("%q becomes %q (%v)", text, out, err)
		}
	})
}
