package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

// logConfig says what is logged, and how. Log lines go to the error stream.
type logConfig struct {
	// Level is the least one that is written: debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is console, for people, or json, for machines.
	Format string `yaml:"format"`
	// Attempts writes a line for each attempt.
	Attempts bool `yaml:"attempts"`
}

func (c logConfig) validate() error {
	if _, err := zapcore.ParseLevel(c.Level); err != nil {
		return fmt.Errorf("log.level: %q: must be debug, info, warn or error", c.Level)
	}
	if c.Format != "console" && c.Format != "json" {
		return fmt.Errorf("log.format: %q: must be console or json", c.Format)
	}
	return nil
}

// newLogger writes log lines to the error stream; the level can be changed while it runs.
func newLogger(c logConfig, s *streams) (*zap.Logger, zap.AtomicLevel, error) {
	level := zap.NewAtomicLevel()
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, level, fmt.Errorf("log.level: %w", err)
	}
	var encoder zapcore.Encoder
	if c.Format == "json" {
		enc := zap.NewProductionEncoderConfig()
		enc.TimeKey, enc.EncodeTime, enc.EncodeDuration = "time", zapcore.RFC3339NanoTimeEncoder, zapcore.StringDurationEncoder
		encoder = zapcore.NewJSONEncoder(enc)
	} else {
		enc := zap.NewDevelopmentEncoderConfig()
		enc.EncodeTime, enc.CallerKey = zapcore.TimeEncoderOfLayout("15:04:05.000"), ""
		encoder = zapcore.NewConsoleEncoder(enc)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(s.Err)), level)), level, nil
}

// connectionLog takes what net/http says about connections. Those are strangers' faults: a line a second is enough.
func connectionLog(to *zap.Logger) *log.Logger {
	return log.New(&limitedLines{to: to, lines: rate.NewLimiter(1, 5)}, "", 0)
}

// limitedLines writes some lines and counts the others.
type limitedLines struct {
	to       *zap.Logger
	lines    *rate.Limiter
	unlogged atomic.Int64
}

// Write takes one line.
func (l *limitedLines) Write(line []byte) (int, error) {
	if !l.lines.Allow() {
		l.unlogged.Add(1)
		return len(line), nil
	}
	l.to.Info("fault", zap.ByteString("says", bytes.TrimSpace(line)), zap.Int64("not_logged", l.unlogged.Swap(0)))
	return len(line), nil
}

// readBound is how long a caller may take to send one request.
const readBound = 30 * time.Second

// readSoon ends a request that is not sent in time: a stranger could hold connections for ever.
func readSoon(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		if err := control.SetReadDeadline(time.Now().Add(readBound)); err == nil {
			r.Body = &timedBody{ReadCloser: r.Body, done: func() { _ = control.SetReadDeadline(time.Time{}) }} // what was set once can be unset
		}
		next.ServeHTTP(w, r)
	})
}

// timedBody lifts the deadline when all has been read: the answer may take longer.
type timedBody struct {
	io.ReadCloser
	done func()
}

// Read reads the request.
func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.done()
	}
	return n, err
}

// withoutQuery keeps what may be secret out of a line: a query string, and a user's password.
func withoutQuery(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	u.RawQuery, u.ForceQuery, u.Fragment, u.User = "", false, "", nil
	return u.String()
}

const requestIDHeader = "X-Request-Id"

// requestIDs gives every call a name that its log lines and its answer carry: the caller's own, or a new one.
func requestIDs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if !plainName(id) {
			id = rand.Text()
			r.Header.Set(requestIDHeader, id)
		}
		w.Header().Set(requestIDHeader, id)
		next.ServeHTTP(w, r)
	})
}

// plainName tells what can stand in a log line as it is.
func plainName(text string) bool {
	if text == "" || len(text) > 128 {
		return false
	}
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == ':', c == '/':
		default:
			return false
		}
	}
	return true
}
