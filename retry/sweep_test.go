package retry

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
)

// A row that enters the window is fed once, however often and from however many sides it is looked at, and fires on time.
func TestSweepFeedsOnce(t *testing.T) {
	cfg := quick()
	d := newDues(t, cfg)
	m := ledger.NewMemory(ledger.Config{Now: clock, Window: cfg.Window})
	t.Cleanup(m.Close)
	works := map[notification.ID]notification.Work{}
	for i := range 30 {
		w := retrying(strconv.Itoa(i), time.Now().Add(cfg.Window+time.Duration(i)*20*time.Millisecond))
		works[w.ID] = w
		put(t, m, w)
	}
	put(t, m, retrying("fed by the engine itself", time.Now().Add(time.Second)))
	put(t, m, retrying("far away", time.Now().Add(time.Hour)))
	resting := retrying("rests in its own queue", time.Now().Add(cfg.Window+time.Second))
	resting.Resting = true
	put(t, m, resting)

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- NewSweep(cfg, m, d.Delay, nil, zap.NewNop()).Run(ctx) }()
	}
	scenario.Within(t, 20*time.Second, "all are fired", func() bool { return len(d.all()) >= len(works) })
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for _, f := range d.all() {
		w, ok := works[f.ID]
		if !ok {
			if f.RequestID == "fed by the engine itself" && f.Trigger == notification.TriggerSweep {
				continue // nobody scheduled it here: the sweep rescued it
			}
			t.Errorf("%s fired, or fired twice", f.RequestID)
			continue
		}
		delete(works, f.ID)
		if late := f.at.Sub(w.NextAt); late < 0 || late > 2*time.Second || f.Generation != 1 || f.Trigger != notification.TriggerAuto {
			t.Errorf("%s fired %s late: %+v", w.RequestID, late, f)
		}
	}
}

// However many are due in the window, JetStream is given no more than it is to keep, and those that rested meanwhile are due
// when they are due.
func TestMoreThanThereIsRoomFor(t *testing.T) {
	cfg := quick()
	cfg.MaxSchedules, cfg.Grace = 2500, time.Minute // nobody attempts what is fired: the sweep must not take it for forgotten
	d := newDues(t, cfg)
	m := ledger.NewMemory(ledger.Config{Now: clock, Window: cfg.Window})
	t.Cleanup(m.Close)
	start := time.Now()
	works := map[notification.ID]notification.Work{}
	for i := range 5000 {
		w := retrying(strconv.Itoa(i), start.Add(cfg.Window+time.Second+time.Duration(i)*time.Millisecond))
		works[w.ID] = w
		put(t, m, w) // later than the window, when it is written
	}
	sweep := NewSweep(cfg, m, d.Delay, nil, zap.NewNop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- sweep.Run(ctx) }()
	go func() { ended <- d.Run(ctx) }()
	most := 0
	scenario.Within(t, 30*time.Second, "all are fired", func() bool {
		most = max(most, cfg.MaxSchedules-d.Room())
		return len(d.all()) >= len(works)
	})
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	// What is due soon goes ahead of the bound, by as much as comes due in that time.
	if soon := int(cfg.soon().Milliseconds()); most > cfg.MaxSchedules+soon+sweepBatch/2 || most < cfg.MaxSchedules/2 {
		t.Errorf("at most %d waited in JetStream, want some %d and what is due soon", most, cfg.MaxSchedules)
	}
	var latest time.Duration
	for _, f := range d.all() {
		w, ok := works[f.ID]
		if !ok {
			t.Errorf("%s fired twice", f.RequestID)
			continue
		}
		delete(works, f.ID)
		late := f.at.Sub(w.NextAt)
		if latest = max(latest, late); late < 0 || f.Trigger != notification.TriggerAuto {
			t.Errorf("%s fired %s late by %s", w.RequestID, late, f.Trigger)
		}
	}
	if latest > 5*time.Second { // a sweep feeds it ahead of its time; without one it would never come
		t.Errorf("as late as %s", latest)
	}
	t.Logf("at most %d waited in JetStream, %s late", most, latest)
}

