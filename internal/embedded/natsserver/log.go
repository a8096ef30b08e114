package natsserver

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
)

var _ server.Logger = (*bridge)(nil)

// bridge hands the server's warnings and errors to zap and drops the rest.
type bridge struct {
	log *zap.Logger

	mu    sync.Mutex
	fatal string // the first; the server has no other way to say that its start failed

	// writeFailed says that the disk has failed a stream or a consumer, which then stays broken. The server says it only here.
	writeFailed atomic.Bool
}

func (b *bridge) fatalMessage() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fatal
}

// Warnf implements server.Logger.
func (b *bridge) Warnf(format string, args ...any) {
	b.log.Warn(fmt.Sprintf(format, args...))
}

// Errorf implements server.Logger.
func (b *bridge) Errorf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if strings.Contains(strings.ToLower(message), "critical write error") {
		b.writeFailed.Store(true)
	}
	b.log.Error(message)
}

// Fatalf implements server.Logger. It does not end the process: the caller of
// Start gets the message as an error.
func (b *bridge) Fatalf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	b.mu.Lock()
	if b.fatal == "" {
		b.fatal = message
	}
	b.mu.Unlock()
	b.log.Error(message)
}

// Noticef implements server.Logger.
func (*bridge) Noticef(string, ...any) {}

// Debugf implements server.Logger.
func (*bridge) Debugf(string, ...any) {}

// Tracef implements server.Logger.
func (*bridge) Tracef(string, ...any) {}
