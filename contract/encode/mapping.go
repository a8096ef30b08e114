package encode

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

const (
	maxTargets = 256
	// maxEncoded bounds a request's body in bytes: a mapping or a template may repeat what is in the payload.
	maxEncoded = 1 << 20
)

// Mapping takes a merchant's fields out of a payload.
type Mapping struct {
	targets       []target // in the byte order of their names; none: all members of the payload
	leaveOutEmpty bool
}

type target struct {
	name string
	from source
}

// CompileMapping reads a mapping from the merchant's names to sources: "$.path" in the payload, "@name" of the engine,
// "=constant". A source that has no value leaves its field out; with an exclamation mark at its end it must have one.
// Without a mapping the fields are the payload's members in their order. Empty strings and nulls can be left out.
func CompileMapping(sources map[string]string, names Names, leaveOutEmpty bool) (*Mapping, error) {
	if len(sources) > maxTargets {
		return nil, refuse("fields", "there are %d, more than %d", len(sources), maxTargets)
	}
	m := &Mapping{leaveOutEmpty: leaveOutEmpty}
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		if name == "" || !utf8.ValidString(name) {
			return nil, refuse("fields", "the name %s: must be UTF-8, and not empty", clip(name))
		}
		from, err := compileSource(sources[name], names)
		if err != nil {
			return nil, refuse("fields", "%s: the source %s: %s", clip(name), clip(sources[name]), err)
		}
		m.targets = append(m.targets, target{name, from})
	}
	return m, nil
}

// UsesPayload reports whether Fields needs one.
func (m *Mapping) UsesPayload() bool {
	return len(m.targets) == 0 || slices.ContainsFunc(m.targets, func(t target) bool { return t.from.path != nil })
}

// Fields are the merchant's fields of one notification. The payload may be nil if it is not used.
func (m *Mapping) Fields(payload *Payload, values Values) ([]Field, error) {
	if len(m.targets) == 0 {
		return m.members(payload)
	}
	fields := make([]Field, 0, len(m.targets)+1) // with room for a signature
	size := 0
	for i := range m.targets {
		t := &m.targets[i]
		field, found, err := t.from.field(t.name, payload, values)
		switch {
		case err != nil:
			return nil, err
		case found && m.leaveOutEmpty && field.Text == "":
			if t.from.required {
				return nil, &FieldError{Field: t.name, Rule: "is required and empty, and empty fields are left out"}
			}
			found = false
		}
		if !found {
			continue
		}
		if size += len(field.Text); size > maxEncoded {
			return nil, tooLong(t.name)
		}
		fields = append(fields, field)
	}
	return fields, nil
}

func (m *Mapping) members(payload *Payload) ([]Field, error) {
	if payload == nil {
		return nil, errors.New("the notification has no payload of JSON to take fields from")
	}
	root := payload.nodes[0]
	if root.kind != KindJSON || root.array {
		return nil, &FieldError{Field: "$", Rule: "is no object: the payload's members are the fields"}
	}
	var fields []Field
	for i := 1; i < int(root.after); i = int(payload.nodes[i].after) {
		field := payload.field(i, payload.nodes[i].name)
		if m.leaveOutEmpty && field.Text == "" {
			continue
		}
		if fields == nil {
			fields = make([]Field, 0, fewNames)
		}
		fields = append(fields, field)
	}
	return fields, nil
}

func tooLong(field string) error {
	return &FieldError{Field: field, Rule: fmt.Sprintf("makes the request longer than %d bytes", maxEncoded)}
}
