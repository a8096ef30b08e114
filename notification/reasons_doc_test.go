package notification_test

import (
	"os"
	"regexp"
	"testing"

	"notifyd/notification"
)

var reasonRow = regexp.MustCompile("(?m)^\\| `([a-z_0-9]+)` \\|")

// TestReasonsAreDocumented holds docs/reasons.md to the closed set: a row for each reason, and no others.
func TestReasonsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, match := range reasonRow.FindAllStringSubmatch(string(page), -1) {
		rows[match[1]]++
	}
	for _, reason := range notification.Reasons() {
		if rows[string(reason)] != 1 {
			t.Errorf("%s has %d rows in docs/reasons.md, want one", reason, rows[string(reason)])
		}
		delete(rows, string(reason))
	}
	for word := range rows {
		t.Errorf("docs/reasons.md has a row for %s, which is not a reason", word)
	}
}
