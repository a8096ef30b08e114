package health

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAlarmsAreDocumented holds docs/operations.md to the table: a row for each alarm in the same words, and no others.
func TestAlarmsAreDocumented(t *testing.T) {
	page := operations(t)
	for _, k := range Kinds() {
		row := fmt.Sprintf("\n| `%s` | %s | %s | %s | %s | %s |\n", k.Name, k.Severity, k.Means, k.Raised, k.Cleared, k.Do)
		if strings.Count(page, row) != 1 {
			t.Errorf("docs/operations.md lacks%s", row)
		}
	}
	if rows := regexp.MustCompile("(?m)^\\| `[a-z_]+` \\| (critical|warning) \\|").FindAllString(page, -1); len(rows) != len(Kinds()) {
		t.Errorf("docs/operations.md has %d alarms, want %d", len(rows), len(Kinds()))
	}
}

func TestReadinessIsDocumented(t *testing.T) {
	page := operations(t)
	for _, row := range []string{
		"| any | down | " + wordsUnasked,
		"| `postgres` | degraded | " + wordsPostgres,
		"| `nats` | degraded | " + wordsNATS,
		"| `async_lane` | degraded | " + wordsNoNATS,
		"| `async_lane` | degraded | " + wordsStalled,
		"| `async_lane` | degraded | " + wordsFull,
		"| `ledger_writer` | degraded | " + wordsLagging,
		"| `ledger_writer` | degraded | " + wordsQueueFull,
		"| `intake` | down | " + wordsRefusing,
		"| `intake` | degraded | " + wordsDraining,
	} {
		if !strings.Contains(page, row+" |\n") {
			t.Errorf("docs/operations.md lacks\n%s |", row)
		}
	}
}

func TestDefaultsAreDocumented(t *testing.T) {
	page, c := operations(t), DefaultConfig()
	for key, value := range map[string]string{
		"no_deliveries_after": "8s", "degraded_after": "3s", "acknowledgement_p99": "13s", "acknowledgement_window": "5m", "acknowledgement_samples": "100",
		"dead_letters": "50", "dead_letters_window": "10m", "ledger_lag": "10s", "merchant_failing_for": "10m", "merchant_failing_attempts": "10", "key_expiring_within": "336h",
	} {
		if !strings.Contains(page, fmt.Sprintf("\n| `alarms.%s` | %s |", key, value)) {
			t.Errorf("docs/operations.md lacks alarms.%s with %s", key, value)
		}
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Webhook = WebhookConfig{URL: "https://pager.example/hook", Secret: testSecret}
	if text := fmt.Sprintf("%v %+v %#v", c, c, c); c.Validate() != nil || strings.Contains(text, "C2FV") {
		t.Errorf("shown: %s, %v", text, c.Validate())
	}
}

func operations(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
