package source

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	goldenID     = "abcdefghijklmnop"
	goldenSecret = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrsq"
	goldenBody   = `{"notification":{"source":"pay","requestId":"r-1"}}`
	goldenPath   = "/notifyd.v1.NotificationService/Submit"
	// Made with openssl, see docs/callers.md:
	//	printf 'POST\n%s\n1790000000\n%s' "$path" "$(printf %s "$body" | sha256sum | cut -d' ' -f1)" | openssl dgst -sha256 -hmac "$secret" -binary | openssl base64
	goldenSignature = "8QD2sDcr/SCPAaO63IPZ76FWyns0uiRL8ZBkUXSFboE="
	goldenHeader    = "NOTIFYD-HMAC-SHA256 key=" + goldenID + ",timestamp=1790000000,signature=" + goldenSignature
	// Made with: printf %s "$secret" | sha256sum.
	goldenHash = "ccb4a466519e14d4ae8ab3b2c105dbd760d3b7bd652abc55b271281353ea40c5"
)

var goldenTime = time.Unix(1790000000, 0)

func mustParse(t *testing.T, text string) Secret {
	t.Helper()
	s, err := ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSecretGolden(t *testing.T) {
	api := mustParse(t, "nk_"+goldenID+"_"+goldenSecret)
	if api.Kind != KindAPIKey || api.KeyID != goldenID || hex.EncodeToString(api.Kept()) != goldenHash {
		t.Errorf("%s: kept %x", api, api.Kept())
	}
	signing := mustParse(t, "nh_"+goldenID+"_"+goldenSecret)
	if signing.Kind != KindHMAC || string(signing.Kept()) != goldenSecret {
		t.Errorf("%s: kept %q", signing, signing.Kept())
	}
}

func TestNewSecretsReadBack(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range []Kind{KindAPIKey, KindHMAC} {
		for range 100 {
			made := NewSecret(kind)
			if read := mustParse(t, made.Reveal()); read != made {
				t.Fatalf("%q became %q", made.Reveal(), read.Reveal())
			}
			if seen[made.KeyID] || seen[made.text] {
				t.Fatal("made twice")
			}
			seen[made.KeyID], seen[made.text] = true, true
		}
	}
}

// What is not a key is refused, and the error quotes nothing of it.
func TestParseSecretRefuses(t *testing.T) {
	good := NewSecret(KindAPIKey).Reveal()
	for name, text := range map[string]string{
		"nothing": "", "a prefix": "nk_", "another prefix": "no" + good[2:], "upper case": strings.ToUpper(good), "a space": good + " ",
		"a short secret": good[:len(good)-1], "a long secret": good + "a", "no secret": good[:20], "a third part": good + "_a",
		"a character that is none of ours": good[:len(good)-2] + "1a",
		"bits that nobody needs":           "nk_" + goldenID + "_" + goldenSecret[:51] + "r",
		"a line break inside":              good[:30] + "\n" + good[31:],
	} {
		s, err := ParseSecret(text)
		if err == nil {
			t.Errorf("%s: %q was read as %s", name, text, s)
		} else if err.Error() != errNotAKey.Error() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No way of formatting or encoding shows a secret (P11).
func TestSecretsAreNotShown(t *testing.T) {
	secret := NewSecret(KindHMAC)
	src := (&Source{ID: "pay"}).WithKey(Key{ID: secret.KeyID, Kind: KindHMAC}, secret.Kept())
	stored, err := json.Marshal(src)
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{string(stored)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		shown = append(shown, fmt.Sprintf(verb, secret), fmt.Sprintf(verb, *src), fmt.Sprintf(verb, src))
	}
	for _, text := range shown {
		if strings.Contains(text, secret.text) || strings.Contains(text, hex.EncodeToString(secret.Kept())) {
			t.Errorf("shown: %s", text)
		}
	}
}

func TestSignatureGolden(t *testing.T) {
	secret := mustParse(t, "nh_"+goldenID+"_"+goldenSecret)
	header, err := secret.SignRequest("POST", goldenPath, []byte(goldenBody), goldenTime)
	if err != nil || header != goldenHeader {
		t.Fatalf("%v\n got %s\nwant %s", err, header, goldenHeader)
	}
	signature, err := ParseSignature(strings.ReplaceAll(header, ",", ", "))
	if err != nil || signature.KeyID != goldenID || !signature.At.Equal(goldenTime) {
		t.Fatalf("%+v, %v", signature, err)
	}
	if !signature.Verify(secret.Kept(), "POST", goldenPath, []byte(goldenBody)) {
		t.Error("does not verify")
	}
}

// Whatever is signed cannot be changed.
func TestSignatureBindsEverything(t *testing.T) {
	secret := NewSecret(KindHMAC)
	header, err := secret.SignRequest("POST", "/a", []byte("body"), goldenTime)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := ParseSignature(header)
	if err != nil {
		t.Fatal(err)
	}
	later := signature
	later.At = later.At.Add(time.Second)
	for name, verifies := range map[string]bool{
		"method":     signature.Verify(secret.Kept(), "GET", "/a", []byte("body")),
		"path":       signature.Verify(secret.Kept(), "POST", "/b", []byte("body")),
		"body":       signature.Verify(secret.Kept(), "POST", "/a", []byte("bodz")),
		"no body":    signature.Verify(secret.Kept(), "POST", "/a", nil),
		"timestamp":  later.Verify(secret.Kept(), "POST", "/a", []byte("body")),
		"key":        signature.Verify(NewSecret(KindHMAC).Kept(), "POST", "/a", []byte("body")),
		"no key":     signature.Verify(nil, "POST", "/a", []byte("body")),
		"moved line": signature.Verify(secret.Kept(), "POST\n/a", "", []byte("body")),
	} {
		if verifies {
			t.Errorf("another %s verifies", name)
		}
	}
	if !signature.Verify(secret.Kept(), "POST", "/a", []byte("body")) {
		t.Error("the signature itself does not verify")
	}
}

func TestAPIKeysDoNotSign(t *testing.T) {
	if header, err := NewSecret(KindAPIKey).SignRequest("POST", "/", nil, goldenTime); err == nil {
		t.Errorf("signed: %s", header)
	}
}

func TestTimely(t *testing.T) {
	signature := Signature{At: goldenTime}
	for after, want := range map[time.Duration]bool{
		0: true, Tolerance: true, -Tolerance: true, Tolerance + time.Second: false, -Tolerance - time.Second: false, 290 * 365 * 24 * time.Hour: false,
	} {
		if got := signature.Timely(goldenTime.Add(after)); got != want {
			t.Errorf("%s after it: %v, want %v", after, got, want)
		}
	}
	if (Signature{At: time.Unix(1<<62, 0)}).Timely(goldenTime) {
		t.Error("the end of time is timely")
	}
}

func TestParseSignatureRefuses(t *testing.T) {
	for header, want := range map[string]string{
		"":                                "want NOTIFYD-HMAC-SHA256 key=",
		"Bearer x":                        "want NOTIFYD-HMAC-SHA256 key=",
		"NOTIFYD-HMAC-SHA256":             "want key, timestamp and signature",
		"NOTIFYD-HMAC-SHA256 ,":           "want key, timestamp and signature",
		goldenHeader + ",":                "want key, timestamp and signature",
		goldenHeader + ",realm=x":         "nothing else",
		goldenHeader + ",key=" + goldenID: "key is given twice",
		strings.Replace(goldenHeader, goldenID, "short", 1):             "key: want",
		strings.Replace(goldenHeader, "key="+goldenID+",", "", 1):       "key: want",
		strings.Replace(goldenHeader, "1790000000", "", 1):              "timestamp: want",
		strings.Replace(goldenHeader, "1790000000", "-1", 1):            "timestamp: want",
		strings.Replace(goldenHeader, "1790000000", "+1790000000", 1):   "timestamp: want",
		strings.Replace(goldenHeader, "1790000000", "1790000000.5", 1):  "timestamp: want",
		strings.Replace(goldenHeader, "boE=", "boE", 1):                 "signature: want",
		strings.Replace(goldenHeader, "boE=", "boF=", 1):                "signature: want", // bits that nobody needs
		strings.Replace(goldenHeader, goldenSignature, "AAAA", 1):       "signature: want",
		strings.TrimSuffix(goldenHeader, ",signature="+goldenSignature): "signature: want",
	} {
		if _, err := ParseSignature(header); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", header, err, want)
		}
	}
}

// Whatever is read is written back as it was, and nothing makes the reader fall.
func FuzzParseSecret(f *testing.F) {
	f.Add("nk_" + goldenID + "_" + goldenSecret)
	f.Add("nh_" + goldenID + "_" + goldenSecret[:51] + "r")
	f.Add("nk__")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSecret(text); err == nil && s.Reveal() != text {
			t.Errorf("%q became %q", text, s.Reveal())
		}
	})
}

// A header that is read says one thing only: written again it is read the same.
func FuzzParseAuthorization(f *testing.F) {
	f.Add(goldenHeader)
	f.Add("notifyd-hmac-sha256 signature=,timestamp=1,key=")
	f.Add("NOTIFYD-HMAC-SHA256 key=" + goldenID + ", timestamp=9223372036854775807, signature=" + goldenSignature)
	f.Fuzz(func(t *testing.T, header string) {
		s, err := ParseSignature(header)
		if err != nil {
			return
		}
		if s.At.Unix() < 0 || len(s.sum) != 32 || !isBase32(s.KeyID, keyIDBytes) {
			t.Errorf("%q was read as %+v", header, s)
		}
		s.Timely(goldenTime)
		if s.Verify([]byte(goldenSecret), "POST", goldenPath, nil) {
			t.Errorf("%q verifies", header)
		}
	})
}
