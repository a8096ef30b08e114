// Package demo plays the world around the engine: a dozen merchants on loopback, good and bad, and a payment service that
// submits a steady trickle of notifications for them.
package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"notifyd/client/verify"
	"notifyd/contract/sign"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

const (
	defaultListen = "127.0.0.1:0"
	defaultRate   = 3

	// shutdownBound is what the merchants get to end their answers; those that wait on purpose end at once.
	shutdownBound = 5 * time.Second
)

// Config is the demo's. Only IntakeURL must be given.
type Config struct {
	IntakeURL string // http://127.0.0.1:8700
	// Listen is where the merchants answer; default a free port of 127.0.0.1. A fixed port keeps the notify URLs of an
	// earlier run good; when it is taken, a free one is used.
	Listen string
	Rate   float64                          // notifications per second; default 3
	Log    func(format string, args ...any) // one line, without a newline; nil: silent
}

// Demo is the merchants and the payment service.
type Demo struct {
	config   Config
	listener net.Listener
	actors   []*actor
	client   *http.Client
	submit   notifydv1connect.NotificationServiceClient
	settings notifydv1connect.MerchantServiceClient
	trouble  trouble
}

// New makes a demo that does nothing yet.
func New(config Config) *Demo {
	if config.Listen == "" {
		config.Listen = defaultListen
	}
	if config.Rate <= 0 {
		config.Rate = defaultRate
	}
	if config.Log == nil {
		config.Log = func(string, ...any) {}
	}
	transport := &http.Transport{MaxIdleConnsPerHost: maxInFlight, IdleConnTimeout: time.Minute}
	d := &Demo{config: config, actors: cast(), client: &http.Client{Transport: transport}}
	d.trouble.log = config.Log
	base := strings.TrimSuffix(config.IntakeURL, "/")
	d.submit = notifydv1connect.NewNotificationServiceClient(d.client, base, connect.WithProtoJSON())
	d.settings = notifydv1connect.NewMerchantServiceClient(d.client, base, connect.WithProtoJSON())
	for _, a := range d.actors {
		a.secret = sign.GenerateStandardSecret()
		a.verifier, _ = verify.Standard(a.secret) // it takes what was just made
	}
	return d
}

// Start makes a demo whose merchants' listener is open. Run, or Serve with Submit, must follow.
func Start(ctx context.Context, config Config) (*Demo, error) {
	d := New(config)
	if err := d.Listen(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Listen opens the merchants' listener; Run does it when nobody has.
func (d *Demo) Listen(ctx context.Context) error {
	listener, err := listen(ctx, d.config.Listen)
	if err != nil {
		return fmt.Errorf("start demo merchants: %w", err)
	}
	d.listener = listener
	return nil
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr)
	if host, port, _ := net.SplitHostPort(addr); errors.Is(err, syscall.EADDRINUSE) && port != "0" {
		return lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	}
	return listener, err
}

// URL is where the merchants answer, without a path. It is known when the listener is open.
func (d *Demo) URL() string { return "http://" + d.listener.Addr().String() }

// Merchants are those that are played, in a fixed order.
func (d *Demo) Merchants() []Merchant {
	out := make([]Merchant, len(d.actors))
	for i, a := range d.actors {
		out[i] = a.Merchant
	}
	return out
}

// Run plays until ctx ends. To let the engine drain while the merchants still answer, call Listen, then run Serve and
// Submit with a context each, and end Submit's first.
func (d *Demo) Run(ctx context.Context) error {
	if d.listener == nil {
		if err := d.Listen(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var submitting sync.WaitGroup
	submitting.Go(func() { d.Submit(ctx) })
	err := d.Serve(ctx)
	cancel() // when the server failed, the payment service ends too
	submitting.Wait()
	return err
}

// Serve plays the merchants until ctx ends.
func (d *Demo) Serve(ctx context.Context) error {
	server := &http.Server{
		Handler:           d.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // who waits on purpose hangs up when it ends
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(d.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("play merchants: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownBound)
	defer cancel()
	if err := server.Shutdown(bound); err != nil {
		_ = server.Close() // the process is ending
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("play merchants: %w", err)
	}
	return nil
}

// trouble prints errors, one line each, but not the same thing three times a second.
type trouble struct {
	log func(format string, args ...any)

	mu     sync.Mutex
	down   bool
	at     time.Time
	silent int
}

const troubleEvery = 5 * time.Second

func (t *trouble) say(doing string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.at) < troubleEvery {
		t.silent++
		return
	}
	t.down = true
	more := ""
	if t.silent > 0 {
		more = fmt.Sprintf(" (and %d more)", t.silent)
	}
	t.at, t.silent = time.Now(), 0
	t.log("demo: %s: %s%s", doing, oneLine(err), more)
}

// over says that things work again, if they did not.
func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		t.log("demo: submitting again")
	}
	t.down = false
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
