package egress

import (
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzRetryAfter: what a merchant asks for is between nothing and a day, and within these it is what was asked for.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"30", "Sun, 01 Mar 2026 12:00:45 GMT", "Sunday, 01-Mar-26 12:00:45 GMT", "Sun Mar  1 12:00:45 2026", "-5", "1e9", "99999999999999999999", "9223372036854775808",
		"Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", " 120 ", "soon", "٣٠",
	} {
		f.Add(value, noon.Unix())
	}
	f.Fuzz(func(t *testing.T, value string, at int64) {
		now := time.Unix(at%(1<<38), 0).UTC()
		got := retryAfter(value, now)
		if got < 0 || got > longestRetryAfter {
			t.Fatalf("%q: %v", value, got)
		}
		text := strings.TrimSpace(value)
		if text != "" && strings.Trim(text, "0123456789") == "" {
			want := longestRetryAfter
			if seconds, ok := new(big.Int).SetString(text, 10); ok && seconds.Cmp(big.NewInt(int64(longestRetryAfter/time.Second))) < 0 {
				want = time.Duration(seconds.Int64()) * time.Second
			}
			if got != want {
				t.Fatalf("%q: %v, want %v", value, got, want)
			}
			return
		}
		until, err := http.ParseTime(text)
		switch {
		case err != nil && got != 0:
			t.Fatalf("%q is no date, and asks for %v", value, got)
		case err == nil && !until.After(now) && got != 0:
			t.Fatalf("%q has passed, and asks for %v", value, got)
		case err == nil && until.After(now) && got != longestRetryAfter && !now.Add(got).Equal(until):
			t.Fatalf("%q: %v after %v", value, got, now)
		}
	})
}
