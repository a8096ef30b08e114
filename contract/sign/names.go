package sign

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// find gives the place of a name among those of a closed set, in which the empty one stands for the invalid zero.
func find(what, name string, names []string) (int, error) {
	if at := slices.Index(names, name); at > 0 {
		return at, nil
	}
	return 0, fmt.Errorf("%s: %q must be one of %s", what, name, strings.Join(names[1:], ", "))
}

// nameOf is the text of one of a closed set; one that is not in it gets a text that find refuses.
func nameOf(what string, at int, names []string) string {
	if at > 0 && at < len(names) {
		return names[at]
	}
	return what + "(" + strconv.Itoa(at) + ")"
}
