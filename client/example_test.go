package client_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"

	"notifyd/client"
)

func Example() {
	server := httptest.NewServer(inMemory())
	defer server.Close()
	ctx, serverURL, key := context.Background(), server.URL, anAPIKey

	// A payment service needs this much:
	c, err := client.New(serverURL, client.WithAPIKey(key), client.WithSource("billing"))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close(ctx)
	result, err := c.Submit(ctx, &client.Notification{RequestId: "refund-81", MerchantId: "shop-7", Scene: "refund", Payload: `{"order":"A-1"}`})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Id, result.State)
	// Output: ntf_billing_refund-81 STATE_ACCEPTED
}
