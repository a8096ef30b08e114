package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"notifyd/merchant"
	"notifyd/notification"
)

var errNotDialed = errors.New("not dialed")

// dialed is the address that net/http would dial for a URL.
func dialed(t *testing.T, to *url.URL) string {
	t.Helper()
	var asked string
	dial := func(_ context.Context, _, address string) (net.Conn, error) {
		asked = address
		return nil, errNotDialed
	}
	transport := &http.Transport{DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true}
	r := &http.Request{Method: http.MethodPost, URL: to, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	res, err := transport.RoundTrip(r.WithContext(t.Context()))
	if err == nil {
		_ = res.Body.Close()
	}
	if !errors.Is(err, errNotDialed) {
		t.Fatalf("%s is let through, and net/http refuses it: %v", to, err)
	}
	return asked
}

// FuzzCheckURL: whatever is let through is dialed as it was checked, by net/http and by whoever reads addresses as libc does.
func FuzzCheckURL(f *testing.F) {
	for _, raw := range []string{
		"https://example.com/n?x=1", "http://0x7f.1/", "http://[::ffff:10.0.0.1]:80/", "https://bücher.example:8443/", "http://a@b/", "http://127。0。0。1/",
		"https://example.com./", "HTTPS://1.1.1.1:443", "http://0300.0250.1/", "http://2130706433/", "http://a.0x7f000001/", "https://ß.example/%2f..", "http://[2606:4700::1111%25eth0]/",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		err := CheckURL(raw, merchant.URLPolicy{}, "", Guard{})
		if err != nil {
			if broken, ok := errors.AsType[*URLError](err); !ok || urlRuleWords[broken.Rule] == "" {
				t.Fatalf("%q: names no rule: %v", raw, err)
			}
			return
		}
		to, err := parseURL(raw)
		if err != nil {
			t.Fatal(err)
		}
		if to.url.User != nil || to.url.Fragment != "" || len(raw) > maxURLLength || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' || r == '#' }) {
			t.Fatalf("%q was let through", raw)
		}
		host, port, err := net.SplitHostPort(dialed(t, to.url))
		if err != nil || net.JoinHostPort(host, port) != to.address || host != to.name || port != strconv.FormatUint(uint64(to.port), 10) {
			t.Fatalf("%q: checked %s port %d, would dial %s port %s: %v", raw, to.name, to.port, host, port, err)
		}
		o := order{to: to, record: notification.Request{Method: http.MethodPost}}
		sent, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(o.appendHead(nil))))
		if err != nil || sent.Host != to.url.Host || sent.RequestURI != to.url.RequestURI() {
			t.Fatalf("%q is sent as %q: %v", raw, o.appendHead(nil), err)
		}
		if !isASCII(to.url.String()) {
			t.Fatalf("%q is sent as %q", raw, to.url)
		}
		addr, err := netip.ParseAddr(host)
		if err == nil && (addr != to.addr || ClassifyAddress(addr) != AddressPublic) {
			t.Fatalf("%q leads to %v", raw, addr)
		}
		if loose, ok := inetAton(host); ok && loose != addr {
			t.Fatalf("%q: libc reads %s as %v", raw, host, loose)
		}
		if err := CheckURL(to.url.String(), merchant.URLPolicy{}, raw, Guard{}); err != nil {
			t.Fatalf("%q as sent is %q: %v", raw, to.url, err)
		}
	})
}

// inetAton reads an IPv4 address as libc does: one to four numbers, each decimal, octal or hexadecimal, the last one filling
// what is left.
func inetAton(host string) (netip.Addr, bool) {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var sum uint64
	for i, part := range parts {
		digits, base := part, 10
		switch {
		case strings.HasPrefix(part, "0x"), strings.HasPrefix(part, "0X"):
			digits, base = part[2:], 16
		case len(part) > 1 && part[0] == '0':
			digits, base = part[1:], 8
		}
		n, err := strconv.ParseUint(digits, base, 32)
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if err != nil || n >= 1<<bits {
			return netip.Addr{}, false
		}
		sum = sum<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}), true
}

func TestInetAton(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1": "127.0.0.1", "127.1": "127.0.0.1", "0x7f.1": "127.0.0.1", "2130706433": "127.0.0.1", "0177.0.0.1": "127.0.0.1", "10.0.258": "10.0.1.2",
		"256.1.1.1": "invalid IP", "08.1.1.1": "invalid IP", "1.2.3.4.5": "invalid IP", "a.1": "invalid IP", "": "invalid IP",
	} {
		if got, _ := inetAton(host); got.String() != want {
			t.Errorf("%q: %v, want %s", host, got, want)
		}
	}
}
