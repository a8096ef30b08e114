package answer

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/simplifiedchinese"

	"notifyd/contract/encode"
)

const (
	space     = " \t\r\n\v\f"
	maxMatch  = 4 << 10   // bytes of a body that a regular expression looks at
	maxParse  = 256 << 10 // bytes of a body that is read as JSON or XML
	maxShown  = 80        // bytes of a text in a sentence
	maxWhy    = 640       // bytes of a sentence
	truncated = "the answer is too long to be read as a whole"
)

// body is one kind of Body.
type body interface {
	// disagrees says what was expected and what came; it is empty if the answer is the agreed one.
	disagrees(answer []byte, cut bool) string
}

type exact string

func (e exact) disagrees(answer []byte, cut bool) string {
	if !cut && string(answer) == string(e) {
		return ""
	}
	return wrong("the body exactly "+show(string(e)), answer, cut)
}

type trimmed string

func (t trimmed) disagrees(answer []byte, cut bool) string {
	if !cut && string(bytes.Trim(answer, space)) == string(t) {
		return ""
	}
	return wrong("the body "+show(string(t))+", white space around it apart", answer, cut)
}

type folded string

func (f folded) disagrees(answer []byte, cut bool) string {
	if !cut && equalFold(bytes.Trim(answer, space), string(f)) {
		return ""
	}
	return wrong("the body "+show(string(f))+" in capital or small letters, white space around it apart", answer, cut)
}

// equalFold folds the letters of ASCII only: with Unicode's rules bytes that are no UTF-8 would all be equal.
func equalFold(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

type within string

func (w within) disagrees(answer []byte, cut bool) string {
	if bytes.Contains(answer, []byte(w)) {
		return ""
	}
	return wrong("a body with "+show(string(w))+" in it", answer, cut)
}

type matching struct{ expression *regexp.Regexp }

func (m matching) disagrees(answer []byte, cut bool) string {
	expected := "a body that matches " + show(m.expression.String())
	if len(answer) > maxMatch {
		return fmt.Sprintf("expected %s; %d bytes came, more than are looked at (%d)", expected, len(answer), maxMatch)
	}
	if !cut && m.expression.Match(answer) {
		return ""
	}
	return wrong(expected, answer, cut)
}

type jsonValue struct {
	path    *encode.Path
	value   string
	charset string // empty: see characters
}

func (j jsonValue) disagrees(answer []byte, cut bool) string {
	expected := "JSON with " + show(j.value) + " at " + show(j.path.String())
	if cut {
		return wrong(expected, answer, cut)
	}
	payload, err := j.parse(answer)
	if err != nil {
		return wrong(expected, answer, cut)
	}
	field, found := payload.Get(j.path)
	if !found {
		return wrong(expected, answer, cut)
	}
	switch field.Kind {
	case encode.KindString, encode.KindNumber, encode.KindBool:
		if field.Text == j.value {
			return ""
		}
	case encode.KindNull, encode.KindJSON:
	}
	return wrong(expected, answer, cut)
}

func (j jsonValue) parse(answer []byte) (*encode.Payload, error) {
	if j.charset != "" {
		return encode.ReadJSON(answer, j.charset)
	}
	return encode.ParsePayload(characters(bytes.TrimPrefix(answer, mark)))
}

// mark is UTF-8's byte order mark, which readers of JSON and XML pass over.
var mark = []byte("\xEF\xBB\xBF")

// characters is an answer in UTF-8. What is not is read as GB18030, which holds GBK and GB2312.
func characters(answer []byte) []byte {
	if utf8.Valid(answer) || len(answer) > maxParse {
		return answer
	}
	decoded, err := simplifiedchinese.GB18030.NewDecoder().Bytes(answer)
	if err != nil {
		return answer
	}
	return decoded
}

// wrong is the sentence.
func wrong(expected string, answer []byte, cut bool) string {
	switch {
	case cut:
		return "expected " + expected + "; " + truncated + "; it begins with " + show(string(answer[:min(len(answer), maxShown)]))
	case len(answer) == 0:
		return "expected " + expected + "; no body came"
	case len(answer) > maxShown:
		return "expected " + expected + "; " + strconv.Itoa(len(answer)) + " bytes came, which begin with " + show(string(answer[:maxShown]))
	}
	return "expected " + expected + "; " + show(string(answer)) + " came"
}

// show quotes a text so that whatever does not print is escaped, and bounds it.
func show(text string) string {
	long := len(text) > maxShown
	if long {
		text = text[:maxShown]
	}
	quoted := strconv.Quote(text)
	if len(quoted) > 2*maxShown { // mostly escapes
		quoted = strings.ToValidUTF8(quoted[:2*maxShown], "") + `…"`
	}
	if long {
		quoted += "…"
	}
	return quoted
}
