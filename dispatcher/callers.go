package dispatcher

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"notifyd/proto/notifyd/v1/notifydv1connect"
	"notifyd/source"
)

// MaxRequestBytes bounds the body of one request; a batch of a thousand usual notifications is about 2 MiB.
const MaxRequestBytes = 32 << 20

// Caller is who makes a call: an operator, or a source. Where both are empty it has proved nothing, which is enough
// unless callers are required to.
type Caller struct {
	Operator string // a name
	Source   string // an id
}

// String names the caller, for logs and errors.
func (c Caller) String() string {
	switch {
	case c.Operator != "":
		return "operator " + c.Operator
	case c.Source != "":
		return fmt.Sprintf("source %q", c.Source)
	}
	return "anonymous"
}

type callerKey struct{}

// CallerOf is who Authenticate found to make a call. Behind no Authenticate everybody is anonymous.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// sourceCalls are what a source may call, each restricted to what is its own. Whatever is in neither of these tables, a
// new RPC for example, is for operators. All of them have one message each way: a signature covers the whole body.
var sourceCalls = map[string]bool{
	notifydv1connect.NotificationServiceSubmitProcedure:              true,
	notifydv1connect.NotificationServiceSubmitBatchProcedure:         true,
	notifydv1connect.NotificationServiceGetNotificationProcedure:     true,
	notifydv1connect.NotificationServiceListNotificationsProcedure:   true,
	notifydv1connect.NotificationServiceGetBatchProcedure:            true,
	notifydv1connect.NotificationServiceCancelNotificationsProcedure: true,
	notifydv1connect.NotificationServiceExplainProcedure:             true,
}

// streamCalls are what a source may call besides, unless it signs: they last, and take one message after another.
var streamCalls = map[string]bool{notifydv1connect.NotificationServiceSubmitStreamProcedure: true}

// openCalls say nothing of anybody: whoever is let in may call them. They are streams.
var openCalls = map[string]bool{
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      true,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": true,
}

// Callers lets in who proves to be an operator or a source, and says who it is. It is safe for use from many goroutines.
type Callers struct {
	settings atomic.Pointer[callersSettings]
	sources  *source.Registry
	log      *zap.Logger
	now      func() time.Time
	errors   *connect.ErrorWriter

	lines    *rate.Limiter // of refusals in the log
	unlogged atomic.Int64  // refusals since the last line
}

type callersSettings struct {
	required  bool
	operators operatorKeys
}

// NewCallers returns a Callers that asks a live snapshot of the sources.
func NewCallers(cfg CallersConfig, sources *source.Registry, log *zap.Logger, now func() time.Time) (*Callers, error) {
	c := &Callers{sources: sources, log: log, now: now, errors: connect.NewErrorWriter(), lines: rate.NewLimiter(1, 10)}
	return c, c.Configure(cfg)
}

// Configure replaces the settings: calls from now on are judged by them. An error leaves the old ones.
func (c *Callers) Configure(cfg CallersConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	c.settings.Store(&callersSettings{required: cfg.Required, operators: newOperatorKeys(cfg.Operators)})
	return nil
}

// refusal is why a call is not let in. The caller is told what a stranger may know; the rest is for the log.
type refusal struct {
	code  connect.Code
	told  string
	why   string // empty: what the caller is told
	keyID string
	as    Caller // whom the credential names
}

// unproven refuses with a message about the form of a credential, which says nothing of those that we know.
func unproven(told string) *refusal { return &refusal{code: connect.CodeUnauthenticated, told: told} }

// invalidCredential refuses a credential without saying what of it is wrong.
func invalidCredential(why, keyID string) *refusal {
	return &refusal{code: connect.CodeUnauthenticated, told: "the credential is not valid", why: why, keyID: keyID}
}

