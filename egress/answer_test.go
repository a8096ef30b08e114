package egress

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestRetryAfter(t *testing.T) {
	tests := map[string]time.Duration{
		"":                                 0,
		"0":                                0,
		"30":                               30 * time.Second,
		" 120 ":                            2 * time.Minute,
		"86400":                            24 * time.Hour,
		"86401":                            24 * time.Hour,
		"99999999999999999999999999":       24 * time.Hour,
		"-5":                               0,
		"1.5":                              0,
		"soon":                             0,
		"+30":                              0,
		noon.Format(http.TimeFormat):       0,
		"Sun, 01 Mar 2026 12:00:45 GMT":    45 * time.Second,
		"Sunday, 01-Mar-26 12:00:45 GMT":   45 * time.Second,
		"Sun Mar  1 12:00:45 2026":         45 * time.Second,
		"Sun, 01 Mar 2026 11:59:00 GMT":    0,
		"Fri, 31 Dec 9999 23:59:59 GMT":    24 * time.Hour,
		"Sun, 01 Mar 2026 12:00:45 +08:00": 0,
	}
	for value, want := range tests {
		if got := retryAfter(value, noon); got != want {
			t.Errorf("%q: got %v, want %v", value, got, want)
		}
	}
}

func TestKeptHeaders(t *testing.T) {
	h := http.Header{"Set-Cookie": {"sid=secret", "b=2"}, "A": {strings.Repeat("x", 5000)}, "X-Bad": {"\xff"}}
	kept := keptHeaders(h)
	if len(kept) != 4 || kept[0].Name != "A" || len(kept[0].Value) != maxKeptHeaderValue {
		t.Fatalf("kept %v", kept)
	}
	for _, header := range kept {
		if strings.Contains(header.Value, "secret") || strings.Contains(header.Value, "\xff") {
			t.Errorf("kept %s: %q", header.Name, header.Value)
		}
	}
	for i := range 100 {
		h.Add("Many", strings.Repeat("v", i))
	}
	if kept := keptHeaders(h); len(kept) != maxKeptHeaders {
		t.Errorf("kept %d headers", len(kept))
	}
}

func TestMaskHeader(t *testing.T) {
	for _, name := range []string{"Authorization", "authorization", "COOKIE", "Proxy-Authorization", "set-cookie", "X-Api-Key"} {
		if maskHeader(name, "secret") != masked {
			t.Errorf("%s is not masked", name)
		}
	}
	if maskHeader("webhook-signature", "v1,x") != "v1,x" {
		t.Error("the signature is masked")
	}
}

func TestDetail(t *testing.T) {
	if got := withoutQuery("https://u:p@h.example/login?token=secret#x"); got != "https://h.example/login" {
		t.Errorf("got %s", got)
	}
	if got := tidy("a\r\nb\x00\xffc" + strings.Repeat("語", 200)); len(got) > longestDetail+len("…") || strings.ContainsAny(got, "\r\n\x00") {
		t.Errorf("got %q", got)
	}
}
