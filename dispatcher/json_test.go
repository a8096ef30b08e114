package dispatcher

import (
	"strings"
	"testing"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// What a person gets wrong is named by its path, the same in every build.
func TestStrictJSONNamesTheField(t *testing.T) {
	for body, want := range map[string]string{
		``:                                       `the body is empty: want a JSON object, such as {}`,
		`{"notification":{"sceen":"scan"}}`:      `notification.sceen: unknown field "sceen" (line 1, column 18)`,
		`{"notification":{"scene":"scan","":1}}`: `notification.: unknown field "" (line 1, column 33)`,
		`{"notification":{"lane":"LANE_FAST"}}`:  `notification.lane: invalid value for enum field lane: "LANE_FAST"; want LANE_SYNC, LANE_ASYNC (line 1, column 25)`,
		"{\n \"notification\": {\n  \"payload\": {\"a\":1}}}": `notification.payload: invalid value for string field payload: { (line 3, column 14)`,
		`{"notification":{"labels":{"é":"x","b":[]}}}`:        `notification.labels.b: invalid value for string field value: [ (line 1, column 40)`,
		`{"notification":{"notBefore":"tomorrow"}}`:           `notification.notBefore: invalid google.protobuf.Timestamp value "tomorrow"; want RFC 3339, such as 2026-11-11T08:00:00+08:00 (line 1, column 30)`,
		`{"notification":{"scene":"a","scene":"b"}}`:          `notification.scene: duplicate field "scene" (line 1, column 30)`,
		`{"notification":[]}`:                                 `notification: syntax error: unexpected token [ (line 1, column 17)`,
		`[]`:                                                  `syntax error: unexpected token [ (line 1, column 1)`,
		`notification=x`:                                      `syntax error: invalid value notification (line 1, column 1)`,
		`{"notification":{"scene":"scan"`:                     `unexpected EOF: the JSON ends too early, or is cut off`,
		`{} {}`:                                               `syntax error: unexpected token { (line 1, column 4)`,
	} {
		err := strictJSON("json").Unmarshal([]byte(body), &notifydv1.SubmitRequest{})
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", body, err, want)
		}
	}
	long := strictJSON("json").Unmarshal([]byte(`{"`+strings.Repeat("x", 1<<20)+`\n":1}`), &notifydv1.SubmitRequest{})
	if long == nil || len(long.Error()) > 1000 || strings.Contains(long.Error(), "\n") {
		t.Errorf("a long key: %.2000v", long)
	}
	batch := `{"notifications":[{},{"labels":{"a":"b"}},{"scene":7}]}`
	err := strictJSON("json").Unmarshal([]byte(batch), &notifydv1.SubmitBatchRequest{})
	if err == nil || !strings.HasPrefix(err.Error(), "notifications[2].scene: ") {
		t.Errorf("%s: %v", batch, err)
	}
}
