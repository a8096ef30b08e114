package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/access"
	"notifyd/async"
	"notifyd/cluster"
	"notifyd/contract"
	"notifyd/contract/sign"
	"notifyd/dispatcher"
	"notifyd/egress"
	"notifyd/health"
	"notifyd/health/metrics"
	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/embedded/postgres"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/outage"
	"notifyd/retry"
	"notifyd/router"
	"notifyd/source"
	synclane "notifyd/sync"
)

// engine is one running node.
type engine struct {
	cfg   config
	log   *zap.Logger
	parts *parts

	intake string // the address that answers, for example 127.0.0.1:8700; empty: not a role of this node
	admin  string
	pgURL  string

	node string // the identity of the data folder
	run  string // of this process

	mark   string // what the file says that says that the engine runs; empty: this process has written none
	unread bool   // something from before a crash has not been looked up yet

	tracing  *tracing // nil: no traces
	monitor  *health.Monitor
	identity identity
	callers  *dispatcher.Callers // nil: the intake is not a role of this node
	dispatch *dispatcher.Dispatcher
	tester   dispatcher.Tester
}

// stores are where notifications rest.
type stores struct {
	conn    *nats.Conn
	js      jetstream.JetStream
	memory  *ledger.Postgres
	cluster *cluster.Cluster
	board   *cluster.Board // of breakers
	// One stands in for the other: kept keeps what Postgres cannot take, queues make rows of what NATS cannot.
	natsAway, pgAway *outage.Watch
	kept             *outage.Ledger
	queues           *outage.Queues
	window           *retry.Delay
	checkQueues      func() error // what the server in this process says of itself; nil: there is none
	crashed          bool         // NATS may have died with the last run, or be older than the ledger: it may have forgotten what it handed out
}

// startEngine starts a node: the queues and the ledger, in this process or connected to, then the parts of its roles.
// When it returns an error, nothing is left running.
func startEngine(ctx context.Context, cfg config, observers dispatcher.Observers, log *zap.Logger) (_ *engine, err error) {
	e := &engine{cfg: cfg, log: log, parts: newParts()}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o755); err != nil { //nolint:gosec // Postgres runs as another user below it; what is secret has its own rights
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	if e.node, err = nodeIdentity(cfg.DataDir); err != nil {
		return nil, err
	}
	e.run = rand.Text()
	e.parts.run(ctx, "collector's pace", keepHeapRoomy)
	if err := e.startTracing(ctx); err != nil {
		return nil, err
	}
	var s stores
	for _, start := range []func(context.Context, *stores) error{e.startQueues, e.startCluster, e.startLedger, e.startStandIns} {
		if err := start(ctx, &s); err != nil {
			return nil, err
		}
	}
	return e, e.startLanes(ctx, s, observers)
}

func (e *engine) startTracing(ctx context.Context) error {
	if e.cfg.Traces.Endpoint == "" {
		return nil
	}
	var err error
	if e.tracing, err = newTracing(ctx, e.cfg.Traces, e.log.Named("traces")); err != nil {
		return err
	}
	e.parts.opened("traces", func() error { return withTimeout(5*time.Second, e.tracing.stop) })
	return nil
}

// markRunning leaves a file while the engine runs, so that the next start knows whether this one has ended cleanly. It
// is for who holds the lock of the folder. A mark that was found stays until the lanes have looked at everything from
// before the crash, however many starts that takes.
func (e *engine) markRunning() (crashed bool, _ error) {
	path := filepath.Join(e.cfg.DataDir, "running")
	_, noMark := os.Stat(path)
	e.mark = fmt.Sprintf("run %s runs, or has not ended cleanly\n", rand.Text())
	if err := os.WriteFile(path, []byte(e.mark), 0o600); err != nil {
		return false, fmt.Errorf("mark run: %w", err)
	}
	crashed = !errors.Is(noMark, os.ErrNotExist)
	e.unread = crashed
	return crashed, nil
}

