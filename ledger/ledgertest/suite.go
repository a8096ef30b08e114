// Package ledgertest is the conformance suite of the ledgers: what Postgres and Memory must both do.
package ledgertest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"notifyd/access"
	"notifyd/keys"
	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	"notifyd/source"
)

// Ledger is everything that both ledgers do.
type Ledger interface {
	Ping(ctx context.Context) error
	Queued() int
	Reserve(ctx context.Context, wanted []ledger.Reservation) ([]ledger.Reserved, error)
	Record(ctx context.Context, r ledger.Record, recorded func(error))
	Claim(ctx context.Context, c ledger.Claim) (ledger.ClaimVerdict, time.Time, error)
	Find(ctx context.Context, id notification.ID) (*notification.Notification, []notification.Attempt, error)
	FindMany(ctx context.Context, ids []notification.ID) (map[notification.ID]*notification.Notification, error)
	List(ctx context.Context, f ledger.Filter, pageSize int, after ledger.Cursor) ([]*notification.Notification, ledger.Cursor, error)
	Batch(ctx context.Context, batchID, sourceID string) (*ledger.BatchProgress, error)
	Cancel(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
	Supersede(ctx context.Context, id, by notification.ID, now time.Time) (*notification.Notification, error)
	LineUp(ctx context.Context, list []*notification.Notification) ([]ledger.Lined, error)
	Turn(ctx context.Context, n *notification.Notification) (ledger.Turn, error)
	Next(ctx context.Context, ended []*notification.Notification, now time.Time) ([]*notification.Notification, error)
	Resend(ctx context.Context, id notification.ID, operator string, now time.Time) (*notification.Notification, error)
	Feed(ctx context.Context, horizon time.Time, limit int) ([]*notification.Notification, error)
	Rescue(ctx context.Context, overdueBefore, now time.Time, limit int) ([]*notification.Notification, error)
	TakeDue(ctx context.Context, now, fedBefore time.Time, lease time.Duration, limit int) ([]*notification.Notification, error)
	Recall(ctx context.Context, lost ledger.Lost, before, now time.Time) (int, error)
	Quarantine(ctx context.Context, after int64, limit int) ([]ledger.Quarantined, error)
	PutMerchant(ctx context.Context, m *merchant.Merchant, ifVersion *int64) (*merchant.Merchant, error)
	MerchantsSince(ctx context.Context, version int64) ([]*merchant.Merchant, error)
	ListMerchants(ctx context.Context, after string, limit int) ([]*merchant.Merchant, error)
	GetMerchant(ctx context.Context, id string) (*merchant.Merchant, error)
	PutSource(ctx context.Context, s *source.Source, ifVersion *int64) (*source.Source, error)
	SourcesSince(ctx context.Context, version int64) ([]*source.Source, error)
	ListSources(ctx context.Context, after string, limit int) ([]*source.Source, error)
	GetSource(ctx context.Context, id string) (*source.Source, error)
	PutAccessRule(ctx context.Context, r *access.Rule, ifVersion *int64) (*access.Rule, error)
	AccessRulesSince(ctx context.Context, version int64) ([]*access.Rule, error)
	AccessChanges(ctx context.Context, ruleID string, before int64, limit int) ([]access.Change, error)
	PutKeys(ctx context.Context, s *keys.Set, ifVersion *int64) (*keys.Set, error)
	KeysSince(ctx context.Context, version int64) ([]*keys.Set, error)
	KeyChanges(ctx context.Context, name string, before int64, limit int) ([]ledger.KeyChange, error)
	NoteExpiry(ctx context.Context, e keys.Expiring, now time.Time) (first bool, err error)
	Barred(ctx context.Context, after ledger.Barred, limit int) ([]ledger.Barred, error)
	Release(ctx context.Context, b ledger.Barred, gap time.Duration, from, until time.Time) (int, error)
	Reservations(ctx context.Context, from, to time.Time, after ledger.ProofCursor, limit int) ([]ledger.ProofRow, ledger.ProofCursor, error)
	MarkAnswered(ctx context.Context, ids []notification.ID) error
	PutAlarms(ctx context.Context, alarms []ledger.Alarm) error
	OpenAlarms(ctx context.Context, node string) ([]ledger.Alarm, error)
	RecentAlarms(ctx context.Context, limit int) ([]ledger.Alarm, error)
	Overdue(ctx context.Context, before time.Time) (ledger.Overdue, error)
	MaintainPartitions(ctx context.Context, now time.Time) error
}

// Open opens an empty ledger that is running, and ends it with the test. From the settings it takes the time and the runs
// that have ended.
type Open func(t *testing.T, cfg ledger.Config) Ledger

// Run holds a ledger to the suite.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*fixture)
	}{
		{"reserve: one of a hundred is fresh", reserveRace},
		{"reserve: the first one's answer", reserveAnswers},
		{"reserve: again after midnight", reserveOverMidnight},
		{"record: what goes in comes out", recordRoundTrip},
		{"record: newest wins in any order", recordMonotone},
		{"record: final stays final in its generation", recordFinal},
		{"record: delivered never reopens", recordDelivered},
		{"record: attempts are never lost or doubled", recordAttempts},
		{"record: unreserved", recordUnreserved},
		{"find: reserved only, and nothing", findReservedOnly},
		{"find: many", findMany},
		{"list: filters", listFilters},
		{"list: stable pages", listPages},
		{"batch: progress", batchProgress},
		{"claim: verdicts", claimVerdicts},
		{"claim: a record ends it", claimEndedByRecord},
		{"claim: one of fifty", claimRace},
		{"claim: makes the row that is missing", claimInserts},
		{"claim: other content, and no content", claimOtherContent},
		{"claim: of thirty without a row one", claimInsertRace},
		{"claim: of a run that has ended", claimGone},
		{"hold: verdicts", holds},
		{"hold: against claims", holdRace},
		{"cancel", cancel},
		{"resend", resend},
		{"cancel, resend and claim at once", operateRace},
		{"lines: one after another", lines},
		{"lines: each end makes the next one due", lineEnds},
		{"lines: dead ones", lineDead},
		{"lines: canceled, expired, resent", lineOperated},
		{"lines: what waits for nobody is due at once", lineLateWait},
		{"lines: a later one, not before", lineNotBefore},
		{"lines: places taken late", lineLate},
		{"lines: lined up twice, other content", lineTwice},
		{"lines: of many at once none is forgotten", lineRace},
		{"lines: what is refused leaves", lineRefused},
		{"lines: ended places go with their day", lineRetention},
		{"supersede", supersede},
		{"feed: once over two feeders", feedOnce},
		{"feed: only what is far and due", feedChoice},
		{"feed: what the delay queue did not get", unfed},
		{"take due: only what is nobody's", takeDue},
		{"take due: once over two takers", takeDueOnce},
		{"recall", recall},
		{"rescue", rescue},
		{"overdue", overdue},
		{"alarms", alarms},
		{"merchants", merchants},
		{"merchants: versions become visible in order", merchantVersions},
		{"sources", sources},
		{"sources: of changes over one version one wins", sourceRace},
		{"sources: versions become visible in order", sourceVersions},
		{"access: rules and their changes", accessRules},
		{"access: of changes over one version one wins", accessRace},
		{"keys: sets and their changes", keySets},
		{"keys: of imports under one name one wins", keyRace},
		{"keys: told once of each end", keyExpiries},
		{"barred: whose", barred},
		{"barred: released in turn", release},
		{"barred: a claim keeps it", releaseClaimed},
		{"barred: released by four at once", releaseRace},
		{"reservations: the proof's pages", proof},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock, gone := &clock{at: Start}, &gone{}
			c.test(&fixture{T: t, Ledger: open(t, ledger.Config{Now: clock.now, Gone: gone.runs}), clock: clock, gone: gone})
		})
	}
}

