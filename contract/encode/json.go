package encode

import (
	"encoding/json"
	"strings"
)

// json writes an object of the fields in their order.
func (e *Encoding) json(fields []Field) ([]byte, error) {
	out := append(make([]byte, 0, sizeOf(fields)), '{')
	var err error
	for i := range fields {
		f := &fields[i]
		if i > 0 {
			out = append(out, ',')
		}
		start := len(out)
		out = append(appendJSONString(out, f.Name), ':')
		if out, err = appendJSONValue(out, f); err != nil {
			return nil, err
		}
		if out, err = e.charset.recode(out, start, f.Name); err != nil {
			return nil, err
		}
		if len(out) > maxEncoded {
			return nil, tooLong(f.Name)
		}
	}
	return append(out, '}'), nil
}

// appendJSONValue writes a field's value as JSON text.
func appendJSONValue(dst []byte, f *Field) ([]byte, error) {
	switch f.Kind {
	case KindString:
		return appendJSONString(dst, f.Text), nil
	case KindNull:
		return append(dst, "null"...), nil
	case KindNumber, KindBool, KindJSON:
		if !literal(f) {
			return nil, &FieldError{Field: f.Name, Rule: "is not the kind of JSON value that it is meant to be"}
		}
	}
	return append(dst, f.Text...), nil
}

// literal reports whether the text is a JSON value of its kind.
func literal(f *Field) bool {
	if f.Text == "" {
		return false
	}
	begins := "-0123456789"
	switch f.Kind {
	case KindBool:
		begins = "tf"
	case KindJSON:
		begins = "{["
	case KindNumber, KindString, KindNull:
	}
	return strings.IndexByte(begins, f.Text[0]) >= 0 && json.Valid([]byte(f.Text))
}

// appendJSONString writes characters as a JSON string, escaping only what must be.
func appendJSONString(dst []byte, text string) []byte {
	return append(appendJSONText(append(dst, '"'), text), '"')
}

const hexDigits = "0123456789abcdef"

// appendJSONText writes what is within the quotes.
func appendJSONText(dst []byte, text string) []byte {
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
