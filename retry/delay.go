package retry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"notifyd/internal/faults"
	"notifyd/internal/groupcommit"
	"notifyd/internal/streams"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// Config of the delay window and the sweep.
type Config struct {
	// Window is how far ahead JetStream keeps schedules; what is due later rests in the ledger until the sweep feeds it.
	Window time.Duration `yaml:"window"`
	// MaxSchedules is how many schedules JetStream keeps before it is spared all but those that are due soon. It has each in
	// memory, some 500 bytes that the collector doubles: a million were 1.1 GiB.
	MaxSchedules int `yaml:"max_schedules"`
	// SweepEvery is the time between two looks into the ledger.
	SweepEvery time.Duration `yaml:"sweep_every"`
	// Grace is how long something may be overdue before the sweep puts it back on its way.
	Grace time.Duration `yaml:"grace"`
	// Replicas of each stream.
	Replicas int `yaml:"-"`
	// PublishTimeout bounds one publish.
	PublishTimeout time.Duration `yaml:"publish_timeout"`
}

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{
		Window: 10 * time.Minute, MaxSchedules: 200_000, SweepEvery: 2 * time.Second, Grace: 2 * time.Minute, Replicas: 1,
		PublishTimeout: 5 * time.Second,
	}
}

// Validate names the first key that has a value nobody can work with.
func (c Config) Validate() error {
	switch {
	case c.Window < time.Second:
		return fmt.Errorf("retry.window: %s: must be at least 1s", c.Window)
	case c.MaxSchedules < 1000:
		return fmt.Errorf("retry.max_schedules: %d: must be at least 1000", c.MaxSchedules)
	case c.SweepEvery < 10*time.Millisecond || c.SweepEvery > c.Window/2:
		return fmt.Errorf("retry.sweep_every: %s: must be 10ms to half the window (%s)", c.SweepEvery, c.Window/2)
	case c.Grace < time.Second:
		return fmt.Errorf("retry.grace: %s: must be at least 1s", c.Grace)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("retry.replicas: %d: must be 1 to 5", c.Replicas)
	case c.PublishTimeout < 100*time.Millisecond:
		return fmt.Errorf("retry.publish_timeout: %s: must be at least 100ms", c.PublishTimeout)
	}
	return nil
}

// soon is how far ahead everything is scheduled, however many there are: some sweeps' time, so that nothing is late.
func (c Config) soon() time.Duration { return min(c.Window, max(c.Window/20, 5*c.SweepEvery)) }

// Delay keeps work in JetStream message schedules until it is due. There is one schedule an id: the newest counts.
type Delay struct {
	cfg       Config
	js        jetstream.JetStream
	streams   [envelope.RetryStreams]atomic.Pointer[jetstream.Stream] // nil: not brought up to date yet
	publish   [envelope.RetryStreams]*groupcommit.Batcher[*nats.Msg]
	spreading *groupcommit.Batcher[*spreading]
	through   atomic.Pointer[safetyNet] // the last one that is to be taken away

	published, failures atomic.Uint64
	most                atomic.Int64 // what published may come to before there is no room
}

// DelayStats count since the start.
type DelayStats struct {
	Published uint64 // schedules, and works that were due at once
	Failures  uint64 // of them not known to be stored
}

// Stats is a snapshot.
func (d *Delay) Stats() DelayStats {
	return DelayStats{Published: d.published.Load(), Failures: d.failures.Load()}
}

// NewDelay makes the retry streams where they are missing. While NATS is away it leaves that to Ensure.
func NewDelay(ctx context.Context, cfg Config, js jetstream.JetStream) (*Delay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Delay{cfg: cfg, js: js}
	d.most.Store(int64(cfg.MaxSchedules)) // until the first count
	for i := range d.publish {
		d.publish[i] = groupcommit.New(groupcommit.AtMost[*nats.Msg](256), func(msgs []*nats.Msg) []error {
			return d.publishAll(context.WithoutCancel(ctx), msgs)
		})
	}
	d.spreading = d.newSpreader(ctx)
	asking, cancel := context.WithTimeout(ctx, 2*cfg.PublishTimeout)
	defer cancel()
	if _, err := d.Ensure(asking); err != nil && !streams.Away(err) {
		return nil, err
	}
	return d, nil
}

func (d *Delay) stream(i int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: envelope.RetryStream(i), Subjects: envelope.RetrySubjects(i), Retention: jetstream.WorkQueuePolicy,
		Storage: jetstream.FileStorage, Replicas: d.cfg.Replicas, AllowMsgSchedules: true, AllowDirect: true,
		// No bound of its own: the server allows schedules only with DiscardOld, which would lose some at the bound. Room
		// and the window bound the number, and the server's storage limit refuses the rest.
	}
}

// Ensure makes the retry streams where they are missing, and says when each was made. The first time that it succeeds it
// also brings those that are there up to date.
func (d *Delay) Ensure(ctx context.Context) (made map[string]time.Time, err error) {
	made = map[string]time.Time{}
	for i := range envelope.RetryStreams {
		stream, err := streams.Ensure(ctx, d.js, d.stream(i))
		if err != nil {
			return nil, err
		}
		if d.streams[i].Load() == nil {
			if err := streams.Update(ctx, d.js, stream, d.stream(i)); err != nil {
				return nil, err
			}
			d.streams[i].Store(&stream)
		}
		made[envelope.RetryStream(i)] = stream.CachedInfo().Created
	}
	return made, nil
}