// unmark takes the mark away when everything has stopped cleanly and nothing is left to look at. By now another process
// may have the folder: its mark stays.
func (e *engine) unmark() error {
	path := filepath.Join(e.cfg.DataDir, "running")
	if e.mark == "" || e.unread || !e.parts.cleanSoFar() {
		return nil
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != e.mark { //nolint:gosec // a file of our own
		return err
	}
	return os.Remove(path)
}

func (e *engine) startQueues(ctx context.Context, s *stores) error {
	log := e.log.Named("nats")
	var err error
	if e.cfg.NATS.URL != "" {
		s.conn, err = connectNATS(ctx, e.cfg.NATS, log)
	} else {
		s.conn, err = e.embedNATS(ctx, s, log)
	}
	if err != nil {
		return err
	}
	s.crashed = s.crashed || e.cfg.Restored
	e.parts.opened("nats connection", func() error { s.conn.Close(); return nil })
	if s.js, err = jetstream.New(s.conn, jetstream.WithPublishAsyncMaxPending(4096)); err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	return nil
}

func (e *engine) embedNATS(ctx context.Context, s *stores, log *zap.Logger) (*nats.Conn, error) {
	server, err := natsserver.Start(ctx, natsserver.Config{Dir: filepath.Join(e.cfg.DataDir, "nats"), SyncAlways: e.cfg.NATS.SyncAlways, Log: log})
	if err != nil {
		return nil, err
	}
	e.parts.opened("mark of the run", e.unmark)
	e.parts.opened("nats", func() error { return withTimeout(10*time.Second, server.Stop) })
	if s.crashed, err = e.markRunning(); err != nil {
		return nil, err
	}
	if s.crashed {
		log.Info("the last run did not end cleanly; what it had in hand is looked up before it is sent again")
	}
	s.checkQueues = server.Check
	return server.Connect(nats.Name("notifyd"), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
}

// breakersBucket is where nodes tell each other of breakers.
const breakersBucket = "notifyd_breakers"

// boardWait bounds how long a start waits for what other nodes, and this one's last run, say of breakers.
const boardWait = 2 * time.Second

// shareBreakers learns what is known of breakers before anything is sent, if NATS says it soon, and goes on sharing it.
func (e *engine) shareBreakers(ctx context.Context, s stores) {
	e.parts.run(ctx, "breakers", e.dispatch.RunBreakers)
	e.parts.run(ctx, "board of breakers", func(ctx context.Context) error { return s.board.Run(ctx, e.dispatch.LearnBoard) })
	if s.natsAway.Away() {
		return
	}
	wait := time.NewTimer(boardWait)
	defer wait.Stop()
	select {
	case <-s.board.Learned():
	case <-ctx.Done():
	case <-wait.C:
		e.log.Warn("what other nodes know of breakers is not known yet; it is learned later", zap.Duration("waited", boardWait))
	}
}

// startCluster shows that this node lives, and shares the shards with the others that deliver.
func (e *engine) startCluster(ctx context.Context, s *stores) error {
	cfg := cluster.DefaultConfig()
	cfg.Node, cfg.Run, cfg.Replicas = e.node, e.run, e.cfg.NATS.Replicas
	if e.cfg.Roles.has(roleAsync) {
		cfg.Shards = notification.Shards
	}
	var err error
	if s.cluster, err = cluster.New(s.js, cfg, e.log.Named("cluster")); err != nil {
		return err
	}
	e.parts.run(ctx, "cluster", s.cluster.Run)
	shared := cluster.DefaultBoardConfig()
	shared.Bucket, shared.Replicas = breakersBucket, e.cfg.NATS.Replicas
	s.board, err = cluster.NewBoard(s.js, shared, e.log.Named("cluster"))
	return err
}

func (e *engine) startLedger(ctx context.Context, s *stores) error {
	cipher, err := e.masterKey(ctx)
	if err != nil {
		return err
	}
	log := e.log.Named("ledger")
	if e.pgURL = e.cfg.Postgres.URL; e.pgURL == "" {
		pg, err := postgres.Start(ctx, postgres.Config{Dir: filepath.Join(e.cfg.DataDir, "postgres"), Log: e.log.Named("postgres")})
		if err != nil {
			return err
		}
		e.pgURL = pg.URL()
		e.parts.opened("postgres", func() error { return withTimeout(30*time.Second, pg.Stop) })
	}
	cfg := ledger.Config{
		URL: e.pgURL, MaxConns: e.cfg.Postgres.MaxConnections, Retention: e.cfg.Ledger.Retention, SearchTimeout: e.cfg.Ledger.SearchTimeout, Window: e.cfg.Retry.Window, Keys: cipher,
		LeaveUpkeep: !e.cfg.Roles.has(roleLedger), ReserveTimeout: e.cfg.Outage.SlowAfter, Gone: s.cluster.Gone, Log: log, Now: now,
	}
	s.memory, err = keepTrying(ctx, log, ledger.Away, func() (*ledger.Postgres, error) { return ledger.Open(ctx, cfg) })
	if err != nil && ledger.Away(err) && ctx.Err() == nil {
		cfg.LateStart = true
		s.memory, err = ledger.Open(ctx, cfg)
	}
	if err != nil {
		return err
	}
	e.parts.opened("ledger connections", func() error { s.memory.Close(); return nil })
	return nil
}

// startStandIns starts what carries on while NATS or Postgres is away (P9).
func (e *engine) startStandIns(ctx context.Context, s *stores) error {
	cfg, log := e.cfg.Outage, e.log.Named("outage")
	cfg.Replicas, cfg.AttemptBound = e.cfg.NATS.Replicas, e.cfg.Dispatcher.AttemptBound
	s.pgAway, s.natsAway = outage.WatchPostgres(cfg, s.memory.Ping, log), outage.WatchNATS(cfg, s.js, s.checkQueues, log)
	s.pgAway.Look(ctx)
	s.natsAway.Look(ctx)
	e.parts.run(ctx, "watch of postgres", s.pgAway.Run)
	e.parts.run(ctx, "watch of nats", s.natsAway.Run)
	e.parts.run(ctx, "what others should take over", s.tellBlind)
	var err error
	s.kept, err = outage.NewLedger(ctx, cfg, outage.Parts{
		Postgres: s.memory, Conn: s.conn, Away: s.pgAway, Queues: s.natsAway, Dir: filepath.Join(e.cfg.DataDir, "journal"), Log: log,
	})
	if err != nil {
		return err
	}
	e.parts.opened("journal", s.kept.Close) // the last to stop: what the ledger cannot write any more goes there
	e.parts.run(ctx, "ledger", s.memory.Run)
	e.parts.run(ctx, "spilled records", s.kept.Run)
	if s.window, err = retry.NewDelay(ctx, e.cfg.Retry, s.js); err != nil {
		return err
	}
	e.parts.opened("delay", func() error { s.window.Wait(); return nil })
	e.parts.run(ctx, "room in the delay window", s.window.Run)
	s.queues, err = outage.NewQueues(cfg, outage.QueueParts{
		Window: s.window, Rows: s.kept, NATS: s.natsAway, Full: func(err error) bool { return errors.Is(err, async.ErrFull) }, Now: now,
	})
	if err != nil {
		return err
	}
	e.parts.opened("rows for the queues", func() error { s.queues.Wait(); return nil })
	e.parts.run(ctx, "publishes under way", s.queues.Run)
	return nil
}

// masterKey seals the secrets of merchants and sources, and private keys. It comes from the environment, from a command or from
// a file; beside a private Postgres the first start makes that file. Nodes that share a Postgres share the key.
func (e *engine) masterKey(ctx context.Context) (ledger.Cipher, error) {
	_, raw, err := e.cfg.findMasterKey(ctx, e.cfg.masterKeyIsMade())
	if err != nil {
		return ledger.Cipher{}, err
	}
	return ledger.NewCipher(raw)
}

// lanes are what works on notifications. Whatever a role needs is there on every node; only what a role does by itself is
// started for it alone.
type lanes struct {
	sweep     *retry.Sweep
	async     *async.Lane
	sync      *synclane.Lane // nil: other nodes are asked
	sources   *source.Registry
	access    *access.Registry
	keys      *keys.Ring
	masters   dispatcher.MasterKeys
	merchants *merchant.Registry
}

func (e *engine) startLanes(ctx context.Context, s stores, observers dispatcher.Observers) error {
	tally, shown := health.NewTally(e.cfg.Alarms, now), metrics.New(build())
	l, err := e.makeLanes(ctx, s, append(observers, tally, shown))
	if err != nil {
		return err
	}
	if err := e.startAdmin(ctx, s, l, tally, shown); err != nil {
		return err
	}
	e.shareBreakers(ctx, s)
	roles := e.cfg.Roles
	e.parts.run(ctx, "settings snapshot", func(ctx context.Context) error { return e.saveSettings(ctx, s, l) })
	e.parts.run(ctx, "dispatcher", e.dispatch.Run)
	e.parts.run(ctx, "ends of certificates", e.dispatch.RunKeyExpiries)
	e.parts.run(ctx, "streams", l.async.KeepStreams)
	if roles.has(roleRetry) {
		e.parts.run(ctx, "sweep", l.sweep.Run)
		e.parts.run(ctx, "releases", e.dispatch.RunReleases)
	}
	if roles.has(roleAsync) {
		e.parts.run(ctx, "async lane", func(ctx context.Context) error {
			err := l.async.Run(ctx, e.cfg.Drain)
			e.unread = l.async.Unread()
			return err
		})
	}
	if l.sync != nil {
		e.parts.opened("sync lane", func() error { return withTimeout(e.cfg.Drain, l.sync.Wait) })
		if e.cfg.NATS.URL != "" { // other nodes may ask
			e.parts.run(ctx, "questions to the sync lane", func(ctx context.Context) error {
				return l.sync.ServeRemote(ctx, s.conn, e.log.Named("sync"))
			})
		}
	}
	if !roles.has(roleIntake) {
		return nil
	}
	return e.startIntake(ctx, l)
}

// behind is how far the ledger is behind while it is there: what is recorded while it is away goes elsewhere.
func (s stores) behind() time.Duration {
	if s.pgAway.Away() {
		return 0
	}
	return s.memory.Behind()
}

func (e *engine) makeLanes(ctx context.Context, s stores, observers dispatcher.Observers) (*lanes, error) {
	ring := keys.NewRing()
	contracts := contract.NewBook(ring, sign.NewPool(0))
	client, err := egress.New(e.cfg.Egress, contracts)
	if err != nil {
		return nil, err
	}
	e.parts.opened("egress", func() error { client.Close(); return nil })
	e.tester = sender{client}
	l := &lanes{sources: source.NewRegistry(), access: access.NewRegistry(), keys: ring, masters: s.memory, merchants: merchant.NewRegistry()}
	l.sweep = retry.NewSweep(e.cfg.Retry, s.kept, s.queues, s.natsAway.Away, e.log.Named("sweep"))

	merchants, table, later := l.merchants, hand.NewTable(), &laterPlaces{}
	routes, err := router.New(e.cfg.Router, knownNames())
	if err != nil {
		return nil, err
	}
	settings := e.cfg.Dispatcher
	settings.Total, settings.Grace = e.cfg.Egress.TotalTimeout, e.cfg.Egress.Grace
	d, err := dispatcher.New(settings, dispatcher.Parts{
		Run: e.run, Ledger: s.kept, Store: s.kept, Merchants: merchants, SourceStore: s.kept, Sources: l.sources, AccessStore: s.kept, Access: l.access, KeyStore: s.kept, Keys: l.keys, Contracts: contracts, Router: routes,
		Sender: e.newSender(client), URLs: urls{client.Guard()}, Delay: s.queues, Hand: table, Places: later, Observer: observers, Board: s.board,
		Log: e.log.Named("dispatcher"), Now: now,
	})
	if err != nil {
		return nil, err
	}
	e.dispatch = d
	if err := errors.Join(d.LearnMerchants(ctx), d.LearnSources(ctx), d.LearnAccess(ctx), d.LearnKeys(ctx)); err != nil {
		e.adoptSettings(s, err)
	}
	l.async, err = async.New(ctx, e.cfg.Async, async.Parts{
		JetStream: s.js, Deliverer: d, Memory: d, Delayer: delayer{s.queues, s.window}, Hand: table, Log: e.log.Named("async"), Crashed: s.crashed,
		Shards: s.cluster, Spread: e.spread(), Away: s.natsAway.Away, Behind: s.behind, Due: s.kept, Recall: recall(s.kept, e.log.Named("async")),
		Limits: func(id string) async.Limits {
			m := merchants.Get(id)
			if m == nil {
				return async.Limits{}
			}
			return async.Limits{InFlight: m.Limits.MaxInFlight, PerSecond: m.Limits.RatePerSecond, OwnQueue: m.Limits.OwnQueue, Release: async.Release(m.Release)}
		},
	})
	if err != nil {
		return nil, err
	}
	later.Places = l.async
	s.queues.Connect(l.async)
	var asking dispatcher.SyncLane
	if e.cfg.Roles.has(roleSync) {
		l.sync, err = synclane.New(e.cfg.Sync, d, s.queues, table)
		asking = l.sync
	} else {
		asking, err = synclane.NewRemote(e.cfg.Sync, s.conn, s.queues)
	}
	d.Connect(s.queues, asking)
	return l, err
}

// startAdmin starts what watches the node, and answers for it until everything else has stopped.
func (e *engine) startAdmin(ctx context.Context, s stores, l *lanes, tally *health.Tally, shown *metrics.Metrics) error {
	roles := e.cfg.Roles
	watched := health.Parts{
		Node: e.cfg.nodeName(), Log: e.log.Named("health"), Now: now, Tally: tally, Store: s.memory, Postgres: s.memory.Ping,
		NATS: func(ctx context.Context) error {
			if s.checkQueues != nil {
				if err := s.checkQueues(); err != nil {
					return err
				}
			}
			_, err := s.js.AccountInfo(ctx)
			return err
		},
		Intake: roles.has(roleIntake), Dispatcher: e.dispatch.Stats, Backlog: l.async.Backlog, Ledger: s.memory.Stats, Overdue: s.memory.Overdue, Keys: l.sources, Certificates: l.keys.Expiring,
	}
	numbers := metrics.Parts{Now: now, Tally: tally, Dispatcher: e.dispatch.Stats, Ledger: s.memory.Stats, Delay: s.window.Stats, Kept: s.kept.Stats, Queues: s.queues.Stats, Cluster: s.cluster.Stats, Certificates: l.keys.Expiring}
	if roles.has(roleAsync) {
		watched.Async, numbers.Async = l.async.Stats, l.async.Stats
	}
	if roles.has(roleRetry) {
		numbers.Sweep = l.sweep.Stats
	}
	if l.sync != nil {
		numbers.Sync = l.sync.Stats
	}
	var err error
	if e.monitor, err = health.New(e.cfg.Alarms, watched); err != nil {
		return err
	}
	numbers.Monitor = e.monitor
	shown.Watch(numbers)
	e.parts.run(ctx, "health", e.monitor.Run)

	mux := http.NewServeMux()
	e.monitor.Handle(mux)
	mux.Handle("GET /metrics", shown.Handler())
	serveProfiles(mux)
	e.admin, err = e.serve(ctx, "admin", e.cfg.Admin.Listen, nil, mux)
	return err
}

// spreadAlone is over how many shards a node spreads what it accepts that shares its NATS with no other.
const spreadAlone = 1

func (e *engine) spread() int {
	if e.cfg.NATS.URL == "" {
		return spreadAlone
	}
	return notification.Shards
}

// now is the engine's clock: UTC, in the microseconds that the ledger keeps.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func withTimeout(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}

// newSender lets egress answer for the dispatcher's attempts.
func (e *engine) newSender(client *egress.Client) dispatcher.Sender {
	if e.tracing != nil {
		return tracedSender{next: sender{client}, tracing: e.tracing}
	}
	return untraced{sender{client}}
}

// untraced keeps the trace of another node's submission from the merchant.
type untraced struct{ sender }

func (s untraced) Send(ctx context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	w.Trace = ""
	return s.sender.Send(ctx, w, m)
}

type sender struct{ client *egress.Client }

func (s sender) Send(ctx context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	return s.client.Send(ctx, egress.Call{Work: w, Merchant: m, Number: w.Attempts + 1})
}

// Test is what the console and TestMerchant ask for.
func (s sender) Test(ctx context.Context, w notification.Work, m *merchant.Merchant, wrongSignature bool) (notification.Attempt, []byte) {
	return s.client.Test(ctx, egress.Call{Work: w, Merchant: m, Number: 1, WrongSignature: wrongSignature})
}

// urls lets egress decide about notify URLs.
type urls struct{ guard egress.Guard }

func (u urls) CheckURL(raw string, policy merchant.URLPolicy, defaultURL string) error {
	return egress.CheckURL(raw, policy, defaultURL, u.guard)
}

// secrets makes signing secrets.
type secrets struct{}

func (secrets) Generate() string { return sign.GenerateStandardSecret() }

// laterPlaces breaks the circle between the dispatcher and the lane that knows the streams.
type laterPlaces struct{ dispatcher.Places }
