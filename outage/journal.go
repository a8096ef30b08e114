package outage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"notifyd/internal/faults"
	"notifyd/internal/groupcommit"
	"notifyd/ledger"
	"notifyd/notification"
)

// ErrJournalFull says that the journal is at its bound.
var ErrJournalFull = errors.New("the journal is full")

// journal is an append-only file of records, synced to disk before they count. It is for the time when neither Postgres
// nor JetStream takes them, and is dropped when all of it is in one of them.
//
// An entry is a mark, the payload's length and its checksum, each four bytes, then the payload. A tail that was cut off by
// a crash was never acknowledged and is cut away; damage before a readable entry is kept aside and reported.
type journal struct {
	path string
	most int64
	log  *zap.Logger
	add  *groupcommit.Batcher[ledger.Record]

	replaying sync.Mutex // one replay at a time

	mu    sync.Mutex
	file  *os.File
	size  int64
	queue []place // what is not stored elsewhere yet, in the order of writing
	byID  map[notification.ID][]place

	entries atomic.Int64 // the queue's length
}

// place is a payload in the file.
type place struct {
	id   notification.ID // zero: it cannot be decoded
	at   int64
	size int
}

const (
	journalName   = "records.journal"
	entryMark     = 0x6e6a7231 // "njr1"
	entryHead     = 12
	entryMost     = 16 << 20 // no record is nearly that large
	journalBatch  = 256
	replayedBatch = 256
)

var checksums = crc32.MakeTable(crc32.Castagnoli)

// openJournal opens the journal in a folder that belongs to this process, and finds what an earlier run left.
func openJournal(dir string, most int64, log *zap.Logger) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &journal{path: filepath.Join(dir, journalName), most: most, log: log, byID: map[notification.ID][]place{}}
	j.add = groupcommit.New(groupcommit.AtMost[ledger.Record](journalBatch), j.append)
	var err error
	if j.file, err = os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err = j.recover(); err == nil {
		err = syncFolder(dir) // the file's name must survive a power cut as its contents do
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal: %w", err), j.file.Close())
	}
	return j, nil
}

// recover reads what is there.
func (j *journal) recover() error {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return err
	}
	at := 0
	for at < len(data) {
		payload, ok := entryAt(data, at)
		if ok {
			j.found(payload, int64(at)+entryHead)
			at += entryHead + len(payload)
			continue
		}
		next := nextEntry(data, at+1)
		if next < 0 {
			j.log.Warn("the journal's last write was cut off by a crash, before it was acknowledged", zap.Int("offset", at), zap.Int("bytes", len(data)-at))
			break
		}
		if err := j.setAside(data[at:next], int64(at), errors.New("its checksum is wrong")); err != nil {
			return err
		}
		at = next
	}
	j.size = int64(at)
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	if n := j.entries.Load(); n > 0 {
		j.log.Info("the journal has records of an earlier run", zap.Int64("records", n))
	}
	return nil
}

// entryAt is the payload of an entry that begins there.
func entryAt(data []byte, at int) (payload []byte, ok bool) {
	if len(data)-at < entryHead || binary.BigEndian.Uint32(data[at:]) != entryMark {
		return nil, false
	}
	size := int64(binary.BigEndian.Uint32(data[at+4:]))
	if size > entryMost || size > int64(len(data)-at-entryHead) {
		return nil, false
	}
	payload = data[at+entryHead : at+entryHead+int(size)]
	return payload, crc32.Checksum(payload, checksums) == binary.BigEndian.Uint32(data[at+8:])
}

// nextEntry is where the next readable entry begins, or -1.
func nextEntry(data []byte, from int) int {
	mark := binary.BigEndian.AppendUint32(nil, entryMark)
	for from < len(data) {
		i := bytes.Index(data[from:], mark)
		if i < 0 {
			return -1
		}
		if _, ok := entryAt(data, from+i); ok {
			return from + i
		}
		from += i + 1
	}
	return -1
}

// setAside keeps bytes that cannot be read, for people.
func (j *journal) setAside(data []byte, at int64, cause error) error {
	path := fmt.Sprintf("%s.damaged-%d-%08x", j.path, at, crc32.Checksum(data, checksums))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("keep damaged bytes aside: %w", err)
	}
	j.log.Error("the journal is damaged; the bytes are kept aside", zap.Int64("offset", at), zap.Int("bytes", len(data)), zap.String("file", path), zap.Error(cause))
	return nil
}

// found lists a payload of an earlier run. One that cannot be decoded is reported when it is replayed.
func (j *journal) found(payload []byte, at int64) {
	p := place{at: at, size: len(payload)}
	if r, err := decodeRecord(payload); err == nil {
		p.id = r.Notification.ID
	}
	j.list(p)
}

