package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"notifyd/client/verify"
	"notifyd/contract/sign"
)

const (
	maxPrinted = 4 << 10
	// rememberedIDs bounds what repeats are told from.
	rememberedIDs  = 100_000
	listenShutdown = 5 * time.Second
)

// listenCmd plays a merchant.
type listenCmd struct {
	Addr string `help:"Where to listen." default:"127.0.0.1:9000"`
	merchantSide
	Secret         string        `help:"The signing secret, of standard whsec_ and base64. Without one standard makes a new one and prints it." env:"NOTIFYD_LISTEN_SECRET" placeholder:"whsec_…"`
	Answer         int           `help:"HTTP status to answer with. Default: the profile's acknowledgement."`
	Body           *string       `help:"Body to answer with. Default: the profile's acknowledgement."`
	Delay          time.Duration `help:"How long to wait before answering." default:"0s"`
	AcceptUnsigned bool          `help:"Answer as usual even when the signature is missing or wrong; otherwise it is 401."`
	JSON           bool          `help:"Print one JSON line per request." name:"json"`
}

// Help is the long text of --help.
func (listenCmd) Help() string {
	return `Receives notifications at every path, verifies them as a merchant of the profile does, answers with the profile's
acknowledgement, and prints what came. An id that was seen before is marked as a repeat.

Examples:

    notifyd listen
    notifyd listen --addr 127.0.0.1:9000 --secret whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
    notifyd listen --answer 500 --body 'try again'     # a merchant that fails
    notifyd listen --delay 11s                         # one that answers late
    notifyd listen --profile alipay --public-key-file platform.pem
    notifyd listen --profile wechatpay-v3 --public-key-file platform-certificate.pem --decryption-key-file apiv3.txt`
}

// Run listens until ctx ends.
func (c *listenCmd) Run(ctx context.Context, s *streams) error {
	v, profile, made, err := c.prepare(s)
	if err != nil {
		return err
	}
	says := acknowledges(profile)
	if c.Answer == 0 {
		c.Answer = says.status
	}
	if c.Body != nil {
		says.body = *c.Body
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
	m := &played{cmd: c, profile: profile, verifier: v, says: says, streams: s, seen: map[string]int{}}
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

// prepare makes the verifier; made: with a new secret.
func (c *listenCmd) prepare(s *streams) (_ *verify.Verifier, profile string, made bool, _ error) {
	profile, _, err := c.contract()
	if err != nil {
		return nil, "", false, err
	}
	if c.Secret == "" && profile == "standard" && len(c.SecretFile) == 0 && os.Getenv(verifySecretVariable) == "" {
		c.Secret, made = sign.GenerateStandardSecret(), true
	}
	var given []string
	if c.Secret != "" {
		given = []string{c.Secret}
	}
	v, profile, err := c.verifier(s, given...)
	return v, profile, made, err
}

// acknowledgement is what a merchant answers.
type acknowledgement struct {
	status     int
	kind, body string
}

// acknowledges is the agreed answer of a profile.
func acknowledges(profile string) acknowledgement {
	const plain = "text/plain; charset=utf-8"
	switch profile {
	case "wechatpay-v2":
		return acknowledgement{http.StatusOK, "text/xml; charset=utf-8", "<xml><return_code><![CDATA[SUCCESS]]></return_code><return_msg><![CDATA[OK]]></return_msg></xml>"}
	case "wechatpay-v3":
		return acknowledgement{status: http.StatusNoContent, kind: plain}
	case "unionpay":
		return acknowledgement{http.StatusOK, plain, "ok"}
	case "adyen":
		return acknowledgement{http.StatusOK, plain, "[accepted]"}
	}
	return acknowledgement{http.StatusOK, plain, "success"}
}

// played is the merchant that is played.
type played struct {
	cmd      *listenCmd
	profile  string
	verifier *verify.Verifier
	says     acknowledgement
	streams  *streams

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
    -d "{\"merchant\":{\"id\":\"my-shop\",\"name\":\"My shop\",\"notifyUrl\":\"http://%s/notify\",\"contract\":%s}}"
then send it something:
  echo '{"source":"me","requestId":"r1","merchantId":"my-shop","scene":"recharge","payload":"{\"paid\":true}"}' | notifyd send

`, addr, addr, m.settings(secret))
}

// settings is the contract to register, within a shell's double quotes.
func (m *played) settings(secret string) string {
	var text string
	switch m.profile {
	case "standard":
		text = `{"signer":{"secret":"` + secret + `"}}`
	case "stripe", "wechatpay-v2", "adyen":
		text = `{"profile":"` + m.profile + `","signer":{"secret":"` + secret + `"}}`
	case "wechatpay-v3":
		text = `{"profile":"wechatpay-v3","signer":{"keyId":"$KEY"},"encryption":{"keyId":"$APIV3_KEY"}}`
	case "custom":
		return "$(cat '" + m.cmd.Settings + "')"
	default:
		text = `{"profile":"` + m.profile + `","signer":{"keyId":"$KEY"}}`
	}
	return strings.ReplaceAll(text, `"`, `\"`)
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
	Resource    string    `json:"resource,omitempty"` // what was encrypted
}

// ServeHTTP receives, verifies, prints and answers.
func (m *played) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	callback, err := m.verifier.Verify(r)
	line := receivedLine{
		At: now.UTC(), ID: r.Header.Get(sign.StandardID), Attempt: r.Header.Get("notifyd-attempt"), Method: r.Method, Path: r.URL.Path,
		ContentType: r.Header.Get("Content-Type"), Status: m.cmd.Answer,
	}
	answer, kind := m.says.body, m.says.kind
	if err != nil {
		body, _ := io.ReadAll(r.Body) // what was read of it, which is bounded
		line.Fault, line.Body, line.Bytes = faultText(err), string(body), len(body)
		if !m.cmd.AcceptUnsigned {
			line.Status, answer, kind = refusal(err, len(body)), line.Fault+"\n", "text/plain; charset=utf-8"
		}
	} else {
		line.ID, line.Body, line.Bytes, line.Resource = callback.ID, string(callback.Body), len(callback.Body), string(callback.Resource)
	}
	line.Verified = line.Fault == ""
	m.print(line)
	if m.cmd.Delay > 0 && !pause(r.Context(), m.cmd.Delay) {
		panic(http.ErrAbortHandler) // nobody waits for the answer: hang up
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("X-Content-Type-Options", "nosniff") // what was wrong may quote the request
	w.WriteHeader(line.Status)
	if line.Status != http.StatusNoContent && line.Status != http.StatusNotModified {
		_, _ = io.WriteString(w, answer) // who hung up does not want it
	}
}

// refusal is the status of what does not verify.
func refusal(err error, length int) int {
	var e *verify.Error
	switch {
	case length > verify.DefaultMaxBody:
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &e) && e.Reason == verify.BadBody:
		return http.StatusBadRequest
	}
	return http.StatusUnauthorized
}

// print writes a line about a request, and its body. Only verified ids count as seen: anybody may send the others.
func (m *played) print(line receivedLine) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total++
	line.Times = 1
	if line.ID != "" && (line.Verified || m.cmd.AcceptUnsigned) {
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
	if line.Resource != "" {
		say(m.streams.Out, "    decrypted:\n%s\n", indented(line.Resource))
	}
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
