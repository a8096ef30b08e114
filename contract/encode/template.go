package encode

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"notifyd/internal/jsontext"
)

const (
	maxTemplate     = 64 << 10 // bytes
	maxPlaceholders = 256
)

// template is a text with placeholders: {$.path} or {@name}, with an exclamation mark if there must be a value, and
// with a bar and how it is written: {$.path!|json}. {{ and }} are braces.
type template struct {
	parts   []part
	charset charset
}

// part is literal bytes, or a placeholder.
type part struct {
	literal []byte
	text    string // of the placeholder, for errors
	from    source
	escape  string
}

// How a placeholder is written.
const (
	escapeJSON     = "json"     // a whole JSON value: a string with its quotes, null if there is none
	escapeJSONText = "jsontext" // characters within the quotes of a JSON string
	escapeXML      = "xml"      // characters within an element or a quoted attribute
	escapeURL      = "url"      // percent-encoded, a space is a plus sign
	escapeNone     = "none"     // as it is
)

func escapes() []string {
	return []string{escapeJSON, escapeJSONText, escapeXML, escapeURL, escapeNone}
}

// escapeFor is how placeholders are written that do not say it.
func escapeFor(mediaType string) string {
	switch {
	case mediaType == "application/json", strings.HasSuffix(mediaType, "+json"):
		return escapeJSON
	case mediaType == "application/xml", mediaType == "text/xml", strings.HasSuffix(mediaType, "+xml"), mediaType == "text/html":
		return escapeXML
	case mediaType == "application/x-www-form-urlencoded":
		return escapeURL
	}
	return escapeNone
}

func compileTemplate(text, mediaType string, set charset, names Names) (*template, error) {
	switch {
	case text == "":
		return nil, refuse("template", "must be set for the format template")
	case len(text) > maxTemplate:
		return nil, refuse("template", "it has %d bytes, more than %d", len(text), maxTemplate)
	case !utf8.ValidString(text):
		return nil, refuse("template", ruleUTF8)
	}
	t := &template{charset: set}
	var literal strings.Builder
	flush := func() error {
		if literal.Len() == 0 {
			return nil
		}
		encoded, err := set.append(nil, "template", literal.String())
		if wrong, ok := errors.AsType[*FieldError](err); ok {
			return refuse("template", "it %s", wrong.Rule)
		}
		t.parts = append(t.parts, part{literal: encoded})
		literal.Reset()
		return err
	}
	placeholders := 0
	for rest := text; rest != ""; {
		at := strings.IndexAny(rest, "{}")
		if at < 0 {
			literal.WriteString(rest)
			break
		}
		literal.WriteString(rest[:at])
		brace := rest[at]
		rest = rest[at+1:]
		offset := len(text) - len(rest) - 1
		switch {
		case rest != "" && rest[0] == brace:
			literal.WriteByte(brace)
			rest = rest[1:]
			continue
		case brace == '}':
			return nil, refuse("template", "a lone } at offset %d: a brace is written }}", offset)
		}
		if err := flush(); err != nil {
			return nil, err
		}
		p, after, err := readPlaceholder(rest, names)
		if err != nil {
			return nil, refuse("template", "the placeholder at offset %d: %s", offset, err)
		}
		if p.escape == "" {
			p.escape = escapeFor(mediaType)
		}
		if placeholders++; placeholders > maxPlaceholders {
			return nil, refuse("template", "more than %d placeholders", maxPlaceholders)
		}
		t.parts = append(t.parts, p)
		rest = after
	}
	return t, flush()
}

// readPlaceholder reads what is behind an opening brace, up to and with the closing one.
func readPlaceholder(text string, names Names) (p part, rest string, err error) {
	if p.from, rest, err = readSource(text, names); err != nil {
		return p, "", err
	}
	p.text = text[:len(text)-len(rest)]
	if escape, found := strings.CutPrefix(rest, "|"); found {
		if p.escape, _, found = strings.Cut(escape, "}"); !found || !slices.Contains(escapes(), p.escape) {
			return p, "", fmt.Errorf("after | must follow one of %s, and }", strings.Join(escapes(), ", "))
		}
		rest = escape[len(p.escape):]
	}
	rest, found := strings.CutPrefix(rest, "}")
	if !found {
		return p, "", fmt.Errorf("} is missing after %s", clip(p.text))
	}
	return p, rest, nil
}

func (t *template) usesPayload() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.from.path != nil })
}

func (t *template) execute(payload *Payload, values Values) ([]byte, error) {
	var out []byte
	for i := range t.parts {
		p := &t.parts[i]
		if p.literal != nil {
			out = append(out, p.literal...)
			continue
		}
		field, found, err := p.from.field(p.text, payload, values)
		if err != nil {
			return nil, err
		}
		if !found {
			field = Field{Name: p.text, Kind: KindNull}
		}
		if out, err = t.append(out, &field, p.escape); err != nil {
			return nil, err
		}
		if len(out) > maxEncoded {
			return nil, tooLong(p.text)
		}
	}
	return out, nil
}

func (t *template) append(dst []byte, f *Field, escape string) ([]byte, error) {
	start := len(dst)
	switch escape {
	case escapeJSON:
		var err error
		if dst, err = appendJSONValue(dst, f); err != nil {
			return nil, err
		}
	case escapeJSONText:
		dst = jsontext.AppendText(dst, f.Text)
	case escapeXML:
		text, err := xmlText(f, false)
		if err != nil {
			return nil, err
		}
		dst = append(dst, text...)
	case escapeURL:
		return t.charset.appendPercent(dst, f.Name, f.Text)
	default:
		dst = append(dst, f.Text...)
	}
	return t.charset.recode(dst, start, f.Name)
}
