package rig

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// SinkConfig says what kind of merchants a sink plays.
type SinkConfig struct {
	Record bool   // keep when each request came
	TLSDir string // a folder: answer over TLS 1.3, and put the authority's certificate there
	Close  bool   // every connection is closed after one answer
}

// Behaviour is how the merchants of a class answer. The zero value acknowledges at once.
type Behaviour struct {
	Status int           // 0: 200
	Body   string        // empty: success
	Delay  time.Duration // before the answer
	Marked bool          // only what is marked in its payload; the rest is acknowledged
	First  bool          // only an order's first request; the others are acknowledged
}

// SinkOrder changes what a sink does, or asks what it saw.
type SinkOrder struct {
	Behave map[string]Behaviour // by class
	Door   string               // "open" or "close" the second address
	Forget bool                 // what was recorded so far
	Take   bool                 // what was recorded since the last time
}

// SinkAnswer is what a sink saw.
type SinkAnswer struct {
	Requests int64 // since its start
	Seen     map[string]*Arrivals
	MostOpen map[string]int // requests that were open at once, by class
}

// Arrivals are the requests of one class, in the order in which they came. Instants are Unix nanoseconds: all processes
// are on one machine, under one clock.
type Arrivals struct {
	// At is when the notification was to be submitted. Of an order's later requests, where Behaviour.First holds, it is
	// when the request before was answered.
	At []int64
	// Arrived is when the merchant had read the request's head.
	Arrived []int64
}

// Classes of what a class' merchants saw besides its ordinary first requests.
const (
	MarkedSuffix = "!" // payloads that are marked
	AgainSuffix  = "+" // not an order's first request, where Behaviour.First holds
)

// Sink plays every merchant.
type Sink struct {
	*Process
	URL  string // of merchants: URL/class/number
	Door string // the same behind an address that can refuse connections; it does at first
	CA   string // a file; empty without TLS
}

// StartSink starts a sink.
func StartSink(ctx context.Context, cfg SinkConfig) (*Sink, error) {
	p, err := child(ctx, "sink", cfg)
	if err != nil {
		return nil, err
	}
	s := &Sink{Process: p}
	var at sinkAddresses
	if err := p.read(&at); err != nil {
		return s, err
	}
	s.URL, s.Door, s.CA = at.URL, at.Door, at.CA
	return s, nil
}

// Order asks the sink.
func (s *Sink) Order(o SinkOrder) (a SinkAnswer, err error) { return a, s.Ask(o, &a) }

type sinkAddresses struct{ URL, Door, CA string }

// sink is the child's side.
type sink struct {
	record   bool
	close    bool
	requests atomic.Int64
	behave   atomic.Pointer[map[string]Behaviour]
	doorAddr string
	door     *http.Server // nil: closed

	mu       sync.Mutex
	seen     map[string]*Arrivals
	open     map[string]int
	mostOpen map[string]int
	answered map[string]int64 // orders that had their first request: when it was answered
}

func runSink(cfg SinkConfig) error {
	ctx := context.Background()
	s := &sink{record: cfg.Record, close: cfg.Close, seen: map[string]*Arrivals{}, open: map[string]int{}, mostOpen: map[string]int{}, answered: map[string]int64{}}
	s.behave.Store(&map[string]Behaviour{})
	l, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	door, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.doorAddr = door.Addr().String()
	if err := door.Close(); err != nil { // nobody else gets the port soon
		return err
	}
	at := sinkAddresses{URL: "http://" + l.Addr().String(), Door: "http://" + s.doorAddr}
	if cfg.TLSDir != "" {
		pair, file, err := certificate(cfg.TLSDir)
		if err != nil {
			return err
		}
		at.URL, at.CA = "https://"+l.Addr().String(), file
		l = tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
	}
	if err := json.NewEncoder(os.Stdout).Encode(at); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.server().Serve(l) }() // ends with the process
	go func() { ended <- serve(s.obey) }()
	return <-ended
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", addr)
}

func (s *sink) server() *http.Server {
	return &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(s.serve)}
}

