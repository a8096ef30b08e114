package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"
)

// Defaults.
const (
	defaultStreams     = 1
	defaultBatch       = 1000 // the most that the API takes
	defaultBatchBytes  = 4 << 20
	defaultParallel    = 4
	defaultMaxWaiting  = 4096
	defaultCallTimeout = 10 * time.Second
	defaultFirstWait   = 200 * time.Millisecond
	defaultMostWait    = 5 * time.Second

	maxStreams    = 64
	maxBatchBytes = 30 << 20 // the server takes 32 MiB
)

// settings are what a client keeps of its options. No secret is among them.
type settings struct {
	source      string
	streamCount int
	traceparent func(context.Context) string
	syncScenes  map[string]bool
	batch       int
	batchBytes  int
	linger      time.Duration
	parallel    int
	maxWaiting  int64
	callTimeout time.Duration
	answerGrace time.Duration
	firstWait   time.Duration
	mostWait    time.Duration
	retryFor    time.Duration
	onRetry     func(n *Notification, err *Error, wait time.Duration)
}

// config is all that options say.
type config struct {
	settings
	credentials []credential
	tls         *tls.Config
	http        *http.Client
	userAgent   string
	errs        []error
}

// credential is one way to prove the caller.
type credential struct {
	option   string
	sign     authorize
	overBody bool // it signs the body, which is read for it first
}

// Option changes how a client works.
type Option func(*config)

func defaults() config {
	return config{settings: settings{
		streamCount: defaultStreams, syncScenes: map[string]bool{"scan": true, "netbank": true},
		batch: defaultBatch, batchBytes: defaultBatchBytes, parallel: defaultParallel, maxWaiting: defaultMaxWaiting,
		callTimeout: defaultCallTimeout, firstWait: defaultFirstWait, mostWait: defaultMostWait, retryFor: math.MaxInt64,
	}}
}

// WithSource is the source of notifications that name none.
func WithSource(source string) Option { return func(c *config) { c.source = source } }

// WithAPIKey proves the caller by a key `nk_…`, which is sent as it is: use https.
func WithAPIKey(key string) Option {
	return func(c *config) { c.authorizeBy("WithAPIKey", apiKey, key) }
}

// WithHMACKey proves the caller by a key `nh_…`, which is never sent: it signs each request. So there are calls only, no streams.
func WithHMACKey(key string) Option {
	return func(c *config) { c.authorizeBy("WithHMACKey", hmacKey, key) }
}

// WithOperatorKey proves an operator by a key `no_…`, which is sent as it is: use https. Tools need it, payment services do not.
func WithOperatorKey(key string) Option {
	return func(c *config) { c.authorizeBy("WithOperatorKey", operatorKey, key) }
}

// authorizeBy keeps what a key makes, not the key.
func (c *config) authorizeBy(option string, read func(string) (authorize, error), key string) {
	sign, err := read(key)
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", option, err))
		return
	}
	c.credentials = append(c.credentials, credential{option: option, sign: sign, overBody: option == "WithHMACKey"})
}

// WithTLSConfig says how the server proves itself, and holds a client certificate if the server knows the caller by one.
func WithTLSConfig(cfg *tls.Config) Option { return func(c *config) { c.tls = cfg.Clone() } }

