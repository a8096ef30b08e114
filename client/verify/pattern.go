package verify

import (
	"fmt"
	"strings"
)

// pattern is a text with placeholders in braces; a brace of its own is written twice.
type pattern struct {
	pieces []piece
}

// piece is a text, or a placeholder.
type piece struct{ literal, name string }

func parsePattern(text string) (*pattern, error) {
	p := &pattern{}
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			p.pieces = append(p.pieces, piece{literal: literal.String()})
			literal.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case (c == '{' || c == '}') && strings.HasPrefix(text[i+1:], string(c)):
			literal.WriteByte(c)
			i++
		case c == '{':
			length := strings.IndexByte(text[i:], '}')
			if length < 2 {
				return nil, fmt.Errorf("the brace at byte %d needs a name and its end; a brace of its own is written twice", i+1)
			}
			flush()
			p.pieces = append(p.pieces, piece{name: text[i+1 : i+length]})
			i += length
		case c == '}':
			return nil, fmt.Errorf("the brace at byte %d has no beginning; a brace of its own is written twice", i+1)
		default:
			literal.WriteByte(c)
		}
	}
	flush()
	return p, nil
}

// mustPattern is for the profiles' own.
func mustPattern(text string) *pattern {
	p, err := parsePattern(text)
	if err != nil {
		panic(err)
	}
	return p
}

func (p *pattern) names() (all []string) {
	for _, piece := range p.pieces {
		if piece.name != "" {
			all = append(all, piece.name)
		}
	}
	return all
}

func (p *pattern) uses(name string) bool {
	for _, piece := range p.pieces {
		if piece.name == name {
			return true
		}
	}
	return false
}

// match reads the values out of a text that was made by the pattern: each is as short as can be, the last one the rest.
func (p *pattern) match(text string) (map[string]string, bool) {
	values := map[string]string{}
	for i, piece := range p.pieces {
		if piece.name == "" {
			rest, ok := strings.CutPrefix(text, piece.literal)
			if !ok {
				return nil, false
			}
			text = rest
			continue
		}
		value := text
		if i+1 < len(p.pieces) {
			next := p.pieces[i+1]
			end := strings.Index(text, next.literal)
			if next.name != "" || end < 0 { // nothing tells two placeholders apart
				return nil, false
			}
			if i+2 == len(p.pieces) { // what ends the pattern ends the text
				if end = len(text) - len(next.literal); !strings.HasSuffix(text, next.literal) {
					return nil, false
				}
			}
			value = text[:end]
		}
		if before, again := values[piece.name]; again && before != value {
			return nil, false
		}
		values[piece.name] = value
		text = text[len(value):]
	}
	return values, text == ""
}
