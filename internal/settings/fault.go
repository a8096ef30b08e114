package settings

import "strings"

// KeyError is one fault of one setting.
type KeyError struct {
	Place string // "notifyd.yaml:12", "environment NOTIFYD_ASYNC_DEPTH", "flag --set", "flag --async-depth"
	Key   string // dotted, with [index] for lists and [key] for mappings; empty when Place says it, or none is at fault
	Value string // as it may be shown: quoted, or masked
	Rule  string // what the value has to be
}

// Error names place, key, value and rule.
func (e *KeyError) Error() string {
	var parts []string
	for _, part := range []string{e.Place, e.Key, e.Value, e.Rule} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

const unknownKey = "unknown key"

// meant asks for the name that is fewest slips of the pen away, if one is near. What sections the names have in common
// does not make them nearer.
func meant(name string, names []string) string {
	near, found := min(3, 1+len(name[strings.LastIndexByte(name, '.')+1:])/3), ""
	for _, candidate := range names {
		if len(name) > 200 || len(candidate) > 200 {
			continue // nobody meant that, and the distance costs their product
		}
		if d := distance(name, candidate); d <= near {
			near, found = d-1, candidate
		}
	}
	if found == "" {
		return ""
	}
	return "; did you mean " + found + "?"
}

// distance counts the insertions, deletions and substitutions that make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
