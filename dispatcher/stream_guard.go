package dispatcher

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
)

const (
	streamBound = 30 * time.Second // of one message on its way, in or out
	streamLook  = time.Second      // how often that and the caller's standing are looked at
)

var errStopping = errors.New("this node is stopping")

type guardKey struct{}

// streamGuard holds one stream to the bounds that other calls are held to as a whole: who calls, how long a message is, and how
// long it takes. It is the body that the stream is read from.
type streamGuard struct {
	io.ReadCloser
	control  *http.ResponseController
	callers  *Callers
	caller   Caller
	proof    *http.Request // what proved the caller
	size     int64         // of the message that is being read; the reader's own
	most     int64         // of that message, in bytes
	reading  atomic.Int64  // since when a message is being read, in Unix nanoseconds; 0: none is
	writing  atomic.Int64  // since when one is being sent
	stopping atomic.Pointer[error]
}

// guard takes over the body of a stream.
func (c *Callers) guard(w http.ResponseWriter, r *http.Request, caller Caller) *streamGuard {
	g := &streamGuard{
		ReadCloser: r.Body, control: http.NewResponseController(w), callers: c, caller: caller,
		proof: &http.Request{Method: r.Method, URL: r.URL, TLS: r.TLS, Header: http.Header{}},
	}
	if given := r.Header.Values("Authorization"); len(given) > 0 {
		g.proof.Header["Authorization"] = given
	}
	r.Body = g
	if r.ProtoMajor > 1 { // else it is refused: one bound for all that it will ever send would end it
		_ = g.control.SetReadDeadline(time.Time{}) // what cannot be lifted was not set
	}
	return g
}

// envelope is what stands before each message, in bytes.
const envelope = 5

// Read reads on in a message, or begins one.
func (g *streamGuard) Read(p []byte) (int, error) {
	n, err := g.ReadCloser.Read(p)
	if n > 0 && g.size == 0 {
		g.reading.Store(g.callers.now().UnixNano())
		g.most = envelope + MaxRequestBytes
		if s := g.callers.sources.Get(g.caller.Source); s != nil && s.Limits.MaxRequestBytes > 0 {
			g.most = envelope + min(MaxRequestBytes, s.Limits.MaxRequestBytes)
		}
	}
	g.size += int64(n)
	if n > 0 && g.size > g.most {
		return 0, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("a message has more than %d bytes, the most that %s may send in one", g.most-envelope, g.caller))
	}
	return n, err
}

// received is told when a message has been read, or nothing more will be.
func (g *streamGuard) received() {
	g.size = 0
	g.reading.Store(0)
}

// sending is told before and after each message that is sent.
func (g *streamGuard) sending(now bool) {
	since := int64(0)
	if now {
		since = g.callers.now().UnixNano()
	}
	g.writing.Store(since)
}

// stop lets nothing more be read. The first cause stays.
func (g *streamGuard) stop(cause error) {
	if g.stopping.CompareAndSwap(nil, &cause) {
		_ = g.control.SetReadDeadline(time.Unix(1, 0)) // HTTP/2 can; over HTTP/1.1 there are no streams
	}
}

// cause is why nothing more is read; nil: it was not stopped.
func (g *streamGuard) cause() error {
	if cause := g.stopping.Load(); cause != nil {
		return *cause
	}
	return nil
}

// watch looks after the stream until stopped, which returns when it has ended.
func (g *streamGuard) watch() (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(streamLook)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				g.look()
			case <-over:
				return
			}
		}
	}()
	return func() { close(over); <-done }
}

// look ends a stream whose caller may no longer call, or which keeps a message on its way for too long.
func (g *streamGuard) look() {
	now := g.callers.now()
	late := func(since *atomic.Int64) bool {
		at := since.Load()
		return at != 0 && now.Sub(time.Unix(0, at)) > streamBound
	}
	switch {
	case late(&g.writing):
		g.stop(tooSlow("an answer was not taken"))
		_ = g.control.SetWriteDeadline(time.Unix(1, 0)) // the send ends with an error
	case g.cause() != nil: // it is ending
	case late(&g.reading):
		g.stop(tooSlow("a message was begun and not finished"))
	default:
		if refused := g.standing(); refused != nil {
			g.callers.log.Info("a stream ends: its caller is no longer let in", zap.Stringer("caller", g.caller),
				zap.String("why", refused.why), zap.String("told", refused.told), zap.String("key_id", refused.keyID))
			g.stop(connect.NewError(refused.code, errors.New(refused.told)))
		}
	}
}

func tooSlow(what string) error {
	return connect.NewError(connect.CodeDeadlineExceeded, fmt.Errorf("%s within %s", what, streamBound))
}

// standing asks once more who calls; nil: still the same. What proves a caller of streams is in its header and its connection.
func (g *streamGuard) standing() *refusal {
	caller, refused := g.callers.identify(nil, g.proof)
	if refused == nil && caller != g.caller {
		refused = invalidCredential(fmt.Sprintf("it proves %s now", caller), "")
	}
	return refused
}
