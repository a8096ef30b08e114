package verify

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
)

// sorting is how fields become text. The zero value is what everybody agrees on; the rest is what some do by mistake.
type sorting struct {
	foldCase  bool // the order ignores case
	escaped   bool // values as they are in a form
	withEmpty *bool
	noOrder   bool // as they came
	plainHash bool // the text itself where its hash is due, and its hash where it is
	upperHash bool
}

// signedPairs are those that a signature covers, in order.
func (s *scheme) signedPairs(all []pair) (out []pair) {
	withEmpty := s.signEmpty
	if s.how.withEmpty != nil {
		withEmpty = *s.how.withEmpty
	}
	for _, p := range all {
		if p.name == s.field && s.bodyPath == nil || slices.Contains(s.unsigned, p.name) || p.value == "" && !withEmpty {
			continue
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b pair) int {
		switch {
		case s.how.noOrder:
			return 0
		case s.how.foldCase:
			return cmp.Compare(strings.ToLower(a.name), strings.ToLower(b.name))
		default:
			return cmp.Compare(a.name, b.name)
		}
	})
	return out
}

func (s *scheme) sorted(all []pair) string {
	var b strings.Builder
	for i, p := range s.signedPairs(all) {
		if i > 0 {
			b.WriteByte('&')
		}
		if s.how.escaped {
			p.value = url.QueryEscape(p.value)
		}
		b.WriteString(p.name + "=" + p.value)
	}
	return b.String()
}
