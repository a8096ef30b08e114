package main

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"notifyd/internal/settings"
	"notifyd/router"
)

// live are the keys that change while a node runs; each stands for all keys below it.
func live() []string {
	return []string{"log.level", "router", "callers", "alarms", "intake.tls.cert_file", "intake.tls.key_file", "intake.tls.client_ca_file"}
}

func isLive(key string) bool {
	return slices.ContainsFunc(live(), func(l string) bool { return key == l || strings.HasPrefix(key, l+".") })
}

// apply takes over what can change live, and says what cannot. Whatever can fail comes first: a fault changes nothing.
// Certificates are read again even under the same names.
func (e *engine) apply(next config, level zap.AtomicLevel) error {
	if e.cfg.Intake.TLS.on() != next.Intake.TLS.on() {
		return errors.New("intake.tls.cert_file: TLS is turned on and off by a restart only")
	}
	routes, err := router.New(next.Router, knownNames())
	if err != nil {
		return err
	}
	least, err := zapcore.ParseLevel(next.Log.Level)
	if err != nil {
		return err
	}
	var shown *tls.Config
	if next.Intake.TLS.on() {
		if shown, err = next.Intake.TLS.read(); err != nil {
			return err
		}
	}
	if err := e.monitor.Configure(next.Alarms); err != nil {
		return err
	}
	if e.callers != nil {
		if err := e.callers.Configure(next.Callers); err != nil { // validated with the rest of the file: does not happen
			return errors.Join(err, e.monitor.Configure(e.cfg.Alarms))
		}
	}
	e.dispatch.SetRouter(routes)
	level.SetLevel(least)
	e.identity.current.Store(shown)

	var taken, waiting []string
	for _, key := range settings.Changed(&e.cfg, &next) {
		if isLive(key) {
			taken = append(taken, key)
		} else {
			waiting = append(waiting, key)
		}
	}
	e.cfg.Log.Level, e.cfg.Router, e.cfg.Callers, e.cfg.Alarms, e.cfg.Intake.TLS = next.Log.Level, next.Router, next.Callers, next.Alarms, next.Intake.TLS
	e.log.Info("the configuration is reloaded", zap.Strings("changed", taken), zap.Strings("need_a_restart", waiting))
	return nil
}
