package ledger

import (
	"fmt"
	"strings"
	"unicode/utf8"
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
