package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"notifyd/egress"
)

const (
	maxReceived = 1 << 20
	maxPrinted  = 4 << 10
	// rememberedIDs bounds what repeats are told from.
	rememberedIDs   = 100_000
	listenTolerance = 5 * time.Minute // as Standard Webhooks advises
	listenShutdown  = 5 * time.Second
)

// listenCmd plays a merchant.
type listenCmd struct {
	Addr           string        `help:"Where to listen." default:"127.0.0.1:9000"`
	Secret         string        `help:"The signing secret, whsec_ and base64. Without one a new one is made and printed." env:"NOTIFYD_LISTEN_SECRET" placeholder:"whsec_…"`
	Answer         int           `help:"HTTP status to answer with." default:"200"`
	Body           string        `help:"Body to answer with." default:"success"`
	Delay          time.Duration `help:"How long to wait before answering." default:"0s"`
	AcceptUnsigned bool          `help:"Answer as usual even when the signature is missing or wrong; otherwise it is 401."`
	JSON           bool          `help:"Print one JSON line per request." name:"json"`
}

// Help is the long text of --help.
func (listenCmd) Help() string {
	return `Receives notifications at every path, verifies their Standard Webhooks signature, answers, and prints what came. A
webhook-id that was seen before is marked as a repeat.

Examples:

    notifyd listen
    notifyd listen --addr 127.0.0.1:9000 --secret whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
    notifyd listen --answer 500 --body 'try again'     # a merchant that fails
    notifyd listen --delay 11s                         # one that answers late`
}

// Run listens until ctx ends.
func (c *listenCmd) Run(ctx context.Context, s *streams) error {
	made := c.Secret == ""
	if made {
		c.Secret = egress.GenerateSecret()
	}
	secret, err := egress.ParseSecret(c.Secret)
	if err != nil {
		return usageError("--secret: %w", err)
	}
	if c.Answer < 200 || c.Answer > 599 {
		return usageError("--answer %d: want an HTTP status from 200 to 599", c.Answer)
	}
	if c.Delay < 0 {
		return usageError("--delay %s: want 0s or more", c.Delay)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", c.Addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	m := &played{cmd: c, secret: secret, streams: s, seen: map[string]int{}}
	m.greet(listener.Addr().String(), made)
	server := &http.Server{
		Handler: m, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }, // who waits before answering hangs up at the end
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("listen: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), listenShutdown)
	defer cancel()
	if err := server.Shutdown(bound); err != nil {
		_ = server.Close() // the process is ending
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen: %w", err)
	}
	m.farewell()
	return nil
}

// played is the merchant that is played.
type played struct {
	cmd     *listenCmd
	secret  egress.Secret
	streams *streams

	mu    sync.Mutex // also keeps one request's lines together
	seen  map[string]int
	total int
}

// greet says how to become a merchant of a notifyd. A secret that was given is not repeated.
func (m *played) greet(addr string, made bool) {
	secret := "$SECRET"
	if made {
		secret = m.cmd.Secret
	}
	to := m.streams.Out
	if m.cmd.JSON {
		to = m.streams.Err
	}
	say(to, `listening on http://%s; Ctrl-C ends it
register it, where notifyd may call this address (dev allows loopback):
  curl -s http://127.0.0.1:8700/notifyd.v1.MerchantService/PutMerchant -H 'Content-Type: application/json' \
    -d "{\"merchant\":{\"id\":\"my-shop\",\"name\":\"My shop\",\"notifyUrl\":\"http://%s/notify\",\"contract\":{\"signer\":{\"secret\":\"%s\"}}}}"
then send it something:
  echo '{"source":"me","requestId":"r1","merchantId":"my-shop","scene":"recharge","payload":"{\"paid\":true}"}' | notifyd send

`, addr, addr, secret)
}

func (m *played) farewell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.cmd.JSON {
		say(m.streams.Out, "%d requests received\n", m.total)
	}
}

// receivedLine is what is printed of one request.
type receivedLine struct {
	At          time.Time `json:"at"`
	ID          string    `json:"id"`
	Attempt     string    `json:"attempt"`
	Verified    bool      `json:"verified"`
	Fault       string    `json:"fault,omitempty"` // why it is not
	Times       int       `json:"times"`           // this id was received, this time included
	Method      string    `json:"method"`
	Path        string    `json:"path"`
	ContentType string    `json:"contentType"`
	Bytes       int       `json:"bytes"`
	Status      int       `json:"status"` // answered
	Body        string    `json:"body"`
}

// ServeHTTP receives, verifies, prints and answers.
func (m *played) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReceived))
	now := time.Now()
	line := receivedLine{
		At: now.UTC(), ID: r.Header.Get(egress.HeaderID), Attempt: r.Header.Get(egress.HeaderAttempt), Method: r.Method, Path: r.URL.Path,
		ContentType: r.Header.Get("Content-Type"), Bytes: len(body), Status: m.cmd.Answer, Body: string(body),
	}
	answer := m.cmd.Body
	if err != nil {
		line.Fault, line.Status, answer = "the body cannot be read: "+err.Error(), http.StatusRequestEntityTooLarge, "cannot read the body\n"
	} else if err := egress.Verify(m.secret, r.Header, body, now, listenTolerance); err != nil {
		line.Fault = strings.TrimPrefix(err.Error(), "verify signature: ")
		if !m.cmd.AcceptUnsigned {
			line.Status, answer = http.StatusUnauthorized, line.Fault+"\n"
		}
	}
	line.Verified = line.Fault == ""
	m.print(line)
	if m.cmd.Delay > 0 && !pause(r.Context(), m.cmd.Delay) {
		panic(http.ErrAbortHandler) // nobody waits for the answer: hang up
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(line.Status)
	if line.Status != http.StatusNoContent && line.Status != http.StatusNotModified {
		_, _ = io.WriteString(w, answer) //nolint:gosec // plain text, of our own words; who hung up does not want it
	}
}

// print writes a line about a request, and its body. Only verified ids count as seen: anybody may send the others.
func (m *played) print(line receivedLine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total++
	line.Times = 1
	if line.Verified || m.cmd.AcceptUnsigned && line.ID != "" {
		if len(m.seen) >= rememberedIDs {
			clear(m.seen)
		}
		m.seen[line.ID]++
		line.Times = m.seen[line.ID]
	}
	if m.cmd.JSON {
		printJSON(m.streams.Out, line)
		return
	}
	verified := "verified"
	if !line.Verified {
		verified = "NOT VERIFIED (" + line.Fault + ")"
	}
	repeat := ""
	if line.Times > 1 {
		repeat = fmt.Sprintf("  repeat (%d times)", line.Times)
	}
	head := fmt.Sprintf("%s  %s  attempt %s  %s  %d bytes  answered %d%s  %s %s", line.At.Local().Format("15:04:05.000"),
		orDash(line.ID), orDash(line.Attempt), verified, line.Bytes, line.Status, repeat, line.Method, line.Path)
	say(m.streams.Out, "%s\n%s\n", strings.ReplaceAll(printable(head), "\n", " "), indented(line.Body))
}

// indented is a body for people: its head, each line a little to the right.
func indented(body string) string {
	cut := ""
	if len(body) > maxPrinted {
		cut = fmt.Sprintf("\n    … and %d bytes more", len(body)-maxPrinted)
		body = body[:maxPrinted]
	}
	return "    " + strings.ReplaceAll(strings.TrimSpace(printable(body)), "\n", "\n    ") + cut
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
