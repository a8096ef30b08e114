package outage

import (
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

// connection is what a hop needs of one to NATS.
type connection interface {
	Servers() []string
	ConnectedServerName() string
	ForceReconnect() error
}

var _ connection = (*nats.Conn)(nil)

const (
	// hopAfter is how many answers in a row a server may owe, each for as long as makes NATS count as away.
	hopAfter = 3
	// longestStay bounds the time between two hops, which grows as long as none of them helps.
	longestStay = time.Minute
)

// hop leaves a server of a cluster that is connected and of no use, for another: the cluster has cut it off, or it hangs.
// The connection itself would not notice, or only after many seconds.
type hop struct {
	conn  connection
	stay  time.Duration // how long a server may be of no use
	least time.Duration
	since time.Time // the first failure in a row; zero: the last answer was good
	log   *zap.Logger
}

func newHop(conn connection, cfg Config, log *zap.Logger) *hop {
	return &hop{conn: conn, stay: hopAfter * cfg.SlowAfter, least: hopAfter * cfg.SlowAfter, log: log}
}

// reset is told that the connection looks for a server by itself.
func (h *hop) reset() { h.since = time.Time{} }

// after is told how a look at JetStream through the connected server ended.
func (h *hop) after(err error, now time.Time) {
	switch {
	case err == nil:
		h.since, h.stay = time.Time{}, h.least
	case len(h.conn.Servers()) < 2:
	case h.since.IsZero():
		h.since = now
	case now.Sub(h.since) >= h.stay:
		h.log.Warn("jetstream does not answer through this server; trying another", zap.String("server", h.conn.ConnectedServerName()), zap.Error(err))
		if err := h.conn.ForceReconnect(); err != nil {
			h.log.Warn("connection cannot be made anew", zap.Error(err))
		}
		h.since, h.stay = time.Time{}, min(2*h.stay, longestStay)
	}
}
