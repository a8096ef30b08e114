package encode

import (
	"encoding/xml"
	"fmt"
	"strings"
	"unicode/utf8"
)

const ruleXMLName = "must be an XML name: a letter or _, then letters, digits, _ - and ., of ASCII"

// xml writes an element for each field within the root. A charset that XML does not take for granted is declared.
func (e *Encoding) xml(fields []Field) ([]byte, error) {
	out := make([]byte, 0, sizeOf(fields))
	if e.charset.scheme != nil {
		out = append(out, `<?xml version="1.0" encoding="`+e.charset.name+`"?>`...)
	}
	out = append(out, "<"+e.root+">"...)
	for i := range fields {
		f := &fields[i]
		if f.Kind == KindNull {
			continue
		}
		if !isXMLName(f.Name) {
			return nil, &FieldError{Field: f.Name, Rule: ruleXMLName}
		}
		text, err := xmlText(f, e.cdata && (f.Kind == KindString || f.Kind == KindJSON))
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, '<'), f.Name...), '>')
		if out, err = e.charset.append(out, f.Name, text); err != nil {
			return nil, err
		}
		out = append(append(append(out, "</"...), f.Name...), '>')
		if len(out) > maxEncoded {
			return nil, tooLong(f.Name)
		}
	}
	return append(out, "</"+e.root+">"...), nil
}

// cdata ends a section for what it cannot hold: its own end, and a carriage return, which a reader would turn into a line feed.
var cdata = strings.NewReplacer("]]>", "]]]]><![CDATA[>", "\r", "]]>&#xD;<![CDATA[")

// xmlText is a field's text within an element.
func xmlText(f *Field, section bool) (string, error) {
	if !utf8.ValidString(f.Text) {
		return "", &FieldError{Field: f.Name, Rule: ruleUTF8}
	}
	if at := notXML(f.Text); at >= 0 {
		r, _ := utf8.DecodeRuneInString(f.Text[at:])
		return "", &FieldError{Field: f.Name, Rule: fmt.Sprintf("holds %U, which XML cannot carry", r)}
	}
	if section {
		return "<![CDATA[" + cdata.Replace(f.Text) + "]]>", nil
	}
	if !strings.ContainsAny(f.Text, "&<>\"'\t\n\r") {
		return f.Text, nil
	}
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(f.Text)) // a Builder takes everything
	return b.String(), nil
}

// notXML is where the first character stands that XML 1.0 has no way to write, or -1.
func notXML(text string) int {
	for at, r := range text {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return at
		}
	}
	return -1
}

func isXMLName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
		case i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '.'):
		default:
			return false
		}
	}
	return name != ""
}
