package rig

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"notifyd/contract/sign"
)

// FloorConfig says what the bare client asks.
type FloorConfig struct {
	URL  string
	CA   string // a file; empty without TLS
	Size int    // of a payload
}

// FloorOrder is one turn: N requests in a closed loop, or Phases of an open one.
type FloorOrder struct {
	N, Callers int
	Phases     []Phase
}

// Floor is a bare net/http client that posts signed bodies: what a request costs without an engine.
type Floor struct{ *Process }

// StartFloor starts a bare client.
func StartFloor(ctx context.Context, cfg FloorConfig) (*Floor, error) {
	p, err := child(ctx, "floor", cfg)
	return &Floor{Process: p}, err
}

// Order does one turn.
func (f *Floor) Order(o FloorOrder) (p Paced, err error) { return p, f.Ask(o, &p) }

func runFloor(cfg FloorConfig) error {
	secret, err := sign.ParseStandardSecret(sign.GenerateStandardSecret())
	if err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	if cfg.CA != "" {
		raw, err := os.ReadFile(cfg.CA)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(raw) {
			return fmt.Errorf("%s: no certificate", cfg.CA)
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	}
	client := &http.Client{Transport: transport}
	return serve(func(o FloorOrder) (Paced, error) {
		do := func(s Slot) error {
			return post(client, cfg.URL, secret, payload(cfg.Size, strconv.Itoa(s.Number), s.At, false))
		}
		if o.Phases != nil {
			return openLoop(1, o.Callers, o.Phases, do)
		}
		return closedLoop(o.N, o.Callers, do)
	})
}

func post(client *http.Client, url string, secret sign.StandardSecret, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	now := time.Now()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("webhook-id", "floor")
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", secret.Sign("floor", now, body))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the sink answered %s", res.Status)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}
