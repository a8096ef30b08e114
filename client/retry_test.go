package client_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"notifyd/client"
)

// Each fault hits the first request of a notification; the next one works.
func TestWhatMayPassIsTriedAgain(t *testing.T) {
	network := func(fault func(w http.ResponseWriter, r *http.Request, next http.Handler)) func(*server) {
		return func(s *server) {
			s.around = func(request int, w http.ResponseWriter, r *http.Request, next http.Handler) {
				if request == 1 {
					fault(w, r, next)
					return
				}
				next.ServeHTTP(w, r)
			}
		}
	}
	whole := func(err error) func(*server) {
		return func(s *server) {
			s.call = func(_ context.Context, request int, _ []*client.Notification) error {
				if request == 1 {
					return err
				}
				return nil
			}
		}
	}
	for name, test := range map[string]struct {
		fault     func(*server)
		duplicate bool
		atLeast   time.Duration
	}{
		"connection reset after the request was read": {fault: network(func(w http.ResponseWriter, r *http.Request, next http.Handler) { reset(w, r, next, false) })},
		"answer lost": {duplicate: true, fault: network(func(w http.ResponseWriter, r *http.Request, next http.Handler) { reset(w, r, next, true) })},
		"answer cut short": {duplicate: true, fault: network(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(cutShort{w}, r)
			panic(http.ErrAbortHandler)
		})},
		"503 of a proxy": {fault: network(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "draining", http.StatusServiceUnavailable)
		})},
		"500 of a proxy": {fault: network(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "sorry", http.StatusInternalServerError)
		})},
		"429 of a proxy": {fault: network(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "slow down", http.StatusTooManyRequests)
		})},
		"no answer in time": {fault: func(s *server) {
			s.call = func(ctx context.Context, request int, _ []*client.Notification) error {
				if request == 1 {
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
		}},
		"unavailable":       {fault: whole(failed(connect.CodeUnavailable, "no postgres", 0))},
		"deadline exceeded": {fault: whole(failed(connect.CodeDeadlineExceeded, "slow", 0))},
		"exhausted":         {fault: whole(failed(connect.CodeResourceExhausted, "full", 200*time.Millisecond)), atLeast: 200 * time.Millisecond},
		"item exhausted": {fault: func(s *server) {
			s.item = func(_ *client.Notification, try int) error {
				if try == 1 {
					return failed(connect.CodeResourceExhausted, "full", 200*time.Millisecond)
				}
				return nil
			}
		}, atLeast: 200 * time.Millisecond},
	} {
		for way, n := range map[string]*client.Notification{"batch": refund(1), "alone": scan(1), "streamed": refund(1), "streamed alone": scan(1)} {
			s := &server{streamed: strings.HasPrefix(way, "streamed")}
			test.fault(s)
			if s.streamed && s.around != nil { // the network's faults on streams are in stream_test.go
				continue
			}
			t.Run(name+"/"+way, func(t *testing.T) {
				told := 0
				c := s.start(t, client.WithCallTimeout(time.Second), client.WithOnRetry(func(*client.Notification, *client.Error, time.Duration) { told++ }))
				began := time.Now()
				r, err := c.Submit(t.Context(), n)
				if err != nil {
					t.Fatal(err)
				}
				if r.Duplicate != test.duplicate {
					t.Errorf("duplicate: %v", r.Duplicate)
				}
				if took := time.Since(began); took < test.atLeast {
					t.Errorf("took %v, the server asked for %v", took, test.atLeast)
				}
				if told != 1 || s.requests != 2 {
					t.Errorf("%d requests, told %d times of a retry", s.requests, told)
				}
			})
		}
	}
}

// cutShort promises more than it sends.
type cutShort struct{ http.ResponseWriter }

func (w cutShort) Write(p []byte) (int, error) {
	w.Header().Set("Content-Length", strconv.Itoa(len(p)+10))
	n, err := w.ResponseWriter.Write(p)
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	return n, err
}

func TestWhatIsFinalIsNotTriedAgain(t *testing.T) { bothWays(t, testWhatIsFinalIsNotTriedAgain) }

func testWhatIsFinalIsNotTriedAgain(t *testing.T, streamed bool) {
	t.Helper()
	violation := &client.Violation{Field: "notification.amount.currency", Description: "value does not match"}
	for _, code := range []connect.Code{
		connect.CodeInvalidArgument, connect.CodePermissionDenied, connect.CodeAlreadyExists, connect.CodeFailedPrecondition,
		connect.CodeNotFound, connect.CodeUnauthenticated, connect.CodeUnimplemented, connect.CodeInternal,
	} {
		fault := failed(code, "no", 0, violation)
		item := &server{streamed: streamed, item: func(*client.Notification, int) error { return fault }}
		whole := &server{streamed: streamed, call: func(context.Context, int, []*client.Notification) error { return fault }}
		for way, s := range map[string]*server{"item": item, "call": whole} {
			for kind, n := range map[string]*client.Notification{"batch": refund(1), "alone": scan(1)} {
				s.requests = 0
				_, err := s.start(t).Submit(t.Context(), n)
				e := errorOf(t, err)
				if e.Code != code || !e.Answered || e.Tries != 1 || s.requests != 1 || e.Uncertain != (code == connect.CodeInternal) {
					t.Errorf("%s/%s/%s: %+v after %d requests", code, way, kind, e, s.requests)
				}
				if errors.Is(err, client.ErrConflict) != (code == connect.CodeAlreadyExists) {
					t.Errorf("%s is taken for a conflict, or a conflict is not", code)
				}
				if len(e.Violations) != 1 || e.Violations[0].Field != violation.Field || e.Violations[0].Description != violation.Description {
					t.Errorf("%s/%s/%s: violations %v", code, way, kind, e.Violations)
				}
				if e.WholeCall != (way == "call" && kind == "batch" && !streamed) {
					t.Errorf("%s/%s/%s: whole call: %v", code, way, kind, e.WholeCall)
				}
			}
		}
	}
}
