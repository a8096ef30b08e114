package encode

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Names are the values that the engine can give, and what each of them is.
type Names map[string]Kind

// Values gives the engine's value of a name, and whether there is one for this notification.
type Values func(name string) (text string, found bool)

// source is where a field's value comes from: $.path in the payload, @name of the engine, or =constant. An
// exclamation mark at the end of the first two says that there must be a value.
type source struct {
	path     *Path
	name     string
	kind     Kind   // of name
	constant string // if path is nil and name is empty
	required bool
}

// compileSource reads a whole text as a source.
func compileSource(text string, names Names) (source, error) {
	if constant, found := strings.CutPrefix(text, "="); found {
		if !utf8.ValidString(constant) {
			return source{}, errors.New("the constant " + ruleUTF8)
		}
		return source{constant: constant}, nil
	}
	s, rest, err := readSource(text, names)
	if err == nil && rest != "" {
		err = fmt.Errorf("unexpected %s", clip(rest))
	}
	return s, err
}

// readSource reads a path or a name from the beginning of a text.
func readSource(text string, names Names) (s source, rest string, err error) {
	switch {
	case strings.HasPrefix(text, "$"):
		if s.path, rest, err = readPath(text); err != nil {
			return s, "", err
		}
	case strings.HasPrefix(text, "@"):
		end := strings.IndexAny(text, "!|}")
		if end < 0 {
			end = len(text)
		}
		s.name, rest = text[1:end], text[end:]
		s.kind = names[s.name]
		if s.kind == 0 {
			known := slices.Sorted(maps.Keys(names))
			return s, "", fmt.Errorf("the name %s: must be one of %s", clip("@"+s.name), strings.Join(known, ", "))
		}
	default:
		return s, "", errors.New("must begin with $ (a path in the payload), @ (a value of the engine) or = (a constant)")
	}
	rest, s.required = strings.CutPrefix(rest, "!")
	return s, rest, nil
}

// field is the source's value for one notification, under a name.
func (s *source) field(name string, payload *Payload, values Values) (field Field, found bool, err error) {
	switch {
	case s.path != nil:
		if payload == nil {
			return Field{}, false, &FieldError{Field: name, Rule: "is taken from the payload, and the notification has none of JSON"}
		}
		if at := payload.find(s.path.steps); at >= 0 {
			field, found = payload.field(at, name), true
		}
		if s.required && (!found || field.Kind == KindNull) {
			return Field{}, false, &FieldError{Field: name, Rule: "is required, and the payload has no " + s.path.text}
		}
	case s.name != "":
		field = Field{Name: name, Kind: s.kind}
		if values != nil {
			field.Text, found = values(s.name)
		}
		if s.required && !found {
			return Field{}, false, &FieldError{Field: name, Rule: "is required, and the notification has no @" + s.name}
		}
	default:
		field, found = Field{Name: name, Text: s.constant, Kind: KindString}, true
	}
	return field, found, nil
}
