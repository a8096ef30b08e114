package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"notifyd/dispatcher"
	"notifyd/internal/settings"
)

// serveCmd runs a node in production.
type serveCmd struct {
	configFlags
	Check bool `help:"Check the configuration and the files that it names, and end."`
}

// Help is shown by serve --help.
func (serveCmd) Help() string {
	return `Every key of the file can also be set by the environment (async.in_flight is NOTIFYD_ASYNC_IN_FLIGHT) and by
--set key=value; flags win over the environment, the environment over the file.

Examples:
  notifyd serve --config notifyd.yaml --check
  notifyd serve --config notifyd.yaml
  notifyd serve --config notifyd.yaml --roles intake,sync
  notifyd config print --config notifyd.yaml

SIGTERM stops in two steps: for drain_notice /readyz says that the node is going while calls are still taken, then what
is in hand is finished within drain. SIGHUP reads the configuration again; what cannot change live is named in the log.`
}

// Run runs until ctx ends, drains, and returns.
func (c *serveCmd) Run(ctx context.Context, s *streams) error {
	cfg, origins, err := c.load(defaultConfig(), os.Environ(), nil)
	if err == nil && c.Check {
		err = cfg.checkFiles(ctx)
	}
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	if c.Check {
		fmt.Fprintln(s.Out, "notifyd: the configuration is valid")
		warnUnused(origins, func(said string) { fmt.Fprintln(s.Out, "notifyd:", said) })
		return nil
	}
	log, level, err := newLogger(cfg.Log, s)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // fails on a terminal, where nothing waits
	warnUnused(origins, func(said string) { log.Warn(said) })
	var observers dispatcher.Observers
	if cfg.Log.Attempts {
		observers = append(observers, attemptLog{log: log.Named("deliver")})
	}
	hangups := make(chan os.Signal, 1) // from now on: one that comes before the node is ready must not end it
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	began := time.Now()
	log.Info("starting", zap.String("version", version()), zap.Stringer("roles", cfg.Roles), zap.String("config", c.Config))
	e, err := startEngine(ctx, cfg, observers, log)
	if err != nil {
		return err
	}
	log.Info("ready", zap.String("intake", e.intake), zap.String("admin", e.admin), zap.Stringer("roles", cfg.Roles), zap.Duration("took", time.Since(began).Round(time.Millisecond)))
	return e.runUntil(ctx, hangups, func() { c.reload(e, level) })
}

// runUntil waits for the end of ctx or of a part, drains, and returns.
func (e *engine) runUntil(ctx context.Context, hangups <-chan os.Signal, reload func()) error {
	for {
		select {
		case <-hangups:
			reload()
			continue
		case <-ctx.Done():
			e.notice()
			e.log.Info("draining: what is in hand is finished first", zap.Duration("within", e.cfg.Drain))
			if err := e.stop(); err != nil {
				return err
			}
			e.log.Info("stopped; nothing is lost")
			return nil
		case err := <-e.parts.failed:
			e.log.Error("a part failed; the node stops", zap.Error(err))
			return errors.Join(err, e.stop())
		}
	}
}

// stop drains and closes, within a bound: calls get drain, what is in hand gets drain, the rest is quick.
func (e *engine) stop() error { return e.parts.stopWithin(2*e.cfg.Drain+20*time.Second, e.log) }

// notice tells load balancers that this node is going, and gives them time to leave.
func (e *engine) notice() {
	e.monitor.Drain()
	if e.cfg.DrainNotice == 0 || e.intake == "" {
		return
	}
	e.log.Info("going: /readyz says so, calls are still taken", zap.Duration("for", e.cfg.DrainNotice))
	timer := time.NewTimer(e.cfg.DrainNotice)
	defer timer.Stop()
	select {
	case <-timer.C:
	case err := <-e.parts.failed:
		e.log.Error("a part failed while going", zap.Error(err))
	}
}

// reload reads the configuration again and takes over what can change while the node runs. A configuration with a fault
// changes nothing.
func (c *serveCmd) reload(e *engine, level zap.AtomicLevel) {
	next, _, err := c.load(defaultConfig(), os.Environ(), nil)
	if err != nil {
		e.log.Error("the configuration is not reloaded: what was loaded before stays", zap.Error(err))
		return
	}
	if err := e.apply(next, level); err != nil {
		e.log.Error("the configuration is not reloaded: what was loaded before stays", zap.Error(err))
	}
}

func warnUnused(origins *settings.Origins, warn func(said string)) {
	for _, said := range origins.Unused {
		warn(said)
	}
}
