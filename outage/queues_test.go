package outage_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"notifyd/internal/bubble"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/outage"
)

var errFull = errors.New("the stream is full")

// fakeQueues answer each publish with an error, nil or never.
type fakeQueues struct {
	err   error
	hang  bool
	tried int
	late  []func(error)
}

func (f *fakeQueues) Accept(_ notification.Work, done func(error)) {
	f.tried++
	if f.hang {
		f.late = append(f.late, done)
		return
	}
	done(f.err)
}
func (f *fakeQueues) DelayThen(w notification.Work, done func(error)) { f.Accept(w, done) }
func (f *fakeQueues) SpreadThen(w notification.Work, done func(func(context.Context), error)) {
	f.Accept(w, func(err error) { done(func(context.Context) {}, err) })
}
func (f *fakeQueues) Wake(string)                      {}
func (f *fakeQueues) Full() bool                       { return true }
func (f *fakeQueues) Within(time.Time, time.Time) bool { return true }
func (f *fakeQueues) Latest(at, _ time.Time) time.Time { return at }
func (f *fakeQueues) Room() int                        { return 1 << 20 }
func (f *fakeQueues) Now(_ context.Context, w notification.Work) error {
	result := make(chan error, 1)
	f.Accept(w, func(err error) { result <- err })
	return <-result
}

func (f *fakeQueues) Cancel(ctx context.Context, _ notification.Work) error {
	if f.hang {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return f.err
}

// fakeRows keep what is written, or fail.
type fakeRows struct {
	err  error
	rows []ledger.Record
}

func (f *fakeRows) Write(r ledger.Record, written func(error)) {
	if f.err == nil {
		f.rows = append(f.rows, r)
	}
	written(f.err)
}

func newQueues(t *testing.T, fake *fakeQueues, rows *fakeRows) (*outage.Queues, *outage.Watch) {
	t.Helper()
	w := outage.NewWatch("nats", func(context.Context) error { return nil }, zap.NewNop(), outage.WatchOptions{
		Every: time.Hour, Slow: time.Second, Err: outage.ErrQueuesAway,
		IsAway: func(err error) bool { return errors.Is(err, nats.ErrDisconnected) },
	})
	q, err := outage.NewQueues(outage.DefaultConfig(), outage.QueueParts{
		Window: fake, Rows: rows, NATS: w, Full: func(err error) bool { return errors.Is(err, errFull) }, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	q.Connect(fake)
	return q, w
}

// What becomes of a work that NATS did not take, or may have taken.
func TestWhatNATSDoesNotTakeBecomesARow(t *testing.T) {
	refusal := &jetstream.APIError{Code: 503, ErrorCode: 10023, Description: "insufficient resources"}
	for name, tc := range map[string]struct {
		err  error
		due  time.Duration // of what is due at once
		fail bool
	}{
		"no stream":          {fmt.Errorf("publish: %w", jetstream.ErrNoStreamResponse), 0, false},
		"no responders":      {nats.ErrNoResponders, 0, false},
		"reconnecting":       {nats.ErrReconnectBufExceeded, 0, false},
		"the server refuses": {refusal, 0, false},
		"no answer":          {context.DeadlineExceeded, 30 * time.Second, false},
		"nats: no answer":    {nats.ErrTimeout, 30 * time.Second, false},
		"cut off meanwhile":  {nats.ErrDisconnected, 30 * time.Second, false},
		"full":               {fmt.Errorf("publish: %w", errFull), 0, true},
		"cannot be encoded":  {errors.New("encode envelope"), 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				at := now()
				n := accepted()
				n.NextAt = at.Add(time.Minute)
				work := notification.Work{Notification: n, Unreserved: true, HasRow: true}
				ask := map[string]func(*outage.Queues) error{
					"accept": func(q *outage.Queues) error {
						result := make(chan error, 1)
						q.Accept(work, func(err error) { result <- err })
						return <-result
					},
					"now":   func(q *outage.Queues) error { return q.Now(t.Context(), work) },
					"delay": func(q *outage.Queues) error { return q.Delay(t.Context(), work) },
					"spread": func(q *outage.Queues) error {
						takeAway, err := q.Spread(t.Context(), work)
						takeAway(t.Context())
						return err
					},
				}
				for what, call := range ask {
					rows := &fakeRows{}
					q, _ := newQueues(t, &fakeQueues{err: tc.err}, rows)
					err := call(q)
					q.Wait()
					if tc.fail {
						if !errors.Is(err, tc.err) || len(rows.rows) != 0 {
							t.Errorf("%s: %v, %d rows", what, err, len(rows.rows))
						}
						continue
					}
					if err != nil || len(rows.rows) != 1 {
						t.Errorf("%s: %v, %d rows", what, err, len(rows.rows))
						continue
					}
					due := at.Add(tc.due)
					if what != "accept" && what != "now" {
						due = n.NextAt
					}
					r := rows.rows[0]
					if r.Notification.NextAt != due || !r.Unfed || r.New || !r.Unreserved || r.Notification.ID != n.ID {
						t.Errorf("%s: %+v, due at %s, want %s", what, r, r.Notification.NextAt, due)
					}
					if n.NextAt != at.Add(time.Minute) {
						t.Error("the caller's notification was changed")
					}
				}
			})
		})
	}
}

