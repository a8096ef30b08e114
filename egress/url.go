package egress

import (
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"notifyd/contract"
	"notifyd/merchant"
)

// URLRule names a rule that a notify URL breaks.
type URLRule string

// The rules: a closed set.
const (
	URLMissing        URLRule = "missing"
	URLTooLong        URLRule = "too_long"
	URLCharacters     URLRule = "characters"
	URLMalformed      URLRule = "malformed"
	URLScheme         URLRule = "scheme"
	URLUserinfo       URLRule = "userinfo"
	URLFragment       URLRule = "fragment"
	URLHostMissing    URLRule = "host_missing"
	URLHostMalformed  URLRule = "host_malformed"
	URLHostNumeric    URLRule = "host_numeric"
	URLHostNotAllowed URLRule = "host_not_allowed"
	URLPort           URLRule = "port"
	URLPortNotAllowed URLRule = "port_not_allowed"
	URLHTTPSOnly      URLRule = "https_only"
	URLAddress        URLRule = "address"
)

var urlRuleWords = map[URLRule]string{
	URLMissing:        "there is none",
	URLTooLong:        "it is longer than 2048 bytes",
	URLCharacters:     "it holds a space, a control character, a backslash, or a character beyond ASCII outside the host",
	URLMalformed:      "it cannot be read",
	URLScheme:         "the scheme must be http or https",
	URLUserinfo:       "it must not hold a user name or password",
	URLFragment:       "it must not hold a fragment",
	URLHostMissing:    "the host is missing",
	URLHostMalformed:  "the host is neither a name nor an address",
	URLHostNumeric:    "an IPv4 address must be written as four plain decimal numbers",
	URLHostNotAllowed: "the merchant's policy does not allow this host",
	URLPort:           "the port must be a number from 1 to 65535",
	URLPortNotAllowed: "the merchant's policy does not allow this port",
	URLHTTPSOnly:      "the merchant's policy wants https",
	URLAddress:        "the host is not a public address",
}

// URLError says which rule a notify URL breaks. Its text holds no part of the URL but the host.
type URLError struct {
	Rule URLRule
	Host string // may be empty
}

func (e *URLError) Error() string {
	text := "check notify url: " + urlRuleWords[e.Rule]
	if e.Host != "" {
		text += ": " + e.Host
	}
	return text
}

const maxURLLength = contract.MaxURL

// target is a notify URL taken apart.
type target struct {
	url  *url.URL // its host in ASCII and lower case; never changed
	name string   // the host without brackets and trailing dot
	addr netip.Addr
	port uint32

	address string // to dial: host and port
	path    string // as it stands in the request line, with the query
	origin  string // what shares connections: scheme, host and port
}

// CheckURL says whether a notification may name this URL. A name is checked again for where it leads when it is dialed.
// defaultURL is the merchant's own notify URL: without a list of hosts its host is the only one allowed.
func CheckURL(raw string, policy merchant.URLPolicy, defaultURL string, guard Guard) error {
	to, err := parseURL(raw)
	if err != nil {
		return err
	}
	if err := guard.checkHost(to); err != nil {
		return err
	}
	if policy.HTTPSOnly && to.url.Scheme != "https" {
		return &URLError{Rule: URLHTTPSOnly}
	}
	if len(policy.Ports) > 0 && !slices.Contains(policy.Ports, to.port) {
		return &URLError{Rule: URLPortNotAllowed}
	}
	if !hostAllowed(raw, to.name, policy.Hosts, defaultURL) {
		return &URLError{Rule: URLHostNotAllowed, Host: to.name}
	}
	return nil
}

