package egress

import (
	"testing"

	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/keys"
	"notifyd/merchant"
	"notifyd/notification"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// newClient may reach this machine, unless the test says otherwise.
func newClient(tb testing.TB, change func(*Config)) *Client {
	tb.Helper()
	cfg := DefaultConfig()
	cfg.AllowedNetworks = loopback
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg, contract.NewBook(keys.NewRing(), sign.NewPool(0)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

func callTo(url string, body []byte) Call {
	n := &notification.Notification{
		ID: notification.ID{1, 2, 3}, MerchantID: "m1", NotifyURL: url, Body: body,
		Progress: notification.Progress{Generation: 3},
	}
	return Call{
		Work:     notification.Work{Notification: n, Trigger: notification.TriggerAuto},
		Merchant: &merchant.Merchant{ID: "m1", Version: 7, Secrets: merchant.Secrets{SigningSecret: testSecret}},
		Number:   1,
	}
}
