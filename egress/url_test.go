package egress

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"notifyd/merchant"
)

func ruleOf(err error) URLRule {
	if broken, ok := errors.AsType[*URLError](err); ok {
		return broken.Rule
	}
	if err != nil {
		return URLRule("unnamed: " + err.Error())
	}
	return ""
}

// Everything here is refused by the rules that hold for every merchant, or is let through ("").
func TestCheckURLShape(t *testing.T) {
	long := "https://example.com/" + strings.Repeat("a", 2048)
	tests := map[URLRule][]string{
		"": {
			"http://example.com", "https://example.com/", "https://EXAMPLE.com/Notify", "https://example.com./n", "https://example.com:8443/n?a=1&b=2",
			"https://8.8.8.8/n", "https://[2606:4700::1111]/n", "https://[2606:4700::1111]:8443/n", "https://bücher.example/n", "https://xn--bcher-kva.example/n",
			"https://a_b.example.com/", "https://example.com?x", "HTTPS://example.com/", "https://example.com/a%20b?q=%zz", "https://1.example.com", "https://1e100.net/",
			"https://[::ffff:8.8.8.8]/", long[:2048], "https://商店.example/n",
			"https://169-254-169-254.example.com/", // a name; what it leads to is checked when it is dialed
		},
		URLMissing:    {""},
		URLTooLong:    {long},
		URLFragment:   {"https://example.com/#a", "https://example.com/#", "http://127.0.0.1#@example.com/"},
		URLCharacters: {" https://example.com", "https://example.com/ ", "https://exa mple.com/", "https://example.com/\n", "https://example.com/\r\nHost: x", "https://example.com\t/", "https://example.com/\x00", "https://example.com\\@10.0.0.1/", "https:\\\\example.com", "https://example.com/ä", "https://example.com/?ä", "https://%E2%91%A0.example/", "https://example.com/\x7f"},
		URLMalformed:  {"http:example.com", "http:/%zz", "https://example.com/%zz", "https://[::1", "https://exam%70le.com/", "https://example.com:x/", "https://[fe80::1%25eth0/", "://", "https://[::1]x/", "https://[8.8.8.8]/", "https://[::g]/"},
		URLScheme:     {"ftp://example.com", "file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "//example.com/", "example.com", "/notify", "javascript:alert(1)", "unix:///run/x.sock", "ws://example.com"},
		URLUserinfo:   {"https://a@example.com/", "https://a:b@example.com/", "https://example.com@10.0.0.1/", "https://@example.com/", "https://:@example.com/"},
		URLHostMissing: {
			"http://", "https:///notify", "http://:80/", "http:///127.0.0.1/", "http:/127.0.0.1/",
		},
		URLHostMalformed: {"https://exa$mple.com/", "https://-a.example/", "https://a-.example/", "https://a..example/", "https://.example.com/", "https://./", "https://../", "https://[fe80::1%25eth0]/", "https://" + strings.Repeat("a", 64) + ".example/", "https://exam*ple.com/", "https://a,b/", "https://xn--\u00e4.example/"},
		URLHostNumeric: {
			"http://127.1/", "http://0x7f.1/", "http://0x7f000001/", "http://0X7F.0.0.1/", "http://2130706433/", "http://017700000001/", "http://0177.0.0.1/",
			"http://127.0.0.01/", "http://127.0.1/", "http://127.0.0.1./", "http://8.8.8.8./", "http://8.8/", "http://0/", "http://0x/", "http://1.2.3.4.5/", "http://256.256.256.256/", "http://example.123/",
			"http://0xa9fea9fe/", "http://425.510.425.510/", "http://0251.0376.0251.0376/", "http://8.8.8.0x8/", "http://127.0.0.1.0x0/", "http://00000000177.0.0.1/",
		},
		URLPort: {"https://example.com:/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:080/", "https://example.com:99999999999999999999/", "https://[2606:4700::1]:/"},
		URLAddress: {
			"http://127.0.0.1/", "http://127.0.0.1:22/", "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/",
			"http://0.0.0.0/", "http://[::1]/", "http://[::]/", "http://[::ffff:10.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[0:0:0:0:0:ffff:127.0.0.1]/", "http://[fe80::1]/", "http://[fc00::1]/", "http://[64:ff9b::10.0.0.1]/",
			"http://[2002:7f00:1::]/", "http://[::127.0.0.1]/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://a.localhost/", "http://255.255.255.255/", "http://224.0.0.1/", "http://192.0.2.1/", "http://[2001:db8::1]/",
			"http://１２７.０.０.１/", "http://127。0。0。1/", "http://ⓛocalhost/", "http://①⓪.0.0.1/",
		},
	}
	for rule, raws := range tests {
		for _, raw := range raws {
			if got := ruleOf(CheckURL(raw, merchant.URLPolicy{}, "", Guard{})); got != rule {
				t.Errorf("%q: got %q, want %q", raw, got, rule)
			}
		}
	}
	for rule := range tests {
		if rule != "" && urlRuleWords[rule] == "" {
			t.Errorf("%s has no words", rule)
		}
	}
}

func TestCheckURLPolicy(t *testing.T) {
	tests := []struct {
		name       string
		raw        string
		policy     merchant.URLPolicy
		defaultURL string
		want       URLRule
	}{
		{"no policy, no default", "https://any.example/", merchant.URLPolicy{}, "", ""},
		{"the default's host", "https://shop.example/other", merchant.URLPolicy{}, "https://shop.example/notify", ""},
		{"the default's host, other port and case", "http://SHOP.example.:8080/", merchant.URLPolicy{}, "https://shop.example/notify", ""},
		{"another host than the default's", "https://evil.example/", merchant.URLPolicy{}, "https://shop.example/notify", URLHostNotAllowed},
		{"below the default's host", "https://a.shop.example/", merchant.URLPolicy{}, "https://shop.example/notify", URLHostNotAllowed},
		{"a default that cannot be read allows nothing", "https://shop.example/", merchant.URLPolicy{}, "shop.example", URLHostNotAllowed},
		{"listed", "https://a.example/", merchant.URLPolicy{Hosts: []string{"b.example", "A.Example."}}, "", ""},
		{"a list replaces the default", "https://shop.example/", merchant.URLPolicy{Hosts: []string{"b.example"}}, "https://shop.example/", URLHostNotAllowed},
		{"wildcard", "https://x.y.a.example/", merchant.URLPolicy{Hosts: []string{"*.a.example"}}, "", ""},
		{"wildcard is not the name itself", "https://a.example/", merchant.URLPolicy{Hosts: []string{"*.a.example"}}, "", URLHostNotAllowed},
		{"wildcard ends at a dot", "https://evila.example/", merchant.URLPolicy{Hosts: []string{"*.a.example"}}, "", URLHostNotAllowed},
		{"suffix trick", "https://a.example.evil.example/", merchant.URLPolicy{Hosts: []string{"a.example", "*.a.example"}}, "", URLHostNotAllowed},
		{"international name", "https://bücher.example/", merchant.URLPolicy{Hosts: []string{"xn--bcher-kva.example"}}, "", ""},
		{"international policy", "https://xn--bcher-kva.example/", merchant.URLPolicy{Hosts: []string{"BÜCHER.example"}}, "", ""},
		{"address listed", "https://[2606:4700:0::1]/", merchant.URLPolicy{Hosts: []string{"[2606:4700::1]"}}, "", ""},
		{"empty host in the list", "https://a.example/", merchant.URLPolicy{Hosts: []string{"", "*", "*."}}, "", URLHostNotAllowed},
		{"port allowed", "https://a.example:8443/", merchant.URLPolicy{Ports: []uint32{443, 8443}}, "", ""},
		{"default port", "https://a.example/", merchant.URLPolicy{Ports: []uint32{443}}, "", ""},
		{"default port of http", "http://a.example/", merchant.URLPolicy{Ports: []uint32{443}}, "", URLPortNotAllowed},
		{"port not allowed", "https://a.example:22/", merchant.URLPolicy{Ports: []uint32{443}}, "", URLPortNotAllowed},
		{"https only", "http://a.example/", merchant.URLPolicy{HTTPSOnly: true}, "", URLHTTPSOnly},
		{"https only, https", "https://a.example/", merchant.URLPolicy{HTTPSOnly: true}, "", ""},
		{"listed private address stays blocked", "https://10.0.0.1/", merchant.URLPolicy{Hosts: []string{"10.0.0.1"}}, "", URLAddress},
	}
	for _, test := range tests {
		err := CheckURL(test.raw, test.policy, test.defaultURL, Guard{})
		if got := ruleOf(err); got != test.want {
			t.Errorf("%s: got %q (%v), want %q", test.name, got, err, test.want)
		}
	}
	allowed := Guard{Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	for _, raw := range []string{"http://127.0.0.1:9000/", "http://localhost:9000/"} {
		if err := CheckURL(raw, merchant.URLPolicy{}, "", allowed); err != nil {
			t.Errorf("%s with loopback allowed: %v", raw, err)
		}
	}
}

func TestURLErrorKeepsSecrets(t *testing.T) {
	for _, raw := range []string{"https://u:secret@h.example/", "https://h.example/%zz?secret", "https://10.0.0.1/?secret", "ftp://h.example/secret?secret", "https://h.example:0/?secret"} {
		err := CheckURL(raw, merchant.URLPolicy{}, "", Guard{})
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