// checkHost refuses what needs no resolver to be known as private.
func (g Guard) checkHost(to target) error {
	addr := to.addr
	if to.name == "localhost" || strings.HasSuffix(to.name, ".localhost") {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if addr.IsValid() && g.Check(netip.AddrPortFrom(addr, 0)) != nil {
		return &URLError{Rule: URLAddress, Host: to.name}
	}
	return nil
}

func hostAllowed(raw, name string, hosts []string, defaultURL string) bool {
	if len(hosts) == 0 {
		if defaultURL == "" || raw == defaultURL { // almost always; parsing it again costs 2 % of a submission in a batch
			return true
		}
		own, err := parseURL(defaultURL)
		return err == nil && own.name == name
	}
	return slices.ContainsFunc(hosts, func(pattern string) bool { return hostMatches(name, pattern) })
}

// hostMatches compares with a name, or with "*.example.com": every name below it, not itself.
func hostMatches(name, pattern string) bool {
	below, wild := strings.CutPrefix(pattern, "*.")
	allowed, _, err := parseHost(strings.Trim(below, "[]"))
	if err != nil {
		return false
	}
	if wild {
		return strings.HasSuffix(name, "."+allowed)
	}
	return name == allowed
}

// parseURL keeps the rules that hold for every notify URL, whatever the policy.
func parseURL(raw string) (target, error) {
	if rule := badShape(raw); rule != "" {
		return target{}, &URLError{Rule: rule}
	}
	u, err := url.Parse(raw)
	if err != nil { // its text would repeat the URL
		return target{}, &URLError{Rule: URLMalformed}
	}
	if rule := badParts(raw, u); rule != "" {
		return target{}, &URLError{Rule: rule}
	}
	to := target{url: u}
	if to.port, err = parsePort(u); err != nil {
		return target{}, err
	}
	host := u.Hostname()
	if to.name, to.addr, err = parseHost(host); err != nil {
		return target{}, err
	}
	if to.addr.Is6() != strings.HasPrefix(u.Host, "[") {
		return target{}, &URLError{Rule: URLHostMalformed}
	}
	u.Host = asciiHost(to, u.Port())
	to.address = net.JoinHostPort(u.Hostname(), strconv.FormatUint(uint64(to.port), 10))
	to.path, to.origin = u.RequestURI(), u.Scheme+"://"+u.Host
	return to, nil
}

// asciiHost is how the host is sent and dialed.
func asciiHost(to target, port string) string {
	host := to.name
	if to.addr.Is6() {
		host = "[" + host + "]"
	}
	if port != "" {
		host += ":" + port
	}
	return host
}

func badShape(raw string) URLRule {
	switch {
	case raw == "":
		return URLMissing
	case len(raw) > maxURLLength:
		return URLTooLong
	case strings.IndexByte(raw, '#') >= 0:
		return URLFragment
	}
	for i := range len(raw) {
		if raw[i] <= ' ' || raw[i] == 0x7f || raw[i] == '\\' {
			return URLCharacters
		}
	}
	return ""
}

func badParts(raw string, u *url.URL) URLRule {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return URLScheme
	case u.User != nil:
		return URLUserinfo
	case u.Opaque != "":
		return URLMalformed
	case u.Host == "" || u.Hostname() == "":
		return URLHostMissing
	case beyondASCII(raw) != beyondASCII(u.Host): // also a host that hides behind %-escapes
		return URLCharacters
	}
	return ""
}

func parsePort(u *url.URL) (uint32, error) {
	text := u.Port()
	if text == "" {
		if strings.HasSuffix(u.Host, ":") {
			return 0, &URLError{Rule: URLPort}
		}
		if u.Scheme == "https" {
			return 443, nil
		}
		return 80, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || text[0] == '0' {
		return 0, &URLError{Rule: URLPort}
	}
	return uint32(port), nil
}

// parseHost reads a host without its brackets: its name in ASCII and lower case without the trailing dot, and its
// address if it is one.
func parseHost(host string) (name string, addr netip.Addr, err error) {
	if strings.IndexByte(host, ':') >= 0 {
		if addr, err = netip.ParseAddr(host); err != nil || addr.Zone() != "" {
			return "", netip.Addr{}, &URLError{Rule: URLHostMalformed}
		}
		return addr.String(), addr, nil
	}
	if name, err = asciiName(host); err != nil {
		return "", netip.Addr{}, err
	}
	if !endsInNumber(name) {
		return name, netip.Addr{}, nil
	}
	// What inet_aton reads as an address (0x7f.1, 017700000001, 2130706433) some resolver, proxy or merchant's
	// library reads, too: only the one plain form is let through.
	if addr, err = netip.ParseAddr(name); err != nil || strings.HasSuffix(host, ".") {
		return "", netip.Addr{}, &URLError{Rule: URLHostNumeric}
	}
	return name, addr, nil
}

func asciiName(host string) (string, error) {
	if !isASCII(host) {
		ascii, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", &URLError{Rule: URLHostMalformed}
		}
		host = ascii
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if len(name) == 0 || len(name) > 253 {
		return "", &URLError{Rule: URLHostMalformed}
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return "", &URLError{Rule: URLHostMalformed}
		}
	}
	return name, nil
}

func isLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// endsInNumber is the URL standard's test for "this host is meant to be an IPv4 address".
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if digits, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func isASCII(s string) bool { return beyondASCII(s) == 0 }

func beyondASCII(s string) (n int) {
	for i := range len(s) {
		if s[i] >= 0x80 {
			n++
		}
	}
	return n
}