func (j *journal) list(p place) {
	j.queue = append(j.queue, p)
	j.byID[p.id] = append(j.byID[p.id], p)
	j.entries.Store(int64(len(j.queue)))
}

// append is one group commit: all or nothing of the batch is durable, but for records that cannot be encoded.
func (j *journal) append(records []ledger.Record) []error {
	errs := make([]error, len(records))
	var out []byte
	places := make([]place, len(records))
	for i, r := range records {
		var payload []byte
		if payload, errs[i] = encodeRecord(r); errs[i] != nil {
			continue
		}
		places[i] = place{r.Notification.ID, int64(len(out)) + entryHead, len(payload)}
		out = binary.BigEndian.AppendUint32(out, entryMark)
		out = binary.BigEndian.AppendUint32(out, uint32(len(payload))) //nolint:gosec // far below 4 GiB
		out = binary.BigEndian.AppendUint32(out, crc32.Checksum(payload, checksums))
		out = append(out, payload...)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.write(out)
	if err != nil {
		err = fmt.Errorf("journal: %w", err)
	}
	for i := range records {
		switch {
		case errs[i] != nil:
		case err != nil:
			errs[i] = err
		default:
			p := places[i]
			p.at += j.size
			j.list(p)
		}
	}
	if err == nil {
		j.size += int64(len(out))
	}
	return errs
}

// write puts bytes after the others, on disk. After an error they are not there.
func (j *journal) write(out []byte) error {
	if j.size+int64(len(out)) > j.most {
		return fmt.Errorf("%w: outage.journal_bytes is %d", ErrJournalFull, j.most)
	}
	if err := faults.Before(faults.Journal); err != nil {
		return err
	}
	_, err := j.file.WriteAt(out, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return errors.Join(err, j.file.Truncate(j.size))
	}
	return faults.After(faults.Journal)
}

// find is what waits here of an id, in the order of writing.
func (j *journal) find(id notification.ID) ([]ledger.Record, error) {
	if j.entries.Load() == 0 {
		return nil, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []ledger.Record
	for _, p := range j.byID[id] {
		payload, err := j.read(p)
		if err != nil {
			return nil, err
		}
		r, err := decodeRecord(payload)
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		found = append(found, r)
	}
	return found, nil
}

// replay gives everything to store, batch by batch, and drops the file when nothing is left. What store could not keep is
// given to it again next time.
func (j *journal) replay(ctx context.Context, store func(context.Context, []ledger.Record) error) error {
	j.replaying.Lock()
	defer j.replaying.Unlock()
	for ctx.Err() == nil {
		places, batch, err := j.next()
		if err != nil || len(places) == 0 {
			return err
		}
		if err := store(ctx, batch); err != nil {
			return err
		}
		if err := j.forget(places); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (j *journal) read(p place) ([]byte, error) {
	payload := make([]byte, p.size)
	if _, err := j.file.ReadAt(payload, p.at); err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return payload, nil
}

// next is the next batch to be replayed. What cannot be decoded is kept aside instead.
func (j *journal) next() ([]place, []ledger.Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	places := slices.Clone(j.queue[:min(len(j.queue), replayedBatch)])
	var batch []ledger.Record
	for _, p := range places {
		payload, err := j.read(p)
		if err != nil {
			return nil, nil, err
		}
		if r, err := decodeRecord(payload); err == nil {
			batch = append(batch, r)
		} else if err := j.setAside(payload, p.at, err); err != nil {
			return nil, nil, err
		}
	}
	return places, batch, nil
}

// forget takes the first places out, and drops the file with the last one. A file that cannot be dropped is replayed once
// more after a restart: harmless.
func (j *journal) forget(places []place) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = j.queue[len(places):]
	for _, p := range places {
		if j.byID[p.id] = j.byID[p.id][1:]; len(j.byID[p.id]) == 0 {
			delete(j.byID, p.id)
		}
	}
	j.entries.Store(int64(len(j.queue)))
	if len(j.queue) > 0 {
		return nil
	}
	j.queue, j.size = nil, 0
	if err := errors.Join(j.file.Truncate(0), j.file.Sync()); err != nil {
		return fmt.Errorf("drop journal: %w", err)
	}
	return nil
}

func (j *journal) bytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

func (j *journal) close() error {
	j.add.Wait()
	return j.file.Close()
}

func syncFolder(dir string) error {
	folder, err := os.Open(dir) //nolint:gosec // the operator's own data folder
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
