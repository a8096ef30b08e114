package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"notifyd/client/verify"
	"notifyd/merchant"
	"notifyd/notification"
)

type want struct {
	outcome  notification.Outcome
	reason   notification.Reason
	connects int
}

func check(t *testing.T, a notification.Attempt, w want) {
	t.Helper()
	if a.Outcome != w.outcome || a.Reason != w.reason || a.Connects != w.connects {
		t.Errorf("got %v %v after %d connects (%s), want %v %v after %d", a.Outcome, a.Reason, a.Connects, a.Detail, w.outcome, w.reason, w.connects)
	}
	if a.Counted != a.Reason.Counts() {
		t.Errorf("%v: counted %t", a.Reason, a.Counted)
	}
	if a.Took <= 0 || a.StartedAt.Location() != time.UTC || !a.StartedAt.Equal(a.StartedAt.Truncate(time.Microsecond)) || a.Key.IsZero() {
		t.Errorf("took %v, started %v, key %v", a.Took, a.StartedAt, a.Key)
	}
	if strings.Contains(a.Detail, "token=secret") {
		t.Errorf("the detail shows a query string: %s", a.Detail)
	}
	if a.Outcome == notification.OutcomeDelivered != (a.Reason == notification.ReasonAcknowledged || a.Reason == notification.ReasonLateAcknowledgement) {
		t.Errorf("%v for %v", a.Outcome, a.Reason)
	}
}

var (
	delivered  = want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 1}
	afterWrite = want{notification.OutcomeUnconfirmed, notification.ReasonResetAfterWrite, 1}
)

// short timeouts for what ends in one; generous enough for what must not, on a busy machine.
func short(c *Config) {
	c.TotalTimeout, c.Grace = 150*time.Millisecond, 100*time.Millisecond
}

func TestSendDelivered(t *testing.T) {
	var got *http.Request
	var body bytes.Buffer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		_, _ = body.ReadFrom(r.Body)
		w.Header().Set("Set-Cookie", "sid=secret")
		_, _ = w.Write([]byte("thanks"))
	}))
	defer server.Close()
	c := newClient(t, nil)
	call := callTo(server.URL+"/notify?order=1", []byte(`{"amount": 10.50}`))
	call.Number, call.Merchant.Contract.Signer.KeyID = 4, "k1"

	a := c.Send(t.Context(), call)

	check(t, a, delivered)
	if got.Method != http.MethodPost || got.URL.String() != "/notify?order=1" || body.String() != `{"amount": 10.50}` {
		t.Errorf("sent %s %s %q", got.Method, got.URL, &body)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "notifyd/1", "Webhook-Id": call.Work.ID.String(), "Notifyd-Attempt": "4",
		"Accept-Encoding": "", "Idempotency-Key": "", "Content-Length": "17",
	} {
		if got.Header.Get(name) != value {
			t.Errorf("%s: %q, want %q", name, got.Header.Get(name), value)
		}
	}
	merchants, err := verify.Standard(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := merchants.VerifyMessage(verify.Message{Method: got.Method, URL: server.URL + got.URL.String(), Header: got.Header, Body: body.Bytes()}, time.Now()); err != nil {
		t.Error(err)
	}
	if string(a.Request.Body) != body.String() || a.Request.URL != call.Work.NotifyURL || len(a.Request.Headers) != 6 {
		t.Errorf("kept %+v", a.Request)
	}
	if a.Response == nil || a.Response.Status != 200 || string(a.Response.Body) != "thanks" || a.Response.Truncated || strings.Contains(fmt.Sprint(a.Response.Headers), "secret") {
		t.Errorf("kept %+v", a.Response)
	}
	if a.Number != 4 || a.Generation != 3 || a.Kind != notification.KindSend || a.Trigger != notification.TriggerAuto || a.SettingsVersion != 7 ||
		a.Egress != "direct" || len(a.KeyIDs) != 1 || a.KeyIDs[0] != "k1" || a.Detail != "" || !a.LateAt.IsZero() || !a.Counted {
		t.Errorf("attempt %+v", a)
	}
	if a.RemoteAddr != server.Listener.Addr().String() || a.LocalAddr == "" || a.TLS != "" || a.Phases.Connect <= 0 || a.Phases.FirstByte <= 0 {
		t.Errorf("way %s to %s %q %+v", a.LocalAddr, a.RemoteAddr, a.TLS, a.Phases)
	}

	again := c.Send(t.Context(), call)
	check(t, again, want{notification.OutcomeDelivered, notification.ReasonAcknowledged, 0})
	if again.LocalAddr != a.LocalAddr || again.Phases.Connect != 0 || again.Key == a.Key {
		t.Errorf("the connection was not used again: %+v", again)
	}
}

