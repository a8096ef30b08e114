package egress

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func mustSecret(tb testing.TB, text string) Secret {
	tb.Helper()
	secret, err := ParseSecret(text)
	if err != nil {
		tb.Fatal(err)
	}
	return secret
}

// The golden vector of the specification's own examples.
func TestSignGolden(t *testing.T) {
	got := mustSecret(t, testSecret).Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

var bodies = [][]byte{
	nil, []byte("{}"), []byte(`{"amount":10.50,"big":12345678901234567890}`), []byte("支付成功"),
	{0, 0xff, '\n', '.'},
	bytes.Repeat([]byte("x"), 256<<10),
}

func TestSignAgainstPublishedLibrary(t *testing.T) {
	for i := range 20 {
		text := GenerateSecret()
		secret := mustSecret(t, text)
		theirs, err := standardwebhooks.NewWebhook(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range bodies {
			id, at := fmt.Sprintf("ntf_%d", i), time.Unix(1700000000+int64(i), 999)
			want, err := theirs.Sign(id, at, body)
			if err != nil {
				t.Fatal(err)
			}
			if got := secret.Sign(id, at, body); got != want {
				t.Fatalf("sign: got %s, want %s", got, want)
			}
			h := signedHeaders(id, at, want)
			if err := theirs.VerifyIgnoringTimestamp(body, h); err != nil {
				t.Fatal(err)
			}
			if err := Verify(secret, h, body, at, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSignAgainstOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not on this machine")
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(testSecret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range bodies[:5] {
		command := exec.Command(openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(key), "-binary")
		command.Stdin = bytes.NewReader(append([]byte("ntf_x.1700000000."), body...))
		sum, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := "v1," + base64.StdEncoding.EncodeToString(sum)
		if got := mustSecret(t, testSecret).Sign("ntf_x", time.Unix(1700000000, 0), body); got != want {
			t.Errorf("got %s, openssl says %s", got, want)
		}
	}
}

func signedHeaders(id string, at time.Time, signature string) http.Header {
	h := http.Header{}
	h.Set(HeaderID, id)
	h.Set(HeaderTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(HeaderSignature, signature)
	return h
}

func TestVerify(t *testing.T) {
	secret, body, at := mustSecret(t, testSecret), []byte(`{"a":1}`), time.Unix(1700000000, 0)
	good := secret.Sign("ntf_x", at, body)
	other := mustSecret(t, GenerateSecret()).Sign("ntf_x", at, body)
	tests := []struct {
		name      string
		secret    Secret
		signature string
		body      string
		now       time.Time
		tolerance time.Duration
		want      error
	}{
		{"good", secret, good, `{"a":1}`, at, 5 * time.Minute, nil},
		{"one of several", secret, "v1a,zzz " + other + " " + good, `{"a":1}`, at, 5 * time.Minute, nil},
		{"at the edge", secret, good, `{"a":1}`, at.Add(5 * time.Minute), 5 * time.Minute, nil},
		{"too old", secret, good, `{"a":1}`, at.Add(5*time.Minute + 1), 5 * time.Minute, ErrTimestampTooOld},
		{"too new", secret, good, `{"a":1}`, at.Add(-5*time.Minute - 1), 5 * time.Minute, ErrTimestampTooNew},
		{"any time", secret, good, `{"a":1}`, at.Add(time.Hour), 0, nil},
		{"one byte changed", secret, good, `{"a":2}`, at, 5 * time.Minute, ErrSignatureMismatch},
		{"another secret", secret, other, `{"a":1}`, at, 5 * time.Minute, ErrSignatureMismatch},
		{"no version", secret, strings.TrimPrefix(good, "v1,"), `{"a":1}`, at, 5 * time.Minute, ErrSignatureMismatch},
		{"other version", secret, "v2" + strings.TrimPrefix(good, "v1"), `{"a":1}`, at, 5 * time.Minute, ErrSignatureMismatch},
		{"cut short", secret, good[:20], `{"a":1}`, at, 5 * time.Minute, ErrSignatureMismatch},
		{"none", secret, "", `{"a":1}`, at, 5 * time.Minute, ErrSignatureMissing},
		{"no secret", Secret{}, good, `{"a":1}`, at, 5 * time.Minute, ErrSignatureMismatch},
	}
	for _, test := range tests {
		err := Verify(test.secret, signedHeaders("ntf_x", at, test.signature), []byte(test.body), test.now, test.tolerance)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	h := signedHeaders("ntf_x", at, good)
	h.Set(HeaderTimestamp, "soon")
	if err := Verify(secret, h, body, at, 0); !errors.Is(err, ErrTimestamp) {
		t.Errorf("bad timestamp: %v", err)
	}
	h = signedHeaders("ntf_y", at, good)
	if err := Verify(secret, h, body, at, 0); !errors.Is(err, ErrSignatureMismatch) {
		t.Errorf("another id: %v", err)
	}
}

func TestParseSecret(t *testing.T) {
	for _, bad := range []string{"", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!!", testSecret + "\n", testSecret + "=", "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65))} {
		if _, err := ParseSecret(bad); !errors.Is(err, ErrBadSecret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	a, b := GenerateSecret(), GenerateSecret()
	if a == b {
		t.Error("two secrets are the same")
	}
	if secret := mustSecret(t, a); len(secret.key) != 32 || strings.Contains(fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, secret), a[6:]) {
		t.Error("a secret shows itself, or has another length than 32")
	}
}

// One secret signs for many attempts at once.
func TestSignConcurrently(t *testing.T) {
	secret, at := mustSecret(t, testSecret), time.Unix(1700000000, 0)
	want := secret.Sign("ntf_x", at, payload)
	var done sync.WaitGroup
	for range 8 {
		done.Go(func() {
			for range 200 {
				if got := secret.Sign("ntf_x", at, payload); got != want {
					t.Errorf("got %s", got)
				}
			}
		})
	}
	done.Wait()
}
