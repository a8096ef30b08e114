package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"go.uber.org/zap"

	"notifyd/dispatcher"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

func (e *engine) startIntake(ctx context.Context, l *lanes) error {
	var err error
	if e.callers, err = dispatcher.NewCallers(e.cfg.Callers, l.sources, e.log.Named("intake"), now); err != nil {
		return err
	}
	handler, err := e.intakeHandler(l)
	if err != nil {
		return err
	}
	var secure *tls.Config
	if e.cfg.Intake.TLS.on() {
		shown, err := e.cfg.Intake.TLS.read()
		if err != nil {
			return err
		}
		e.identity.current.Store(shown)
		secure = e.identity.config()
	}
	if e.intake, err = e.serve(ctx, "intake", e.cfg.Intake.Listen, secure, handler); err != nil {
		return err
	}
	e.parts.opened("streams of callers", func() error { e.dispatch.EndStreams(); return nil }) // the intake waits for them
	return nil
}

// leastCompressed is the smallest answer that is compressed for callers that take it: a page of a list, not what became of
// a submission, which is a few hundred bytes for which gzip costs more than the rest of the call.
const leastCompressed = 32 << 10

// intakeHandler answers gRPC, gRPC-Web and JSON on one port, with reflection. Whoever calls is asked who it is first.
func (e *engine) intakeHandler(l *lanes) (http.Handler, error) {
	mux := http.NewServeMux()
	with := []connect.HandlerOption{
		connect.WithReadMaxBytes(dispatcher.MaxRequestBytes), dispatcher.StrictJSON(), connect.WithCompressMinBytes(leastCompressed),
		connect.WithInterceptors(callLog{log: e.log.Named("intake"), caller: func(ctx context.Context) string { return dispatcher.CallerOf(ctx).String() }}),
	}
	if e.tracing != nil {
		spans, err := e.tracing.intercept()
		if err != nil {
			return nil, err
		}
		with = append(with, connect.WithInterceptors(spans))
	}
	merchants := dispatcher.NewMerchantService(e.dispatch, secrets{}, e.tester)
	merchants.Queues = l.async
	mux.Handle(notifydv1connect.NewNotificationServiceHandler(e.dispatch, with...))
	mux.Handle(notifydv1connect.NewMerchantServiceHandler(merchants, with...))
	mux.Handle(notifydv1connect.NewSourceServiceHandler(dispatcher.NewSourceService(e.dispatch), with...))
	mux.Handle(notifydv1connect.NewAccessServiceHandler(dispatcher.NewAccessService(e.dispatch), with...))
	mux.Handle(notifydv1connect.NewKeyServiceHandler(dispatcher.NewKeyService(e.dispatch, l.masters), with...))
	reflector := grpcreflect.NewStaticReflector(
		notifydv1connect.NotificationServiceName, notifydv1connect.MerchantServiceName, notifydv1connect.SourceServiceName,
		notifydv1connect.AccessServiceName, notifydv1connect.KeyServiceName)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	return requestIDs(readSoon(e.callers.Authenticate(e.dispatch.Shed(mux)))), nil
}

// serve listens at once and answers until it is stopped; then it waits for the calls under way.
func (e *engine) serve(ctx context.Context, name, addr string, secure *tls.Config, handler http.Handler) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("listen for %s: %w", name, err)
	}
	answers := l.Addr().String()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS
	srv := &http.Server{
		Handler: handler, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: connectionLog(e.log.Named(name)), TLSConfig: secure,
	}
	listen := func() error { return srv.Serve(l) }
	if secure != nil {
		listen = func() error { return srv.ServeTLS(l, "", "") }
	}
	e.parts.run(ctx, name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- listen() }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		if err := withTimeout(e.cfg.Drain, srv.Shutdown); err != nil { //nolint:contextcheck // ctx is over; who still talks is a caller of no matter, or one that tries again
			e.log.Warn("calls are cut off", zap.String("listener", name), zap.Error(errors.Join(err, srv.Close())))
		}
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			return ended
		}
		return nil
	})
	return answers, nil
}
