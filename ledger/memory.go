package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/source"
)

// Memory is the ledger for tests: the same rules as Postgres, held to the same conformance suite, gone with the process.
type Memory struct {
	now    func() time.Time
	gone   func() []string
	window time.Duration
	told   sync.WaitGroup // callbacks on their way

	merchants *memorySettings[merchant.Merchant]
	sources   *memorySettings[source.Source]
	access    *memoryAccess
	keys      *memoryKeys
	alarms    memoryAlarms

	mu           sync.Mutex
	closed       bool
	reservations map[notification.ID]Reservation
	answered     map[notification.ID]bool
	quarantine   []Quarantined
	rows         map[notification.ID]*memoryRow
	lines        memoryLines
}

// memoryRow is a row of notifications and its attempts. Its notification is replaced, never changed: readers keep theirs.
type memoryRow struct {
	n        *notification.Notification
	attempts []notification.Attempt
	fed      bool
	claim    claimed
}

// NewMemory returns an empty ledger; of the settings it knows Now, Window and Gone.
func NewMemory(cfg Config) *Memory {
	cfg = cfg.withDefaults()
	return &Memory{
		now: cfg.Now, gone: cfg.Gone, window: cfg.Window,
		reservations: map[notification.ID]Reservation{},
		answered:     map[notification.ID]bool{},
		rows:         map[notification.ID]*memoryRow{},
		merchants:    newMemorySettings("merchant", cfg.Now, merchantFields),
		sources:      newMemorySettings("source", cfg.Now, sourceFields),
		access:       newMemoryAccess(cfg.Now),
		keys:         newMemoryKeys(cfg.Now),
	}
}

// Run waits for ctx to end, then takes no more records.
func (m *Memory) Run(ctx context.Context) error {
	<-ctx.Done()
	m.Close()
	return nil
}

// Ping always succeeds.
func (m *Memory) Ping(context.Context) error { return nil }

// Queued is always 0: records are written at once.
func (m *Memory) Queued() int { return 0 }

// MaintainPartitions does nothing: nothing is ever dropped.
func (m *Memory) MaintainPartitions(context.Context, time.Time) error { return nil }

// Close refuses further records and waits for the callbacks of the others.
func (m *Memory) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.told.Wait()
}

// Reserve does what Postgres.Reserve does.
func (m *Memory) Reserve(ctx context.Context, wanted []Reservation) ([]Reserved, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Reserved, len(wanted))
	for i, w := range wanted {
		r, there := m.reservations[w.ID]
		if !there {
			w.AcceptedAt = microseconds(w.AcceptedAt)
			r, m.reservations[w.ID] = w, w
		}
		out[i] = Reserved{Fresh: !there, Digest: r.Digest, AcceptedAt: r.AcceptedAt}
	}
	return out, nil
}

// Record does what Postgres.Record does, at once; recorded is called from a goroutine of its own.
func (m *Memory) Record(ctx context.Context, r Record, recorded func(error)) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		recorded(ErrClosed)
		return
	}
	defer m.mu.Unlock()
	err := ctx.Err()
	if err == nil {
		err = m.store(r)
	}
	if refused, ok := errors.AsType[*QuarantinedError](err); ok {
		m.setAside(r, refused)
	}
	m.told.Go(func() { recorded(err) })
}

func (m *Memory) setAside(r Record, why *QuarantinedError) {
	m.quarantine = append(m.quarantine, Quarantined{Number: int64(len(m.quarantine)) + 1, At: m.now(), ID: why.ID, Reason: why.Err.Error(), Record: r})
	if !errors.Is(why.Err, errOtherContent) { // which is not what has the place
		m.leaveLine(r.Notification)
	}
}

