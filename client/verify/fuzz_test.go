package verify_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"notifyd/client/verify"
)

// Whatever comes: an *Error or a callback, never a panic; and nothing verifies that the engine has not made.
func FuzzVerify(f *testing.F) {
	all := samples()
	good := make([]verify.Message, len(all))
	verifiers := make([]*verify.Verifier, len(all))
	for i, s := range all {
		good[i], verifiers[i] = s.made(f), s.verifier(f)
		var header strings.Builder
		for _, name := range []string{"Webhook-Signature", "Stripe-Signature", "Wechatpay-Signature", "Authorization", "X-Sign"} {
			header.WriteString(good[i].Header.Get(name))
		}
		f.Add(uint8(i), good[i].Body, header.String())
	}
	f.Add(uint8(0), []byte("<a><b>&amp;</b></a>"), "v1,")
	f.Fuzz(func(t *testing.T, which uint8, body []byte, header string) {
		i := int(which) % len(all)
		m := good[i]
		m.Header = http.Header{}
		for name, values := range good[i].Header {
			m.Header[name] = values
			switch name {
			case "Webhook-Signature", "Stripe-Signature", "Wechatpay-Signature", "Authorization", "X-Sign":
				m.Header[name] = []string{header}
			}
		}
		m.Body = body
		c, err := verifiers[i].VerifyMessage(m, at)
		var e *verify.Error
		if err != nil && (!errors.As(err, &e) || e.Reason == "" || len(err.Error()) > 1000) {
			t.Fatalf("%T %v", err, err)
		}
		if err == nil && c == nil {
			t.Fatal("neither")
		}
		_ = verifiers[i].Explain(m, at, verify.Hints{Before: all[i].verify, Attempts: good[i : i+1], StringToSign: body})
	})
}
