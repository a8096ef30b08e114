package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"notifyd/notification"
)

// newLogger writes log lines to the error stream.
func newLogger(level string, s *streams) (*zap.Logger, error) {
	at, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, fmt.Errorf("parse log level: %w", err)
	}
	enc := zap.NewDevelopmentEncoderConfig()
	enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	enc.CallerKey = ""
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(enc), zapcore.Lock(zapcore.AddSync(s.Err)), at)), nil
}

// terminal prints one wide line for each attempt.
type terminal struct {
	mu    sync.Mutex
	out   io.Writer
	quiet bool
	log   *zap.Logger
}

func newTerminal(s *streams, quiet bool, log *zap.Logger) *terminal {
	return &terminal{out: s.Out, quiet: quiet, log: log}
}

// Attempted prints when, outcome, reason, status, time, attempt number, scene, merchant, id, what comes next, URL.
func (t *terminal) Attempted(after *notification.Notification, a *notification.Attempt) {
	if t.quiet {
		return
	}
	status := "---"
	if a.Response != nil {
		status = strconv.Itoa(a.Response.Status)
	}
	line := fmt.Sprintf("%s %-11s %-20s %s %7s #%d %-8s %-5s %-22s %s %s %s\n",
		a.StartedAt.Local().Format("15:04:05.000"), a.Outcome, a.Reason, status, a.Took.Round(100*time.Microsecond), a.Number,
		after.Scene, after.Route.Lane, after.MerchantID, after.ID, next(after, a), withoutQuery(after.NotifyURL))
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = io.WriteString(t.out, line) // a terminal that is gone must not stop deliveries
}

func next(n *notification.Notification, a *notification.Attempt) string {
	if n.State == notification.StateRetrying {
		return "again in " + n.NextAt.Sub(a.StartedAt.Add(a.Took)).Round(time.Second).String()
	}
	return n.State.String()
}

// withoutQuery keeps what may be secret out of the line.
func withoutQuery(url string) string {
	before, _, _ := strings.Cut(url, "?")
	return before
}