func (m *Memory) store(r Record) error {
	n := *r.Notification
	n.AcceptedAt = microseconds(n.AcceptedAt)
	if err := checkRecord(&pending{Record: r, acceptedAt: n.AcceptedAt}); err != nil {
		return &QuarantinedError{n.ID, err}
	}
	reservation, reserved := m.reservations[n.ID]
	switch {
	case reserved && n.Digest != [32]byte{} && n.Digest != reservation.Digest:
		return &QuarantinedError{n.ID, errOtherContent}
	case reserved:
		n.AcceptedAt = reservation.AcceptedAt
	case r.Unreserved || !r.New:
		m.reservations[n.ID] = Reservation{n.ID, n.Digest, n.AcceptedAt}
	}
	if n.UpdatedAt.IsZero() {
		n.UpdatedAt = n.AcceptedAt
	}
	row := m.rows[n.ID]
	if row == nil {
		row = &memoryRow{n: &n, fed: fedAtWrite(r, m.now(), m.window), claim: r.Hold.claimed()}
		m.rows[n.ID] = row
	} else {
		m.advance(row, r, n.Progress)
	}
	row.add(r.Attempts)
	m.moveLine(&n)
	return nil
}

func (m *Memory) advance(row *memoryRow, r Record, incoming notification.Progress) {
	progress, replaced := advance(row.n.Progress, incoming)
	if !replaced {
		return
	}
	newer := cmp.Or(cmp.Compare(incoming.Generation, row.n.Generation), cmp.Compare(incoming.Attempts, row.n.Attempts)) > 0
	row.claim = row.claim.after(r.Hold, newer, incoming.State.Final(), m.now(), m.gone())
	row.move(progress)
	row.fed = fedAtWrite(r, m.now(), m.window)
}

// move replaces where a notification stands.
func (r *memoryRow) move(p notification.Progress) {
	next := *r.n
	next.Progress = p
	r.n = &next
}

func (r *memoryRow) add(attempts []notification.Attempt) {
	known := map[notification.ID]int{}
	for _, a := range r.attempts {
		known[a.Key] = a.Number
	}
	for _, a := range attempts {
		if number, there := known[a.Key]; !there || number != a.Number {
			known[a.Key] = a.Number
			r.attempts = append(r.attempts, a)
		}
	}
}

// Claim does what Postgres.Claim does.
func (m *Memory) Claim(ctx context.Context, c Claim) (ClaimVerdict, time.Time, error) {
	if err := ctx.Err(); err != nil {
		return 0, time.Time{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	row := m.rows[c.ID]
	if row == nil {
		return m.claimWithoutRow(c)
	}
	judged := &claimable{progress: row.n.Progress, claim: row.claim}
	answer := judge(judged, c, m.now(), m.gone())
	row.claim = judged.claim
	return answer.verdict, answer.claimedUntil, nil
}

func (m *Memory) claimWithoutRow(c Claim) (ClaimVerdict, time.Time, error) {
	if c.Notification == nil {
		return ClaimNoRow, time.Time{}, nil
	}
	n, storable := newNewcomer(c)
	if v := verdict(n.Notification.Progress, claimed{}, c, m.now(), nil); v != ClaimGranted {
		return v, time.Time{}, nil
	}
	if !storable {
		return ClaimNoRow, time.Time{}, nil
	}
	if refused, ok := errors.AsType[*QuarantinedError](m.store(n.Record)); ok { // other content
		m.setAside(n.Record, refused)
		return ClaimStale, time.Time{}, nil
	}
	m.rows[c.ID].claim = n.claim
	return ClaimGranted, n.claim.until, nil
}

// Cancel does what Postgres.Cancel does.
func (m *Memory) Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	return m.operate(ctx, "cancel", id, operator, now, canceled)
}

// Resend does what Postgres.Resend does.
func (m *Memory) Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error) {
	return m.operate(ctx, "resend", id, operator, now, resent)
}

func (m *Memory) operate(ctx context.Context, what string, id notification.ID, _ string, now time.Time, rule step) (*notification.Notification, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	row, err := m.row(id)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, id, err)
	}
	progress, err := rule(row.n, row.claim.live(now, m.gone()), microseconds(now))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, id, err)
	}
	row.move(progress)
	row.fed = true
	m.moveLine(row.n)
	return row.read(), nil
}

func (m *Memory) row(id notification.ID) (*memoryRow, error) {
	if row := m.rows[id]; row != nil && m.reserved(id) {
		return row, nil
	}
	if m.reserved(id) {
		return nil, ErrReservedOnly
	}
	return nil, ErrNotFound
}

func (m *Memory) reserved(id notification.ID) bool {
	_, reserved := m.reservations[id]
	return reserved
}

// read is a copy that the reader may change.
func (r *memoryRow) read() *notification.Notification {
	n := *r.n
	return &n
}
