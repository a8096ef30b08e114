package egress

import (
	"bufio"
	"context"
	"errors"
	"math"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

// An exchange is one request and its answer over HTTP/1.1, made by the goroutine that wants it. net/http reads the answers;
// its Transport would hand each request to two goroutines of the connection and back, which costs about as much as
// the request itself, and would leave it to them what has been sent (P6).

const (
	maxHead = 32 << 10 // of an answer, in bytes
	// maxInterim is how many answers of the kind "100 Continue" may come before the real one.
	maxInterim = 5
)

var (
	errHeadTooLong = errors.New("the answer's head is longer than 32 KiB")
	errInterim     = errors.New("too many interim answers")
)

// exchange makes a request and returns the answer with its body unread. Unless it fails, finish is owed.
func (c *Client) exchange(ctx context.Context, l *leg, o *order) (*http.Response, error) {
	if l.conn = c.pool.take(o.to.origin); l.conn != nil {
		l.reused = true
	} else if err := c.connect(ctx, l, o.to); err != nil {
		return nil, err
	}
	l.gotConn = time.Since(l.began)
	c.attend(ctx, l.conn)
	resp, err := l.roundTrip(c, o)
	if err != nil {
		l.conn.abandon()
		if ctx.Err() != nil {
			err = context.Cause(ctx) // whoever canceled it has cut the connection off
		}
		return nil, err
	}
	return resp, nil
}

// attend cuts the connection off when ctx ends first.
func (c *Client) attend(ctx context.Context, conn *conn) {
	conn.relieve = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	conn.answers, _ = c.spare.readers.Get().(*bufio.Reader)
	if conn.answers == nil {
		conn.answers = bufio.NewReader(nil)
	}
	conn.readers = &c.spare.readers
	conn.answers.Reset(conn)
}

// finish gives a connection back: to the pool when the answer was read to its end and another may follow.
func (c *Client) finish(l *leg, resp *http.Response, complete bool) {
	conn := l.conn
	reusable := complete && !resp.Close && resp.StatusCode >= http.StatusOK && conn.answers.Buffered() == 0
	if !conn.release() || !reusable {
		_ = conn.Close()
		return
	}
	c.pool.put(conn)
}

// roundTrip writes the request and reads the answer's head.
func (l *leg) roundTrip(c *Client, o *order) (*http.Response, error) {
	if l.conn.hungUp() || l.reused && l.conn.speaksUnasked() {
		return nil, l.conn.lastWord() // P6: proven unsent
	}
	if err := l.conn.SetDeadline(l.end); err != nil {
		return nil, err
	}
	written := l.write(c, o)
	if written == nil {
		l.wrote = time.Since(l.began)
	} else if !l.sent {
		return nil, l.timely(written)
	}
	// A merchant may answer, and close, before it has read everything.
	head := l.end
	if l.timeouts.FirstByte < l.timeouts.Total {
		head = l.began.Add(l.gotConn + l.timeouts.FirstByte)
		if err := l.conn.SetReadDeadline(head); err != nil {
			return nil, err
		}
	}
	resp, err := l.readHead()
	switch {
	case err != nil && written != nil && tlsFault(err) == 0: // an alert says why the merchant closed
		return nil, l.timely(written)
	case err != nil && head.Before(l.end) && errors.Is(err, os.ErrDeadlineExceeded):
		return nil, errNoFirstByte
	case err != nil:
		return nil, l.timely(err)
	case written != nil:
		resp.Close = true
	}
	if head.Before(l.end) {
		return resp, l.conn.SetReadDeadline(l.end)
	}
	return resp, nil
}

// timely gives a deadline its name.
func (l *leg) timely(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errTimeUp
	}
	return err
}

// write sends head and body together: one packet where that fits. A large body is not copied for it.
func (l *leg) write(c *Client, o *order) error {
	buffer, _ := c.spare.requests.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
	}
	*buffer = o.appendHead((*buffer)[:0])
	together := len(o.record.Body) <= maxKeptBuffer/2
	if together {
		*buffer = append(*buffer, o.record.Body...)
	}
	before := l.conn.wire.written.Load()
	_, err := l.conn.Write(*buffer)
	if err == nil && !together {
		_, err = l.conn.Write(o.record.Body)
	}
	l.sent = l.conn.wire.written.Load() > before
	if cap(*buffer) <= maxKeptBuffer {
		c.spare.requests.Put(buffer)
	}
	return err
}

// maxKeptBuffer is the largest buffer that is kept for other requests.
const maxKeptBuffer = 64 << 10

// appendHead writes the request's head as it goes over the wire.
func (o *order) appendHead(b []byte) []byte {
	b = append(b, o.record.Method...)
	b = append(b, ' ')
	b = append(b, o.to.path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, o.to.url.Host...)
	if o.record.Method != http.MethodGet {
		b = append(b, "\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(o.record.Body)), 10)
	}
	for _, h := range o.headers {
		b = append(b, "\r\n"...)
		b = append(b, h.Name...)
		b = append(b, ": "...)
		b = append(b, h.Value...)
	}
	return append(b, "\r\n\r\n"...)
}

// readHead reads the head of the answer, passing over interim ones.
func (l *leg) readHead() (*http.Response, error) {
	l.conn.headLeft = maxHead
	defer func() { l.conn.headLeft = math.MaxInt }()
	if _, err := l.conn.answers.Peek(1); err != nil {
		return nil, err
	}
	l.firstByte = time.Since(l.began)
	for range maxInterim {
		resp, err := http.ReadResponse(l.conn.answers, blank)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
	return nil, errInterim
}

// blank says which kind of request an answer belongs to: one whose answer has a body.
var blank = &http.Request{Method: http.MethodPost}

// spare is what the exchanges of a client leave to each other.
type spare struct {
	readers  sync.Pool // of *bufio.Reader
	requests sync.Pool // of *[]byte
}
