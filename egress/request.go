package egress

import (
	"context"
	"errors"
	"strings"
	"time"

	"notifyd/contract"
	"notifyd/contract/answer"
	"notifyd/merchant"
	"notifyd/notification"
)

const (
	userAgent = "notifyd/1"
	// longestCachedURL leaves out URLs that name one order each: they would only push out the others.
	longestCachedURL = 256
)

// Contracts say how each merchant is told; see contract.Book.
type Contracts interface {
	// Request makes the request of one attempt: encoded and signed.
	Request(ctx context.Context, m *merchant.Merchant, told contract.Told, o contract.Options) (contract.Request, error)
	// Acknowledgement is the agreed answer to what was told; nil: no request can be made.
	Acknowledgement(m *merchant.Merchant, told contract.Told) *answer.Acknowledgement
}

// order is a request that is ready to be made, as often as a leg needs it.
type order struct {
	to      target
	headers []notification.Header
	record  notification.Request // as it is kept: what lets somebody in is masked
	keyIDs  []string
	signed  []byte // of a test call
}

// told is the notification of a call, as its request tells it.
func (call Call) told(at time.Time) contract.Told {
	return contract.Told{Notification: call.Work.Notification, Number: call.Number, At: at}
}

// order has the request made and says where it goes. It does no I/O.
func (c *Client) order(ctx context.Context, call Call, at time.Time) (order, error) {
	work := call.Work
	made, err := c.contracts.Request(ctx, call.Merchant, call.told(at), contract.Options{Wrong: call.WrongSignature, Trace: call.Kind == notification.KindTest})
	if err != nil {
		return order{}, err
	}
	to, err := c.target(made.URL)
	if err != nil {
		return order{}, err
	}
	headers := append(made.Headers, notification.Header{Name: "User-Agent", Value: userAgent}, contract.AttemptHeader(call.Number))
	if work.Trace != "" {
		headers = append(headers, notification.Header{Name: "Traceparent", Value: work.Trace})
	}
	kept := make([]notification.Header, len(headers))
	for i, h := range headers {
		if !validHeaderValue(h.Value) {
			return order{}, &contract.EncodeError{Err: errors.New("the value of header " + h.Name + " has control characters")}
		}
		kept[i] = notification.Header{Name: h.Name, Value: maskHeader(h.Name, h.Value)}
	}
	return order{
		to: to, headers: headers, keyIDs: made.KeyIDs, signed: made.Signed,
		record: notification.Request{Method: made.Method, URL: made.URL, Headers: kept, Body: made.Body},
	}, nil
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
