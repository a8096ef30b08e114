package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/async"
	"notifyd/dispatcher"
	"notifyd/egress"
	"notifyd/internal/embedded/natsserver"
	"notifyd/internal/embedded/postgres"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/notification/hand"
	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/retry"
	"notifyd/router"
	synclane "notifyd/sync"
)

// engine is one running node.
type engine struct {
	parts  *parts
	intake string // the address that answers, for example 127.0.0.1:8700
	admin  string
	pgURL  string
	unread bool // something from before a crash has not been looked up yet
}

// startEngine starts everything in one process: Postgres and NATS on the data folder, the lanes, the intake. When it
// returns an error, nothing is left running.
func startEngine(ctx context.Context, cfg config, observer dispatcher.Observer, log *zap.Logger) (_ *engine, err error) {
	e := &engine{parts: newParts()}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.parts.stop())
		}
	}()
	if err := os.MkdirAll(cfg.DataDir, 0o755); err != nil { //nolint:gosec // Postgres runs as another user below it; what is secret has its own rights
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	keys, err := e.masterKey(cfg)
	if err != nil {
		return nil, err
	}
	crashed, err := e.markRunning(cfg)
	if err != nil {
		return nil, err
	}
	if crashed {
		log.Info("the last run did not end cleanly; what it had in hand is looked up before it is sent again")
	}
	js, err := e.startQueues(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	memory, err := e.startLedger(ctx, cfg, keys, log)
	if err != nil {
		return nil, err
	}
	return e, e.startLanes(ctx, cfg, stores{js, memory, crashed}, observer, log)
}

// markRunning leaves a file while the engine runs, so that the next start knows whether this one has ended cleanly: the
// file goes last, and stays when anything has failed to stop.
func (e *engine) markRunning(cfg config) (crashed bool, _ error) {
	path := filepath.Join(cfg.DataDir, "running")
	_, noMark := os.Stat(path)
	if err := os.WriteFile(path, []byte("the engine runs, or has not ended cleanly\n"), 0o600); err != nil {
		return false, fmt.Errorf("mark run: %w", err)
	}
	e.parts.opened("mark of the run", func() error {
		if e.parts.cleanSoFar() && !e.unread {
			return os.Remove(path)
		}
		return nil
	})
	return !errors.Is(noMark, os.ErrNotExist), nil
}

// masterKey seals the merchants' secrets. It comes from the environment, or from a file that the first start makes.
func (e *engine) masterKey(cfg config) (ledger.Cipher, error) {
	raw := []byte(os.Getenv("NOTIFYD_MASTER_KEY"))
	if len(raw) == 0 {
		var err error
		if raw, err = ledger.LoadMasterKey(filepath.Join(cfg.DataDir, "master.key"), true); err != nil {
			return ledger.Cipher{}, err
		}
	}
	return ledger.NewCipher(raw)
}

func (e *engine) startQueues(ctx context.Context, cfg config, log *zap.Logger) (jetstream.JetStream, error) {
	server, err := natsserver.Start(ctx, natsserver.Config{Dir: filepath.Join(cfg.DataDir, "nats"), SyncAlways: cfg.NATS.SyncAlways, Log: log.Named("nats")})
	if err != nil {
		return nil, err
	}
	e.parts.opened("nats", func() error { return withTimeout(10*time.Second, server.Stop) })
	conn, err := server.Connect(nats.Name("notifyd"), nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	e.parts.opened("nats connection", func() error { conn.Close(); return nil })
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	return js, nil
}

func (e *engine) startLedger(ctx context.Context, cfg config, keys ledger.Cipher, log *zap.Logger) (*ledger.Postgres, error) {
	pg, err := postgres.Start(ctx, postgres.Config{Dir: filepath.Join(cfg.DataDir, "postgres"), Log: log.Named("postgres")})
	if err != nil {
		return nil, err
	}
	e.pgURL = pg.URL()
	e.parts.opened("postgres", func() error { return withTimeout(30*time.Second, pg.Stop) })
	memory, err := ledger.Open(ctx, ledger.Config{
		URL: pg.URL(), Retention: cfg.Ledger.Retention, Window: cfg.Retry.Window, Keys: keys, Log: log.Named("ledger"), Now: now,
	})
	if err != nil {
		return nil, err
	}
	e.parts.opened("ledger connections", func() error { memory.Close(); return nil })
	e.parts.run(ctx, "ledger", memory.Run)
	return memory, nil
}

// stores are where notifications rest.
type stores struct {
	js      jetstream.JetStream
	memory  *ledger.Postgres
	crashed bool // the last run did not end cleanly
}

func (e *engine) startLanes(ctx context.Context, cfg config, s stores, observer dispatcher.Observer, log *zap.Logger) error {
	js, memory := s.js, s.memory
	routes, err := router.New(cfg.Router, knownNames())
	if err != nil {
		return err
	}
	client, err := egress.New(cfg.Egress)
	if err != nil {
		return err
	}
	e.parts.opened("egress", func() error { client.Close(); return nil })
	delay, err := retry.NewDelay(ctx, cfg.Retry, js)
	if err != nil {
		return err
	}
	e.parts.opened("delay", func() error { delay.Wait(); return nil })

	merchants, table := merchant.NewRegistry(), hand.NewTable()
	later := &laterPlaces{}
	cfg.Dispatcher.Total, cfg.Dispatcher.Grace = cfg.Egress.TotalTimeout, cfg.Egress.Grace
	d, err := dispatcher.New(cfg.Dispatcher, dispatcher.Parts{
		Ledger: memory, Store: memory, Merchants: merchants, Router: routes, Sender: sender{client}, URLs: urls{client.Guard()},
		Delay: delay, Hand: table, Places: later, Observer: observer, Log: log.Named("dispatcher"), Now: now,
	})
	if err != nil {
		return err
	}
	if err := d.LearnMerchants(ctx); err != nil {
		return err
	}
	lane, err := async.New(ctx, cfg.Async, async.Parts{
		JetStream: js, Deliverer: d, Memory: d, Delayer: delay, Hand: table, Log: log.Named("async"), Crashed: s.crashed,
		InFlight: func(id string) int {
			if m := merchants.Get(id); m != nil {
				return m.Limits.MaxInFlight
			}
			return 0
		},
	})
	if err != nil {
		return err
	}
	later.Places = lane
	waiting, err := synclane.New(cfg.Sync, d, delay, table)
	if err != nil {
		return err
	}
	d.Connect(lane, waiting)

	e.parts.run(ctx, "dispatcher", d.Run)
	e.parts.run(ctx, "sweep", retry.NewSweep(cfg.Retry, memory, delay, log.Named("sweep")).Run)
	e.parts.run(ctx, "async lane", func(ctx context.Context) error {
		err := lane.Run(ctx, cfg.Drain)
		e.unread = lane.Unread()
		return err
	})
	e.parts.opened("sync lane", func() error {
		return withTimeout(cfg.Drain, func(ctx context.Context) error { return waiting.Wait(ctx) })
	})
	if e.intake, err = e.serve(ctx, "intake", cfg.Intake.Listen, intakeHandler(d)); err != nil {
		return err
	}
	e.admin, err = e.serve(ctx, "admin", cfg.Admin.Listen, adminHandler(memory, js))
	return err
}

// maxRequestBytes bounds one RPC; a batch of a thousand usual notifications is about 2 MiB.
const maxRequestBytes = 32 << 20

// intakeHandler answers gRPC, gRPC-Web and JSON on one port, with reflection.
func intakeHandler(d *dispatcher.Dispatcher) http.Handler {
	mux := http.NewServeMux()
	limit := connect.WithReadMaxBytes(maxRequestBytes)
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(d, limit))
	mux.Handle(notifydv1connect.NewMerchantServiceHandler(dispatcher.NewMerchantService(d, secrets{}), limit))
	reflector := grpcreflect.NewStaticReflector(notifydv1connect.NotificationServiceName, notifydv1connect.MerchantServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	return mux
}

// adminHandler says whether the process lives and whether it can do its work.
func adminHandler(memory *ledger.Postgres, js jetstream.JetStream) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		status, words := http.StatusOK, map[string]string{"postgres": "ok", "nats": "ok"}
		if err := memory.Ping(ctx); err != nil {
			status, words["postgres"] = http.StatusServiceUnavailable, "does not answer"
		}
		if _, err := js.AccountInfo(ctx); err != nil {
			status, words["nats"] = http.StatusServiceUnavailable, "does not answer"
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "postgres: %s\nnats: %s\n", words["postgres"], words["nats"])
	})
	return mux
}

