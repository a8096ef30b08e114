package main

import (
	"context"
	"net/http"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// callLog writes a line for each call: what changes merchants, sources, keys or notifications as info, what the engine could
// not do as a warning, the rest as debug.
type callLog struct {
	log    *zap.Logger
	caller func(context.Context) string
}

// WrapUnary logs a call.
func (l callLog) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		began := time.Now()
		res, err := next(ctx, req)
		l.line(ctx, req.Spec().Procedure, req.Header(), req.Peer(), began, err)
		return res, err
	}
}

// WrapStreamingHandler logs a call.
func (l callLog) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		began := time.Now()
		err := next(ctx, conn)
		l.line(ctx, conn.Spec().Procedure, conn.RequestHeader(), conn.Peer(), began, err)
		return err
	}
}

// WrapStreamingClient is not used: these are calls that come in.
func (callLog) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (l callLog) line(ctx context.Context, procedure string, header http.Header, peer connect.Peer, began time.Time, err error) {
	level, code := zap.DebugLevel, "ok"
	method := path.Base(procedure)
	for _, changes := range []string{"Put", "Pause", "Resume", "Create", "Revoke", "Resend", "Cancel", "Import", "Generate", "Rotate", "Retire"} {
		if strings.HasPrefix(method, changes) {
			level = zap.InfoLevel
		}
	}
	fields := make([]zapcore.Field, 0, 8)
	if err != nil {
		code = connect.CodeOf(err).String()
		fields = append(fields, zap.Error(err))
		switch connect.CodeOf(err) { //nolint:exhaustive // the engine's own faults; the rest is the caller's
		case connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss:
			level = zap.WarnLevel
		case connect.CodeUnavailable: // the dispatcher's own line has the cause
			level = zap.DebugLevel
		}
	}
	if line := l.log.Check(level, "call"); line != nil {
		line.Write(append(fields, zap.String("method", method), zap.String("code", code), zap.String("caller", l.caller(ctx)),
			zap.String("peer", peer.Addr), zap.Duration("took", time.Since(began).Round(10*time.Microsecond)), zap.String("call_id", header.Get(requestIDHeader)))...)
	}
}