// WithClientCertificate proves the caller by a certificate (mTLS).
func WithClientCertificate(cert tls.Certificate) Option {
	return func(c *config) {
		if c.tls == nil {
			c.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		c.tls.Certificates = []tls.Certificate{cert}
	}
}

// WithHTTPClient uses a client of your own: its transport decides about TLS, proxies and idle connections.
// Redirects are not followed all the same: they would carry credentials elsewhere. There are streams only if it speaks HTTP/2
// with the server.
func WithHTTPClient(hc *http.Client) Option { return func(c *config) { c.http = hc } }

// WithUserAgent names the caller in each request.
func WithUserAgent(name string) Option { return func(c *config) { c.userAgent = name } }

// WithSyncScenes names scenes, besides scan and netbank, in which the server asks the merchant while the caller waits.
// Without a stream their notifications are submitted one by one.
func WithSyncScenes(scenes ...string) Option {
	return func(c *config) {
		for _, scene := range scenes {
			c.syncScenes[scene] = true
		}
	}
}

// WithStreams is how many streams to keep open (1); 0: none, every submission is a call or shares one. One carries what a few cores
// can do. A client learns by itself whether there can be streams, and makes calls until one is open and while none is.
func WithStreams(n int) Option { return func(c *config) { c.streamCount = n } }

// WithTraceparent tells the W3C trace context of a submission, which the stream carries for it. Calls have that of their request,
// which is the HTTP client's affair.
func WithTraceparent(of func(ctx context.Context) string) Option {
	return func(c *config) { c.traceparent = of }
}

// WithBatch bounds one call, and one message of a stream: at most so many notifications (1 to 1000; 1000), and so many bytes (4 MiB). Where the operator
// has set max_request_bytes for the source, the bytes must stay below it.
func WithBatch(notifications, bytes int) Option {
	return func(c *config) { c.batch, c.batchBytes = notifications, bytes }
}

// WithLinger makes a batch wait for company (not at all). It saves calls when submissions come one by one, and costs each of
// them so much time. A stream does not wait.
func WithLinger(d time.Duration) Option { return func(c *config) { c.linger = d } }

// WithParallel bounds the batch calls that are under way at a time (4).
func WithParallel(calls int) Option { return func(c *config) { c.parallel = calls } }

// WithMaxWaiting bounds the calls of Submit, SubmitAll and SubmitEach that wait for their answers (4096). Further ones wait
// for a place, as long as their ctx lasts.
func WithMaxWaiting(n int) Option { return func(c *config) { c.maxWaiting = int64(n) } }

// WithCallTimeout bounds one try (10 s). What got no answer by then is tried again.
func WithCallTimeout(d time.Duration) Option { return func(c *config) { c.callTimeout = d } }

// WithRetryWaits bounds the time between tries (200 ms, doubling to 5 s; some of it is random). When the server asks for more
// it gets more.
func WithRetryWaits(first, most time.Duration) Option {
	return func(c *config) { c.firstWait, c.mostWait = first, most }
}

// WithRetryFor gives a notification up so long after its first failure (as long as ctx lasts); 0: after one try.
func WithRetryFor(d time.Duration) Option { return func(c *config) { c.retryFor = d } }

// WithOnRetry tells when a notification could not be submitted and waits to be tried again: to be logged or counted.
// Several goroutines may call it at once. It must return soon, and not change the notification.
func WithOnRetry(tell func(n *Notification, err *Error, wait time.Duration)) Option {
	return func(c *config) { c.onRetry = tell }
}

// WithAnswerGrace lets the calls of SubmitAll and SubmitEach end when ctx has ended (they are cut short), so that fewer
// outcomes stay uncertain. Nothing new is begun in that time.
func WithAnswerGrace(d time.Duration) Option { return func(c *config) { c.answerGrace = d } }

func (c *config) validate() error {
	errs := c.errs
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.streamCount >= 0 && c.streamCount <= maxStreams, "WithStreams: %d: want 0 to %d", c.streamCount, maxStreams)
	check(c.batch >= 1 && c.batch <= defaultBatch, "WithBatch: %d notifications: want 1 to %d", c.batch, defaultBatch)
	check(c.batchBytes >= 1 && c.batchBytes <= maxBatchBytes, "WithBatch: %d bytes: want 1 to %d", c.batchBytes, maxBatchBytes)
	check(c.linger >= 0, "WithLinger: %s: want 0 or more", c.linger)
	check(c.parallel >= 1, "WithParallel: %d: want 1 or more", c.parallel)
	check(c.maxWaiting >= 1, "WithMaxWaiting: %d: want 1 or more", c.maxWaiting)
	check(c.callTimeout > 0, "WithCallTimeout: %s: want more than 0", c.callTimeout)
	check(c.firstWait > 0 && c.mostWait >= c.firstWait, "WithRetryWaits: %s to %s: want more than 0, and the most not below the first", c.firstWait, c.mostWait)
	check(c.retryFor >= 0, "WithRetryFor: %s: want 0 or more", c.retryFor)
	check(c.answerGrace >= 0, "WithAnswerGrace: %s: want 0 or more", c.answerGrace)
	check(c.http == nil || c.tls == nil, "WithHTTPClient: its transport decides about TLS: give it, or WithTLSConfig and WithClientCertificate")
	if len(c.credentials) > 1 {
		errs = append(errs, fmt.Errorf("%s: is given together with %s: give one of them", c.credentials[1].option, c.credentials[0].option))
	}
	return errors.Join(errs...)
}
