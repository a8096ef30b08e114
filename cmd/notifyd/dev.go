package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	"notifyd/dispatcher"
	"notifyd/internal/demo"
)

// demoListen is where the demo's merchants answer: the same in every run, since notify URLs are frozen at acceptance.
const demoListen = "127.0.0.1:8710"

// devCmd runs everything in one process, without any set-up.
type devCmd struct {
	configFlags
	Demo     bool          `help:"Submit a steady trickle to a dozen demo merchants." default:"true" negatable:""`
	DemoRate float64       `help:"Demo notifications per second." default:"3"`
	Quiet    bool          `help:"No line per attempt." short:"q"`
	Log      string        `help:"Least level of log lines (debug, info, warn, error)." name:"log-level" placeholder:"info"`
	Drain    time.Duration `help:"How long a stop waits for what is in hand." placeholder:"25s"`
	Sync     bool          `help:"Write every message to disk before it is acknowledged." name:"sync-always"`
}

// devConfig differs from defaultConfig in what needs no set-up: callers need not prove who they are, a stop does not wait
// for load balancers, log lines are for people.
func devConfig() config {
	cfg := defaultConfig()
	cfg.Callers.Required, cfg.DrainNotice, cfg.NATS.SyncAlways = false, 0, false
	cfg.Log = logConfig{Level: "info", Format: "console"}
	return cfg
}

func (c *devCmd) config() (config, error) {
	flags := map[string]string{}
	if c.Log != "" {
		flags["log.level"] = c.Log
	}
	if c.Drain > 0 {
		flags["drain"] = c.Drain.String()
	}
	if c.Sync {
		flags["nats.sync_always"] = "true"
	}
	cfg, _, err := c.load(devConfig(), os.Environ(), flags)
	// The demo's merchants live on this machine.
	cfg.Egress.AllowedNetworks = append(cfg.Egress.AllowedNetworks, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	return cfg, err
}

// Run runs until ctx ends, drains, and returns.
func (c *devCmd) Run(ctx context.Context, s *streams) error {
	cfg, err := c.config()
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	log, _, err := newLogger(cfg.Log, s)
	if err != nil {
		return err
	}
	began := time.Now()
	fmt.Fprintf(s.Out, "notifyd dev: starting in %s\n", cfg.DataDir)
	var observers dispatcher.Observers
	if !c.Quiet {
		observers = append(observers, &terminal{out: s.Out})
	}
	e, err := startEngine(ctx, cfg, observers, log)
	if err != nil {
		return err
	}
	e.banner(s, cfg, time.Since(began))
	scenery := newParts() // the demo's merchants answer until the engine has drained
	if c.Demo {
		if err := c.play(ctx, s, e, scenery, log); err != nil {
			return errors.Join(err, e.parts.stop())
		}
	}
	fmt.Fprintln(s.Out)
	select {
	case <-ctx.Done():
		fmt.Fprintln(s.Out, "notifyd dev: draining; what is in hand is finished first")
	case err = <-e.parts.failed:
		log.Error("a part failed; the engine stops", zap.Error(err))
	case err = <-scenery.failed:
		log.Error("the demo failed; the engine stops", zap.Error(err))
	}
	e.notice()
	err = errors.Join(err, e.stop(), scenery.stop())
	if err == nil {
		fmt.Fprintln(s.Out, "notifyd dev: stopped; nothing is lost")
	}
	return err
}

// play starts the demo: its merchants first, then the payment service that submits.
func (c *devCmd) play(ctx context.Context, s *streams, e *engine, scenery *parts, log *zap.Logger) error {
	show := demo.New(demo.Config{
		IntakeURL: "http://" + e.intake, Listen: demoListen, Rate: c.DemoRate,
		Log: func(format string, args ...any) { log.Named("demo").Info(fmt.Sprintf(format, args...)) },
	})
	if err := show.Listen(ctx); err != nil {
		return err
	}
	fmt.Fprintln(s.Out, "  demo      a payment service and these merchants, on loopback (--no-demo leaves them out):")
	for _, m := range show.Merchants() {
		fmt.Fprintf(s.Out, "              %s\n", m)
	}
	scenery.run(ctx, "demo merchants", show.Serve)
	e.parts.run(ctx, "demo payment service", func(ctx context.Context) error {
		show.Submit(ctx)
		return nil
	})
	return nil
}

func (e *engine) banner(s *streams, cfg config, took time.Duration) {
	bin := "notifyd"
	if len(os.Args) > 0 {
		bin = os.Args[0]
	}
	fmt.Fprintf(s.Out, `notifyd dev: ready after %s
  intake    http://%s        gRPC, gRPC-Web and JSON
  admin     http://%s/readyz
  data      %s   NATS JetStream in this process, a private Postgres beside it
  try       %s send --file examples/notifications.jsonl --server http://%s
            %s prove --server http://%s
            curl -s http://%s/notifyd.v1.NotificationService/ListNotifications -H 'Content-Type: application/json' -d '{"pageSize":3}'
            psql '%s'
`, took.Round(time.Millisecond), e.intake, e.admin, cfg.DataDir, bin, e.intake, bin, e.intake, e.intake, e.pgURL)
}
