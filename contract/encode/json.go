package encode

import (
	"encoding/json"
	"strings"

	"notifyd/internal/jsontext"
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
		out = append(jsontext.AppendString(out, f.Name), ':')
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
		return jsontext.AppendString(dst, f.Text), nil
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
