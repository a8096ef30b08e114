package health

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"notifyd/contract/sign"
	"notifyd/ledger"
)

// The events that a webhook tells.
const (
	eventRaised  = "alarm.raised"
	eventCleared = "alarm.cleared"
)

const (
	webhookBound   = 5 * time.Second // one try
	webhookTries   = 5
	webhookBackoff = time.Second // before the second try, then twice as long each time
	webhookQueue   = 1024
)

// webhook tells an operator's address about alarms, one after the other. Nobody waits for it.
type webhook struct {
	log     *zap.Logger
	now     func() time.Time
	client  *http.Client
	backoff time.Duration

	target  atomic.Pointer[webhookTarget] // nil: none
	queue   chan webhookMessage
	givenUp atomic.Uint64
}

type webhookTarget struct {
	url    string
	host   string              // for the log: a path or a query may carry a token
	secret sign.StandardSecret // the zero value: nothing is signed
}

// webhookMessage is what is posted.
type webhookMessage struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      alarmJSON `json:"data"`
}

// alarmJSON is an alarm as webhooks and /alarms show it.
type alarmJSON struct {
	Name      string     `json:"name"`
	Subject   string     `json:"subject"`
	Node      string     `json:"node"`
	Severity  string     `json:"severity"`
	Detail    string     `json:"detail"`
	Means     string     `json:"means"`
	Do        string     `json:"do"`
	RaisedAt  time.Time  `json:"raised_at"`
	SeenAt    time.Time  `json:"seen_at"`
	ClearedAt *time.Time `json:"cleared_at"`
}

func toJSON(a ledger.Alarm) alarmJSON {
	kind := kinds[Name(a.Name)]
	out := alarmJSON{
		Name: a.Name, Subject: a.Subject, Node: a.Node, Severity: a.Severity, Detail: a.Detail, Means: kind.Means, Do: kind.Do,
		RaisedAt: a.RaisedAt.UTC(), SeenAt: a.SeenAt.UTC(),
	}
	if !a.ClearedAt.IsZero() {
		at := a.ClearedAt.UTC()
		out.ClearedAt = &at
	}
	return out
}

func newWebhook(log *zap.Logger, now func() time.Time) *webhook {
	return &webhook{
		log: log, now: now, backoff: webhookBackoff, queue: make(chan webhookMessage, webhookQueue),
		client: &http.Client{
			Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: webhookBound, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Timeout:       webhookBound,
		},
	}
}

func (w *webhook) configure(cfg WebhookConfig) error {
	if cfg.URL == "" {
		w.target.Store(nil)
		return nil
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return errors.New("alarms.webhook.url: cannot be read")
	}
	t := &webhookTarget{url: cfg.URL, host: u.Host}
	if cfg.Secret != "" {
		secret, err := sign.ParseStandardSecret(string(cfg.Secret))
		if err != nil {
			return fmt.Errorf("alarms.webhook.secret: %w", err)
		}
		t.secret = secret
	}
	w.target.Store(t)
	return nil
}

// tell queues a message; when too many wait already, this one is given up.
func (w *webhook) tell(event string, a ledger.Alarm) {
	if w.target.Load() == nil {
		return
	}
	select {
	case w.queue <- webhookMessage{Type: event, Timestamp: w.now().UTC(), Data: toJSON(a)}:
	default:
		w.giveUp(a.Name, errors.New("too many wait"))
	}
}

func (w *webhook) giveUp(alarm string, err error) {
	w.givenUp.Add(1)
	w.log.Warn("an alarm's webhook is given up", zap.String("alarm", alarm), zap.Error(err))
}

// run posts until ctx ends. What waits then is not sent: the alarm is in the ledger and the log.
func (w *webhook) run(ctx context.Context) {
	defer w.client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-w.queue:
			if err := w.send(ctx, m); err != nil {
				w.giveUp(m.Data.Name, err)
			}
		}
	}
}

// send posts a message until somebody takes it, a few times.
func (w *webhook) send(ctx context.Context, m webhookMessage) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode alarm: %w", err)
	}
	id := m.id()
	wait := w.backoff
	for try := 1; ; try++ {
		t := w.target.Load() // the newest: a wrong address may have been corrected meanwhile
		if t == nil {
			return nil
		}
		again, err := w.post(ctx, t, id, body)
		if err == nil {
			return nil
		}
		if !again || try == webhookTries || ctx.Err() != nil {
			return fmt.Errorf("post to %s: try %d: %w", t.host, try, err)
		}
		sleep(ctx, wait)
		wait *= 2
	}
}

// id is the same for every try, so that a receiver recognises what it has.
func (m webhookMessage) id() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%d", m.Type, m.Data.Name, m.Data.Subject, m.Data.Node, m.Data.RaisedAt.UnixMicro()))
	return "alarm_" + hex.EncodeToString(sum[:16])
}

// post makes one try; again says whether another one could help.
func (w *webhook) post(ctx context.Context, t *webhookTarget, id string, body []byte) (again bool, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("no request can be made of the URL")
	}
	now := w.now()
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "notifyd")
	req.Header.Set(sign.StandardID, id)
	req.Header.Set(sign.StandardTimestamp, strconv.FormatInt(now.Unix(), 10))
	if signature := t.secret.Sign(id, now, body); signature != "" {
		req.Header.Set(sign.StandardSignature, signature)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // its text repeats the URL
			err = wrapped.Err
		}
		return true, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return false, nil
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return true, errors.New("answered " + resp.Status)
	default:
		return false, errors.New("answered " + resp.Status)
	}
}
