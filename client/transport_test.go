package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// Keys as the engine makes them.
const (
	keyID     = "abcdefghijklmnop"
	keySecret = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrsa"
	anAPIKey  = "nk_" + keyID + "_" + keySecret
	anHMACKey = "nh_" + keyID + "_" + keySecret
)

// heard keeps a request's header and body.
type heard struct {
	header http.Header
	method string
	path   string
	body   []byte
}

func listening(s *server, to *heard) {
	s.around = func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		body, _ := io.ReadAll(r.Body)
		*to = heard{r.Header, r.Method, r.URL.EscapedPath(), body}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	}
}

func (s *server) Prove(_ context.Context, _ *connect.Request[notifydv1.ProveRequest], stream *connect.ServerStream[notifydv1.ProveResponse]) error {
	return stream.Send(&notifydv1.ProveResponse{Done: true})
}

// The signature is computed here from its description, not with the code that made it.
func TestHMACKeySignsWhatIsSent(t *testing.T) {
	s, got := &server{}, heard{}
	listening(s, &got)
	c := s.start(t, client.WithHMACKey(anHMACKey), client.WithUserAgent("billing/7"))
	streams := notifydv1connect.NewNotificationServiceClient(c.HTTPClient(), c.URL())
	for name, call := range map[string]func() error{
		"batch": func() error { _, err := c.Submit(t.Context(), refund(1)); return err },
		"alone": func() error { _, err := c.Submit(t.Context(), scan(2)); return err },
		"stream": func() error {
			stream, err := streams.Prove(t.Context(), connect.NewRequest(&notifydv1.ProveRequest{}))
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
			}
			return stream.Err()
		},
	} {
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		match := regexp.MustCompile(`^NOTIFYD-HMAC-SHA256 key=([a-z2-7]+),timestamp=(\d+),signature=(\S+)$`).FindStringSubmatch(got.header.Get("Authorization"))
		if match == nil || match[1] != keyID {
			t.Fatalf("%s: authorization: %q", name, got.header.Get("Authorization"))
		}
		at, err := strconv.ParseInt(match[2], 10, 64)
		if err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
			t.Errorf("%s: timestamp %s", name, match[2])
		}
		sum := sha256.Sum256(got.body)
		mac := hmac.New(sha256.New, []byte(keySecret))
		fmt.Fprintf(mac, "%s\n%s\n%s\n%s", got.method, got.path, match[2], hex.EncodeToString(sum[:]))
		if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); match[3] != want {
			t.Errorf("%s: signature %s, want %s", name, match[3], want)
		}
		if got.header.Get("User-Agent") != "billing/7" || len(got.body) == 0 && name != "stream" {
			t.Errorf("%s: user agent %q, %d bytes", name, got.header.Get("User-Agent"), len(got.body))
		}
	}
}

func TestKeysAreSentAsTheyAre(t *testing.T) {
	for key, opt := range map[string]client.Option{anAPIKey: client.WithAPIKey(anAPIKey), "no_ops_secret": client.WithOperatorKey("no_ops_secret")} {
		s, got := &server{}, heard{}
		listening(s, &got)
		c := s.start(t, opt)
		if _, err := c.Submit(t.Context(), refund(1)); err != nil {
			t.Fatal(err)
		}
		if header := got.header.Get("Authorization"); header != "Bearer "+key {
			t.Errorf("authorization: %q", header)
		}
		if shown := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(shown, "secret") || strings.Contains(shown, keySecret) {
			t.Error("a printed client shows its key")
		}
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	stolen := make(chan string, 10)
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen <- r.Header.Get("Authorization") }))
	defer thief.Close()
	s := &server{around: func(_ int, w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}}
	c := s.start(t, client.WithAPIKey(anAPIKey), client.WithRetryFor(0), client.WithHTTPClient(&http.Client{}))
	if _, err := c.Submit(t.Context(), refund(1)); err == nil || strings.Contains(err.Error(), keySecret) {
		t.Errorf("%v", err)
	}
	// Whoever uses the client for another server does not give the key away either.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, thief.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.HTTPClient().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if header := <-stolen; header != "" || len(stolen) > 0 {
		t.Errorf("another server was told %q", header)
	}
}

func TestTLSOnBothSides(t *testing.T) {
	pair := selfSigned(t)
	s := &server{tries: map[string]int{}, taken: map[string]int{}}
	listener := httptest.NewUnstartedServer(s.handler())
	listener.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	listener.Config.ErrorLog = nil
	listener.StartTLS()
	defer listener.Close()
	roots := x509.NewCertPool()
	roots.AddCert(listener.Certificate())
	secure := client.WithTLSConfig(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	for name, test := range map[string]struct {
		opts []client.Option
		ok   bool
	}{
		"both trust":            {[]client.Option{secure, client.WithClientCertificate(pair)}, true},
		"no client certificate": {[]client.Option{secure}, false},
		"server is not trusted": {[]client.Option{client.WithClientCertificate(pair)}, false},
		"own client with its own": {[]client.Option{client.WithHTTPClient(&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
			RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		}}})}, true},
	} {
		_, err := newClient(t, listener.URL, test.opts...).Submit(t.Context(), refund(1)) // without an end: what cannot pass is not tried again
		if test.ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if !test.ok {
			// In TLS 1.3 the server refuses when the request may be on its way already: sometimes only the second try hears why.
			if e := errorOf(t, err); !e.Unreached() || e.Tries == 1 && e.Uncertain {
				t.Errorf("%s: %+v", name, e)
			}
		}
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pay"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
