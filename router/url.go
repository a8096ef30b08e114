package router

import "strings"

// appendURL writes what one server program answers under: scheme, host, port and path. Query, fragment and user are
// left out, scheme and host are in lower case, and the scheme's own port is not named. It never fails: a notify URL
// was checked at intake, and any other text has a key too.
func appendURL(key []byte, url string) []byte {
	if end := strings.IndexAny(url, "?#"); end >= 0 {
		url = url[:end]
	}
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return append(key, url...)
	}
	host, path := rest, "/"
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		host, path = rest[:slash], rest[slash:]
	}
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		host = host[at+1:]
	}
	start := len(key)
	key = appendLower(key, scheme)
	secure := string(key[start:]) == "https"
	key = append(key, "://"...)
	key = appendLower(key, withoutOwnPort(host, secure))
	return append(key, path...)
}

func withoutOwnPort(host string, secure bool) string {
	own := ":80"
	if secure {
		own = ":443"
	}
	// "[::80]" ends in a bracket, and a bare IPv6 address is no host of a URL.
	return strings.TrimSuffix(strings.TrimSuffix(host, own), ":")
}

func appendLower(key []byte, text string) []byte {
	for i := range len(text) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		key = append(key, c)
	}
	return key
}