// What one scripted merchant says or does to one attempt.
func TestSendAnswers(t *testing.T) {
	retryable, unconfirmed := notification.OutcomeRetryable, notification.OutcomeUnconfirmed
	success := merchant.Acknowledgement{BodyExact: "success"}
	tests := []struct {
		name   string
		script []part
		agreed merchant.Acknowledgement
		config func(*Config)
		want   want
	}{
		{"exact body", []part{answers(okAnswer)}, success, nil, delivered},
		{"body with a line feed", []part{answers("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsuccess\n")}, success, nil, want{retryable, notification.ReasonWrongAnswer, 1}},
		{"chunked", []part{answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsuc\r\n4\r\ncess\r\n0\r\n\r\n")}, success, nil, delivered},
		{"until close", []part{once("HTTP/1.0 200 OK\r\n\r\nsuccess")}, success, nil, delivered},
		{"no content", []part{answers("HTTP/1.1 204 No Content\r\n\r\n")}, merchant.Acknowledgement{}, nil, delivered},
		{"500", []part{answers("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")}, merchant.Acknowledgement{}, nil, want{retryable, notification.ReasonHTTPServerError, 1}},
		{"410", []part{answers("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")}, merchant.Acknowledgement{}, nil, want{notification.OutcomeRejected, notification.ReasonGone, 1}},
		{"abort", []part{answers("HTTP/1.1 400 No\r\nWebhook-Delivery: abort-message\r\nContent-Length: 0\r\n\r\n")}, merchant.Acknowledgement{}, nil, want{notification.OutcomeRejected, notification.ReasonAbortMessage, 1}},
		{"after 100 continue", []part{answers("HTTP/1.1 100 Continue\r\n\r\n" + okAnswer)}, success, nil, delivered},
		{"after early hints", []part{answers("HTTP/1.1 103 Early Hints\r\n\r\n" + okAnswer)}, success, nil, delivered},
		{"100 continue without end", []part{answers(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5000))}, success, nil, want{unconfirmed, notification.ReasonBadResponse, 1}},
		{"switching protocols", []part{answers("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")}, merchant.Acknowledgement{}, nil, want{retryable, notification.ReasonHTTPUnexpected, 1}},
		{"not HTTP", []part{answers("SSH-2.0-OpenSSH_9.9\r\n")}, merchant.Acknowledgement{}, nil, want{unconfirmed, notification.ReasonBadResponse, 1}},
		{"a bad status line", []part{answers("HTTP/1.1 abc OK\r\n\r\n")}, merchant.Acknowledgement{}, nil, want{unconfirmed, notification.ReasonBadResponse, 1}},
		{"a head without end", []part{answers("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 10000) + "\r\n")}, merchant.Acknowledgement{}, nil, want{unconfirmed, notification.ReasonBadResponse, 1}},
		{"a broken chunk", []part{answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")}, merchant.Acknowledgement{}, nil, want{unconfirmed, notification.ReasonBadResponse, 1}},
		{"half a body", []part{once("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsucc")}, merchant.Acknowledgement{}, nil, afterWrite},
		{"closed without an answer", []part{once("")}, merchant.Acknowledgement{}, nil, afterWrite},
		{"reset after the request", []part{func(s *side) {
			s.read()
			s.reset()
		}}, merchant.Acknowledgement{}, nil, afterWrite},
		{"no answer", []part{func(s *side) {
			s.read()
			s.hold()
		}}, merchant.Acknowledgement{}, short, want{unconfirmed, notification.ReasonResponseTimeout, 1}},
		{"slow head", []part{func(s *side) {
			s.read()
			s.say("HTTP/1.1 200 OK\r\nX-Slow: ")
			for range 1000 {
				s.say("x")
				s.wait(5 * time.Millisecond)
			}
		}}, merchant.Acknowledgement{}, short, want{unconfirmed, notification.ReasonResponseTimeout, 1}},
		{"body in drips", []part{func(s *side) {
			s.read()
			s.say("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
			for range 1000 {
				s.say("x")
				s.wait(5 * time.Millisecond)
			}
		}}, merchant.Acknowledgement{}, short, want{unconfirmed, notification.ReasonBodyTimeout, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := play(t, test.script...)
			c := newClient(t, test.config)
			call := callTo(m.url()+"?token=secret", []byte(`{"a":1}`))
			call.Merchant.Contract.Acknowledgement = test.agreed
			a := c.Send(t.Context(), call)
			check(t, a, test.want)
			if limit := c.config.TotalTimeout + c.config.Grace + time.Second; a.Took > limit {
				t.Errorf("took %v", a.Took)
			}
			if seen := m.seen(); len(seen) != 1 {
				t.Errorf("the merchant saw %d requests", len(seen))
			}
		})
	}
}

func TestSendDoesNotFollowRedirects(t *testing.T) {
	var visits atomic.Int32
	login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		visits.Add(1)
		_, _ = w.Write([]byte("success"))
	}))
	defer login.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		m := play(t, answers(fmt.Sprintf("HTTP/1.1 %d Moved\r\nLocation: %s/login?token=secret\r\nContent-Length: 7\r\n\r\nsuccess", status, login.URL)))
		a := newClient(t, nil).Send(t.Context(), callTo(m.url(), nil))
		check(t, a, want{notification.OutcomeRetryable, notification.ReasonRedirect, 1})
		if !strings.Contains(a.Detail, "/login") {
			t.Errorf("detail %q", a.Detail)
		}
	}
	if n := visits.Load(); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

func TestSendHugeBody(t *testing.T) {
	const limit = 64 << 10
	for _, size := range []int{limit - 1, limit, limit + 1, 10 << 20} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			for _, head := range []string{fmt.Sprintf("Content-Length: %d\r\n", size), "Connection: close\r\n"} {
				m := play(t, once("HTTP/1.1 200 OK\r\n"+head+"\r\n"+strings.Repeat("x", size)))
				a := newClient(t, nil).Send(t.Context(), callTo(m.url(), nil))
				check(t, a, delivered)
				if len(a.Response.Body) != min(size, limit) || a.Response.Truncated != (size > limit) {
					t.Errorf("kept %d bytes, truncated %t", len(a.Response.Body), a.Response.Truncated)
				}
			}
		})
	}
	// An endless one is not drained: its connection is closed, the next attempt has a new one.
	m := play(t, func(s *side) {
		s.read()
		s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := s.Write([]byte("400\r\n" + strings.Repeat("x", 0x400) + "\r\n")); err != nil {
				return
			}
		}
	})
	c := newClient(t, nil)
	for range 2 {
		a := c.Send(t.Context(), callTo(m.url(), nil))
		check(t, a, delivered)
		if !a.Response.Truncated || a.Took > 3*time.Second {
			t.Errorf("truncated %t, took %v", a.Response.Truncated, a.Took)
		}
	}
}

