package outage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

const (
	spillBatch = 256 // records published together
	looks      = 10  // at what is pending, in Config.SlowAfter
)

// entry is a record that is not known to be durable yet.
type entry struct {
	record   ledger.Record
	recorded func(error)
	born     int64       // in ticks
	alone    bool        // Postgres or nothing, see Write
	moving   atomic.Bool // on its way elsewhere

	// Of entries.
	older, newer *entry
	listed       bool
}

// entries are pending, in the order they came: a list of their own, because a map costs as much as all the rest of Record.
// Whoever removes one tells how it ended.
type entries struct {
	mu             sync.Mutex
	oldest, newest *entry
	count          int
}

func (p *entries) add(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.listed, e.older = true, p.newest
	if p.newest == nil {
		p.oldest = e
	} else {
		p.newest.newer = e
	}
	p.newest = e
	p.count++
}

// remove reports whether it was there: true once.
func (p *entries) remove(e *entry) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !e.listed {
		return false
	}
	if e.older == nil {
		p.oldest = e.newer
	} else {
		e.older.newer = e.newer
	}
	if e.newer == nil {
		p.newest = e.older
	} else {
		e.newer.older = e.older
	}
	e.listed, e.older, e.newer = false, nil, nil
	p.count--
	return true
}

func (p *entries) has(e *entry) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return e.listed
}

func (p *entries) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// bornBefore are those that have been pending since before a tick, those that are Postgres' alone since before an earlier
// one, and are not on their way elsewhere.
func (p *entries) bornBefore(tick, alone int64) []*entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	var old []*entry
	for e := p.oldest; e != nil && e.born < max(tick, alone); e = e.newer {
		since := tick
		if e.alone {
			since = alone
		}
		if e.born < since && !e.moving.Load() {
			old = append(old, e)
		}
	}
	return old
}

// of are the records of an id.
func (p *entries) of(id notification.ID) []ledger.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []ledger.Record
	for e := p.oldest; e != nil; e = e.newer {
		if e.record.Notification.ID == id {
			found = append(found, e.record)
		}
	}
	return found
}

// Record makes a snapshot durable: in Postgres, or, when that is away or takes longer than Config.SpillAfter, in SPILL, or
// in the journal. recorded is called exactly once: with nil when it is durable, with a *ledger.QuarantinedError when
// Postgres refuses it, with an error that wraps ledger.ErrAway when nothing takes it; from a goroutine that must not be
// held up. A record may end in several places. It waits while Postgres' own queue is full,
// for Config.SpillAfter at most, whatever the context says.
func (l *Ledger) Record(_ context.Context, r ledger.Record, recorded func(error)) {
	l.record(&entry{record: r, recorded: recorded, born: l.ticks.Load()})
}

// Write is Record for what only a row can stand for: it makes it durable in Postgres or fails with ledger.ErrAway, within
// Config.SlowAfter. After an error it may have been written, or may be later.
func (l *Ledger) Write(r ledger.Record, written func(error)) {
	l.record(&entry{record: r, recorded: written, born: l.ticks.Load(), alone: true})
}

func (l *Ledger) record(e *entry) {
	if e.record.Notification == nil {
		e.recorded(errors.New("record: no notification"))
		return
	}
	l.pending.add(e)
	if err := l.away.Err(); err != nil {
		l.move(e, err)
		return
	}
	l.postgres.Record(l.soon.Load().ctx, e.record, func(err error) {
		if _, refused := errors.AsType[*ledger.QuarantinedError](err); err == nil || refused {
			l.end(e, err)
			return
		}
		l.move(e, err)
	})
}

// end tells how a record ended, the first time.
func (l *Ledger) end(e *entry, err error) {
	if l.pending.remove(e) {
		if err == nil {
			l.recent.recorded(e.record.Notification)
		}
		e.recorded(err)
	}
}

