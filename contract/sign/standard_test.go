package sign

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestStandardSecret(t *testing.T) {
	secret, err := ParseStandardSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") // the specification's example
	if err != nil {
		t.Fatal(err)
	}
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	if got := secret.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := (StandardSecret{}).Sign("a", time.Unix(0, 0), nil); got != "" {
		t.Errorf("the zero value signs: %s", got)
	}
	if all := fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, &secret); strings.Contains(all, "MfKQ") || !strings.Contains(all, mask) {
		t.Error(all)
	}
}

func TestGenerateStandardSecret(t *testing.T) {
	a, b := GenerateStandardSecret(), GenerateStandardSecret()
	if _, err := ParseStandardSecret(a); err != nil || a == b || len(a) != len("whsec_")+44 {
		t.Errorf("%s %s %v", a, b, err)
	}
}

func TestBadStandardSecrets(t *testing.T) {
	of := func(n int) string { return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, text := range []string{"", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", of(15), of(65), of(32) + "\n", "whsec_?", "hex:00112233445566778899aabbccddeeff", "text:" + of(32)} {
		if _, err := ParseStandardSecret(text); err == nil || len(text) > 6 && strings.Contains(err.Error(), text[6:]) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