func TestSendLateAnswer(t *testing.T) {
	late := func(answer string) part {
		return func(s *side) {
			for s.read() {
				s.wait(150 * time.Millisecond)
				s.say(answer)
			}
		}
	}
	patient := func(c *Config) { c.TotalTimeout, c.Grace = 100*time.Millisecond, 10*time.Second }
	tests := []struct {
		name, answer string
		want         want
	}{
		{"acknowledgement", okAnswer, want{notification.OutcomeDelivered, notification.ReasonLateAcknowledgement, 1}},
		{"500", "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", want{notification.OutcomeUnconfirmed, notification.ReasonResponseTimeout, 1}},
		{"410", "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", want{notification.OutcomeUnconfirmed, notification.ReasonResponseTimeout, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := play(t, late(test.answer))
			a := newClient(t, patient).Send(t.Context(), callTo(m.url(), nil))
			check(t, a, test.want)
			if a.LateAt.IsZero() || a.LateAt.Sub(a.StartedAt) < 100*time.Millisecond || a.Response == nil || len(m.seen()) != 1 {
				t.Errorf("late at %v, response %v", a.LateAt, a.Response)
			}
		})
	}
	t.Run("no grace", func(t *testing.T) {
		t.Parallel()
		m := play(t, late(okAnswer))
		call := callTo(m.url(), nil)
		call.Merchant.Timeouts.NoGrace = true
		check(t, newClient(t, patient).Send(t.Context(), call), want{notification.OutcomeUnconfirmed, notification.ReasonResponseTimeout, 1})
	})
	t.Run("first byte", func(t *testing.T) {
		t.Parallel()
		m := play(t, late(okAnswer))
		call := callTo(m.url(), nil)
		call.Merchant.Timeouts = merchant.Timeouts{FirstByte: 50 * time.Millisecond, Total: 10 * time.Second}
		a := newClient(t, nil).Send(t.Context(), call)
		check(t, a, want{notification.OutcomeUnconfirmed, notification.ReasonResponseTimeout, 1})
		if a.Detail != string(errNoFirstByte) || a.Took > 5*time.Second {
			t.Errorf("%s after %v", a.Detail, a.Took)
		}
	})
	t.Run("first byte in time, the rest later", func(t *testing.T) {
		t.Parallel()
		m := play(t, func(s *side) {
			s.read()
			s.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nO")
			s.wait(700 * time.Millisecond)
			s.say("K")
		})
		call := callTo(m.url(), nil)
		call.Merchant.Timeouts = merchant.Timeouts{FirstByte: 500 * time.Millisecond}
		check(t, newClient(t, nil).Send(t.Context(), call), delivered)
	})
}

