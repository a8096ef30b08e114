package egress

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
)

const (
	userAgent       = "notifyd/1"
	jsonType        = "application/json"
	profileStandard = "standard"
	// longestCachedURL leaves out URLs that name one order each: they would only push out the others.
	longestCachedURL = 256
)

// order is a request that is ready to be made, as often as a leg needs it.
type order struct {
	url    *url.URL
	header http.Header
	record notification.Request
}

// order encodes and signs. It does no I/O.
func (c *Client) order(call Call, at time.Time) (order, error) {
	work := call.Work
	to, err := c.target(work.NotifyURL)
	if err != nil {
		return order{}, err
	}
	headers, err := c.headers(call, at)
	if err != nil {
		return order{}, err
	}
	o := order{url: to.url, header: make(http.Header, len(headers))}
	values := make([]string, len(headers))
	for i, h := range headers {
		values[i] = h.Value
		o.header[h.Name] = values[i : i+1 : i+1]
		headers[i].Value = maskHeader(h.Name, h.Value)
	}
	o.record = notification.Request{Method: http.MethodPost, URL: work.NotifyURL, Headers: headers, Body: work.Body}
	return o, nil
}

func (c *Client) headers(call Call, at time.Time) ([]notification.Header, error) {
	work, contract := call.Work, call.Merchant.Contract
	if !isStandard(contract) {
		return nil, encodeError("there is no contract profile of this name: " + contract.Profile)
	}
	contentType := work.ContentType
	if contentType == "" {
		contentType = jsonType
	} else if !validHeaderValue(contentType) {
		return nil, encodeError("the content type cannot be a header")
	}
	secret, err := c.secret(call.Merchant.Secrets.SigningSecret)
	if err != nil {
		return nil, encodeError("the merchant has no usable signing secret")
	}
	id, timestamp := work.ID.String(), strconv.FormatInt(at.Unix(), 10)
	headers := []notification.Header{
		{Name: "Content-Type", Value: contentType},
		{Name: "User-Agent", Value: userAgent},
		{Name: HeaderID, Value: id},
		{Name: HeaderTimestamp, Value: timestamp},
		{Name: HeaderSignature, Value: secret.sign(id, timestamp, work.Body)}, // P5: these bytes are sent and kept
		{Name: HeaderAttempt, Value: strconv.Itoa(call.Number)},
	}
	if work.Trace != "" {
		headers = append(headers, notification.Header{Name: "Traceparent", Value: work.Trace})
	}
	return headers, nil
}

func isStandard(contract merchant.Contract) bool {
	return contract.Profile == "" || contract.Profile == profileStandard
}

// request is made anew for each leg. Two things must stay as they are: GetBody is nil and no header makes net/http
// take the request for repeatable, or it sends again on its own; and the body is of a kind that net/http knows, or it
// flushes the head first, which is a second packet.
func (o *order) request(ctx context.Context) *http.Request {
	r := blank.WithContext(ctx)
	r.URL, r.Header = o.url, o.header
	r.ContentLength = int64(len(o.record.Body))
	if r.ContentLength == 0 {
		r.Body = http.NoBody
	} else {
		r.Body = io.NopCloser(bytes.NewReader(o.record.Body))
	}
	return r
}

var blank = &http.Request{Method: http.MethodPost, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}

func (c *Client) target(raw string) (target, error) {
	if to, ok := c.targets.get(raw); ok {
		return to, nil
	}
	to, err := parseURL(raw)
	if err == nil && len(raw) <= longestCachedURL {
		c.targets.put(raw, to)
	}
	return to, err
}

func (c *Client) secret(text string) (Secret, error) {
	if secret, ok := c.secrets.get(text); ok {
		return secret, nil
	}
	secret, err := ParseSecret(text)
	if err == nil {
		c.secrets.put(text, secret)
	}
	return secret, err
}

const masked = "[masked]"

// letIn are the headers whose values let somebody in.
var letIn = []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "Api-Key", "X-Auth-Token"}

func maskHeader(name, value string) string {
	for _, secret := range letIn {
		if len(secret) == len(name) && strings.EqualFold(secret, name) {
			return masked
		}
	}
	return value
}

func validHeaderValue(value string) bool {
	for i := range len(value) {
		if c := value[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}
