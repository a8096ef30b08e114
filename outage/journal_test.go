package outage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"notifyd/ledger"
	"notifyd/notification"
)

func open(tb testing.TB, dir string, most int64) *journal {
	tb.Helper()
	j, err := openJournal(dir, most, zap.NewNop())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = j.close() })
	return j
}

func entryOf(number byte) ledger.Record {
	n := &notification.Notification{ID: notification.ID{number}, Body: []byte{number}}
	n.State, n.Attempts = notification.StateRetrying, int(number)
	return ledger.Record{Notification: n}
}

func put(tb testing.TB, j *journal, r ledger.Record) error {
	tb.Helper()
	return j.add.Do(context.Background(), r)
}

// numbers are what a replay gives, and its store keeps.
func numbers(t *testing.T, j *journal) (got []int) {
	t.Helper()
	err := j.replay(t.Context(), func(_ context.Context, batch []ledger.Record) error {
		for _, r := range batch {
			got = append(got, r.Notification.Attempts)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A crash in the middle of a write leaves any part of it: what was acknowledged before is there, and the journal goes on.
func TestJournalTornAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 1<<20)
	var ends []int64
	for number := range byte(3) {
		if err := put(t, j, entryOf(number+1)); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.bytes())
	}
	whole, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		torn := t.TempDir()
		if err := os.WriteFile(filepath.Join(torn, journalName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		var want []int
		for i, end := range ends {
			if int64(cut) >= end {
				want = append(want, i+1)
			}
		}
		j := open(t, torn, 1<<20)
		if err := put(t, j, entryOf(9)); err != nil {
			t.Fatal(err)
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
		if got := numbers(t, open(t, torn, 1<<20)); fmt.Sprint(got) != fmt.Sprint(append(want, 9)) {
			t.Fatalf("cut at %d: %v, want %v and 9", cut, got, want)
		}
	}
}

// Damage costs the entry that it is in, whose bytes are kept aside, and no other.
func TestJournalDamagedAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 1<<20)
	ends := []int64{0}
	for number := range byte(3) {
		if err := put(t, j, entryOf(number+1)); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, j.bytes())
	}
	whole, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range ends[2] { // in the first two: the third may be a torn write
		damaged := t.TempDir()
		data := append([]byte(nil), whole...)
		data[at] ^= 0x55
		if err := os.WriteFile(filepath.Join(damaged, journalName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		want, from := "[2 3]", ends[0]
		if at >= ends[1] {
			want, from = "[1 3]", ends[1]
		}
		if got := fmt.Sprint(numbers(t, open(t, damaged, 1<<20))); got != want {
			t.Fatalf("damaged at %d: %s, want %s", at, got, want)
		}
		aside, err := filepath.Glob(filepath.Join(damaged, fmt.Sprintf("%s.damaged-%d-*", journalName, from)))
		if err != nil || len(aside) != 1 {
			t.Fatalf("damaged at %d: kept aside: %v, %v", at, aside, err)
		}
	}
}

func TestJournalIsReplayedAndDropped(t *testing.T) {
	j := open(t, t.TempDir(), 1<<20)
	const count = 3*replayedBatch + 1
	for i := range count {
		if err := put(t, j, entryOf(byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := j.find(notification.ID{7}); err != nil || len(found) != (count+255-7)/256 {
		t.Errorf("found %d, %v", len(found), err)
	}
	batches := 0
	failed := errors.New("postgres is away")
	err := j.replay(t.Context(), func(_ context.Context, batch []ledger.Record) error {
		if batches++; batches == 2 {
			return failed
		}
		return nil
	})
	if !errors.Is(err, failed) || j.entries.Load() != count-replayedBatch {
		t.Fatalf("%v, %d are left", err, j.entries.Load())
	}
	if err := put(t, j, entryOf(77)); err != nil { // while a replay is broken off
		t.Fatal(err)
	}
	if got := numbers(t, j); len(got) != count-replayedBatch+1 || got[len(got)-1] != 77 {
		t.Errorf("replayed %d", len(got))
	}
	if j.bytes() != 0 || j.entries.Load() != 0 || len(j.byID) != 0 {
		t.Errorf("left over: %d bytes, %d entries, %d ids", j.bytes(), j.entries.Load(), len(j.byID))
	}
	if found, err := j.find(notification.ID{7}); err != nil || len(found) != 0 {
		t.Errorf("found %d, %v", len(found), err)
	}
}

func TestJournalKeepsItsBound(t *testing.T) {
	j := open(t, t.TempDir(), 200)
	var err error
	kept := 0
	for err == nil {
		if err = put(t, j, entryOf(1)); err == nil {
			kept++
		}
	}
	if !errors.Is(err, ErrJournalFull) || kept == 0 || j.bytes() > 200 {
		t.Errorf("%d kept, %d bytes: %v", kept, j.bytes(), err)
	}
	if got := numbers(t, j); len(got) != kept {
		t.Errorf("replayed %d of %d", len(got), kept)
	}
	if err := put(t, j, entryOf(1)); err != nil {
		t.Errorf("when it is empty again: %v", err)
	}
}

// A write that fails must leave nothing that a restart would read, and nothing in the way of the next.
func TestJournalGoesOnAfterAFailedWrite(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, 1<<20)
	if err := put(t, j, entryOf(1)); err != nil {
		t.Fatal(err)
	}
	writable := j.file
	readable, err := os.Open(j.path)
	if err != nil {
		t.Fatal(err)
	}
	j.file = readable
	if err := put(t, j, entryOf(2)); err == nil {
		t.Fatal("a file that is only read was written to")
	}
	_ = readable.Close()
	j.file = writable
	if err := put(t, j, entryOf(3)); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(numbers(t, open(t, dir, 1<<20))); got != "[1 3]" {
		t.Error(got)
	}
}

func BenchmarkJournal(b *testing.B) {
	j := open(b, b.TempDir(), 1<<40)
	b.SetParallelism(128)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := put(b, j, entryOf(1)); err != nil {
				b.Error(err)
			}
		}
	})
}
