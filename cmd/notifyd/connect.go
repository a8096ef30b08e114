package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"notifyd/internal/settings"
	jsstreams "notifyd/internal/streams"
	"notifyd/notification/envelope"
)

// natsConfig says where the queues are. Without a url they are in this process.
type natsConfig struct {
	// URL of one or more servers, separated by commas: nats://… or tls://…
	URL string `yaml:"url" secret:"url"`
	// CredentialsFile holds a user's JWT and seed.
	CredentialsFile string    `yaml:"credentials_file"`
	User            string    `yaml:"user"`
	Password        string    `yaml:"password" secret:"true"`
	TLS             tlsConfig `yaml:"tls"`
	// Replicas of each stream: 1 for a single server, 3 for a cluster.
	Replicas int `yaml:"replicas"`
	// SyncAlways writes every message to disk before it is acknowledged: survives a power cut, at a price. It is for the
	// server in this process; an external one has its own setting.
	SyncAlways bool `yaml:"sync_always"`
}

// tlsConfig of a connection that this process opens.
type tlsConfig struct {
	// CAFile holds the roots that the server must prove itself by; empty: the system's.
	CAFile   string `yaml:"ca_file"`
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

func (c natsConfig) validate() error {
	var errs []error
	if c.URL == "" {
		for key, set := range map[string]bool{"credentials_file": c.CredentialsFile != "", "user": c.User != "", "password": c.Password != "", "tls": c.TLS != tlsConfig{}} {
			if set {
				errs = append(errs, fmt.Errorf("nats.%s: is for an external server, and nats.url is empty", key))
			}
		}
	}
	for server := range strings.SplitSeq(c.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(server)) // its error would quote a password
		if c.URL != "" && (err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls") {
			errs = append(errs, fmt.Errorf("nats.url: %s: must be nats://host:port or tls://host:port, several separated by commas", redacted(server)))
		}
	}
	if c.CredentialsFile != "" && (c.User != "" || c.Password != "") {
		errs = append(errs, errors.New("nats.user: is given together with nats.credentials_file: give one of them"))
	}
	if c.Password != "" && c.User == "" {
		errs = append(errs, errors.New("nats.user: is empty, and nats.password is not"))
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		errs = append(errs, errors.New("nats.tls.cert_file: goes with nats.tls.key_file: give both or none"))
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		errs = append(errs, fmt.Errorf("nats.replicas: %d: must be 1 to 5", c.Replicas))
	}
	if c.URL == "" && c.Replicas > 1 {
		errs = append(errs, fmt.Errorf("nats.replicas: %d: the server in this process keeps 1", c.Replicas))
	}
	return errors.Join(errs...)
}

const (
	// startPatience is how long a start waits for NATS and Postgres to come up beside it. Then it goes on without (P9).
	startPatience = 5 * time.Second
	startRetry    = 500 * time.Millisecond
	// leastPayload is an envelope, a single notification above the envelope's bound, and headers.
	leastPayload = 2*envelope.MaxBytes + 64<<10
)

// connectNATS connects to an external server, or goes on trying in the background when it cannot be reached. It reconnects
// for ever.
func connectNATS(ctx context.Context, cfg natsConfig, log *zap.Logger) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name("notifyd"), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second), nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2),
		nats.SyncQueueLen(jsstreams.SyncQueue),
		nats.ReconnectBufSize(-1), // what cannot be sent now fails now: nothing is believed to be on its way
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Warn("connection lost; it is made again", zap.Error(err)) }),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info("connected again", zap.String("server", c.ConnectedUrlRedacted())) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("the server says", zap.Error(err)) }),
	}
	if cfg.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredentialsFile))
	}
	if cfg.User != "" {
		opts = append(opts, nats.UserInfo(cfg.User, cfg.Password))
	}
	if cfg.TLS != (tlsConfig{}) {
		secure, err := cfg.TLS.client("nats.tls")
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.Secure(secure))
	}
	conn, err := keepTrying(ctx, log, natsAway, func() (*nats.Conn, error) { return nats.Connect(cfg.URL, opts...) })
	if err != nil && natsAway(err) && ctx.Err() == nil {
		log.Warn("cannot be reached; starting without it", zap.String("server", redacted(cfg.URL)), zap.Error(err))
		conn, err = nats.Connect(cfg.URL, append(opts, nats.RetryOnFailedConnect(true), nats.ConnectHandler(func(c *nats.Conn) {
			log.Info("connected", zap.String("server", c.ConnectedUrlRedacted()))
			if err := checkPayload(c); err != nil {
				log.Error("large notifications cannot be stored", zap.Error(err))
			}
		}))...)
		return conn, err
	}
	if err != nil {
		return nil, fmt.Errorf("connect to nats at %s: %w", redacted(cfg.URL), err)
	}
	if err := checkPayload(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to nats at %s: %w", redacted(cfg.URL), err)
	}
	return conn, nil
}

func checkPayload(conn *nats.Conn) error {
	if most := conn.MaxPayload(); most < leastPayload {
		return fmt.Errorf("its max_payload is %d bytes, must be at least %d", most, leastPayload)
	}
	return nil
}

// keepTrying waits for a server that starts beside this process.
func keepTrying[T any](ctx context.Context, log *zap.Logger, away func(error) bool, try func() (T, error)) (T, error) {
	deadline := time.Now().Add(startPatience)
	for {
		got, err := try()
		if err == nil || !away(err) || time.Now().After(deadline) {
			return got, err
		}
		log.Warn("does not answer yet", zap.Error(err), zap.Duration("patience", time.Until(deadline).Round(time.Second)))
		timer := time.NewTimer(startRetry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return got, err
		}
	}
}

// natsAway tells a server that is not there yet from one that refuses.
func natsAway(err error) bool {
	var dial *net.OpError
	return errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrTimeout) || errors.As(err, &dial) && dial.Op == "dial"
}

// redacted is a url, or several, without passwords.
func redacted(raw string) string {
	servers := strings.Split(raw, ",")
	for i, one := range servers {
		servers[i] = settings.MaskURL(strings.TrimSpace(one))
	}
	return strings.Join(servers, ",")
}

// client is the configuration of a connection to a server.
func (c tlsConfig) client(key string) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		roots, err := readRoots(key+".ca_file", c.CAFile)
		if err != nil {
			return nil, err
		}
		out.RootCAs = roots
	}
	if c.CertFile != "" {
		pair, err := readPair(key, c.CertFile, c.KeyFile)
		if err != nil {
			return nil, err
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

func readRoots(key, path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s: holds no certificate in PEM", key, path)
	}
	return roots, nil
}

// readPair reads a certificate and its key, and says which of them is wrong.
func readPair(key, certFile, keyFile string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return pair, fmt.Errorf("%s.cert_file: %s with key_file %s: %w", key, certFile, keyFile, err)
	}
	now := time.Now()
	switch leaf := pair.Leaf; {
	case now.After(leaf.NotAfter):
		return pair, fmt.Errorf("%s.cert_file: %s: expired on %s", key, certFile, leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return pair, fmt.Errorf("%s.cert_file: %s: is not valid before %s", key, certFile, leaf.NotBefore.Format(time.RFC3339))
	}
	return pair, nil
}
