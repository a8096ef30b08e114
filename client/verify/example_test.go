package verify_test

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"notifyd/client/verify"
)

func ExampleStandard() {
	v, err := verify.Standard("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		fmt.Println(err)
		return
	}
	m := verify.Message{Body: []byte(`{"test": 2432232314}`), Header: http.Header{
		"Webhook-Id": {"msg_p5jXN8AQM9LWM0D4loKWxJek"}, "Webhook-Timestamp": {"1614265330"},
		"Webhook-Signature": {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
	}}
	callback, err := v.VerifyMessage(m, time.Unix(1614265330, 0))
	fmt.Println(callback.ID, err)

	m.Body = []byte(`{"test": 1}`)
	_, err = v.VerifyMessage(m, time.Unix(1614265330, 0))
	fmt.Println(errors.Is(err, &verify.Error{Reason: verify.Mismatch}), err)
	// Output:
	// msg_p5jXN8AQM9LWM0D4loKWxJek <nil>
	// true verify callback: no signature matches
}
