package main

import (
	"errors"
	"slices"
	"strings"

	"go.uber.org/zap"

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

// apply takes over what can change live, and says what cannot. Certificates are read again even under the same names.
func (e *engine) apply(next config, level zap.AtomicLevel) error {
	var taken, waiting []string
	for _, key := range settings.Changed(&e.cfg, &next) {
		if isLive(key) {
			taken = append(taken, key)
		} else {
			waiting = append(waiting, key)
		}
	}
	var errs []error
	if e.cfg.Intake.TLS.on() != next.Intake.TLS.on() {
		errs = append(errs, errors.New("intake.tls.cert_file: TLS is turned on and off by a restart only"))
	} else if next.Intake.TLS.on() {
		errs = append(errs, e.identity.load(next.Intake.TLS))
	}
	routes, err := router.New(next.Router, knownNames())
	if err == nil {
		e.dispatch.SetRouter(routes)
	}
	errs = append(errs, err, level.UnmarshalText([]byte(next.Log.Level)), e.monitor.Configure(next.Alarms))
	if e.callers != nil {
		errs = append(errs, e.callers.Configure(next.Callers))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	e.cfg.Log.Level, e.cfg.Router, e.cfg.Callers, e.cfg.Alarms, e.cfg.Intake.TLS = next.Log.Level, next.Router, next.Callers, next.Alarms, next.Intake.TLS
	e.log.Info("the configuration is reloaded", zap.Strings("changed", taken), zap.Strings("need_a_restart", waiting))
	return nil
}
