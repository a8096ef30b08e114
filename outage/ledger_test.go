package outage_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"notifyd/internal/scenario"
	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
	"notifyd/outage"
)

// Postgres is away and NATS restarts in between: an id is fresh once, for whoever asks on whichever node.
func TestAnIDIsFreshOnceWhilePostgresIsAway(t *testing.T) {
	s := startStores(t)
	nodes := []*node{s.node(t, nodeOptions{}), s.node(t, nodeOptions{})}
	before, during := accepted(), accepted()
	if _, err := nodes[0].Reserve(bg, []ledger.Reservation{reservation(before)}); err != nil {
		t.Fatal(err)
	}
	s.postgres.Kill(t)
	for _, n := range nodes {
		n.awaitAway(t)
	}

	answers := make([][]ledger.Reserved, 100)
	var asking sync.WaitGroup
	for i := range answers {
		asking.Go(func() {
			r := reservation(during)
			r.AcceptedAt = r.AcceptedAt.Add(time.Duration(i) * time.Millisecond)
			var err error
			if answers[i], err = nodes[i%2].Reserve(bg, []ledger.Reservation{r}); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	if t.Failed() {
		t.FailNow()
	}
	var fresh int
	for _, a := range answers {
		if a[0].Fresh {
			fresh++
		}
		if a[0].AcceptedAt != answers[0][0].AcceptedAt || a[0].Digest != during.Digest || !a[0].Elsewhere {
			t.Errorf("got %+v, want %+v", a[0], answers[0][0])
		}
	}
	if fresh != 1 {
		t.Errorf("fresh for %d callers", fresh)
	}
	first := answers[0][0]

	s.nats.stop(t)
	s.nats.start(t)
	third := s.node(t, nodeOptions{}) // it remembers nothing
	for i, n := range append(nodes, third) {
		scenario.Within(t, 10*time.Second, "nats is back", func() bool { return !n.queues.Away() })
		again, err := n.Reserve(bg, []ledger.Reservation{reservation(during)})
		if err != nil || again[0].Fresh || again[0].AcceptedAt != first.AcceptedAt {
			t.Errorf("after a restart of NATS node %d says %+v, %v", i, again, err)
		}
	}
	known, err := nodes[0].Reserve(bg, []ledger.Reservation{reservation(before)})
	if err != nil || known[0].Fresh || known[0].Elsewhere || known[0].AcceptedAt != before.AcceptedAt {
		t.Errorf("of an id from before: %+v, %v", known, err)
	}
	n, _, err := third.Find(bg, during.ID)
	if !errors.Is(err, ledger.ErrReservedOnly) || n == nil || n.AcceptedAt != first.AcceptedAt {
		t.Errorf("found %+v, %v", n, err)
	}

	s.postgres.Start(t)
	for _, n := range append(nodes, third) {
		n.awaitBack(t)
		reserved, err := n.Reserve(bg, []ledger.Reservation{reservation(during)})
		if err != nil || reserved[0].Fresh || reserved[0].AcceptedAt != first.AcceptedAt {
			t.Errorf("after the outage: %+v, %v", reserved, err)
		}
	}
}

// Until the drainer has moved it, an id that was reserved elsewhere is known by whoever has Postgres.
func TestReservedElsewhereIsNotFreshInPostgres(t *testing.T) {
	s := startStores(t)
	cutOff, idle := s.node(t, nodeOptions{idle: true}), s.node(t, nodeOptions{idle: true})
	cutOff.toPostgres.Refuse(t)
	cutOff.awaitAway(t)
	n := accepted()
	if got, err := cutOff.Reserve(bg, []ledger.Reservation{reservation(n)}); err != nil || !got[0].Fresh || !got[0].Elsewhere {
		t.Fatalf("%+v, %v", got, err)
	}
	other := accepted()
	got, err := idle.Reserve(bg, []ledger.Reservation{reservation(other), reservation(n)})
	if err != nil || !got[0].Fresh || got[1].Fresh || !got[1].Elsewhere || got[1].AcceptedAt != n.AcceptedAt {
		t.Errorf("%+v, %v", got, err)
	}
}

// A node that is cut off accepts other content under an id: that is found.
func TestOtherContentIsPutIntoQuarantine(t *testing.T) {
	s := startStores(t)
	there, cutOff := s.node(t, nodeOptions{}), s.node(t, nodeOptions{})
	n := accepted()
	if _, err := there.Reserve(bg, []ledger.Reservation{reservation(n)}); err != nil {
		t.Fatal(err)
	}
	cutOff.toPostgres.Cut(t)
	cutOff.awaitAway(t)
	other := *n
	other.Digest[0]++
	if got, err := cutOff.Reserve(bg, []ledger.Reservation{reservation(&other)}); err != nil || !got[0].Fresh {
		t.Fatalf("%+v, %v", got, err)
	}
	scenario.Within(t, 20*time.Second, "the conflict is in quarantine", func() bool {
		page, err := there.Quarantine(bg, 0, 10)
		return err == nil && len(page) == 1 && page[0].ID == n.ID
	})
	got, err := there.Reserve(bg, []ledger.Reservation{reservation(&other)})
	if err != nil || got[0].Fresh || got[0].Digest != n.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

// Records are made under load while Postgres and NATS are killed, cut off and restarted: every one is told once that it is
// durable, and in the end Postgres has them all.
func TestNoRecordIsLost(t *testing.T) {
	s := startStores(t)
	node, other := s.node(t, nodeOptions{}), s.node(t, nodeOptions{})
	var made []*notification.Notification
	var told tally
	load := func(count int) {
		t.Helper()
		for i := range count {
			n := accepted()
			made = append(made, n)
			r := attempted(n, notification.StateDelivered)
			r.New, r.Unreserved = i%2 == 0, true
			node.Record(bg, r, told.callback(n.ID))
			if i%50 == 0 { // neither all at once nor one by one
				scenario.Within(t, 30*time.Second, "records end", func() bool { return int64(len(made))-told.told.Load() < 400 })
			}
		}
	}
	load(500)
	s.postgres.Kill(t)
	load(500)
	node.awaitAway(t)
	load(500)
	s.nats.stop(t)
	load(500)
	scenario.Within(t, 10*time.Second, "nats counts as away", node.queues.Away)
	load(500)
	if node.Stats().Journaled == 0 {
		t.Error("nothing went into the journal")
	}
	s.nats.start(t)
	scenario.Within(t, 10*time.Second, "the journal goes into SPILL", func() bool { s := node.Stats(); return !s.NATSAway && s.JournalWaiting == 0 })
	load(500)
	s.postgres.Start(t)
	load(500)
	node.toPostgres.Cut(t)
	load(500)
	node.toNATS.Cut(t)
	load(500)
	node.toPostgres.Pass(t)
	node.toNATS.Pass(t)
	load(100)
	node.awaitBack(t)
	other.awaitBack(t)
	if told.told.Load() != int64(len(made)) || told.more.Load() != 0 || told.bad.Load() != 0 {
		t.Fatalf("of %d records %d ended, %d more than once, %d badly: %v", len(made), told.told.Load(), told.more.Load(), told.bad.Load(), told.first.Load())
	}
	for chunk := range slices.Chunk(made, 500) {
		ids := make([]notification.ID, len(chunk))
		for i, n := range chunk {
			ids[i] = n.ID
		}
		rows, err := other.direct.FindMany(bg, ids)
		if err != nil || len(rows) != len(ids) {
			t.Fatalf("of %d records postgres has %d: %v", len(ids), len(rows), err)
		}
		for _, row := range rows {
			if row.State != notification.StateDelivered || row.Attempts != 1 {
				t.Fatalf("%+v", row)
			}
		}
	}
	for i := 0; i < len(made); i += 17 {
		if _, attempts, err := other.direct.Find(bg, made[i].ID); err != nil || len(attempts) != 1 {
			t.Fatalf("record %d: %d attempts: %v", i, len(attempts), err)
		}
	}
	t.Logf("%+v", node.Stats())
}

// The process ends while both are away: the next run has what was acknowledged.
func TestJournalOutlivesTheProcess(t *testing.T) {
	s := startStores(t)
	first := s.node(t, nodeOptions{})
	first.toPostgres.Refuse(t)
	first.toNATS.Refuse(t)
	first.awaitAway(t)
	scenario.Within(t, 10*time.Second, "nats counts as away", first.queues.Away)
	n := accepted()
	if err := first.record(t, attempted(n, notification.StateRetrying)); err != nil {
		t.Fatal(err)
	}
	found, attempts, err := first.Find(bg, n.ID)
	if !errors.Is(err, ledger.ErrIncomplete) || found.State != notification.StateRetrying || len(attempts) != 1 {
		t.Errorf("found %+v, %d attempts, %v", found, len(attempts), err)
	}
	began := time.Now()
	if _, err := first.Reserve(bg, []ledger.Reservation{reservation(accepted())}); !errors.Is(err, ledger.ErrAway) || time.Since(began) > 100*time.Millisecond {
		t.Errorf("with both away: %v after %s", err, time.Since(began))
	}
	first.end()

	second := s.node(t, nodeOptions{dir: first.dir})
	second.awaitBack(t)
	row, attempts, err := second.direct.Find(bg, n.ID)
	if err != nil || row.State != notification.StateRetrying || len(attempts) != 1 {
		t.Errorf("found %+v, %d attempts, %v", row, len(attempts), err)
	}
	fed, err := second.Feed(bg, now().Add(time.Hour), 10)
	if err != nil || len(fed) != 1 || fed[0].ID != n.ID {
		t.Errorf("its next attempt is not on its way: %v, %v", fed, err)
	}
}

// Postgres neither answers nor closes anything: nobody waits for longer than the bound.
func TestNobodyWaitsForAPostgresThatHangs(t *testing.T) {
	s := startStores(t)
	for name, hurt := range map[string]func(*scenario.Link){
		"cut off":     func(l *scenario.Link) { l.Cut(t) },
		"2 s a query": func(l *scenario.Link) { l.Slow(t, 2*time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			n := s.node(t, nodeOptions{})
			hurt(n.toPostgres)
			var asking sync.WaitGroup
			within := func(what string, most time.Duration, ask func() error) {
				asking.Go(func() {
					began := time.Now()
					err := ask()
					if took := time.Since(began); took > most || err != nil {
						t.Errorf("%s: %v after %s", what, err, took)
					}
				})
			}
			isAway := func(err error) error {
				if !errors.Is(err, ledger.ErrAway) {
					return fmt.Errorf("want ErrAway, got %w", err)
				}
				return nil
			}
			within("reserve", 1300*time.Millisecond, func() error {
				got, err := n.Reserve(bg, []ledger.Reservation{reservation(accepted())})
				if err == nil && !got[0].Elsewhere {
					err = errors.New("postgres has it")
				}
				return err
			})
			within("record", 2500*time.Millisecond, func() error {
				return n.record(t, attempted(accepted(), notification.StateRetrying))
			})
			within("write", 2500*time.Millisecond, func() error {
				written := make(chan error, 1)
				n.Write(ledger.Record{Notification: accepted()}, func(err error) { written <- err })
				return isAway(<-written)
			})
			within("claim", 2500*time.Millisecond, func() error {
				verdict, _, err := n.Claim(bg, ledger.Claim{ID: newID(), AcceptedAt: now(), Generation: 1, Until: now().Add(time.Minute)})
				if err == nil && verdict != ledger.ClaimGranted && verdict != ledger.ClaimBehind {
					err = fmt.Errorf("verdict %d", verdict)
				}
				return err
			})
			within("find", 3*time.Second, func() error { _, _, err := n.Find(bg, newID()); return isAway(err) })
			within("list", 2500*time.Millisecond, func() error {
				_, _, err := n.List(bg, ledger.Filter{MerchantID: "m"}, 1, ledger.Cursor{})
				return isAway(err)
			})
			within("merchants", 2500*time.Millisecond, func() error { _, err := n.MerchantsSince(bg, 0); return isAway(err) })
			asking.Wait()
			n.awaitAway(t)
			within("list, known to be away", 50*time.Millisecond, func() error {
				_, _, err := n.List(bg, ledger.Filter{MerchantID: "m"}, 1, ledger.Cursor{})
				return isAway(err)
			})
			within("record, known to be away", 300*time.Millisecond, func() error {
				return n.record(t, attempted(accepted(), notification.StateRetrying))
			})
			asking.Wait()
			n.toPostgres.Pass(t)
			n.awaitBack(t)
		})
	}
}

func TestFindAndClaimKnowWhatIsSpilled(t *testing.T) {
	s := startStores(t)
	there := s.node(t, nodeOptions{idle: true}) // nobody drains
	cutOff := s.node(t, nodeOptions{idle: true})
	once, twice, unknown := accepted(), accepted(), accepted()
	first := attempted(twice, notification.StateRetrying)
	if err := there.record(t, first); err != nil {
		t.Fatal(err)
	}
	cutOff.toPostgres.Refuse(t)
	cutOff.awaitAway(t)
	second := attempted(first.Notification, notification.StateDelivered)
	for _, r := range []ledger.Record{attempted(once, notification.StateRetrying), second} {
		if err := cutOff.record(t, r); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		node     *node
		id       notification.ID
		state    notification.State
		attempts int
		err      error
	}{
		"away, spilled once":         {cutOff, once.ID, notification.StateRetrying, 1, ledger.ErrIncomplete},
		"away, partly spilled":       {cutOff, twice.ID, notification.StateDelivered, 1, ledger.ErrIncomplete},
		"away, unknown":              {cutOff, unknown.ID, 0, 0, ledger.ErrAway},
		"there, spilled only":        {there, once.ID, notification.StateRetrying, 1, nil},
		"there, spilled what is new": {there, twice.ID, notification.StateDelivered, 2, nil},
		"there, unknown":             {there, unknown.ID, 0, 0, ledger.ErrNotFound},
	} {
		n, attempts, err := tc.node.Find(bg, tc.id)
		if !errors.Is(err, tc.err) || len(attempts) != tc.attempts || tc.state != 0 && n.State != tc.state {
			t.Errorf("%s: %+v, %d attempts, %v", name, n, len(attempts), err)
		}
		many, err := tc.node.FindMany(bg, []notification.ID{tc.id, newID()})
		if err != nil || (len(many) == 1) != (tc.state != 0) || tc.state != 0 && many[tc.id].State != tc.state {
			t.Errorf("%s: many: %+v, %v", name, many, err)
		}
	}
	since := accepted() // Postgres went away
	unknown.AcceptedAt = since.AcceptedAt.Add(-time.Hour)
	claim := func(n *notification.Notification, attempts int, again bool) ledger.Claim {
		return ledger.Claim{ID: n.ID, AcceptedAt: n.AcceptedAt, Generation: 1, Attempts: attempts, By: "run", Until: now().Add(time.Minute), AllowFinal: again}
	}
	for name, tc := range map[string]struct {
		node  *node
		claim ledger.Claim
		want  ledger.ClaimVerdict
	}{
		"away, an old copy":             {cutOff, claim(once, 0, false), ledger.ClaimStale},
		"away, the next attempt":        {cutOff, claim(once, 1, false), ledger.ClaimGranted},
		"away, delivered":               {cutOff, claim(twice, 2, false), ledger.ClaimStale},
		"away, delivered, resend":       {cutOff, claim(twice, 2, true), ledger.ClaimGranted},
		"away, nothing known":           {cutOff, claim(since, 0, false), ledger.ClaimGranted},
		"away, perhaps on record":       {cutOff, claim(unknown, 0, false), ledger.ClaimBehind},
		"there, delivered but spilled":  {there, claim(twice, 1, false), ledger.ClaimStale},
		"there, nothing known":          {there, claim(unknown, 0, false), ledger.ClaimNoRow},
		"there, old copy, spilled only": {there, claim(once, 0, false), ledger.ClaimStale},
	} {
		if got, _, err := tc.node.Claim(bg, tc.claim); got != tc.want || err != nil {
			t.Errorf("%s: verdict %d, %v; want %d", name, got, err, tc.want)
		}
	}
}

func TestStreamsComeBackAndPoisonIsSetAsideOnce(t *testing.T) {
	s := startStores(t)
	js := s.jetStream(t)
	aside, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: envelope.MerchantStream, Subjects: []string{"own.*"}})
	if err != nil {
		t.Fatal(err)
	}
	node := s.node(t, nodeOptions{})
	node.toPostgres.Refuse(t)
	node.awaitAway(t)
	for _, name := range []string{envelope.SpillStream, envelope.ReservedStream} {
		if err := js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	n := accepted()
	if err := node.record(t, attempted(n, notification.StateDelivered)); err != nil { // into the journal, at worst
		t.Fatal(err)
	}
	scenario.Within(t, 10*time.Second, "ids are reserved again", func() bool {
		_, err := node.Reserve(bg, []ledger.Reservation{reservation(n)})
		return err == nil
	})
	for _, subject := range []string{envelope.SpillSubject(newID()), envelope.ReservedSubject(newID())} {
		scenario.Within(t, 10*time.Second, "the stream takes messages", func() bool {
			_, err := js.Publish(t.Context(), subject, []byte("poison"))
			return err == nil
		})
	}
	node.toPostgres.Pass(t)
	node.awaitBack(t)
	info, err := aside.Info(t.Context())
	if err != nil || info.State.Msgs != 2 || node.Stats().SetAside != 2 {
		t.Errorf("set aside: %+v, %v", info.State, err)
	}
	if row, _, err := node.direct.Find(bg, n.ID); err != nil || row.State != notification.StateDelivered {
		t.Errorf("%+v, %v", row, err)
	}
}

// SPILL at its bound: the journal takes the rest, and when that is full too, writers are told.
func TestBoundsAreKept(t *testing.T) {
	s := startStores(t)
	node := s.node(t, nodeOptions{config: func(c *outage.Config) { c.SpillBytes, c.JournalBytes = 1<<20, 1<<20 }})
	node.toPostgres.Refuse(t)
	node.awaitAway(t)
	var kept []*notification.Notification
	for {
		n := accepted()
		n.Body = make([]byte, 128<<10)
		n.Digest = n.ContentDigest()
		r := ledger.Record{Notification: n, Unreserved: true}
		if err := node.record(t, r); err != nil {
			if !errors.Is(err, ledger.ErrAway) || !errors.Is(err, outage.ErrJournalFull) {
				t.Errorf("at the bound: %v", err)
			}
			break
		}
		if kept = append(kept, n); len(kept) > 100 {
			t.Fatal("there is no bound")
		}
	}
	if s := node.Stats(); s.Spilled == 0 || s.Journaled == 0 || s.Lost != 1 || s.Pending != 0 {
		t.Errorf("%+v", s)
	}
	node.toPostgres.Pass(t)
	node.awaitBack(t)
	for _, n := range kept {
		row, _, err := node.direct.Find(bg, n.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(n.Body, row.Body) {
			t.Errorf("%s has another body", n.ID)
		}
	}
}

// What this process has recorded lately it knows while Postgres is away: it is not sent again, and a submission of it is
// answered with how far it has come.
func TestWhatWasRecordedLatelyIsKnown(t *testing.T) {
	s := startStores(t)
	n := s.node(t, nodeOptions{})
	delivered := attempted(accepted(), notification.StateDelivered)
	if err := n.record(t, delivered); err != nil {
		t.Fatal(err)
	}
	n.toPostgres.Refuse(t)
	n.awaitAway(t)
	was := delivered.Notification
	verdict, _, err := n.Claim(bg, ledger.Claim{ID: was.ID, Generation: 1, Until: now().Add(time.Minute)})
	if err != nil || verdict != ledger.ClaimStale {
		t.Errorf("claim: verdict %d, %v, want stale", verdict, err)
	}
	got, err := n.Reserve(bg, []ledger.Reservation{{ID: was.ID, Digest: was.Digest, AcceptedAt: now()}})
	if err != nil || got[0].Fresh || got[0].Known.State != notification.StateDelivered || got[0].Known.Attempts != 1 || !got[0].AcceptedAt.Equal(was.AcceptedAt) {
		t.Errorf("reserve: %+v, %v", got, err)
	}
	verdict, _, err = n.Claim(bg, ledger.Claim{ID: was.ID, Generation: 2, Attempts: 1, AllowFinal: true, Until: now().Add(time.Minute)})
	if err != nil || verdict != ledger.ClaimGranted {
		t.Errorf("claim of a resend: verdict %d, %v, want granted", verdict, err)
	}
}
