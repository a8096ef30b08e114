package sign

import (
	"fmt"
	"slices"
	"strings"
)

// Pattern is a text with placeholders, for what is signed or for a header's value: "{id}.{timestamp}.{body}". A brace of
// its own is written twice. Values are put in as they are: nothing is escaped, and no placeholder is looked for in them.
type Pattern struct {
	text    string
	parts   []part
	literal int // bytes of literal text
}

// part is a piece of literal text, or a placeholder's name.
type part struct {
	literal, name string
}

// MaxPattern is how many bytes a pattern has at most.
const MaxPattern = 4096

// CompilePattern reads a pattern. Each placeholder has to be one of the allowed; one of those that ends in * allows every
// name that goes on after what stands before it ("$.*": paths). Positions in errors are bytes, counted from 1.
func CompilePattern(text string, allowed []string) (*Pattern, error) {
	if len(text) > MaxPattern {
		return nil, fmt.Errorf("pattern: %d bytes must be at most %d", len(text), MaxPattern)
	}
	p := &Pattern{text: text}
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			p.parts = append(p.parts, part{literal: literal.String()})
			p.literal += literal.Len()
			literal.Reset()
		}
	}
	for at := 0; at < len(text); {
		switch rest := text[at:]; {
		case strings.HasPrefix(rest, "{{"), strings.HasPrefix(rest, "}}"):
			literal.WriteByte(rest[0])
			at += 2
		case rest[0] == '}':
			return nil, fmt.Errorf("pattern: } at %d closes nothing; a brace of its own is written }}", at+1)
		case rest[0] == '{':
			name, err := placeholder(text, at, allowed)
			if err != nil {
				return nil, err
			}
			flush()
			p.parts = append(p.parts, part{name: name})
			at += len(name) + len("{}")
		default:
			literal.WriteByte(rest[0])
			at++
		}
	}
	flush()
	return p, nil
}

// placeholder reads the one whose brace opens at a position.
func placeholder(text string, at int, allowed []string) (string, error) {
	name, _, closed := strings.Cut(text[at+1:], "}")
	if !closed || strings.ContainsAny(name, "{\r\n") {
		return "", fmt.Errorf("pattern: { at %d is not closed; a brace of its own is written {{", at+1)
	}
	if !slices.ContainsFunc(allowed, func(one string) bool { return allows(one, name) }) {
		return "", fmt.Errorf("pattern: {%s} at %d must be one of {%s}", name, at+1, strings.Join(allowed, "}, {"))
	}
	return name, nil
}

func allows(one, name string) bool {
	if begin, open := strings.CutSuffix(one, "*"); open {
		return len(name) > len(begin) && strings.HasPrefix(name, begin)
	}
	return one == name
}

// String is the pattern's text.
func (p *Pattern) String() string { return p.text }

// Uses reports whether a placeholder is in it. A signature of a pattern without {timestamp}, {nonce} and the like can stay
// the same over attempts.
func (p *Pattern) Uses(name string) bool { return slices.Contains(p.Names(), name) }

// Names are the placeholders in it, in order, each once.
func (p *Pattern) Names() []string {
	var names []string
	for _, part := range p.parts {
		if part.name != "" && !slices.Contains(names, part.name) {
			names = append(names, part.name)
		}
	}
	return names
}

// Append adds the text with its values to dst, which grows once. A placeholder without a value is an error that names it;
// an empty value is one. value is asked once for each place of a placeholder.
func (p *Pattern) Append(dst []byte, value func(name string) ([]byte, bool)) ([]byte, error) {
	size := p.literal
	var room [8][]byte
	values := room[:0]
	for _, part := range p.parts {
		if part.name == "" {
			continue
		}
		found, ok := value(part.name)
		if !ok {
			return dst, fmt.Errorf("pattern: {%s} has no value", part.name)
		}
		values = append(values, found)
		size += len(found)
	}
	dst = slices.Grow(dst, size)
	for _, part := range p.parts {
		if part.name == "" {
			dst = append(dst, part.literal...)
			continue
		}
		dst = append(dst, values[0]...)
		values = values[1:]
	}
	return dst, nil
}

// AppendEach adds the text n times, with a separator between: for the signatures of several live keys in one header, like
// Standard Webhooks' "v1,{signature}" between blanks, or Stripe's ",v1={signature}" after "t={timestamp}".
func (p *Pattern) AppendEach(dst []byte, n int, separator string, value func(i int, name string) ([]byte, bool)) ([]byte, error) {
	for i := range n {
		if i > 0 {
			dst = append(dst, separator...)
		}
		var err error
		if dst, err = p.Append(dst, func(name string) ([]byte, bool) { return value(i, name) }); err != nil {
			return dst, err
		}
	}
	return dst, nil
}
