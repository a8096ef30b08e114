package encode

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// form writes name=value pairs, joined with &, in the fields' order.
func (e *Encoding) form(fields []Field) ([]byte, error) {
	return appendPairs(make([]byte, 0, sizeOf(fields)), e.charset, fields)
}

// query puts the pairs behind what the URL's query already holds, before a fragment. A field that is there already is
// refused: many readers take the first of two values, and that one is not signed.
func (e *Encoding) query(notifyURL string, fields []Field) (string, error) {
	before, fragment, found := strings.Cut(notifyURL, "#")
	if found {
		fragment = "#" + fragment
	}
	_, held, hasQuery := strings.Cut(before, "?")
	if err := e.checkHeld(held, fields); err != nil {
		return "", err
	}
	out := append(make([]byte, 0, len(notifyURL)+sizeOf(fields)), before...)
	switch {
	case !hasQuery:
		out = append(out, '?')
	case !strings.HasSuffix(before, "?") && !strings.HasSuffix(before, "&"):
		out = append(out, '&')
	}
	start := len(out)
	out, err := appendPairs(out, e.charset, fields)
	if err != nil {
		return "", err
	}
	if len(out) == start {
		return notifyURL, nil
	}
	return string(out) + fragment, nil
}

// checkHeld refuses the fields whose names are in a query already, however they are escaped there.
func (e *Encoding) checkHeld(query string, fields []Field) error {
	if query == "" {
		return nil
	}
	held := map[string]bool{}
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		held[name] = true
	}
	for i := range fields {
		f := &fields[i]
		if f.Kind == KindNull {
			continue
		}
		name, err := e.charset.append(nil, f.Name, f.Name)
		if err != nil {
			return err
		}
		if held[string(name)] {
			return &FieldError{Field: f.Name, Rule: "is in the query of the notify URL already: one name must not come twice"}
		}
	}
	return nil
}

func appendPairs(dst []byte, set charset, fields []Field) ([]byte, error) {
	start := len(dst)
	var err error
	for i := range fields {
		f := &fields[i]
		if f.Kind == KindNull {
			continue
		}
		if len(dst) > start {
			dst = append(dst, '&')
		}
		if dst, err = set.appendPercent(dst, f.Name, f.Name); err != nil {
			return nil, err
		}
		if dst, err = set.appendPercent(append(dst, '='), f.Name, f.Text); err != nil {
			return nil, err
		}
		if len(dst)-start > maxEncoded {
			return nil, tooLong(f.Name)
		}
	}
	return dst, nil
}

// appendPercent writes the charset's bytes percent-encoded: letters, digits and -_.~ stay, a space is a plus sign.
func (c charset) appendPercent(dst []byte, field, text string) ([]byte, error) {
	if c.scheme != nil || !utf8.ValidString(text) {
		encoded, err := c.append(nil, field, text)
		if err != nil {
			return nil, err
		}
		text = string(encoded)
	}
	return append(dst, url.QueryEscape(text)...), nil
}
