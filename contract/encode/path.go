package encode

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"notifyd/internal/jsontext"
)

const (
	maxPath    = 512 // bytes
	maxIndex   = 99_999
	plainEnds  = `.[]{}|!'"\$`
	quotedName = `['`
)

// Path is the way to a value in a payload: $.a.b[0].c, or $['a.b'] for a name that is no plain word. In such a name a
// backslash stands before a quote or a backslash.
type Path struct {
	text  string
	steps []step
}

// step leads to a member, or to an element where index is not negative.
type step struct {
	name  string
	index int
}

// String is the path as it was written.
func (p *Path) String() string { return p.text }

// Member is the name of the payload's own member that the path leads to or into; false: it leads to no member of an object.
func (p *Path) Member() (string, bool) {
	if len(p.steps) == 0 || p.steps[0].index >= 0 {
		return "", false
	}
	return p.steps[0].name, true
}

// CompilePath reads a path.
func CompilePath(text string) (*Path, error) {
	path, rest, err := readPath(text)
	if err == nil && rest != "" {
		err = fmt.Errorf("unexpected %s at offset %d", clip(rest), len(text)-len(rest))
	}
	if err != nil {
		return nil, fmt.Errorf("path %s: %w", clip(text), err)
	}
	return path, nil
}

// readPath reads a path from the beginning of a text and returns what follows it.
func readPath(text string) (path *Path, rest string, err error) {
	rest, found := strings.CutPrefix(text, "$")
	if !found {
		return nil, "", errors.New("a path begins with $")
	}
	path = &Path{}
	for rest != "" {
		var s step
		switch {
		case strings.HasPrefix(rest, quotedName):
			s.index = -1
			s.name, rest, err = readQuoted(rest[len(quotedName):])
		case rest[0] == '[':
			s.index, rest, err = readIndex(rest[1:])
		case rest[0] == '.':
			s.index = -1
			s.name, rest, err = readPlain(rest[1:])
		default:
			path.text = text[:len(text)-len(rest)]
			return path, rest, nil
		}
		if err != nil {
			return nil, "", err
		}
		if path.steps = append(path.steps, s); len(path.steps) > MaxDepth {
			return nil, "", fmt.Errorf("more than %d steps", MaxDepth)
		}
		if len(text)-len(rest) > maxPath {
			return nil, "", fmt.Errorf("longer than %d bytes", maxPath)
		}
	}
	path.text = text
	return path, "", nil
}

func readPlain(text string) (name, rest string, err error) {
	end := strings.IndexFunc(text, func(r rune) bool { return !plainRune(r) })
	if end < 0 {
		end = len(text)
	}
	if end == 0 {
		return "", "", errors.New("a name is missing after the dot; one that is no plain word is written ['name']")
	}
	return text[:end], text[end:], nil
}

func plainRune(r rune) bool {
	return r != utf8.RuneError && unicode.IsGraphic(r) && !unicode.IsSpace(r) && !strings.ContainsRune(plainEnds, r)
}

func readQuoted(text string) (name, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			if i++; i == len(text) || (text[i] != '\'' && text[i] != '\\') {
				return "", "", errors.New(`a backslash in a quoted name stands before ' or \`)
			}
		case '\'':
			if !strings.HasPrefix(text[i+1:], "]") {
				return "", "", errors.New("] is missing after a quoted name")
			}
			if !utf8.ValidString(b.String()) {
				return "", "", errors.New("a name is not UTF-8")
			}
			return b.String(), text[i+2:], nil
		}
		b.WriteByte(text[i])
	}
	return "", "", errors.New("a quoted name does not end")
}

func readIndex(text string) (index int, rest string, err error) {
	digits, rest, found := strings.Cut(text, "]")
	if !found {
		return 0, "", errors.New("] is missing after an index")
	}
	index, err = strconv.Atoi(digits)
	if err != nil || index < 0 || index > maxIndex || strconv.Itoa(index) != digits {
		return 0, "", fmt.Errorf("the index %s is not a number from 0 to %d", clip(digits), maxIndex)
	}
	return index, rest, nil
}

// memberStep writes the step to a member.
func memberStep(name string) string {
	if len(name) > maxNamed {
		name = strings.ToValidUTF8(name[:maxNamed], "") + "…"
	}
	if name != "" && strings.IndexFunc(name, func(r rune) bool { return !plainRune(r) }) < 0 {
		return "." + name
	}
	return `['` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(name) + `']`
}

// Get finds the value at a path. The field's name is the path.
func (p *Payload) Get(path *Path) (field Field, found bool) {
	at := p.find(path.steps)
	if at < 0 {
		return Field{}, false
	}
	return p.field(at, path.text), true
}

// find is the index of the value that the steps lead to, or -1.
func (p *Payload) find(steps []step) int {
	at := 0
	for _, s := range steps {
		if at = p.follow(at, s); at < 0 {
			return -1
		}
	}
	return at
}

func (p *Payload) follow(at int, s step) int {
	if s.index >= 0 {
		return p.element(at, s.index)
	}
	return p.member(at, s.name)
}

// With is the payload's text with a string at the path, every other byte as it was. A value that is there is replaced;
// members that are missing on the way are made at the end of their object. An element of an array must be there.
func (p *Payload) With(path *Path, text string) ([]byte, error) {
	if !utf8.ValidString(text) {
		return nil, &FieldError{Field: path.text, Rule: ruleUTF8}
	}
	at, done := 0, 0
	for ; done < len(path.steps); done++ {
		next := p.follow(at, path.steps[done])
		if next < 0 {
			break
		}
		at = next
	}
	n := p.nodes[at]
	missing := path.steps[done:]
	if len(missing) == 0 {
		return p.splice(int(n.start), int(n.end), jsontext.AppendString(nil, text)), nil
	}
	if n.kind != KindJSON || n.array {
		return nil, &FieldError{Field: path.text, Rule: "cannot be set: what should hold it is no object, or too short an array"}
	}
	var insert []byte
	where := int(n.start) + 1
	if last := p.lastMember(at); last >= 0 {
		where = int(p.nodes[last].end)
		insert = append(insert, ',')
	}
	for i, s := range missing {
		if s.index >= 0 {
			return nil, &FieldError{Field: path.text, Rule: "cannot be set: it leads through an array that is missing"}
		}
		if i > 0 {
			insert = append(insert, '{')
		}
		insert = append(jsontext.AppendString(insert, s.name), ':')
	}
	insert = jsontext.AppendString(insert, text)
	for range len(missing) - 1 {
		insert = append(insert, '}')
	}
	return p.splice(where, where, insert), nil
}

func (p *Payload) lastMember(of int) int {
	last := -1
	for i := of + 1; i < int(p.nodes[of].after); i = int(p.nodes[i].after) {
		last = i
	}
	return last
}

func (p *Payload) splice(from, to int, insert []byte) []byte {
	out := make([]byte, 0, len(p.text)+len(insert))
	out = append(out, p.text[:from]...)
	out = append(out, insert...)
	return append(out, p.text[to:]...)
}