func TestNothingIsTriedWhileNATSIsAway(t *testing.T) {
	fake, rows := &fakeQueues{hang: true}, &fakeRows{}
	q, w := newQueues(t, fake, rows)
	w.Failed(nats.ErrDisconnected)
	result := make(chan error, 1)
	q.Accept(notification.Work{Notification: accepted()}, func(err error) { result <- err })
	if err := await(t, result); err != nil || len(rows.rows) != 1 || !rows.rows[0].New || fake.tried != 0 || q.Full() {
		t.Errorf("%v, %d rows, tried %d times", err, len(rows.rows), fake.tried)
	}
	if err := q.Cancel(t.Context(), notification.Work{Notification: accepted()}); !errors.Is(err, outage.ErrQueuesAway) {
		t.Errorf("cancel: %v", err)
	}
	rows.err = ledger.ErrAway
	q.Accept(notification.Work{Notification: accepted()}, func(err error) { result <- err })
	if err := await(t, result); !errors.Is(err, ledger.ErrAway) || !errors.Is(err, outage.ErrQueuesAway) {
		t.Errorf("both away: %v", err)
	}
	rows.err = nil
	final := accepted()
	final.State = notification.StateDelivered
	if err := q.Now(t.Context(), notification.Work{Notification: final, HasRow: true}); !errors.Is(err, outage.ErrQueuesAway) {
		t.Errorf("a resend of a delivered one: %v", err)
	}
	if s := q.Stats(); s.Rows != 1 || s.Refused != 1 || s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// A publish that hangs is given up when NATS is known to be away; what it says later changes nothing.
func TestAHangingPublishIsGivenUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		fake, rows := &fakeQueues{hang: true}, &fakeRows{}
		q, w := newQueues(t, fake, rows)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = q.Run(ctx) }()
		defer func() { stop(); <-done }()
		var told []error
		q.Accept(notification.Work{Notification: accepted()}, func(err error) { told = append(told, err) })
		synctest.Wait()
		if len(told) != 0 || q.Stats().InFlight != 1 {
			t.Fatalf("told %v", told)
		}
		w.Failed(nats.ErrDisconnected)
		synctest.Wait()
		if len(told) != 1 || told[0] != nil || len(rows.rows) != 1 || rows.rows[0].Notification.NextAt != now().Add(30*time.Second) {
			t.Errorf("told %v, %d rows", told, len(rows.rows))
		}
		fake.late[0](nil)
		synctest.Wait()
		if len(told) != 1 || q.Stats().InFlight != 0 {
			t.Errorf("told %v", told)
		}
	})
}
