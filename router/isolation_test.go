package router

import (
	"fmt"
	"strings"
	"testing"

	"notifyd/merchant"
	"notifyd/notification"
)

func TestIsolationKeys(t *testing.T) {
	full := notification.Notification{
		MerchantID: "acme", Scene: "scan", EventType: "paid", Source: "billing", AppID: "shop",
		NotifyURL: "HTTPS://user:pw@Pay.Acme.test:443/Notify/x?order=1#top", Amount: notification.Amount{Currency: "CNY"},
		Labels: map[string]string{"channel": "wx/a=b%", "empty": ""},
	}
	tests := []struct{ isolation, want string }{
		{"merchant", "m:acme"},
		{"merchant_scene", "m:acme/s:scan"},
		{"merchant_url", "m:acme/u:https://pay.acme.test/Notify/x"},
		{"{merchant}", "m:acme"},
		{"{merchant}/{scene}", "m:acme/s:scan"},
		{"{merchant}/{label:channel}", "m:acme/l:channel=wx%2Fa%3Db%25"},
		{"{merchant}/{label:empty}", "m:acme/l:empty="},
		{"{merchant}/{label:missing}", "m:acme/l:missing"},
		{"vip/{currency}/{merchant}", "t:vip/c:CNY/m:acme"},
		{"{merchant}/{source}/{app}/{event_type}/{url}", "m:acme/o:billing/a:shop/e:paid/u:https://pay.acme.test/Notify/x"},
	}
	for _, test := range tests {
		i, err := parseIsolation(test.isolation)
		if err != nil {
			t.Errorf("%s: %v", test.isolation, err)
			continue
		}
		if have := i.key(&full, &noSettings); have != test.want {
			t.Errorf("%s: have %s, want %s", test.isolation, have, test.want)
		}
	}
}

func TestURLOfTheKey(t *testing.T) {
	tests := []struct{ url, want string }{
		{"https://a.test", "https://a.test/"},
		{"https://a.test?x=1", "https://a.test/"},
		{"https://a.test:8443/p", "https://a.test:8443/p"},
		{"http://a.test:80/p", "http://a.test/p"},
		{"http://a.test:443/p", "http://a.test:443/p"},
		{"https://[2001:DB8::1]:443/p", "https://[2001:db8::1]/p"},
		{"https://[2001:db8::80]/p", "https://[2001:db8::80]/p"},
		{"https://a.test/P/../q/", "https://a.test/P/../q/"},
		{"https://a.test/x@y:443", "https://a.test/x@y:443"},
		{"no url", "no url"},
		{"", ""},
	}
	for _, test := range tests {
		if have := string(appendURL(nil, test.url)); have != test.want {
			t.Errorf("%q: have %q, want %q", test.url, have, test.want)
		}
	}
}

func TestURLFallsToTheMerchants(t *testing.T) {
	m := &merchant.Merchant{
		Isolation: merchant.IsolationMerchantURL, NotifyURL: "https://a.test/all",
		Scenes: map[string]merchant.SceneSettings{"scan": {NotifyURL: "https://a.test/scan"}},
	}
	r := mustNew(t)
	for scene, want := range map[string]string{"scan": "m:a/u:https://a.test/scan", "refund": "m:a/u:https://a.test/all"} {
		if have := r.Route(&notification.Notification{MerchantID: "a", Scene: scene}, m, monday).IsolationKey; have != want {
			t.Errorf("%s: have %s, want %s", scene, have, want)
		}
	}
}

// FuzzKeysAreApart: two notifications that differ in what a key is made of never share one.
func FuzzKeysAreApart(f *testing.F) {
	f.Add("a", "b", "c", "a", "b", "d", true, true)
	f.Add("a/s:b", "c", "", "a", "b/s:c", "", true, true)
	f.Add("a", "x", "y=z", "a", "x", "y", true, false)
	f.Add("%2F", "%", "", "/", "%25", "", false, true)
	var templates []isolation
	for _, text := range []string{
		"merchant", "merchant_scene", "merchant_url", "{merchant}/{label:x}", "{merchant}/{scene}/{label:x}", "{label:x}/{merchant}/{scene}", "s:b/{merchant}/{url}",
	} {
		i, err := parseIsolation(text)
		if err != nil {
			f.Fatal(err)
		}
		templates = append(templates, i)
	}
	f.Fuzz(func(t *testing.T, merchant1, scene1, value1, merchant2, scene2, value2 string, labelled1, labelled2 bool) {
		one := made(merchant1, scene1, value1, labelled1)
		other := made(merchant2, scene2, value2, labelled2)
		seen := map[string]string{} // key → what it was made of
		for _, i := range templates {
			for _, n := range []*notification.Notification{one, other} {
				key, from := i.key(n, &noSettings), madeOf(i, n)
				if before, ok := seen[key]; ok && before != from {
					t.Fatalf("%q is the key of %s and of %s", key, before, from)
				}
				seen[key] = from
			}
		}
	})
}

func made(merchantID, scene, value string, labelled bool) *notification.Notification {
	n := &notification.Notification{MerchantID: merchantID, Scene: scene, NotifyURL: "https://a.test/" + value}
	if labelled {
		n.Labels = map[string]string{"x": value}
	}
	return n
}

// madeOf lists what the segments stand for, each quoted, so that it can't be misread.
func madeOf(i isolation, n *notification.Notification) string {
	var out strings.Builder
	for _, s := range i {
		value, given := s.arg, true
		switch s.tag {
		case tagMerchant:
			value = n.MerchantID
		case tagScene:
			value = n.Scene
		case tagURL:
			value = string(appendURL(nil, n.NotifyURL))
		case tagLabel:
			value, given = n.Labels[s.arg], n.Labels != nil
		}
		fmt.Fprintf(&out, "%s%q %q %v, ", s.tag, s.arg, value, given)
	}
	return out.String()
}
