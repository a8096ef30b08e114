package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"notifyd/source"
)

const (
	dialTimeout = 5 * time.Second
	pingAfter   = 10 * time.Second // of silence on an HTTP/2 connection with streams
	pingTimeout = 5 * time.Second
	maxIdle     = 128 // connections: callers of the sync lane have one each
)

// parseServer reads a server's URL.
func parseServer(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		shown := "the given text" // it may hold a password
		if err == nil {
			shown = fmt.Sprintf("%q", u.Redacted())
		}
		return nil, fmt.Errorf("server URL: %s: want http or https, host and port, such as https://notifyd.example:8700", shown)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u, nil
}

func (c *config) newHTTPClient(server *url.URL) *http.Client {
	hc := http.Client{}
	if c.http != nil {
		hc = *c.http
	}
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	base := hc.Transport
	if base == nil {
		base = c.newTransport()
	}
	hc.Transport = c.proving(server, base, hc.Transport == nil)
	return &hc
}

// newStreamClient is for calls that last, and need HTTP/2. Without TLS that is a transport of its own: nothing is agreed on there,
// and calls speak what every server speaks.
func (c *config) newStreamClient(server *url.URL, calls *http.Client) *http.Client {
	hc := *calls
	hc.Timeout = 0
	if c.http == nil && server.Scheme == "http" {
		base := c.newTransport()
		base.Protocols = new(http.Protocols)
		base.Protocols.SetUnencryptedHTTP2(true)
		hc.Transport = c.proving(server, base, true)
	}
	return &hc
}

func (c *config) newTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     c.tls,
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true, // over TLS; without it HTTP/1.1 that is kept alive
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     time.Minute,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}, // a peer that is gone is noticed
	}
}

func (c *config) proving(server *url.URL, base http.RoundTripper, ours bool) *provenTransport {
	proven := &provenTransport{scheme: server.Scheme, host: server.Host, base: base, ours: ours, userAgent: c.userAgent}
	if len(c.credentials) > 0 {
		proven.sign, proven.overBody = c.credentials[0].sign, c.credentials[0].overBody
	}
	return proven
}

// streamPlaces is how many streams there may be: whoever signs whole requests has none.
func (c *config) streamPlaces() int {
	if len(c.credentials) > 0 && c.credentials[0].overBody {
		return 0
	}
	return c.streamCount
}

// authorize returns the authorization header of a request.
type authorize func(req *http.Request, body []byte, now time.Time) (string, error)

// provenTransport proves the caller to one server, and to nobody else.
type provenTransport struct {
	scheme, host string
	base         http.RoundTripper
	ours         bool      // nobody else uses base
	sign         authorize // nil: nothing to prove
	overBody     bool      // sign signs the body too
	userAgent    string
}

// RoundTrip adds the headers to a copy of the request: a transport must not change what it was given.
func (t *provenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != t.scheme || req.URL.Host != t.host {
		return t.base.RoundTrip(req)
	}
	own := req.Clone(req.Context())
	if t.userAgent != "" {
		own.Header.Set("User-Agent", t.userAgent)
	}
	if t.sign != nil {
		var body []byte
		if t.overBody { // others may stream theirs
			var err error
			if body, err = readBody(own); err != nil {
				return nil, fmt.Errorf("sign request: read body: %w", err)
			}
		}
		header, err := t.sign(own, body, time.Now())
		if err != nil {
			return nil, err
		}
		own.Header.Set("Authorization", header)
	}
	return t.base.RoundTrip(own)
}

// CloseIdleConnections is looked for by http.Client. It leaves a transport alone that others may use.
func (t *provenTransport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok && t.ours {
		c.CloseIdleConnections()
	}
}

// readBody takes the body whole, so that what is signed is what is sent, in a repeat by the transport too.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	body, err := io.ReadAll(req.Body)
	if err = errors.Join(err, req.Body.Close()); err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, err = req.GetBody()
	return body, err
}

// The ways to read a key. None of the errors quotes it.

func apiKey(key string) (authorize, error) {
	s, err := source.ParseSecret(key)
	if err != nil {
		return nil, err
	}
	if s.Kind != source.KindAPIKey {
		return nil, errors.New("want a key that begins with nk_; one that begins with nh_ is for WithHMACKey")
	}
	return bearer(key), nil
}

func hmacKey(key string) (authorize, error) {
	s, err := source.ParseSecret(key)
	if err != nil {
		return nil, err
	}
	if s.Kind != source.KindHMAC {
		return nil, errors.New("want a key that begins with nh_; one that begins with nk_ is for WithAPIKey")
	}
	return func(req *http.Request, body []byte, now time.Time) (string, error) {
		return s.SignRequest(req.Method, req.URL.EscapedPath(), body, now)
	}, nil
}

func operatorKey(key string) (authorize, error) {
	rest, ok := strings.CutPrefix(key, "no_")
	if !ok || rest == "" || strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("want an operator's key, which begins with no_ and has no spaces")
	}
	return bearer(key), nil
}

func bearer(key string) authorize {
	return func(*http.Request, []byte, time.Time) (string, error) { return "Bearer " + key, nil }
}
