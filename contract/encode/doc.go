// Package encode turns a notification's payload into the bytes that a merchant reads: the payload as a tree that keeps
// every number as it was written, the merchant's fields out of it, and these as JSON, a form, a query, XML or a
// template of the merchant's own, in its charset. It does no I/O; everything is compiled once per merchant setting.
//
// What becomes of a payload's values, by format:
//
//	value           json             form, query, sorted pairs     xml
//	string          string           its characters                its characters
//	number          as written       as written                    as written
//	true, false     as written       "true", "false"               "true", "false"
//	null            null             left out                      left out
//	object, array   as written,      its JSON text, as written,    its JSON text, as written,
//	                without white    without white space           without white space
//	                space            between the tokens            between the tokens
//
// A payload with a key twice in an object, half a surrogate pair, bytes that are not UTF-8, more than 64 levels or
// anything after its value is refused.
package encode

import "fmt"

// FieldError says which field of a payload or a request breaks which rule. It holds no value of the field, but the one
// character that cannot be carried.
type FieldError struct {
	Field string // a field's name, or the path of a value in the payload
	Rule  string // what is wrong: a sentence without its subject
}

func (e *FieldError) Error() string { return fmt.Sprintf("field %s: %s", clip(e.Field), e.Rule) }

// SettingError says which setting breaks which rule.
type SettingError struct {
	Setting string // format, charset, xml_root, cdata, template, content_type, fields, order or leave_out
	Rule    string // its value, if that helps, and what is wrong
}

func (e *SettingError) Error() string { return e.Setting + ": " + e.Rule }

func refuse(setting, format string, values ...any) error {
	return &SettingError{setting, fmt.Sprintf(format, values...)}
}

const maxNamed = 100 // bytes of a name in an error

// clip bounds what an error repeats.
func clip(name string) string {
	if len(name) > maxNamed {
		name = name[:maxNamed] + "…"
	}
	return fmt.Sprintf("%q", name)
}
