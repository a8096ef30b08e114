package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"notifyd/client/verify"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// captured is a request to be verified.
type captured struct {
	message verify.Message
	at      time.Time        // when it was made; zero: not known
	others  []verify.Message // of the same notification
	note    string           // about how it was captured
}

// readRequest reads an HTTP request as it was on the wire, or as a tool writes it down. What stands behind the head is the
// body, whatever the line ends of the head are.
func readRequest(text []byte) (*captured, error) {
	head, body, ok := bytes.Cut(text, []byte("\r\n\r\n"))
	if at := bytes.Index(text, []byte("\n\n")); !ok || at >= 0 && at < len(head) {
		if head, body, ok = bytes.Cut(text, []byte("\n\n")); !ok {
			head, body = bytes.TrimRight(text, "\r\n"), nil
		}
	}
	first, rest, _ := strings.Cut(string(head), "\n")
	if strings.HasSuffix(strings.TrimSpace(first), " HTTP/2") {
		first = strings.TrimSpace(first) + ".0"
	}
	whole := io.MultiReader(strings.NewReader(first+"\n"+rest+"\n\n"), bytes.NewReader(body))
	r, err := http.ReadRequest(bufio.NewReader(whole))
	if err != nil {
		return nil, usageError("--request: want an HTTP request: its line, its headers, an empty line, its body: %w", err)
	}
	defer func() { _ = r.Body.Close() }() // of memory
	c := &captured{}
	switch {
	case len(r.TransferEncoding) > 0:
		if body, err = io.ReadAll(io.LimitReader(r.Body, maxRequestFile)); err != nil {
			return nil, usageError("--request: the body is said to be chunked and is not: %w", err)
		}
	case r.ContentLength > 0 && r.ContentLength < int64(len(body)):
		c.note = fmt.Sprintf("the file has %d bytes behind the head and Content-Length says %d: the others are left out", len(body), r.ContentLength)
		body = body[:r.ContentLength]
	case r.ContentLength > int64(len(body)):
		c.note = fmt.Sprintf("the file has %d bytes behind the head and Content-Length says %d: it was changed or cut when it was written down", len(body), r.ContentLength)
	}
	u := *r.URL
	if u.Host == "" {
		u.Scheme, u.Host = "https", r.Host
	}
	c.message = verify.Message{Method: r.Method, URL: u.String(), Header: r.Header, Body: body}
	return c, nil
}

// readAttempt reads what GetNotification answers, one of its attempts, or an attempt's request.
func readAttempt(text []byte, number int) (*captured, error) {
	var all notifydv1.GetNotificationResponse
	var one notifydv1.Attempt
	var request notifydv1.HttpRequest
	switch {
	case protojson.Unmarshal(text, &all) == nil:
	case protojson.Unmarshal(text, &one) == nil:
		all.Attempts = []*notifydv1.Attempt{&one}
	case protojson.Unmarshal(text, &request) == nil:
		all.Attempts = []*notifydv1.Attempt{{Number: 1, Request: &request}}
	default:
		return nil, usageError("--attempt: want JSON of GetNotification, of one of its attempts, or of an attempt's request")
	}
	if all.Masked {
		return nil, usageError("--attempt: numbers are hidden in it, so that nothing can verify: get it as somebody who may see them")
	}
	var chosen *captured
	for _, a := range all.Attempts {
		if a.Request == nil {
			continue
		}
		m := verify.Message{Method: a.Request.Method, URL: a.Request.Url, Header: http.Header{}, Body: a.Request.Body}
		for _, h := range a.Request.Headers {
			m.Header.Add(h.Name, h.Value)
		}
		if number != 0 && int(a.Number) != number {
			if chosen == nil {
				chosen = &captured{}
			}
			chosen.others = append(chosen.others, m)
			continue
		}
		next := &captured{message: m}
		if a.StartedAt != nil {
			next.at = a.StartedAt.AsTime()
		}
		if chosen != nil {
			next.others = chosen.others
			if chosen.message.Header != nil {
				next.others = append(next.others, chosen.message)
			}
		}
		chosen = next
	}
	if chosen == nil || chosen.message.Header == nil {
		return nil, usageError("--attempt: has no attempt %d with a request", number)
	}
	return chosen, nil
}

// compose makes a message of its parts.
func (c *verifyCmd) compose(s *streams) (*captured, error) {
	m := verify.Message{Method: c.Method, URL: c.URL, Header: http.Header{}}
	for _, line := range c.Header {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, usageError("--header %q: want NAME: VALUE", line)
		}
		m.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if c.BodyFile != "" {
		var err error
		if m.Body, err = readFile(c.BodyFile, s.In); err != nil {
			return nil, err
		}
	}
	return &captured{message: m}, nil
}