// Authenticate is before every handler: it finds out who calls, refuses whoever may not, and puts the Caller into the
// context.
func (c *Callers) Authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		r = r.WithContext(ctx) // its body may be replaced
		caller, refused := c.identify(w, r)
		if refused == nil {
			refused = authorise(caller, r.URL.Path)
		}
		if refused != nil {
			if refused.why != "" && !c.sources.Learned() {
				refused.code, refused.told = connect.CodeUnavailable, "the keys of sources are not known yet: the ledger does not answer"
			}
			c.refuse(w, r, refused)
			return
		}
		ctx = context.WithValue(ctx, callerKey{}, caller)
		if streamCalls[r.URL.Path] {
			ctx = context.WithValue(ctx, guardKey{}, c.guard(w, r, caller))
		} else if s := c.sources.Get(caller.Source); s != nil && s.Limits.MaxRequestBytes > 0 {
			r.Body = bounded(w, r.Body, s)
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// authorise says who may call what.
func authorise(caller Caller, procedure string) *refusal {
	if caller.Source == "" || sourceCalls[procedure] || streamCalls[procedure] || openCalls[procedure] {
		return nil
	}
	return &refusal{code: connect.CodePermissionDenied, told: fmt.Sprintf("%s: is for operators, not for %s", procedure, caller), as: caller}
}

func (c *Callers) refuse(w http.ResponseWriter, r *http.Request, refused *refusal) {
	if c.lines.AllowN(c.now(), 1) {
		why := refused.why
		if why == "" {
			why = refused.told
		}
		c.log.Warn("a call is refused", zap.Stringer("code", refused.code), zap.String("why", why), zap.String("key_id", refused.keyID),
			zap.Stringer("as", refused.as), zap.String("remote", r.RemoteAddr), zap.String("path", r.URL.Path[:min(len(r.URL.Path), 128)]),
			zap.Int64("not_logged", c.unlogged.Swap(0)))
	} else {
		c.unlogged.Add(1)
	}
	if r.ProtoMajor == 1 { // else net/http would wait for the rest of a body that nobody reads
		w.Header().Set("Connection", "close")
	}
	// A caller that is gone needs no answer.
	_ = c.errors.Write(w, r, connect.NewError(refused.code, errors.New(refused.told)))
}

// identify finds out who calls. The authorization header decides; a certificate that proves somebody else is refused.
func (c *Callers) identify(w http.ResponseWriter, r *http.Request) (Caller, *refusal) {
	certified, unknown := c.byCertificate(r.TLS)
	headers := r.Header.Values("Authorization")
	switch {
	case len(headers) > 1:
		return Caller{}, unproven(fmt.Sprintf("authorization: is given %d times: give it once", len(headers)))
	case len(headers) == 1:
		caller, refused := c.byHeader(w, r, headers[0])
		if refused == nil && certified != (Caller{}) && certified != caller {
			refused = invalidCredential(fmt.Sprintf("the certificate proves %s, the header %s", certified, caller), "")
		}
		return caller, refused
	case unknown != nil:
		return Caller{}, unknown
	case certified == Caller{} && c.settings.Load().required:
		return Caller{}, unproven("no credential: send authorization: Bearer <key>, sign the request, or use a client certificate")
	}
	return certified, nil
}

// byCertificate asks who a client certificate proves that the TLS layer has verified. Without one it is nobody.
func (c *Callers) byCertificate(state *tls.ConnectionState) (Caller, *refusal) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return Caller{}, nil
	}
	cert, now := state.VerifiedChains[0][0], c.now()
	names := strings.Join(source.CertificateNames(cert), " ")
	s, err := c.sources.ByCertificate(cert)
	switch {
	case err != nil:
		return Caller{}, invalidCredential(fmt.Sprintf("%s: %.500q", err, names), "")
	case s == nil:
		return Caller{}, invalidCredential(fmt.Sprintf("no source has a certificate of these names: %.500q", names), "")
	case now.After(cert.NotAfter): // since the handshake: connections live long
		return Caller{}, invalidCredential(fmt.Sprintf("the certificate of source %q has expired at %s", s.ID, cert.NotAfter.Format(time.RFC3339)), "")
	}
	return admitted(s, source.Key{}, now)
}

// byHeader asks who an authorization header proves.
func (c *Callers) byHeader(w http.ResponseWriter, r *http.Request, header string) (Caller, *refusal) {
	scheme, key, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, source.Scheme):
		return c.bySignature(w, r, header)
	case !strings.EqualFold(scheme, "Bearer"):
		return Caller{}, unproven("authorization: want Bearer <key>, or " + source.Scheme + " key=…,timestamp=…,signature=…")
	}
	key = strings.TrimSpace(key)
	if !strings.HasPrefix(key, operatorPrefix) {
		return c.byAPIKey(key)
	}
	name, proven := c.settings.Load().operators.prove(key)
	if !proven {
		return Caller{}, invalidCredential(fmt.Sprintf("no such key of an operator %.64q", name), "")
	}
	return Caller{Operator: name}, nil
}

