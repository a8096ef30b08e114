package ledger

import (
	"encoding/binary"
	"sync"
	"time"

	"notifyd/internal/jsontext"
	"notifyd/notification"
)

// rows are encoded as COPY's binary format wants them, inside the messages that carry them, see copyIn. pgx's own CopyFrom
// takes each value as an interface: with 80 columns for a notification and its attempt that was most of what the writers
// cost.
type rows struct {
	buf   []byte
	count int
}

// The format's frame, see "COPY" in Postgres' manual: a signature, no flags, no extension; at the end -1 for a row.
var (
	copyHeader  = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	copyTrailer = []byte{0xff, 0xff}
	nullValue   = []byte{0xff, 0xff, 0xff, 0xff}
)

// The messages around it, see "Message Formats" there: CopyData, with room for its length, and CopyDone.
var (
	copyData = []byte{'d', 0, 0, 0, 0}
	copyDone = []byte{'c', 0, 0, 0, 4}
)

// postgresEpoch is 2000-01-01, from which Postgres counts microseconds.
const postgresEpoch = 946_684_800_000_000

// spareRows keep their memory from batch to batch; one that grew far beyond an ordinary batch is not kept.
var spareRows = sync.Pool{New: func() any { return &rows{} }}

func newRows() *rows {
	r, ok := spareRows.Get().(*rows)
	if !ok { // cannot be: nothing else is in there
		r = &rows{}
	}
	r.buf, r.count = append(append(r.buf[:0], copyData...), copyHeader...), 0
	return r
}

func (r *rows) release() {
	if cap(r.buf) <= 2*batchBytes {
		spareRows.Put(r)
	}
}

// begin starts a row; each value of it follows in the order of the columns.
func (r *rows) begin(columns []string) {
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(len(columns))) //nolint:gosec // a few dozen
	r.count++
}

func (r *rows) length(n int) { r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(n)) } //nolint:gosec // bounded by the queue

func (r *rows) null() { r.buf = append(r.buf, nullValue...) }

func (r *rows) text(values ...string) {
	for _, v := range values {
		r.length(len(v))
		r.buf = append(r.buf, v...)
	}
}

// texts and headers are a JSON array, or empty. What Postgres would refuse in them is made visible.
func (r *rows) texts(list []string) {
	r.array(len(list), func(i int) { r.buf = jsontext.AppendString(r.buf, visible(list[i])) })
}

func (r *rows) headers(list []notification.Header) {
	r.array(len(list), func(i int) {
		r.buf = jsontext.AppendString(append(r.buf, `{"n":`...), visible(list[i].Name))
		r.buf = append(jsontext.AppendString(append(r.buf, `,"v":`...), visible(list[i].Value)), '}')
	})
}

// array writes a JSON array of n items, or an empty text for none.
func (r *rows) array(n int, item func(i int)) {
	at := len(r.buf)
	r.length(0)
	for i := range n {
		r.buf = append(r.buf, "[,"[min(i, 1)])
		item(i)
	}
	if n > 0 {
		r.buf = append(r.buf, ']')
	}
	binary.BigEndian.PutUint32(r.buf[at:], uint32(len(r.buf)-at-4)) //nolint:gosec // bounded by the queue
}

func (r *rows) bytes(v []byte) {
	r.length(len(v))
	r.buf = append(r.buf, v...)
}

func (r *rows) smallint(values ...uint8) {
	for _, v := range values {
		r.buf = append(r.buf, 0, 0, 0, 2, 0, v)
	}
}

// integer is checked before it comes here, see checkRecord.
func (r *rows) integer(v int) {
	r.length(4)
	r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(v)) //nolint:gosec // every bit pattern is wanted
}

func (r *rows) bigint(v int64) {
	r.length(8)
	r.buf = binary.BigEndian.AppendUint64(r.buf, uint64(v)) //nolint:gosec // every bit pattern is wanted
}

func (r *rows) boolean(v bool) {
	r.buf = append(r.buf, 0, 0, 0, 1, 0)
	if v {
		r.buf[len(r.buf)-1] = 1
	}
}

func (r *rows) uuid(id notification.ID) { r.bytes(id[:]) }

func (r *rows) durations(values ...time.Duration) {
	for _, v := range values {
		r.bigint(v.Microseconds())
	}
}

// instants are null for the zero time.
func (r *rows) instants(values ...time.Time) {
	for _, v := range values {
		if v.IsZero() {
			r.null()
		} else {
			r.bigint(v.UnixMicro() - postgresEpoch)
		}
	}
}

// messages ends the rows: nothing may be added any more.
func (r *rows) messages() []byte {
	r.buf = append(r.buf, copyTrailer...)
	binary.BigEndian.PutUint32(r.buf[1:], uint32(len(r.buf)-1)) //nolint:gosec // a batch is bounded
	r.buf = append(r.buf, copyDone...)
	return r.buf
}
