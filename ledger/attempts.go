package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"notifyd/notification"
)

var attemptColumns = []string{
	"accepted_at", "notification_id", "number", "key", "generation", "kind", "trigger", "outcome", "reason", "detail",
	"counted", "started_at", "took", "took_dns", "took_connect", "took_tls", "took_write", "took_first_byte", "took_read",
	"connects", "local_addr", "remote_addr", "tls", "egress", "key_ids", "settings_version",
	"request_method", "request_url", "request_headers", "request_body",
	"response_status", "response_headers", "response_body", "response_truncated", "late_at", "operator", "retry_after",
}

var readAttempt = columnsOf("a", attemptColumns[2:])

// attempt adds a row in the order of attemptColumns.
func (r *rows) attempt(n *notification.Notification, acceptedAt time.Time, a *notification.Attempt) {
	r.begin(attemptColumns)
	r.instants(acceptedAt)
	r.uuid(n.ID)
	r.integer(a.Number)
	r.uuid(a.Key)
	r.bigint(a.Generation)
	r.smallint(uint8(a.Kind), uint8(a.Trigger), uint8(a.Outcome))
	r.text(visible(string(a.Reason)), visible(a.Detail))
	r.boolean(a.Counted)
	r.instants(a.StartedAt)
	r.durations(a.Took, a.Phases.DNS, a.Phases.Connect, a.Phases.TLS, a.Phases.Write, a.Phases.FirstByte, a.Phases.Read)
	r.integer(a.Connects)
	r.text(visible(a.LocalAddr), visible(a.RemoteAddr), visible(a.TLS), visible(a.Egress))
	r.texts(a.KeyIDs)
	r.bigint(a.SettingsVersion)
	r.text(visible(a.Request.Method), visible(a.Request.URL))
	r.headers(a.Request.Headers)
	if bytes.Equal(a.Request.Body, n.Body) {
		r.null() // it is there already
	} else {
		r.bytes(a.Request.Body)
	}
	if answer := a.Response; answer != nil {
		r.integer(answer.Status)
		r.headers(answer.Headers)
		r.bytes(answer.Body)
		r.boolean(answer.Truncated)
	} else {
		for range 4 {
			r.null()
		}
	}
	r.instants(a.LateAt)
	r.text(visible(a.Operator))
	r.durations(a.RetryAfter)
}

// findAttempts reads a notification's attempts in the order they were made.
func (l *Postgres) findAttempts(ctx context.Context, n *notification.Notification) ([]notification.Attempt, error) {
	rows, err := l.pool.Query(ctx, `select `+readAttempt+` from attempts a
		where a.accepted_at = $1 and a.notification_id = $2 order by a.number, a.started_at, a.key`, n.AcceptedAt, [16]byte(n.ID))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (notification.Attempt, error) { return scanAttempt(row, n.Body) })
}

func scanAttempt(row scannable, body []byte) (notification.Attempt, error) {
	var a notification.Attempt
	var status *int
	var truncated *bool
	var keyIDs, requestHeaders string
	var responseHeaders *string
	var responseBody []byte
	if err := row.Scan(&a.Number, (*[16]byte)(&a.Key), &a.Generation, (*uint8)(&a.Kind), (*uint8)(&a.Trigger), (*uint8)(&a.Outcome),
		(*string)(&a.Reason), &a.Detail, &a.Counted, timeOf(&a.StartedAt),
		micros{&a.Took}, micros{&a.Phases.DNS}, micros{&a.Phases.Connect}, micros{&a.Phases.TLS}, micros{&a.Phases.Write},
		micros{&a.Phases.FirstByte}, micros{&a.Phases.Read},
		&a.Connects, &a.LocalAddr, &a.RemoteAddr, &a.TLS, &a.Egress, &keyIDs, &a.SettingsVersion,
		&a.Request.Method, &a.Request.URL, &requestHeaders, &a.Request.Body,
		&status, &responseHeaders, &responseBody, &truncated, timeOf(&a.LateAt), &a.Operator, micros{&a.RetryAfter}); err != nil {
		return a, fmt.Errorf("read attempt: %w", err)
	}
	switch {
	case a.Request.Body == nil:
		a.Request.Body = body
	case len(a.Request.Body) == 0:
		a.Request.Body = nil
	}
	if err := readList(keyIDs, &a.KeyIDs); err != nil {
		return a, err
	}
	if err := readList(requestHeaders, &a.Request.Headers); err != nil {
		return a, err
	}
	if status == nil {
		return a, nil
	}
	a.Response = &notification.Response{Status: *status, Truncated: *truncated}
	if len(responseBody) > 0 {
		a.Response.Body = responseBody
	}
	return a, readList(*responseHeaders, &a.Response.Headers)
}

// micros scans a duration.
type micros struct{ to *time.Duration }

// ScanInt64 implements pgtype.Int64Scanner.
func (m micros) ScanInt64(v pgtype.Int8) error {
	*m.to = time.Duration(v.Int64) * time.Microsecond
	return nil
}

func readList[T any](text string, to *[]T) error {
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), to); err != nil {
		return fmt.Errorf("read attempt: list: %w", err)
	}
	return nil
}
