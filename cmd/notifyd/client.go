package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	notifydv1 "notifyd/proto/notifyd/v1"
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

const dialBound = 5 * time.Second

// remote is a notifyd that a command talks to.
type remote struct {
	url           string
	http          *http.Client
	notifications notifydv1connect.NotificationServiceClient
}

// newRemote makes keep-alive clients. A server given without a scheme is meant as http.
func newRemote(server string, connections int) (*remote, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.Fragment != "" {
		return nil, usageError("--server %q: want a URL such as http://127.0.0.1:8700", server)
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialBound}).DialContext,
		ForceAttemptHTTP2:   true, // over TLS; without it, HTTP/1.1 that is kept alive
		MaxIdleConnsPerHost: connections,
		IdleConnTimeout:     time.Minute,
		TLSHandshakeTimeout: dialBound,
	}}
	base := strings.TrimSuffix(u.String(), "/")
	return &remote{url: base, http: client, notifications: notifydv1connect.NewNotificationServiceClient(client, base)}, nil
}

func (r *remote) close() { r.http.CloseIdleConnections() }

// fault is why a call, or one item of it, failed: what a person reads, and whether trying again makes sense.
type fault struct {
	code       connect.Code
	message    string
	violations []*notifydv1.Violation
	retryAfter time.Duration // what the server asks for; 0: nothing
	silent     bool          // the server did not say it: no answer of a notifyd came
	noDial     bool          // not even a connection
}

func faultOf(err error) *fault {
	f := &fault{code: connect.CodeOf(err), message: err.Error(), silent: !connect.IsWireError(err)}
	var dial *net.OpError
	f.noDial = errors.As(err, &dial) && dial.Op == "dial"
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return f
	}
	f.message = ce.Message()
	for _, d := range ce.Details() {
		value, err := d.Value()
		if err != nil {
			continue
		}
		switch v := value.(type) {
		case *errdetails.BadRequest:
			for _, field := range v.FieldViolations {
				f.violations = append(f.violations, &notifydv1.Violation{Field: field.Field, Description: field.Description})
			}
		case *errdetails.RetryInfo:
			f.retryAfter = v.RetryDelay.AsDuration()
		}
	}
	return f
}

func faultOfItem(e *notifydv1.ItemError) *fault {
	f := &fault{message: e.Message, violations: e.Violations, retryAfter: e.RetryAfter.AsDuration()}
	if err := f.code.UnmarshalText([]byte(e.Code)); err != nil {
		f.code = connect.CodeUnknown
	}
	return f
}

// passing reports whether the same call may work later. P4 makes trying again safe.
func (f *fault) passing() bool {
	switch f.code {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeDeadlineExceeded:
		return true
	case connect.CodeCanceled, connect.CodeUnknown, connect.CodeAborted:
		return f.silent // a connection that broke
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeFailedPrecondition, connect.CodeOutOfRange, connect.CodeUnimplemented, connect.CodeInternal,
		connect.CodeDataLoss, connect.CodeUnauthenticated:
		return false
	}
	return false
}

// noServer reports whether no notifyd answered at all.
func (f *fault) noServer() bool {
	return f.silent && (f.passing() || f.code == connect.CodeUnimplemented || f.code == connect.CodeInternal)
}

// nobody reports whether there is no use in waiting for a first answer: nothing listens, or something else does.
func (f *fault) nobody() bool {
	return f.noDial || f.silent && f.code != connect.CodeUnavailable && f.code != connect.CodeDeadlineExceeded && f.code != connect.CodeCanceled
}

// lines say what is wrong, one rule each.
func (f *fault) lines() []string {
	if len(f.violations) == 0 {
		return []string{f.code.String() + ": " + printable(f.message)}
	}
	out := make([]string, len(f.violations))
	for i, v := range f.violations {
		out[i] = printable(strings.TrimPrefix(v.Field, "notification.") + ": " + v.Description)
	}
	return out
}

// unreachable says that no notifyd answered at the server's address.
func (r *remote) unreachable(f *fault) error {
	return &exitError{code: exitUnreachable, err: fmt.Errorf("cannot reach %s: %s; does notifyd run there?", r.url, printable(f.message))}
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
