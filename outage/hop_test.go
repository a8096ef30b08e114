package outage

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
)

type fakeConnection struct {
	servers int
	hops    int
}

func (c *fakeConnection) Servers() []string           { return make([]string, c.servers) }
func (c *fakeConnection) ConnectedServerName() string { return "one" }
func (c *fakeConnection) ForceReconnect() error       { c.hops++; return nil }

// A server through which JetStream does not answer is left after a while, and each next one is given more time; a lone
// one is stayed with.
func TestHop(t *testing.T) {
	away := errors.New("no answer")
	for name, c := range map[string]struct {
		servers int
		answers func(second int) error
		want    int
	}{
		"well":                   {3, func(int) error { return nil }, 0},
		"a short gap":            {3, func(s int) error { return map[bool]error{true: away}[s%4 < 2] }, 0},
		"gone for twelve":        {3, func(s int) error { return map[bool]error{true: away}[s < 12] }, 2},
		"gone, and back, twice":  {3, func(s int) error { return map[bool]error{true: away}[s%30 < 5] }, 2},
		"alone, gone for twelve": {1, func(s int) error { return map[bool]error{true: away}[s < 12] }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			conn := &fakeConnection{servers: c.servers}
			h := newHop(conn, DefaultConfig(), zap.NewNop())
			began := time.Now()
			for second := range 60 {
				h.after(c.answers(second), began.Add(time.Duration(second)*time.Second))
			}
			if conn.hops != c.want {
				t.Errorf("%d hops, want %d", conn.hops, c.want)
			}
		})
	}
}