// Start is when the suite's clock begins: not too far from today, so that partitions are where they would be.
var Start = time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// gone are the runs that are known to have ended.
type gone struct {
	mu    sync.Mutex
	ended []string
}

func (g *gone) add(run string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = append(g.ended, run)
}

func (g *gone) runs() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.ended)
}

// fixture is a ledger and what tests do with it all the time.
type fixture struct {
	*testing.T
	Ledger
	clock *clock
	gone  *gone
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// reserve reserves notifications as intake does.
func (f *fixture) reserve(list ...*notification.Notification) {
	f.Helper()
	wanted := make([]ledger.Reservation, len(list))
	for i, n := range list {
		wanted[i] = ledger.Reservation{ID: n.ID, Digest: n.Digest, AcceptedAt: n.AcceptedAt}
	}
	_, err := f.Reserve(f.Context(), wanted)
	f.must(err)
}

// record writes records and waits for all of them.
func (f *fixture) record(records ...ledger.Record) {
	f.Helper()
	for _, err := range f.tryRecord(records...) {
		f.must(err)
	}
}

func (f *fixture) tryRecord(records ...ledger.Record) []error {
	errs := make([]error, len(records))
	var all sync.WaitGroup
	for i, r := range records {
		all.Add(1)
		f.Record(f.Context(), r, func(err error) {
			errs[i] = err
			all.Done()
		})
	}
	all.Wait()
	return errs
}

// accept reserves and writes one.
func (f *fixture) accept(n *notification.Notification) *notification.Notification {
	f.Helper()
	f.reserve(n)
	f.record(ledger.Record{Notification: n, New: true})
	return n
}

func (f *fixture) find(id notification.ID) *notification.Notification {
	f.Helper()
	n, _, err := f.Find(f.Context(), id)
	f.must(err)
	return n
}

func (f *fixture) claim(n *notification.Notification, until time.Time) (ledger.ClaimVerdict, time.Time) {
	f.Helper()
	v, at, err := f.Claim(f.Context(), claimOf(n, until))
	f.must(err)
	return v, at
}

func claimOf(n *notification.Notification, until time.Time) ledger.Claim {
	return ledger.Claim{ID: n.ID, AcceptedAt: n.AcceptedAt, Generation: n.Generation, Attempts: n.Attempts, Until: until}
}