func (c *Callers) byAPIKey(text string) (Caller, *refusal) {
	secret, err := source.ParseSecret(text)
	if err != nil {
		return Caller{}, invalidCredential(err.Error(), "")
	}
	if secret.Kind != source.KindAPIKey {
		return Caller{}, invalidCredential("the secret of an HMAC key was sent, instead of a signature: revoke it", secret.KeyID)
	}
	s, key := c.sources.ByKey(secret.KeyID)
	switch {
	case s == nil:
		return Caller{}, invalidCredential("there is no such key, or no longer", secret.KeyID)
	case key.Kind != source.KindAPIKey:
		return Caller{}, invalidCredential("it is an "+key.Kind.String()+", used as an API key", secret.KeyID)
	case !s.Holds(secret):
		return Caller{}, invalidCredential(fmt.Sprintf("not the secret of this key of source %q", s.ID), secret.KeyID)
	}
	return admitted(s, key, c.now())
}

// bySignature reads the whole body, which is signed, and leaves it to be read again. Form and time are judged first:
// they cost nothing and say nothing of any key.
func (c *Callers) bySignature(w http.ResponseWriter, r *http.Request, header string) (Caller, *refusal) {
	signature, err := source.ParseSignature(header)
	now := c.now()
	switch {
	case err != nil:
		return Caller{}, unproven("authorization: " + err.Error())
	case !signature.Timely(now):
		return Caller{}, unproven(fmt.Sprintf("authorization: timestamp: %s is more than %s away from %s, this node's time",
			signature.At.Format(time.RFC3339), source.Tolerance, now.Format(time.RFC3339)))
	case !sourceCalls[r.URL.Path]:
		return Caller{}, unproven("authorization: " + source.Scheme + " is for a source's calls with one message each way; a stream needs an API key or a certificate")
	case r.URL.RawQuery != "":
		return Caller{}, unproven("authorization: the signature does not cover a query: send none")
	}
	s, key := c.sources.ByKey(signature.KeyID)
	switch {
	case s == nil:
		return Caller{}, invalidCredential("there is no such key, or no longer", signature.KeyID)
	case key.Kind != source.KindHMAC:
		return Caller{}, invalidCredential("it is an "+key.Kind.String()+", used to sign", signature.KeyID)
	}
	body, err := io.ReadAll(bounded(w, r.Body, s))
	if refused, isRefused := errors.AsType[*connect.Error](err); isRefused {
		return Caller{}, &refusal{code: refused.Code(), told: "the request is too long", why: refused.Message(), keyID: signature.KeyID}
	}
	if err != nil {
		return Caller{}, invalidCredential("the body cannot be read: "+err.Error(), signature.KeyID)
	}
	if !signature.Verify(s.Secrets[key.ID], r.Method, r.URL.EscapedPath(), body) {
		return Caller{}, invalidCredential(fmt.Sprintf("not the signature of this key of source %q", s.ID), signature.KeyID)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return admitted(s, key, now)
}

// admitted lets a source in that has proved itself, unless its key has ended or it is disabled; whoever holds the key may
// know that.
func admitted(s *source.Source, key source.Key, now time.Time) (Caller, *refusal) {
	caller := Caller{Source: s.ID}
	refused := ""
	switch {
	case !key.Live(now):
		refused = fmt.Sprintf("key %s has expired at %s", key.ID, key.ExpiresAt.Format(time.RFC3339))
	case s.Disabled:
		refused = caller.String() + " is disabled"
	default:
		return caller, nil
	}
	return Caller{}, &refusal{code: connect.CodeUnauthenticated, told: refused, keyID: key.ID, as: caller}
}

// bounded is a body that ends with an error when it is longer than the source may send.
func bounded(w http.ResponseWriter, body io.ReadCloser, s *source.Source) io.ReadCloser {
	limit := int64(MaxRequestBytes)
	if own := s.Limits.MaxRequestBytes; own > 0 {
		limit = min(limit, own)
	}
	return boundedBody{http.MaxBytesReader(w, body, limit), s.ID}
}

type boundedBody struct {
	io.ReadCloser
	source string
}

func (b boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		err = connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the request has more than %d bytes, the most that source %q may send", tooLong.Limit, b.source))
	}
	return n, err
}
