package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

	"notifyd/client"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// What the process says when it ends.
const (
	exitSome        = 1 // something was refused, failed or is missing
	exitUsage       = 2
	exitUnreachable = 3
)

// exitError ends the process with a code. A nil err is not printed: everything has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// ExitCode is what kong asks for.
func (e *exitError) ExitCode() int { return e.code }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// streams are where a command reads and prints.
type streams struct {
	In            io.Reader
	Out, Err      io.Writer
	ErrIsTerminal bool
}

// connection is where a command finds its server, and how the two prove themselves by certificates.
type connection struct {
	Server   string `help:"The intake." default:"http://127.0.0.1:8700" env:"NOTIFYD_SERVER"`
	CAFile   string `help:"PEM file of the roots that the server must prove itself by. Default: the system's." env:"NOTIFYD_CA_FILE" placeholder:"FILE" name:"ca-file"`
	CertFile string `help:"PEM file of the certificate that proves this caller." env:"NOTIFYD_CERT_FILE" placeholder:"FILE"`
	KeyFile  string `help:"PEM file of its private key." env:"NOTIFYD_KEY_FILE" placeholder:"FILE"`
}

// callerKeys prove a payment service.
type callerKeys struct {
	APIKey  string `help:"Key nk_… of the source, sent as it is. The environment is the better place: arguments can be seen by others." env:"NOTIFYD_API_KEY" placeholder:"KEY" name:"api-key"`
	HMACKey string `help:"Key nh_… of the source, which signs each request and is never sent." env:"NOTIFYD_HMAC_KEY" placeholder:"KEY" name:"hmac-key"`
}

func (k callerKeys) options() (opts []client.Option) {
	if k.APIKey != "" {
		opts = append(opts, client.WithAPIKey(k.APIKey))
	}
	if k.HMACKey != "" {
		opts = append(opts, client.WithHMACKey(k.HMACKey))
	}
	return opts
}

// operatorFlag proves an operator.
type operatorFlag struct {
	OperatorKey string `help:"Key no_… of an operator, sent as it is. The environment is the better place: arguments can be seen by others." env:"NOTIFYD_OPERATOR_KEY" placeholder:"KEY"`
}

func (o operatorFlag) options() (opts []client.Option) {
	if o.OperatorKey != "" {
		opts = append(opts, client.WithOperatorKey(o.OperatorKey))
	}
	return opts
}

// remote is a notifyd that a command talks to.
type remote struct {
	url           string
	client        *client.Client
	notifications notifydv1connect.NotificationServiceClient
}

// inFlags gives the client's options the names that they have on the command line.
var inFlags = strings.NewReplacer("new client: ", "", "server URL", "--server", "WithAPIKey", "--api-key", "WithHMACKey", "--hmac-key", "WithOperatorKey", "--operator-key")

// remote makes keep-alive clients. A server given without a scheme is meant as http.
func (c connection) remote(opts ...client.Option) (*remote, error) {
	server := c.Server
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	if c.CAFile+c.CertFile+c.KeyFile != "" {
		if !strings.HasPrefix(server, "https://") {
			return nil, usageError("--server %s: certificates go with https", redacted(server))
		}
		secure, err := c.tls()
		if err != nil {
			return nil, err
		}
		opts = append(opts, client.WithTLSConfig(secure))
	}
	to, err := client.New(server, opts...)
	if err != nil {
		return nil, usageError("%s", inFlags.Replace(err.Error()))
	}
	return &remote{url: to.URL(), client: to, notifications: notifydv1connect.NewNotificationServiceClient(to.HTTPClient(), to.URL())}, nil
}

// tls is what the files say.
func (c connection) tls() (*tls.Config, error) {
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, usageError("--cert-file %q goes with --key-file %q: give both or none", c.CertFile, c.KeyFile)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		roots, err := readRoots("--ca-file", c.CAFile)
		if err != nil {
			return nil, usageError("%w", err)
		}
		out.RootCAs = roots
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, usageError("--cert-file %s with --key-file %s: %w", c.CertFile, c.KeyFile, err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// close is for when nothing is under way.
func (r *remote) close() { r.client.HTTPClient().CloseIdleConnections() }

// fault is why a call, or one item of it, failed: what a person reads.
type fault struct{ *client.Error }

func faultOf(err error) *fault { return &fault{client.ErrorOf(err)} }

// noServer reports whether no notifyd answered at all.
func (f *fault) noServer() bool {
	return !f.Answered && (f.Temporary() || f.Unreached() || f.Code == connect.CodeUnimplemented || f.Code == connect.CodeInternal)
}

// nobody reports whether there is no use in waiting for a first answer: nothing listens, or something else does.
func (f *fault) nobody() bool {
	return f.Unreached() || !f.Answered && f.Code != connect.CodeUnavailable && f.Code != connect.CodeDeadlineExceeded && f.Code != connect.CodeCanceled
}

// lines say what is wrong, one rule each.
func (f *fault) lines() []string {
	if len(f.Violations) == 0 {
		return []string{f.Code.String() + ": " + printable(f.Message)}
	}
	out := make([]string, len(f.Violations))
	for i, v := range f.Violations {
		out[i] = printable(strings.TrimPrefix(v.Field, "notification.") + ": " + v.Description)
	}
	return out
}

// unreachable says that no notifyd answered at the server's address.
func (r *remote) unreachable(f *fault) error {
	return &exitError{code: exitUnreachable, err: fmt.Errorf("cannot reach %s: %s; does notifyd run there?", r.url, printable(f.Message))}
}

// say prints. Who closed the output does not want it.
func say(to io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(to, format, args...) }

// printable keeps what came over the network from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

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
