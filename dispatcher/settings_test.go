package dispatcher

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"notifyd/merchant"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// The largest page says, too, that more follow.
func TestTheLargestPageIsNotTheLast(t *testing.T) {
	f := newFront(t, CallersConfig{})
	for i := range 1001 {
		_, err := f.memory.PutMerchant(t.Context(), &merchant.Merchant{ID: fmt.Sprintf("page-%04d", i), NotifyURL: "https://m.test/notify"}, nil)
		must(t, err)
	}
	service := NewMerchantService(f.Dispatcher, nil, nil)
	seen := map[string]bool{}
	for token, pages := "", 0; pages == 0 || token != ""; pages++ {
		res, err := service.ListMerchants(t.Context(), connect.NewRequest(&notifydv1.ListMerchantsRequest{PageSize: 1000, PageToken: token}))
		must(t, err)
		for _, m := range res.Msg.Merchants {
			seen[m.Id] = true
		}
		token = res.Msg.NextPageToken
	}
	if !seen["page-0000"] || !seen["page-1000"] {
		t.Errorf("%d merchants", len(seen))
	}
}
