package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"notifyd/dispatcher"
	"notifyd/merchant"
	"notifyd/notification"
)

// tracesConfig says where spans go. Without an endpoint there are none.
type tracesConfig struct {
	// Endpoint takes OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces.
	Endpoint string `yaml:"endpoint" secret:"url"`
	// SampleRatio is the share of submissions that are traced where the caller does not say; 0 to 1.
	SampleRatio float64 `yaml:"sample_ratio"`
	// SendToMerchants puts a traceparent header on requests to merchants.
	SendToMerchants bool `yaml:"send_to_merchants"`
}

func (c tracesConfig) validate() error {
	if u, err := url.Parse(c.Endpoint); c.Endpoint != "" && (err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https")) {
		return fmt.Errorf("traces.endpoint: %q: must be http://host:port/path or https://…", redacted(c.Endpoint))
	}
	if c.SampleRatio < 0 || c.SampleRatio > 1 {
		return fmt.Errorf("traces.sample_ratio: %v: must be 0 to 1", c.SampleRatio)
	}
	return nil
}

// tracing follows a notification from its caller to the merchant.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	toOthers bool
}

func newTracing(ctx context.Context, cfg tracesConfig, log *zap.Logger) (*tracing, error) {
	lines := &limitedLines{to: log, lines: rate.NewLimiter(rate.Every(time.Minute), 1)}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { _, _ = lines.Write([]byte(err.Error())) })) // else it writes to the error stream
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.Endpoint), otlptracehttp.WithTimeout(5*time.Second))
	if err != nil {
		return nil, fmt.Errorf("open exporter of traces: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), // drops spans rather than wait for a collector that is away
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "notifyd"))),
	)
	return &tracing{provider: provider, tracer: provider.Tracer("notifyd"), toOthers: cfg.SendToMerchants}, nil
}

// intercept opens a span for each call, below the caller's own.
func (t *tracing) intercept() (connect.Interceptor, error) {
	return otelconnect.NewInterceptor(otelconnect.WithTracerProvider(t.provider), otelconnect.WithPropagator(propagation.TraceContext{}),
		otelconnect.WithTrustRemote(), otelconnect.WithoutMetrics())
}

func (t *tracing) stop(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// tracedSender opens a span for each attempt, below the submission's, however much later it is.
type tracedSender struct {
	next    dispatcher.Sender
	tracing *tracing
}

// Send sends within a span.
func (s tracedSender) Send(ctx context.Context, w notification.Work, m *merchant.Merchant) notification.Attempt {
	header := propagation.MapCarrier{"traceparent": w.Trace}
	ctx = propagation.TraceContext{}.Extract(ctx, header)
	ctx, span := s.tracing.tracer.Start(ctx, "attempt", trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	w.Trace = ""
	if s.tracing.toOthers {
		propagation.TraceContext{}.Inject(ctx, header)
		w.Trace = header["traceparent"]
	}
	a := s.next.Send(ctx, w, m)
	if !span.IsRecording() {
		return a
	}
	span.SetAttributes(
		attribute.String("notifyd.id", w.ID.String()), attribute.String("notifyd.merchant_id", w.MerchantID), attribute.String("notifyd.scene", w.Scene),
		attribute.String("notifyd.trigger", a.Trigger.String()), attribute.Int("notifyd.attempt", a.Number),
		attribute.String("notifyd.outcome", a.Outcome.String()), attribute.String("notifyd.reason", string(a.Reason)),
		attribute.String("http.request.method", a.Request.Method), attribute.String("url.full", withoutQuery(w.NotifyURL)),
		attribute.String("network.peer.address", a.RemoteAddr),
	)
	if a.Response != nil {
		span.SetAttributes(attribute.Int("http.response.status_code", a.Response.Status))
	}
	if a.Outcome != notification.OutcomeDelivered {
		span.SetStatus(codes.Error, string(a.Reason))
	}
	return a
}