func TestSendRetryAfter(t *testing.T) {
	for status, want := range map[int]time.Duration{429: 2 * time.Minute, 503: 2 * time.Minute, 200: 0} {
		m := play(t, answers(fmt.Sprintf("HTTP/1.1 %d X\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n", status)))
		if a := newClient(t, nil).Send(t.Context(), callTo(m.url(), nil)); a.RetryAfter != want {
			t.Errorf("%d: %v", status, a.RetryAfter)
		}
	}
}

// Shutdown: the attempt is abandoned at once; what left decides.
func TestSendShutdown(t *testing.T) {
	received := make(chan struct{})
	m := play(t, func(s *side) {
		s.read()
		close(received)
		s.hold()
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-received
		cancel(errors.New("drained"))
	}()
	a := newClient(t, nil).Send(ctx, callTo(m.url(), nil))
	check(t, a, want{notification.OutcomeUnconfirmed, notification.ReasonShutdown, 1})

	a = newClient(t, nil).Send(ctx, callTo(m.url(), nil))
	check(t, a, want{notification.OutcomeRetryable, notification.ReasonShutdown, a.Connects})

	accepted := make(chan struct{})
	stall := play(t, func(s *side) {
		close(accepted)
		s.hold()
	})
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		<-accepted
		stop()
	}()
	a = newClient(t, nil).Send(ctx, callTo("https://"+stall.addr, nil))
	check(t, a, want{notification.OutcomeRetryable, notification.ReasonShutdown, 1})
}

func TestSendWithoutRequest(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Call)
		want   notification.Reason
	}{
		{"userinfo", func(c *Call) { c.Work.NotifyURL = "http://user:token=secret@127.0.0.1/" }, notification.ReasonBadNotifyURL},
		{"no url", func(c *Call) { c.Work.NotifyURL = "" }, notification.ReasonBadNotifyURL},
		{"inet_aton", func(c *Call) { c.Work.NotifyURL = "http://0x7f.1/?token=secret" }, notification.ReasonBadNotifyURL},
		{"no secret", func(c *Call) { c.Merchant.Secrets.SigningSecret = "" }, notification.ReasonSigningKey},
		{"no secret to be read", func(c *Call) { c.Merchant.Secrets.SigningSecret = "whsec_" }, notification.ReasonSigningKey},
		{"no key", func(c *Call) { c.Merchant.Contract.Profile = "alipay" }, notification.ReasonSigningKey},
		{"unknown profile", func(c *Call) { c.Merchant.Contract.Profile = "nothing" }, notification.ReasonSigningKey},
		{"content type with a header in it", func(c *Call) { c.Work.ContentType = "text/plain\r\nX: y" }, notification.ReasonEncodeFailure},
	}
	m := play(t, answers(okAnswer))
	for _, test := range tests {
		call := callTo(m.url(), nil)
		test.change(&call)
		a := newClient(t, nil).Send(t.Context(), call)
		check(t, a, want{notification.OutcomeRetryable, test.want, 0})
		if a.Detail == "" {
			t.Errorf("%s: no detail", test.name)
		}
	}
	if n := m.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func TestSendGivenContentType(t *testing.T) {
	kind := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { kind <- r.Header.Get("Content-Type") }))
	defer server.Close()
	call := callTo(server.URL, []byte("a=1"))
	call.Work.ContentType = "application/x-www-form-urlencoded"
	check(t, newClient(t, nil).Send(t.Context(), call), delivered)
	if got := <-kind; got != call.Work.ContentType {
		t.Errorf("got %q", got)
	}
}

