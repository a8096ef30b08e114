package egress

import (
	"net/http"
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
	to      target
	headers []notification.Header
	record  notification.Request // as it is kept: what lets somebody in is masked
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
	kept := make([]notification.Header, len(headers))
	for i, h := range headers {
		if !validHeaderValue(h.Value) {
			return order{}, encodeError("the value of header " + h.Name + " has control characters")
		}
		kept[i] = notification.Header{Name: h.Name, Value: maskHeader(h.Name, h.Value)}
	}
	return order{
		to: to, headers: headers,
		record: notification.Request{Method: http.MethodPost, URL: work.NotifyURL, Headers: kept, Body: work.Body},
	}, nil
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
