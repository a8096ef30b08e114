package dispatcher

import (
	"fmt"
	"testing"

	"notifyd/merchant"
	"notifyd/notification"
)

// BUG gate.go Ask: a claim that is refused keeps the merchant's token.
func TestRefusedClaimGivesItsTokenBack(t *testing.T) {
	inBubble(t, DefaultConfig(), func(t *testing.T, w *world) {
		w.merchant(&merchant.Merchant{ID: "m", Limits: merchant.Limits{RatePerSecond: 1, Burst: 1}})
		stale := make([]notification.Work, 3)
		for i := range stale {
			stale[i] = w.due(t, fmt.Sprint("stale-", i), nil)
			if _, err := w.memory.Cancel(t.Context(), stale[i].ID, "", clock()); err != nil {
				t.Fatal(err)
			}
		}
		for _, work := range stale {
			if v, _ := w.deliver(t, work); v.Deferred {
				t.Fatalf("a stale one waits for a token: %+v", v)
			}
		}
		if v, _ := w.deliver(t, w.accepted(t, "good")); v.Deferred {
			t.Fatalf("the token was spent on what was not sent: %+v", v)
		}
	})
}
