package client

import (
	"fmt"

	"google.golang.org/protobuf/proto"
)

// item is one notification on its way.
type item struct {
	n     *Notification
	index int // among those of SubmitEach
	size  int // bytes when encoded

	result    *Result
	err       *Error // why the newest try failed; nil: there is a result
	tries     int
	uncertain bool // a try may have been accepted, and its answer is lost
}

// prepare checks what the client can tell, and takes a copy: a caller whose ctx has ended may change its notification while a
// batch is still being written.
func (c *Client) prepare(n *Notification) (*item, *Error) {
	if n == nil {
		return nil, invalid("notification", "is nil")
	}
	it := &item{n: proto.CloneOf(n)}
	if it.n.Source == "" {
		it.n.Source = c.source
	}
	// Checked here, so that the server never refuses a batch for the size of one of its members.
	if it.size = proto.Size(it.n); it.size > MaxNotificationBytes {
		return nil, invalid("notification", fmt.Sprintf("has %d bytes: at most %d are allowed", it.size, MaxNotificationBytes))
	}
	return it, nil
}

// take files what a try came to. The error may belong to a whole call: the item gets its own.
func (it *item) take(r reply) {
	it.tries++
	it.result, it.err = r.result, nil
	if r.err == nil {
		return
	}
	own := *r.err
	it.uncertain = it.uncertain || own.Uncertain
	own.Tries, own.Uncertain = it.tries, it.uncertain
	it.err = &own
}

// end settles an item whose caller waits no longer. What its last try said stays readable.
func (it *item) end(cause error) {
	e := ended(cause, it.uncertain)
	e.Tries = it.tries
	if it.err != nil {
		e.Message += "; before that " + it.err.Code.String() + ": " + it.err.Message
	}
	it.err = e
}

// answer of an item that is settled.
func (it *item) answer() (*Result, error) {
	if it.err != nil {
		return nil, it.err
	}
	return it.result, nil
}