// An overdue row is put back on its way under a new generation, which makes its old due item void (P12).
func TestSweepRescues(t *testing.T) {
	cfg := quick()
	d := newDues(t, cfg)
	m := ledger.NewMemory(ledger.Config{Now: clock, Window: cfg.Window})
	t.Cleanup(m.Close)
	lost := retrying("lost", time.Now().Add(-cfg.Grace-time.Second))
	put(t, m, lost)
	put(t, m, retrying("a little late", time.Now().Add(-cfg.Grace/2)))
	claimed := retrying("being sent", time.Now().Add(-cfg.Grace-time.Second))
	put(t, m, claimed)
	if v, _, err := m.Claim(t.Context(), ledger.Claim{ID: claimed.ID, Generation: 1, Attempts: 1, Until: clock().Add(time.Minute)}); v != ledger.ClaimGranted || err != nil {
		t.Fatal(v, err)
	}
	resting := retrying("rests", time.Now().Add(-time.Hour))
	resting.Resting = true
	put(t, m, resting)

	sweep := NewSweep(cfg, m, d.Delay, nil, zap.NewNop())
	for range 3 {
		if err := sweep.Once(t.Context(), clock()); err != nil {
			t.Fatal(err)
		}
	}
	scenario.Within(t, 5*time.Second, "the lost one is fired", func() bool { return len(d.all()) > 0 })
	got := d.all()
	if len(got) != 1 || got[0].ID != lost.ID || got[0].Generation != 2 || got[0].Attempts != 1 || got[0].Trigger != notification.TriggerSweep {
		t.Fatalf("fired %+v", got)
	}
	if s := sweep.Stats(); s.Rescued != 1 || s.Failures != 0 {
		t.Errorf("stats: %+v", s)
	}
	if s := d.Stats(); s.Published == 0 || s.Failures != 0 {
		t.Errorf("stats of the delay: %+v", s)
	}
	old := ledger.Claim{ID: lost.ID, Generation: 1, Attempts: 1, Until: clock().Add(time.Minute)}
	if v, _, err := m.Claim(t.Context(), old); v != ledger.ClaimStale || err != nil {
		t.Errorf("the old due item is granted: %d, %v", v, err)
	}
	old.Generation = 2
	if v, _, err := m.Claim(t.Context(), old); v != ledger.ClaimGranted || err != nil {
		t.Errorf("the new one is refused: %d, %v", v, err)
	}
}

// index fails as it is told.
type index struct {
	feed, rescue []*notification.Notification
	err          error
	asked        []time.Time
}

func (i *index) Feed(_ context.Context, horizon time.Time, _ int) ([]*notification.Notification, error) {
	i.asked = append(i.asked, horizon)
	out := i.feed
	i.feed = nil
	return out, i.err
}

func (i *index) Rescue(_ context.Context, overdueBefore, _ time.Time, _ int) ([]*notification.Notification, error) {
	i.asked = append(i.asked, overdueBefore)
	out := i.rescue
	i.rescue = nil
	return out, i.err
}

// roomy has room for so many, and takes everything.
type roomy struct{ left int }

func (r *roomy) Room() int { return r.left }

func (r *roomy) DelayThen(_ notification.Work, delayed func(error)) {
	r.left--
	delayed(nil)
}

func (*roomy) Now(context.Context, notification.Work) error { return nil }

