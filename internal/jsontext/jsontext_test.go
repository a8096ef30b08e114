package jsontext_test

import (
	"encoding/json"
	"testing"
	"testing/quick"
	"unicode/utf8"

	"notifyd/internal/jsontext"
)

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	readBack := func(text string) bool {
		if !utf8.ValidString(text) {
			return true
		}
		var got string
		written := jsontext.AppendString([]byte(`before`), text)
		if err := json.Unmarshal(written[len("before"):], &got); err != nil {
			t.Errorf("%q is written as %s: %v", text, written, err)
		}
		return got == text
	}
	for _, text := range []string{"", `"`, `\`, "a\"b\\c", "\x00\x01\x1f\x7f", "\n\r\t", "金额 ¥10.50", "<&>\u2028", `\u0041`} {
		if !readBack(text) {
			t.Errorf("%q is not what was written", text)
		}
	}
	if err := quick.Check(readBack, nil); err != nil {
		t.Error(err)
	}
}

func TestOnlyWhatMustBeIsEscaped(t *testing.T) {
	if got := string(jsontext.AppendText(nil, "<a href=\"x\">\u2028/\x02")); got != "<a href=\\\"x\\\">\u2028/\\u0002" {
		t.Error(got)
	}
}
