package settings

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// parse reads one document; none, or an empty one, is nil. The place of its fault is ":line".
func parse(content []byte) (*yaml.Node, *KeyError) {
	at := func(line int, rule string) *KeyError { return &KeyError{Place: ":" + strconv.Itoa(line), Rule: rule} }
	lines := strings.Split(string(content), "\n")
	for i, line := range lines {
		if !utf8.ValidString(line) || strings.ContainsFunc(line, isControl) {
			return nil, at(i+1, "must be UTF-8 text without control characters")
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var first, second yaml.Node
	switch err := decoder.Decode(&first); {
	case errors.Is(err, io.EOF):
		return nil, nil //nolint:nilnil // an empty file sets nothing
	case err != nil:
		return nil, at(syntaxFault(err, lines))
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, at(second.Line, "must not begin a second document: all settings are in one")
	case !errors.Is(err, io.EOF):
		return nil, at(syntaxFault(err, lines))
	}
	if root := first.Content[0]; !isNull(root) {
		return root, nil
	}
	return nil, nil //nolint:nilnil // an empty document sets nothing either
}

func isControl(r rune) bool {
	return r != '\t' && r != '\r' && (r < ' ' || 0x7f <= r && r < 0xa0)
}

var (
	tabIndent = regexp.MustCompile(`^ *\t`)
	// parserFault begins what the YAML library says with a line that it counts from 0; the others count from 1.
	parserFault = regexp.MustCompile(`^did not find expected (key|node content|'-'|',' or|<)`)
	libraryLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)
)

// syntaxFault turns the YAML library's words into line and rule.
func syntaxFault(err error, lines []string) (line int, rule string) {
	line, said := cutLine(err.Error(), 0)
	anchor, isAlias := strings.CutPrefix(said, "unknown anchor '")
	switch {
	case isAlias: // not repeated: it may be a password
		alias := "*" + strings.TrimSuffix(anchor, "' referenced")
		for line < len(lines) && !strings.Contains(lines[line], alias) {
			line++
		}
		return line + 1, noAlias
	case line == 0: // the library says no line when it is the first
		line = 1
	case parserFault.MatchString(said):
		line = min(line+1, len(lines))
	}
	if line <= len(lines) && tabIndent.MatchString(lines[line-1]) {
		return line, "must be indented with spaces, not tabs"
	}
	return line, "is not YAML: " + said
}

// cutLine takes the YAML library's "line 3: " off what it says.
func cutLine(said string, otherwise int) (line int, rest string) {
	found := libraryLine.FindStringSubmatch(said)
	if n, err := strconv.Atoi(found[1]); err == nil {
		otherwise = n
	}
	return otherwise, said[len(found[0]):]
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