// What is asked of the ledger: a little inside the window's edge, or only what is due soon where there is no room for a batch,
// and overdue by the grace.
func TestSweepAsksForTheRightSpans(t *testing.T) {
	cfg := quick()
	batch := make([]*notification.Notification, sweepBatch)
	for k := range batch {
		batch[k] = retrying(strconv.Itoa(k), time.Now()).Notification
	}
	edge, soon, overdue := cfg.Window-cfg.SweepEvery, cfg.soon()-cfg.SweepEvery, -cfg.Grace
	for _, tt := range []struct {
		room int
		fed  []*notification.Notification
		want []time.Duration
	}{
		{5 * sweepBatch, nil, []time.Duration{edge, overdue}},
		{sweepBatch - 1, nil, []time.Duration{soon, overdue}},
		{-sweepBatch, batch, []time.Duration{soon, soon, overdue}},
		{2*sweepBatch - 1, batch, []time.Duration{edge, soon, overdue}},
	} {
		i, now := &index{feed: tt.fed}, clock()
		if err := NewSweep(cfg, i, &roomy{tt.room}, nil, zap.NewNop()).Once(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		var asked []time.Duration
		for _, at := range i.asked {
			asked = append(asked, at.Sub(now))
		}
		if !slices.Equal(asked, tt.want) {
			t.Errorf("with room for %d and %d to feed it asked for %v, want %v", tt.room, len(tt.fed), asked, tt.want)
		}
	}
	i, now := &index{}, clock()
	down := errors.New("does not answer")
	i.err = down
	if err := NewSweep(cfg, i, &roomy{sweepBatch}, nil, zap.NewNop()).Once(t.Context(), now); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
}

// While NATS is away the ledger's due index is for whoever sends from it: what the sweep took would count as fed.
func TestSweepRestsWhileNATSIsAway(t *testing.T) {
	i, away := &index{}, true
	s := NewSweep(quick(), i, &roomy{sweepBatch}, func() bool { return away }, zap.NewNop())
	if err := s.Once(t.Context(), clock()); err != nil || len(i.asked) != 0 {
		t.Errorf("asked %v, %v", i.asked, err)
	}
	away = false
	if err := s.Once(t.Context(), clock()); err != nil || len(i.asked) != 2 {
		t.Errorf("asked %v, %v", i.asked, err)
	}
}

func TestConfigNamesTheKey(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"retry.window: 1ms: must be at least 1s":                           func(c *Config) { c.Window = time.Millisecond },
		"retry.sweep_every: 10m0s: must be 10ms to half the window (5m0s)": func(c *Config) { c.SweepEvery = 10 * time.Minute },
		"retry.grace: 0s: must be at least 1s":                             func(c *Config) { c.Grace = 0 },
		"retry.max_schedules: 10: must be at least 1000":                   func(c *Config) { c.MaxSchedules = 10 },
		"retry.replicas: 0: must be 1 to 5":                                func(c *Config) { c.Replicas = 0 },
	} {
		c := DefaultConfig()
		spoil(&c)
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// refusing takes nothing of some ids.
type refusing struct {
	Delayer
	ids map[notification.ID]bool
}

func (r refusing) Now(ctx context.Context, w notification.Work) error {
	if r.ids[w.ID] {
		return errors.New("no response from stream")
	}
	return r.Delayer.Now(ctx, w)
}

// What the queues do not take of an overdue row keeps the others from nothing: the ledger would not find them again for minutes.
func TestSweepRescuesTheOthers(t *testing.T) {
	cfg := quick()
	d := newDues(t, cfg)
	m := ledger.NewMemory(ledger.Config{Now: clock, Window: cfg.Window})
	t.Cleanup(m.Close)
	refused := refusing{d.Delay, map[notification.ID]bool{}}
	for i := range 5 {
		w := retrying(strconv.Itoa(i), time.Now().Add(-cfg.Grace-time.Second))
		refused.ids[w.ID] = i%2 == 0
		put(t, m, w)
	}
	sweep := NewSweep(cfg, m, refused, nil, zap.NewNop())
	if err := sweep.Once(t.Context(), clock()); err == nil {
		t.Error("nobody hears of the failure")
	}
	scenario.Within(t, 10*time.Second, "the others are fired", func() bool { return len(d.all()) == 2 })
	if got := sweep.Stats().Rescued; got != 2 {
		t.Errorf("rescued %d, want 2", got)
	}
}