// P11 at the last moment: whatever the name leads to.
func TestSendBlockedAddress(t *testing.T) {
	m := play(t, answers(okAnswer))
	_, port, _ := net.SplitHostPort(m.addr)
	guarded := newClient(t, func(c *Config) { c.AllowedNetworks = nil })
	for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "169.254.169.254", "[::1]", "0.0.0.0"} {
		a := guarded.Send(t.Context(), callTo("http://"+host+":"+port+"/?token=secret", nil))
		check(t, a, want{notification.OutcomeRetryable, notification.ReasonBlockedAddress, 1})
	}
	if n := m.connections(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	check(t, newClient(t, nil).Send(t.Context(), callTo("http://localhost:"+port, nil)), delivered)
}

// The environment's proxy is not ours to use.
func TestSendIgnoresProxyOfEnvironment(t *testing.T) {
	proxy := play(t, answers(okAnswer))
	t.Setenv("HTTP_PROXY", "http://"+proxy.addr)
	t.Setenv("http_proxy", "http://"+proxy.addr)
	c := newClient(t, func(c *Config) {
		c.AllowedNetworks = append(c.AllowedNetworks, netip.MustParsePrefix("192.0.2.0/24"))
		c.ConnectTimeout = 50 * time.Millisecond
	})
	if a := c.Send(t.Context(), callTo("http://192.0.2.1/", nil)); a.Outcome == notification.OutcomeDelivered || proxy.connections() != 0 {
		t.Errorf("went through the proxy: %+v", a)
	}
}

// Attempts on record are requests at the merchant: under every way a connection can end, no request is made twice.
func TestSendAttemptsAreRequests(t *testing.T) {
	var turn atomic.Int32
	m := play(t, func(s *side) {
		for s.read() {
			switch turn.Add(1) % 7 {
			case 1:
				s.reset()
				return
			case 2:
				s.say(okAnswer) // and closes the idle connection
				return
			case 3:
				s.say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			case 4:
				s.say("HTTP/1.1 408 Slow\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			default:
				s.say(okAnswer)
			}
		}
	})
	c := newClient(t, nil)
	var made sync.Map
	var done sync.WaitGroup
	const senders, each = 6, 60
	for sender := range senders {
		done.Go(func() {
			for i := range each {
				call := callTo(m.url(), payload)
				call.Number = sender*each + i + 1
				made.Store(strconv.Itoa(call.Number), c.Send(context.Background(), call))
			}
		})
	}
	done.Wait()
	seen := map[string]int{}
	for _, number := range m.seen() {
		seen[number]++
	}
	made.Range(func(key, value any) bool {
		a, n := value.(notification.Attempt), seen[key.(string)]
		switch {
		case n > 1:
			t.Errorf("attempt %s: %d requests", key, n)
		case n == 0 && a.Outcome != notification.OutcomeUnconfirmed && a.Outcome != notification.OutcomeRetryable:
			t.Errorf("attempt %s: %v %v, but no request", key, a.Outcome, a.Reason)
		case n == 1 && a.Reason == notification.ReasonResetBeforeWrite:
			t.Errorf("attempt %s: said to be unsent, but was seen", key)
		}
		return true
	})
}

func TestSendContainsBugs(t *testing.T) {
	c := newClient(t, nil)
	pool := c.pool
	defer func() { c.pool = pool }()
	c.pool = nil
	check(t, c.Send(t.Context(), callTo("http://127.0.0.1:1/", nil)), want{notification.OutcomeUnconfirmed, notification.ReasonInternal, 0})
}
