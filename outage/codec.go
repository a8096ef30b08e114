package outage

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"notifyd/ledger"
	"notifyd/notification"
	"notifyd/notification/envelope"
)

// A stored record is a version and sections, each with its length before it: the notification as an envelope of one, the
// rest as JSON without bodies, then for each attempt the request's body and the response's.
const (
	recordVersion      = 1
	reservationVersion = 1
)

// rest is what a record is besides its notification.
type rest struct {
	Attempts   []notification.Attempt `json:"attempts,omitempty"`
	SameBody   []bool                 `json:"same_body,omitempty"` // by attempt: the notification's own body was sent
	New        bool                   `json:"new,omitempty"`
	Unreserved bool                   `json:"unreserved,omitempty"`
	Unfed      bool                   `json:"unfed,omitempty"`
	Hold       *ledger.Hold           `json:"hold,omitempty"`
}

func encodeRecord(r ledger.Record) ([]byte, error) {
	head, err := envelope.Encode([]notification.Work{{Notification: r.Notification}})
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	more := rest{New: r.New, Unreserved: r.Unreserved, Unfed: r.Unfed, Hold: r.Hold}
	var bodies [][]byte
	for _, a := range r.Attempts { // copies: the record is not ours to change
		request, response := a.Request.Body, []byte(nil)
		same := len(request) > 0 && bytes.Equal(request, r.Notification.Body)
		if same {
			request = nil
		}
		a.Request.Body = nil
		if a.Response != nil {
			answer := *a.Response
			response, answer.Body = answer.Body, nil
			a.Response = &answer
		}
		more.Attempts, more.SameBody = append(more.Attempts, a), append(more.SameBody, same)
		bodies = append(bodies, request, response)
	}
	tail, err := json.Marshal(more)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	out := append(make([]byte, 0, 64+len(head)+len(tail)), recordVersion)
	for _, section := range append([][]byte{head, tail}, bodies...) {
		out = append(binary.AppendUvarint(out, uint64(len(section))), section...)
	}
	return out, nil
}

func decodeRecord(data []byte) (ledger.Record, error) {
	r, err := readRecord(data)
	if err != nil {
		return ledger.Record{}, fmt.Errorf("decode record: %w", err)
	}
	return r, nil
}

func readRecord(data []byte) (ledger.Record, error) {
	if len(data) == 0 || data[0] != recordVersion {
		return ledger.Record{}, errors.New("its version is not known")
	}
	sections := sectionReader{data: data[1:]}
	works, err := envelope.Decode(sections.next())
	if err != nil {
		return ledger.Record{}, errors.Join(err, sections.err)
	}
	var more rest
	if err := json.Unmarshal(sections.next(), &more); err != nil {
		return ledger.Record{}, errors.Join(err, sections.err)
	}
	if len(more.SameBody) != len(more.Attempts) {
		return ledger.Record{}, errors.New("its attempts and their bodies do not go together")
	}
	n := works[0].Notification
	for i := range more.Attempts {
		a := &more.Attempts[i]
		a.Request.Body = sections.next()
		if more.SameBody[i] {
			a.Request.Body = n.Body
		}
		if answer := sections.next(); a.Response != nil {
			a.Response.Body = answer
		}
	}
	if sections.err != nil || len(sections.data) > 0 {
		return ledger.Record{}, errors.Join(sections.err, fmt.Errorf("%d bytes are left over", len(sections.data)))
	}
	return ledger.Record{
		Notification: n, Attempts: more.Attempts, New: more.New, Unreserved: more.Unreserved, Unfed: more.Unfed, Hold: more.Hold,
	}, nil
}

// sectionReader takes sections off data. After an error all are empty.
type sectionReader struct {
	data []byte
	err  error
}

func (s *sectionReader) next() []byte {
	size, n := binary.Uvarint(s.data)
	if n <= 0 || size > uint64(len(s.data)-n) { //nolint:gosec // n is not larger
		s.data, s.err = nil, errors.New("a section is cut off")
		return nil
	}
	section := bytes.Clone(s.data[n : n+int(size)]) //nolint:gosec // not longer than data
	s.data = s.data[n+int(size):]                   //nolint:gosec // as above
	if len(section) == 0 {
		return nil
	}
	return section
}

// encodeReservation is a version, the digest and the instant in microseconds; the id stands in the subject.
func encodeReservation(r ledger.Reservation) []byte {
	out := append(make([]byte, 0, 1+len(r.Digest)+8), reservationVersion)
	return binary.BigEndian.AppendUint64(append(out, r.Digest[:]...), uint64(r.AcceptedAt.UnixMicro()))
}

func decodeReservation(subject string, data []byte) (ledger.Reservation, error) {
	var r ledger.Reservation
	if len(data) != 1+len(r.Digest)+8 || data[0] != reservationVersion {
		return r, fmt.Errorf("decode reservation: %d bytes of an unknown version", len(data))
	}
	id, err := notification.ParseID(lastToken(subject))
	if err != nil {
		return r, fmt.Errorf("decode reservation: %w", err)
	}
	r.ID = id
	copy(r.Digest[:], data[1:])
	r.AcceptedAt = time.UnixMicro(int64(binary.BigEndian.Uint64(data[1+len(r.Digest):]))).UTC() //nolint:gosec // written the same way
	return r, nil
}
