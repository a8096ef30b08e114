package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"notifyd/contract/sign"
)

// listening is a running `notifyd listen`.
type listening struct {
	runner
	url, secret string
	end         func() int
}

var (
	listensAt  = regexp.MustCompile(`listening on (http://\S+);`)
	madeSecret = regexp.MustCompile(`whsec_[A-Za-z0-9+/=]+`)
)

func listenAs(t *testing.T, change func(*listenCmd)) *listening {
	t.Helper()
	c := &listenCmd{Addr: "127.0.0.1:0"}
	if change != nil {
		change(c)
	}
	l := &listening{}
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- l.exec(ctx, c) }()
	l.end = func() int { cancel(); return <-code }
	said := func() string { return l.out.String() + l.err.String() }
	eventually(t, "it listens", func() bool { return listensAt.MatchString(said()) && strings.Contains(said(), "notifyd send\n") })
	l.url = listensAt.FindStringSubmatch(said())[1]
	if l.secret = c.Secret; c.Profile == "" && !madeSecret.MatchString(l.secret) {
		t.Fatalf("secret %q", l.secret)
	}
	return l
}

// tell makes a signed call; it returns the status and the body.
func (l *listening) tell(t *testing.T, id, secretText, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.url+"/notify", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	if secretText != "" {
		secret, err := sign.ParseStandardSecret(secretText)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		req.Header.Set(sign.StandardID, id)
		req.Header.Set("notifyd-attempt", "2")
		req.Header.Set(sign.StandardTimestamp, strconv.FormatInt(now.Unix(), 10))
		req.Header.Set(sign.StandardSignature, secret.Sign(id, now, []byte(body)))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestListenVerifiesAnswersAndPrints(t *testing.T) {
	l := listenAs(t, nil)
	wants(t, "the greeting", l.out.String(), "PutMerchant", l.secret, `\"notifyUrl\":\"`+l.url+`/notify\"`)
	for range 2 {
		if status, body := l.tell(t, "ntf_1", l.secret, `{"paid":true,"note":"登录"}`); status != 200 || body != "success" {
			t.Errorf("answered %d %q", status, body)
		}
	}
	if status, _ := l.tell(t, "ntf_2", sign.GenerateStandardSecret(), "evil \x1b[2J"); status != http.StatusUnauthorized {
		t.Errorf("a wrong signature was answered with %d", status)
	}
	if status, _ := l.tell(t, "", "", "unsigned"); status != http.StatusUnauthorized {
		t.Errorf("no signature was answered with %d", status)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit code %d: %s", code, l.err.String())
	}
	wants(t, "the lines", l.out.String(), "ntf_1  attempt 2  verified  29 bytes  answered 200  POST /notify\n    {\"paid\":true,\"note\":\"登录\"}\n", "repeat (2 times)",
		"ntf_2  attempt 2  NOT VERIFIED (no signature matches)", "answered 401", "-  attempt -  NOT VERIFIED (webhook-id, webhook-timestamp, webhook-signature missing)", "4 requests received")
	if strings.Contains(l.out.String(), "\x1b") {
		t.Error("an escape sequence reached the terminal")
	}
}

func TestListenAnswersAsAsked(t *testing.T) {
	given := sign.GenerateStandardSecret()
	l := listenAs(t, func(c *listenCmd) {
		c.Secret, c.Answer, c.Body, c.Delay, c.AcceptUnsigned, c.JSON = given, 503, new("try again"), 50*time.Millisecond, true, true
	})
	began := time.Now()
	if status, body := l.tell(t, "", "", "{}"); status != 503 || body != "try again" || time.Since(began) < 50*time.Millisecond {
		t.Errorf("answered %d %q after %v", status, body, time.Since(began))
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var line receivedLine
	if err := json.Unmarshal([]byte(l.out.String()), &line); err != nil || line.Verified || line.Fault == "" || line.Status != 503 || line.Body != "{}" {
		t.Errorf("printed %s: %v", l.out.String(), err)
	}
	if strings.Contains(l.err.String()+l.out.String(), given) {
		t.Error("a secret that was given is printed")
	}
}

func TestListenEndsWhileItWaits(t *testing.T) {
	l := listenAs(t, func(c *listenCmd) { c.Delay = time.Minute })
	hungUp := make(chan error, 1)
	go func() {
		resp, err := http.Post(l.url, "text/plain", strings.NewReader("x"))
		if err == nil {
			_ = resp.Body.Close()
		}
		hungUp <- err
	}()
	eventually(t, "it is received", func() bool { return strings.Contains(l.out.String(), "1 bytes") })
	began := time.Now()
	if code := l.end(); code != 0 || time.Since(began) > 4*time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
	if err := <-hungUp; err == nil {
		t.Error("it was answered, want a hang-up")
	}
}

func TestListenUsage(t *testing.T) {
	for name, c := range map[string]*listenCmd{
		"secret": {Addr: "127.0.0.1:0", Answer: 200, Secret: "whsec_short"},
		"answer": {Addr: "127.0.0.1:0", Answer: 99},
		"delay":  {Addr: "127.0.0.1:0", Answer: 200, Delay: -1},
	} {
		var r runner
		if code := r.exec(t.Context(), c); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	r := runner{}
	if code := r.exec(t.Context(), &listenCmd{Addr: "127.0.0.1:99999", Answer: 200}); code != 1 {
		t.Errorf("bad address: exit code %d", code)
	}
}
