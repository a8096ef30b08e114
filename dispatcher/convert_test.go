package dispatcher

import (
	"strings"
	"testing"

	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// The stored numbers of the closed sets are those of the API, word for word, so that a conversion is a cast.
func TestEnumsMatch(t *testing.T) {
	for _, set := range []struct {
		prefix string
		words  map[int32]string
		own    func(n int32) string
	}{
		{"LANE_", notifydv1.Lane_name, func(n int32) string { return notification.Lane(n).String() }},
		{"STATE_", notifydv1.State_name, func(n int32) string { return notification.State(n).String() }},
		{"OUTCOME_", notifydv1.Outcome_name, func(n int32) string { return notification.Outcome(n).String() }},
		{"ATTEMPT_KIND_", notifydv1.AttemptKind_name, func(n int32) string { return notification.Kind(n).String() }},
		{"TRIGGER_", notifydv1.Trigger_name, func(n int32) string { return notification.Trigger(n).String() }},
		{"PERSIST_", notifydv1.Persist_name, func(n int32) string { return notification.Persist(n).String() }},
	} {
		for number, name := range set.words {
			want := strings.ToLower(strings.TrimPrefix(name, set.prefix))
			if want == "unspecified" || want == "prepared" { // PREPARED is reserved: nothing has it yet
				continue
			}
			if got := set.own(number); got != want {
				t.Errorf("%s is %d, which notification calls %q", name, number, got)
			}
		}
	}
}