// move takes a record elsewhere, because Postgres does not take it now.
func (l *Ledger) move(e *entry, cause error) {
	switch {
	case !e.moving.CompareAndSwap(false, true):
	case e.alone:
		l.end(e, away(cause))
	case l.queues.Away():
		l.keep(e, ErrQueuesAway)
	default:
		l.spilling.Add(e, func(err error) {
			if err != nil {
				l.keep(e, err)
				return
			}
			l.end(e, nil)
		})
	}
}

// keep puts a record into the journal, the last place.
func (l *Ledger) keep(e *entry, cause error) {
	l.journal.add.Add(e.record, func(err error) {
		if err != nil {
			l.counts.lost.Add(1)
			l.log.Error("a record is kept nowhere; its writer is told", zap.Stringer("id", e.record.Notification.ID), zap.Error(err))
			l.end(e, fmt.Errorf("record: %w: %w: %w", ledger.ErrAway, cause, err))
			return
		}
		l.counts.journaled.Add(1)
		l.end(e, nil)
	})
}

// away is an error that says that Postgres is, for whatever reason.
func away(cause error) error {
	if errors.Is(cause, ledger.ErrAway) {
		return cause
	}
	return fmt.Errorf("%w: %w", ledger.ErrAway, cause)
}

// publishRecords is one group commit into SPILL.
func (l *Ledger) publishRecords(ctx context.Context, batch []*entry) []error {
	errs := make([]error, len(batch))
	var msgs []*nats.Msg
	var of []int
	for i, e := range batch {
		if !l.pending.has(e) { // Postgres was quicker
			continue
		}
		if errs[i] = faults.Before(faults.Spill); errs[i] != nil {
			continue
		}
		data, err := encodeRecord(e.record)
		if errs[i] = err; err != nil {
			continue
		}
		msgs, of = append(msgs, &nats.Msg{Subject: envelope.SpillSubject(e.record.Notification.ID), Data: data}), append(of, i)
	}
	for at, err := range publishAll(ctx, l.js, l.queues, msgs, l.cfg.SlowAfter) {
		if err == nil {
			l.spilled.put()
			l.counts.spilled.Add(1)
			err = faults.After(faults.Spill)
		}
		errs[of[at]] = err
	}
	return errs
}

// patience is how long a record may wait for room in Postgres' queue, before it goes elsewhere: at most
// Config.SpillAfter. All that come within half of that time share one: a timer for each would cost more than the record.
type patience struct {
	ctx context.Context //nolint:containedctx // its end is all that it is for
	end context.CancelFunc
}

func newPatience(ctx context.Context) *patience {
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	return &patience{ctx, end}
}

// hurry moves what has been pending for too long, and everything when Postgres goes away.
func (l *Ledger) hurry(ctx context.Context) {
	ticker := time.NewTicker(l.cfg.SlowAfter / looks)
	defer ticker.Stop()
	old, current := newPatience(ctx), newPatience(ctx)
	l.soon.Store(current)
	defer func() {
		l.soon.Store(newPatience(ctx)) // of what is recorded while the engine stops: until Postgres' own queue is shut
		old.end()
		current.end()
	}()
	left := l.away.Left()
	patient := looks * int64(l.cfg.SpillAfter) / int64(l.cfg.SlowAfter) // at least looks, see Config.Validate
	for {
		var late []*entry
		select {
		case <-ctx.Done():
			return
		case <-left:
			left = nil // until it is back
			l.spilled.unknown()
			l.reserved.unknown()
			current.end()
			late = l.pending.bornBefore(l.ticks.Load()+1, l.ticks.Load()+1)
			old.end()
			old, current = current, newPatience(ctx)
			l.soon.Store(current)
		case <-ticker.C:
			if left == nil && !l.away.Away() {
				left = l.away.Left()
			}
			tick := l.ticks.Add(1)
			late = l.pending.bornBefore(tick-patient, tick-looks)
			if tick%(patient/2) == 0 {
				old.end()
				old, current = current, newPatience(ctx)
				l.soon.Store(current)
			}
		}
		for _, e := range late {
			l.move(e, errLate)
		}
	}
}

var errLate = errors.New("it does not take the record in time")
