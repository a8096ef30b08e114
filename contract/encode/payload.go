package encode

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// MaxPayload is the longest payload, in bytes.
	MaxPayload = 256 << 10
	// MaxDepth is how many objects and arrays may be within each other.
	MaxDepth = 64
)

// Kind is what a field's text is.
type Kind uint8

// The kinds.
const (
	KindString Kind = iota + 1 // characters
	KindNumber                 // a JSON number as it was written
	KindBool                   // "true" or "false"
	KindNull                   // the text is empty
	KindJSON                   // an object or an array: JSON text
)

// Field is one named value of a request.
type Field struct {
	Name string
	Text string
	Kind Kind
}

// Payload is a JSON text with its values found: objects keep their order, scalars their literal text.
type Payload struct {
	text  string
	nodes []node // in the order of the text; a value's own values follow it
}

// node is one value. Offsets are in bytes.
type node struct {
	name    string // of a member
	start   int32
	end     int32
	after   int32 // the index of the first node that is not within this one
	kind    Kind
	array   bool
	escaped bool // a string with a backslash
}

// ParsePayload finds the values of a JSON text.
func ParsePayload(text []byte) (*Payload, error) {
	if len(text) > MaxPayload {
		return nil, fmt.Errorf("parse payload: it has %d bytes, more than %d", len(text), MaxPayload)
	}
	if at := invalidUTF8(text); at >= 0 {
		return nil, fmt.Errorf("parse payload: the byte at offset %d is not UTF-8", at)
	}
	if !json.Valid(text) {
		return nil, fmt.Errorf("parse payload: %w", syntaxError(text))
	}
	s := scanner{text: string(text), nodes: make([]node, 0, fewNames)}
	if err := s.value("", 0); err != nil {
		if wrong, ok := errors.AsType[*FieldError](err); ok {
			wrong.Field = "$" + wrong.Field
		}
		return nil, fmt.Errorf("parse payload: %w", err)
	}
	return &Payload{text: s.text, nodes: s.nodes}, nil
}

func invalidUTF8(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for at := 0; ; {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size <= 1 {
			return at
		}
		at += size
	}
}

func syntaxError(text []byte) error {
	var into json.RawMessage
	err := json.Unmarshal(text, &into)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not JSON at offset %d: %w", syntax.Offset, err)
	}
	return errors.New("not JSON")
}

// scanner walks over a text that is known to be JSON, so that it need not look for errors of the grammar.
type scanner struct {
	text  string
	pos   int
	nodes []node
}

func (s *scanner) value(name string, depth int) error {
	s.space()
	at := len(s.nodes)
	s.nodes = append(s.nodes, node{name: name, start: int32(s.pos)}) //nolint:gosec // below MaxPayload
	var (
		kind           Kind
		array, escaped bool
		err            error
	)
	switch s.text[s.pos] {
	case '{':
		kind = KindJSON
		err = s.object(depth + 1)
	case '[':
		kind, array = KindJSON, true
		err = s.array(depth + 1)
	case '"':
		kind = KindString
		escaped, err = s.str()
	case 't', 'f':
		kind = KindBool
		s.scalar()
	case 'n':
		kind = KindNull
		s.scalar()
	default:
		kind = KindNumber
		s.scalar()
	}
	n := &s.nodes[at]
	n.kind, n.array, n.escaped = kind, array, escaped
	n.end, n.after = int32(s.pos), int32(len(s.nodes)) //nolint:gosec // below MaxPayload
	return err
}

func (s *scanner) object(depth int) error {
	if depth > MaxDepth {
		return &FieldError{Rule: "is more than " + strconv.Itoa(MaxDepth) + " levels deep"}
	}
	var names nameSet
	for s.opens('}') {
		s.space()
		start := s.pos
		escaped, err := s.str()
		if err != nil {
			return under(`.(a name)`, err)
		}
		name := unquote(s.text[start:s.pos], escaped)
		if !names.add(name) {
			return &FieldError{Field: memberStep(name), Rule: "is in its object twice"}
		}
		s.space()
		s.pos++ // the colon
		if err := s.value(name, depth); err != nil {
			return under(memberStep(name), err)
		}
	}
	return nil
}

func (s *scanner) array(depth int) error {
	if depth > MaxDepth {
		return &FieldError{Rule: "is more than " + strconv.Itoa(MaxDepth) + " levels deep"}
	}
	for i := 0; s.opens(']'); i++ {
		if err := s.value("", depth); err != nil {
			return under("["+strconv.Itoa(i)+"]", err)
		}
	}
	return nil
}

