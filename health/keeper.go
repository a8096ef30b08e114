package health

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/ledger"
)

const (
	storeBound = 5 * time.Second
	// seenEvery is how often open alarms are stored as still seen.
	seenEvery = time.Minute
	// mostUnstored bounds the memory while the ledger is away.
	mostUnstored = 5_000
)

// keeper stores alarms as soon as the ledger takes them. Nobody waits for it.
type keeper struct {
	store Store
	log   *zap.Logger
	wake  chan struct{}

	mu       sync.Mutex
	unstored map[storedKey]ledger.Alarm
	seenAt   time.Time
}

type storedKey struct {
	name, subject string
	raisedAt      time.Time
}

func newKeeper(store Store, log *zap.Logger) *keeper {
	return &keeper{store: store, log: log, wake: make(chan struct{}, 1), unstored: map[storedKey]ledger.Alarm{}}
}

// note remembers alarms as they stand now.
func (k *keeper) note(alarms ...ledger.Alarm) {
	if k.store == nil || len(alarms) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range alarms {
		key := storedKey{a.Name, a.Subject, a.RaisedAt}
		if _, known := k.unstored[key]; known || len(k.unstored) < mostUnstored { // what is left out is in the log
			k.unstored[key] = a
		}
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// seenIsOld reports, once in a while, that open alarms are to be stored again.
func (k *keeper) seenIsOld(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.seenAt) < seenEvery {
		return false
	}
	k.seenAt = now
	return true
}

func (k *keeper) waiting() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.unstored)
}

// run first reads what an earlier run left open, then stores, until ctx ends; then it tries once more.
func (k *keeper) run(ctx context.Context, node string, adopt func([]ledger.Alarm)) {
	if k.store == nil {
		<-ctx.Done()
		return
	}
	k.untilDone(ctx, "alarms of the last run cannot be read yet", func(ctx context.Context) error {
		open, err := k.store.OpenAlarms(ctx, node)
		if err == nil {
			adopt(open)
		}
		return err
	})
	for {
		select {
		case <-ctx.Done():
			if err := k.storeAll(context.WithoutCancel(ctx)); err != nil {
				k.log.Warn("alarms are not stored", zap.Int("alarms", k.waiting()), zap.Error(err))
			}
			return
		case <-k.wake:
			k.untilDone(ctx, "alarms are stored later", k.storeAll)
		}
	}
}

// untilDone repeats f until it succeeds or ctx ends, more and more slowly.
func (k *keeper) untilDone(ctx context.Context, failure string, f func(context.Context) error) {
	said := false
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 15*time.Second) {
		bounded, cancel := context.WithTimeout(ctx, storeBound)
		err := f(bounded)
		cancel()
		if err == nil {
			return
		}
		if !said {
			said = true
			k.log.Warn(failure, zap.Error(err))
		}
		sleep(ctx, wait)
	}
}

// storeAll stores what is noted; what fails is noted again, unless it stands newer meanwhile.
func (k *keeper) storeAll(ctx context.Context) error {
	k.mu.Lock()
	taken := k.unstored
	k.unstored = map[storedKey]ledger.Alarm{}
	k.mu.Unlock()
	alarms := make([]ledger.Alarm, 0, len(taken))
	for _, a := range taken {
		alarms = append(alarms, a)
	}
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	err := k.store.PutAlarms(ctx, alarms)
	if err == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, a := range taken {
		if _, newer := k.unstored[key]; !newer {
			k.unstored[key] = a
		}
	}
	return err
}

// sleep waits, or returns when ctx ends.
func sleep(ctx context.Context, span time.Duration) {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