// serve listens at once and answers until it is stopped; then it waits for the calls under way.
func (e *engine) serve(ctx context.Context, name, addr string, handler http.Handler) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("listen for %s: %w", name, err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS
	srv := &http.Server{Handler: handler, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	e.parts.run(ctx, name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		err := withTimeout(10*time.Second, srv.Shutdown)
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
		return err
	})
	return l.Addr().String(), nil
}

// now is the engine's clock: UTC, in the microseconds that the ledger keeps.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func withTimeout(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}

// sender lets egress answer for the dispatcher's attempts.
type sender struct{ client *egress.Client }

func (s sender) Send(ctx context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	return s.client.Send(ctx, egress.Call{Work: w, Merchant: m, Number: w.Attempts + 1})
}

// urls lets egress decide about notify URLs.
type urls struct{ guard egress.Guard }

func (u urls) CheckURL(raw string, policy merchant.URLPolicy, defaultURL string) error {
	return egress.CheckURL(raw, policy, defaultURL, u.guard)
}

// secrets lets egress make and check signing secrets.
type secrets struct{}

func (secrets) Generate() string { return egress.GenerateSecret() }

func (secrets) Check(secret string) error {
	_, err := egress.ParseSecret(secret)
	return err
}

// laterPlaces breaks the circle between the dispatcher and the lane that knows the streams.
type laterPlaces struct{ dispatcher.Places }