// Run counts what JetStream keeps until ctx ends. While it does not answer, the last count stands.
func (d *Delay) Run(ctx context.Context) error {
	tick := time.NewTicker(d.cfg.SweepEvery)
	defer tick.Stop()
	for {
		_ = d.count(ctx) // it has made the streams, or says itself that it is away
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (d *Delay) count(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.PublishTimeout)
	defer cancel()
	published, kept := d.published.Load(), uint64(0)
	for i := range envelope.RetryStreams {
		stream, err := d.js.Stream(ctx, envelope.RetryStream(i))
		if err != nil {
			return fmt.Errorf("count what stream %s keeps: %w", envelope.RetryStream(i), err)
		}
		kept += stream.CachedInfo().State.Msgs
	}
	d.most.Store(int64(published) + int64(d.cfg.MaxSchedules) - int64(kept)) //nolint:gosec // no count is near 2^63
	return nil
}

// Room is how many more schedules JetStream is to be given, as far as this node knows; none, or less than none, when there
// are enough. What is due soon is scheduled all the same.
func (d *Delay) Room() int { return int(d.most.Load() - int64(d.published.Load())) } //nolint:gosec // no count is near 2^63

// Within reports whether JetStream is to keep what is due at an instant; what it is not given rests in the ledger until the
// sweep feeds it. Soon there may be room for what there was none for: decide once.
func (d *Delay) Within(at, now time.Time) bool {
	if d.Room() <= 0 {
		return at.Sub(now) <= d.cfg.soon()
	}
	return at.Sub(now) <= d.cfg.Window
}

// Latest is the instant, or the end of the window when it lies behind it.
func (d *Delay) Latest(at, now time.Time) time.Time {
	if end := now.Add(d.cfg.Window); at.After(end) {
		return end
	}
	return at
}

// Delay makes w due at its NextAt; an earlier schedule of the same id is replaced. It returns when that is durable.
func (d *Delay) Delay(ctx context.Context, w notification.Work) error {
	result := make(chan error, 1)
	d.DelayThen(w, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// DelayThen is Delay without waiting; delayed is called once.
func (d *Delay) DelayThen(w notification.Work, delayed func(error)) {
	shard := notification.ShardOf(w.Route.IsolationKey)
	data, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		delayed(err)
		return
	}
	d.publish[shard%envelope.RetryStreams].Add(schedule(envelope.DelaySubject(shard, w.ID), shard, data, w.NextAt), delayed)
}

// schedule is a message that comes due in a shard.
func schedule(subject string, shard int, data []byte, at time.Time) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		// Not the client's helper: it cuts the instant to whole seconds and so fires early.
		"Nats-Schedule":        {"@at " + at.UTC().Format(time.RFC3339Nano)},
		"Nats-Schedule-Target": {envelope.DueSubject(shard)},
	}}
}

// Now makes w due at once, without a schedule.
func (d *Delay) Now(ctx context.Context, w notification.Work) error {
	shard := notification.ShardOf(w.Route.IsolationKey)
	data, err := envelope.Encode([]notification.Work{w})
	if err != nil {
		return err
	}
	return d.publish[shard%envelope.RetryStreams].Do(ctx, &nats.Msg{Subject: envelope.DueSubject(shard), Data: data})
}

// Cancel removes the schedule of an id, if there is one. What has come due already is refused by the claim.
func (d *Delay) Cancel(ctx context.Context, w notification.Work) error {
	shard := notification.ShardOf(w.Route.IsolationKey)
	return d.purge(ctx, shard, envelope.DelaySubject(shard, w.ID))
}

func (d *Delay) purge(ctx context.Context, shard int, subject string) error {
	stream := d.streams[shard%envelope.RetryStreams].Load()
	if stream == nil {
		return fmt.Errorf("cancel schedule: stream %s has not been seen yet", envelope.RetryStream(shard))
	}
	if err := (*stream).Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		return fmt.Errorf("cancel schedule: %w", err)
	}
	return nil
}

// Wait returns when everything that was handed over has been published or has failed.
func (d *Delay) Wait() {
	for _, p := range d.publish {
		p.Wait()
	}
	d.spreading.Wait()
}

// publishAll pipelines a batch: all are sent, then all acknowledgements are awaited.
func (d *Delay) publishAll(ctx context.Context, msgs []*nats.Msg) []error {
	errs := make([]error, len(msgs))
	futures := make([]jetstream.PubAckFuture, len(msgs))
	for i, msg := range msgs {
		if errs[i] = faults.Before(faults.Schedule); errs[i] == nil {
			futures[i], errs[i] = d.js.PublishMsgAsync(msg)
		}
	}
	timer := time.NewTimer(d.cfg.PublishTimeout)
	defer timer.Stop()
	expired := false
	for i, f := range futures {
		if errs[i] == nil {
			errs[i], expired = awaitAck(ctx, f, timer.C, expired)
		}
		if errs[i] == nil {
			errs[i] = faults.After(faults.Schedule)
		}
		if errs[i] != nil {
			d.failures.Add(1)
			errs[i] = fmt.Errorf("publish to %s: %w", msgs[i].Subject, errs[i]) //nolint:gosec // as long as errs
		} else {
			d.published.Add(1)
		}
	}
	return errs
}

var errNoAck = errors.New("no acknowledgement in time")

func awaitAck(ctx context.Context, f jetstream.PubAckFuture, timeout <-chan time.Time, expired bool) (error, bool) { //nolint:revive // the error is one future's, the flag is the batch's
	if expired {
		select {
		case <-f.Ok():
			return nil, true
		case err := <-f.Err():
			return err, true
		default:
			return errNoAck, true
		}
	}
	select {
	case <-f.Ok():
		return nil, false
	case err := <-f.Err():
		return err, false
	case <-timeout:
		return errNoAck, true
	case <-ctx.Done():
		return context.Cause(ctx), true
	}
}
