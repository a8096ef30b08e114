package outage_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/outage"
)

var now = func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// stores are a Postgres and a NATS that a test hurts.
type stores struct {
	postgres *scenario.Postgres
	nats     *queueServer
	keys     ledger.Cipher
}

func startStores(t *testing.T) *stores {
	t.Helper()
	// Postgres' account must get through, which it does not below t.TempDir when the test runs as root.
	dir, err := os.MkdirTemp("/tmp", "outage-test-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	text, err := ledger.GenerateMasterKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ledger.NewCipher(text)
	if err != nil {
		t.Fatal(err)
	}
	return &stores{postgres: scenario.StartPostgres(t, filepath.Join(dir, "pg")), nats: startQueues(t), keys: keys}
}

// queueServer is a NATS that comes back on its port.
type queueServer struct {
	cfg    natsserver.Config
	server *natsserver.Server
}

func startQueues(t *testing.T) *queueServer {
	t.Helper()
	q := &queueServer{cfg: natsserver.Config{Dir: t.TempDir(), Log: zap.NewNop(), Listen: fmt.Sprintf("127.0.0.1:%d", scenario.FreePort(t))}}
	q.start(t)
	t.Cleanup(func() { q.stop(t) })
	return q
}

func (q *queueServer) start(t *testing.T) {
	t.Helper()
	var err error
	if q.server, err = natsserver.Start(t.Context(), q.cfg); err != nil {
		t.Fatal(err)
	}
}

func (q *queueServer) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := q.server.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// connect opens a connection like the engine's: what cannot be sent now fails now.
func connect(t *testing.T, addr string) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect("nats://"+addr, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectBufSize(-1), nats.Timeout(time.Second), nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func (s *stores) jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(connect(t, s.nats.cfg.Listen))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// node is what a node has of this package. Its links go to the stores.
type node struct {
	*outage.Ledger
	direct       *ledger.Postgres
	away, queues *outage.Watch
	toPostgres   *scenario.Link
	toNATS       *scenario.Link
	dir          string
	end          func() // stops it cleanly; more calls are harmless
}

type nodeOptions struct {
	dir    string // for the journal; empty: one of its own
	idle   bool   // it moves nothing by itself
	config func(*outage.Config)
}

func (s *stores) node(t *testing.T, o nodeOptions) *node {
	t.Helper()
	n := &node{dir: o.dir, toPostgres: scenario.NewLink(t, s.postgres.Socket(t)), toNATS: scenario.NewLink(t, s.nats.cfg.Listen)}
	if n.dir == "" {
		n.dir = t.TempDir()
	}
	cfg := outage.DefaultConfig()
	if o.config != nil {
		o.config(&cfg)
	}
	var err error
	log := zap.NewNop()
	n.direct, err = ledger.Open(t.Context(), ledger.Config{URL: s.postgres.Via(n.toPostgres), Keys: s.keys, Now: now, LateStart: true, Drain: 3 * time.Second, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, n.toNATS.Addr())
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	n.away, n.queues = outage.WatchPostgres(cfg, n.direct.Ping, log), outage.WatchNATS(cfg, js, nil, log)
	n.away.Look(t.Context())
	n.queues.Look(t.Context())
	n.Ledger, err = outage.NewLedger(t.Context(), cfg, outage.Parts{Postgres: n.direct, Conn: conn, Away: n.away, Queues: n.queues, Dir: n.dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running errgroup.Group
	running.Go(func() error { return n.direct.Run(ctx) })
	running.Go(func() error { return n.away.Run(ctx) })
	running.Go(func() error { return n.queues.Run(ctx) })
	if !o.idle {
		running.Go(func() error { return n.Run(ctx) })
	}
	var once sync.Once
	n.end = func() {
		once.Do(func() {
			stop()
			if err := running.Wait(); err != nil {
				t.Error(err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			n.direct.Close()
		})
	}
	t.Cleanup(func() {
		n.toPostgres.Pass(t) // else the connections' own bounds are waited for
		n.toNATS.Pass(t)
		n.end()
	})
	return n
}

func (n *node) awaitAway(t *testing.T) {
	t.Helper()
	scenario.Within(t, 10*time.Second, "postgres counts as away", n.away.Away)
}

func (n *node) awaitBack(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%+v", n.Stats())
		}
	})
	scenario.Within(t, 30*time.Second, "everything is back and drained", func() bool {
		s := n.Stats()
		return !s.PostgresAway && !s.NATSAway && s.SpillWaiting == 0 && s.ReservedWaiting == 0 && s.JournalWaiting == 0 && s.Pending == 0
	})
}

var bg = context.Background()

func newID() (id notification.ID) {
	_, _ = rand.Read(id[:])
	return id
}

// accepted is a notification as it was accepted.
func accepted() *notification.Notification {
	n := &notification.Notification{
		ID: newID(), Source: "pay", RequestID: "r", MerchantID: "m", Scene: "payout", EventType: "paid", OrderID: "o", NotifyURL: "https://m.example/n",
		Body: []byte(`{"amount":1.10}`), AcceptedAt: now(), Origin: "submit",
		Route: notification.Route{Lane: notification.LaneAsync, IsolationKey: "m", Egress: "direct", Persist: notification.PersistStream, Rule: "default"},
	}
	n.Digest = n.ContentDigest()
	n.State, n.Reason, n.Generation, n.UpdatedAt = notification.StateAccepted, notification.ReasonQueued, 1, n.AcceptedAt
	return n
}

// attempted is the record of the next attempt of n.
func attempted(n *notification.Notification, state notification.State) ledger.Record {
	after := *n
	after.Attempts++
	after.Step++
	after.State, after.UpdatedAt = state, now()
	a := notification.Attempt{
		Key: newID(), Number: after.Attempts, Generation: after.Generation, Kind: notification.KindSend, Trigger: notification.TriggerAuto,
		Outcome: notification.OutcomeRetryable, Reason: notification.ReasonHTTPServerError, Counted: true, StartedAt: now(), Took: time.Millisecond,
		Request:  notification.Request{Method: "POST", URL: n.NotifyURL, Body: n.Body},
		Response: &notification.Response{Status: 504, Body: []byte("gateway timeout")},
	}
	if state == notification.StateDelivered {
		a.Outcome, a.Reason, a.Response = notification.OutcomeDelivered, notification.ReasonAcknowledged, &notification.Response{Status: 200}
		after.Settle(state, notification.ReasonAcknowledged, notification.SettledByAcknowledgement, now())
	} else {
		after.Reason, after.NextAt = notification.ReasonHTTPServerError, now().Add(time.Minute)
	}
	return ledger.Record{Notification: &after, Attempts: []notification.Attempt{a}}
}

func reservation(n *notification.Notification) ledger.Reservation {
	return ledger.Reservation{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}
}

// record waits for a record to be durable and returns how it ended.
func (n *node) record(t *testing.T, r ledger.Record) error {
	t.Helper()
	result := make(chan error, 1)
	n.Record(bg, r, func(err error) { result <- err })
	return await(t, result)
}

func await(t *testing.T, result <-chan error) error {
	t.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
		return nil
	}
}

// tally counts callbacks: each must be called once, with nil.
type tally struct {
	given           sync.Map
	told, bad, more atomic.Int64
	first           atomic.Pointer[error] // that was bad
}

func (c *tally) callback(id notification.ID) func(error) {
	return func(err error) {
		if _, again := c.given.LoadOrStore(id, true); again {
			c.more.Add(1)
		}
		if err != nil {
			c.bad.Add(1)
			c.first.CompareAndSwap(nil, &err)
		}
		c.told.Add(1)
	}
}