func (s *sink) obey(o SinkOrder) (SinkAnswer, error) {
	if o.Behave != nil {
		s.behave.Store(&o.Behave)
	}
	if err := s.swing(o.Door); err != nil {
		return SinkAnswer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := SinkAnswer{Requests: s.requests.Load()}
	if o.Take || o.Forget {
		if o.Take {
			a.Seen, a.MostOpen = s.seen, s.mostOpen
		}
		s.seen, s.mostOpen = map[string]*Arrivals{}, map[string]int{}
	}
	return a, nil
}

// swing opens or closes the door.
func (s *sink) swing(to string) error {
	switch {
	case to == "open" && s.door == nil:
		l, err := listen(context.Background(), s.doorAddr)
		if err != nil {
			return err
		}
		s.door = s.server()
		go func(srv *http.Server) { _ = srv.Serve(l) }(s.door) // ends when the door is closed
	case to == "close" && s.door != nil:
		err := s.door.Close()
		s.door = nil
		return err
	}
	return nil
}

func (s *sink) serve(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	defer s.requests.Add(1)
	if s.close {
		w.Header().Set("Connection", "close")
	}
	if !s.record {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "success")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller has gone
	}
	class, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	how := (*s.behave.Load())[class]
	head := readPayload(body)
	again := s.note(class, head, how, arrived)
	defer s.left(class)
	if (how.Marked && !head.marked) || (how.First && again) {
		how = Behaviour{}
	}
	if how.Delay > 0 {
		timer := time.NewTimer(how.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	w.WriteHeader(cmp.Or(how.Status, http.StatusOK))
	_, _ = io.WriteString(w, cmp.Or(how.Body, "success"))
	if how.First {
		s.mu.Lock()
		s.answered[head.order] = time.Now().UnixNano()
		s.mu.Unlock()
	}
}

// note records a request, and reports whether its order had one before.
func (s *sink) note(class string, p payloadHead, how Behaviour, arrived time.Time) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[class]++
	s.mostOpen[class] = max(s.mostOpen[class], s.open[class])
	if p.marked {
		class += MarkedSuffix
	}
	at := p.at
	if how.First {
		var before int64
		if before, again = s.answered[p.order]; again {
			at, class = before, class+AgainSuffix
		}
	}
	seen := s.seen[class]
	if seen == nil {
		seen = &Arrivals{}
		s.seen[class] = seen
	}
	seen.At, seen.Arrived = append(seen.At, at), append(seen.Arrived, arrived.UnixNano())
	return again
}

func (s *sink) left(class string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[class]--
}

// payload is JSON of about size bytes that carries when it was to be submitted.
func payload(size int, order string, at time.Time, marked bool) []byte {
	b := make([]byte, 0, size+96)
	b = append(b, `{"at":`...)
	b = strconv.AppendInt(b, at.UnixNano(), 10)
	b = append(b, `,"marked":`...)
	b = strconv.AppendBool(b, marked)
	b = append(b, `,"order":"`...)
	b = append(b, order...)
	b = append(b, `","amount":10.50,"pad":"`...)
	for len(b) < size-2 {
		b = append(b, 'x')
	}
	return append(b, `"}`...)
}

type payloadHead struct {
	order  string
	at     int64
	marked bool
}

// readPayload reads what payload wrote; of anything else it finds nothing.
func readPayload(body []byte) (p payloadHead) {
	field := func(from, to string) string {
		_, rest, _ := bytes.Cut(body[:min(len(body), 256)], []byte(from))
		value, _, _ := bytes.Cut(rest, []byte(to))
		return string(value)
	}
	p.at, _ = strconv.ParseInt(field(`"at":`, ","), 10, 64)
	p.marked = field(`"marked":`, ",") == "true"
	p.order = field(`"order":"`, `"`)
	return p
}

// String names how many of each class were seen.
func (a SinkAnswer) String() string {
	var parts []string
	for class, seen := range a.Seen {
		parts = append(parts, fmt.Sprintf("%s: %d", class, len(seen.At)))
	}
	return strings.Join(parts, ", ")
}
