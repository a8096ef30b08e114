package ledger_test

import (
	"encoding/base64"
	"errors"
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
)

var (
	tokenFilter = ledger.Filter{MerchantID: "m-1", States: []notification.State{notification.StateDead, notification.StateExpired}}
	tokenPlace  = ledger.Cursor{AcceptedAt: time.Date(2026, 11, 22, 10, 0, 0, 123_000, time.UTC), ID: notification.ID{1, 2, 3}}
)

func TestTokens(t *testing.T) {
	good := tokenPlace.Token(tokenFilter)
	raw := func(change func([]byte) []byte) string {
		b, err := base64.RawURLEncoding.DecodeString(good)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(change(b))
	}
	reordered := tokenFilter
	reordered.States = []notification.State{notification.StateExpired, notification.StateDead, notification.StateDead}
	narrower := tokenFilter
	narrower.From = tokenPlace.AcceptedAt.Add(-time.Hour)
	for name, c := range map[string]struct {
		token  string
		filter ledger.Filter
		want   error
	}{
		"as given":               {good, tokenFilter, nil},
		"states in other order":  {good, reordered, nil},
		"of another filter":      {good, ledger.Filter{MerchantID: "m-2"}, ledger.ErrOtherToken},
		"without the filter":     {good, ledger.Filter{}, ledger.ErrOtherToken},
		"with more of a filter":  {good, narrower, ledger.ErrOtherToken},
		"of version 1":           {raw(func(b []byte) []byte { return b[5:] }), tokenFilter, ledger.ErrOldToken},
		"of a later version":     {raw(func(b []byte) []byte { b[0]++; return b }), tokenFilter, ledger.ErrBadToken},
		"cut short":              {good[:len(good)-2], tokenFilter, ledger.ErrBadToken},
		"too long":               {good + "AA", tokenFilter, ledger.ErrBadToken},
		"no base64":              {"%%%", tokenFilter, ledger.ErrBadToken},
		"with a line break":      {good[:8] + "\n" + good[8:], tokenFilter, ledger.ErrBadToken},
		"of the year 290,000":    {raw(func(b []byte) []byte { b[5] = 0x7f; return b }), tokenFilter, ledger.ErrBadToken},
		"of a time long before":  {raw(func(b []byte) []byte { b[5] = 0xff; return b }), tokenFilter, ledger.ErrBadToken},
		"a page number, perhaps": {"2", tokenFilter, ledger.ErrBadToken},
	} {
		got, err := ledger.ParseToken(c.token, c.filter)
		if !errors.Is(err, c.want) || err == nil && got != tokenPlace || err != nil && !got.IsZero() {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
	if token := (ledger.Cursor{}).Token(tokenFilter); token != "" {
		t.Errorf("after the last page: %q", token)
	}
	if got, err := ledger.ParseToken("", tokenFilter); err != nil || !got.IsZero() {
		t.Errorf("the first page: %v, %v", got, err)
	}
}

// Whatever is taken for a token says the same again.
func FuzzParseToken(f *testing.F) {
	f.Add("", "m-1")
	f.Add(tokenPlace.Token(ledger.Filter{MerchantID: "m-1"}), "m-1")
	f.Add(tokenPlace.Token(tokenFilter), "m-2")
	f.Add("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "")
	f.Fuzz(func(t *testing.T, token, merchant string) {
		filter := ledger.Filter{MerchantID: merchant}
		c, err := ledger.ParseToken(token, filter)
		if err != nil {
			if !c.IsZero() {
				t.Fatalf("%q: %v and %v", token, c, err)
			}
			return
		}
		if again := c.Token(filter); again != token {
			t.Fatalf("%q is %v, which is %q", token, c, again)
		}
	})
}
