package ledger

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"notifyd/notification"
)

// visible makes text that Postgres would refuse storable, so that one can see what was there: a NUL or a byte that is
// not UTF-8 becomes \xNN. It is for what merchants answered and what errors say; what callers gave is never changed.
func visible(text string) string {
	if isVisible(text) {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if r == 0 || r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&out, `\x%02x`, text[i])
		} else {
			out.WriteString(text[i : i+size])
		}
		i += size
	}
	return out.String()
}

func isVisible(text string) bool { return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 }

func visibleHeaders(headers []notification.Header) []notification.Header {
	if !slices.ContainsFunc(headers, func(h notification.Header) bool { return !isVisible(h.Name) || !isVisible(h.Value) }) {
		return headers
	}
	out := make([]notification.Header, len(headers))
	for i, h := range headers {
		out[i] = notification.Header{Name: visible(h.Name), Value: visible(h.Value)}
	}
	return out
}

func visibleAll(texts []string) []string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = visible(text)
	}
	return out
}