// opens passes the bracket or comma before the next value, or the bracket that ends them.
func (s *scanner) opens(closing byte) bool {
	s.space()
	if s.text[s.pos] != closing {
		s.pos++ // an opening bracket or a comma
		s.space()
	}
	if s.text[s.pos] == closing {
		s.pos++
		return false
	}
	return true
}

// str passes a string and reports whether it has escapes.
func (s *scanner) str() (escaped bool, err error) {
	for s.pos++; s.text[s.pos] != '"'; s.pos++ {
		if s.text[s.pos] != '\\' {
			continue
		}
		escaped = true
		s.pos++
		if s.text[s.pos] != 'u' {
			continue
		}
		first := s.text[s.pos+1 : s.pos+5]
		s.pos += 4
		switch {
		case !surrogate(first):
		case low(first) || !strings.HasPrefix(s.text[s.pos+1:], `\u`) || !low(s.text[s.pos+3:s.pos+7]):
			return escaped, &FieldError{Rule: `holds half of a surrogate pair, \u` + first}
		default:
			s.pos += 6
		}
	}
	s.pos++
	return escaped, nil
}

// surrogate reports whether four hexadecimal digits name half of a pair.
func surrogate(digits string) bool {
	return digits[0]&^0x20 == 'D' && digits[1] >= '8'
}

// low reports whether they name its second half: DC00 to DFFF.
func low(digits string) bool {
	return surrogate(digits) && digits[1]&^0x20 >= 'C'
}

// scalar passes a number or a word.
func (s *scanner) scalar() {
	for s.pos < len(s.text) && !isSpace(s.text[s.pos]) && s.text[s.pos] != ',' && s.text[s.pos] != ']' && s.text[s.pos] != '}' {
		s.pos++
	}
}

func (s *scanner) space() {
	for s.pos < len(s.text) && isSpace(s.text[s.pos]) {
		s.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// unquote decodes a JSON string that is known to be one.
func unquote(quoted string, escaped bool) string {
	if !escaped {
		return quoted[1 : len(quoted)-1]
	}
	var text string
	_ = json.Unmarshal([]byte(quoted), &text) // cannot fail: the grammar has been checked
	return text
}

// under puts a step before the path of an error.
func under(step string, err error) error {
	if wrong, ok := errors.AsType[*FieldError](err); ok && len(wrong.Field) <= maxNamed {
		wrong.Field = step + wrong.Field
	}
	return err
}

// nameSet holds the names of one object. Few are compared, which needs no memory of its own; more are hashed.
type nameSet struct {
	few  [fewNames]string
	n    int // of few
	many map[string]struct{}
}

const fewNames = 16

// add reports whether the name is new.
func (s *nameSet) add(name string) bool {
	if slices.Contains(s.few[:s.n], name) {
		return false
	}
	if s.n < fewNames {
		s.few[s.n] = name
		s.n++
		return true
	}
	if _, known := s.many[name]; known {
		return false
	}
	if s.many == nil {
		s.many = make(map[string]struct{}, 2*fewNames)
	}
	s.many[name] = struct{}{}
	return true
}

// member finds an object's member: its index, or -1.
func (p *Payload) member(of int, name string) int {
	object := p.nodes[of]
	if object.kind != KindJSON || object.array {
		return -1
	}
	for i := of + 1; i < int(object.after); i = int(p.nodes[i].after) {
		if p.nodes[i].name == name {
			return i
		}
	}
	return -1
}

// element finds an array's element: its index, or -1.
func (p *Payload) element(of, number int) int {
	array := p.nodes[of]
	if !array.array {
		return -1
	}
	for i := of + 1; i < int(array.after); i = int(p.nodes[i].after) {
		if number == 0 {
			return i
		}
		number--
	}
	return -1
}

// field is a value under a name.
func (p *Payload) field(at int, name string) Field {
	n := &p.nodes[at]
	text := p.text[n.start:n.end]
	switch n.kind {
	case KindString:
		text = unquote(text, n.escaped)
	case KindNull:
		text = ""
	case KindJSON:
		text = compact(text)
	case KindNumber, KindBool:
	}
	return Field{Name: name, Text: text, Kind: n.kind}
}

// compact takes the white space from between the tokens.
func compact(text string) string {
	if !strings.ContainsAny(text, " \t\r\n") {
		return text
	}
	var out bytes.Buffer
	out.Grow(len(text))
	_ = json.Compact(&out, []byte(text)) // cannot fail: the grammar has been checked
	return out.String()
}
