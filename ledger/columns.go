package ledger

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"notifyd/notification"
)

// What a notification gave and where it stands, in the table's order. fed and whose it is are written beside them.
var (
	frozenColumns = []string{
		"accepted_at", "id", "digest", "source", "request_id", "merchant_id", "app_id", "scene", "event_type", "order_id",
		"order_status", "terminal", "status_version", "batch_id", "notify_url", "body", "content_type", "currency",
		"minor_units", "occurred_at", "order_created_at", "not_before", "expires_at", "ordering_key", "supersede_key", "labels",
		"requested_lane", "route_lane", "isolation_key", "egress", "schedule", "persist", "rule", "origin",
	}
	progressColumns = []string{
		"state", "reason", "generation", "attempts", "step", "next_at", "window_from", "resting", "deferred_for",
		"deferred_since", "settled_at", "settled_by", "updated_at",
	}
	readColumns  = append(append([]string{}, frozenColumns...), progressColumns...)
	writeColumns = append(append([]string{}, readColumns...), "fed", "claimed_until", "claimed_by", "claimed_by_until", "held")
)

// readClaim selects a claimed: whose the claim is counts only for the claim that it was written with.
const readClaim = `n.claimed_until, case when n.claimed_by_until = n.claimed_until then n.claimed_by else '' end,
	n.held and n.claimed_by_until is not distinct from n.claimed_until`

// into are the places for what readClaim selects.
func (c *claimed) into() []any { return []any{timeOf(&c.until), &c.by, &c.held} }

// standing is what is written of a row beside its notification. In a row of the upsert, held with a claim or without one says
// that the record brings its own Hold.
type standing struct {
	fed   bool
	claim claimed
}

func columnList(columns []string) string { return strings.Join(columns, ", ") }

// columnsOf is a list for SQL, each column of the table named.
func columnsOf(table string, columns []string) string {
	return table + "." + strings.Join(columns, ", "+table+".")
}

var readNotification = columnsOf("n", readColumns)

// notification adds a row in the order of writeColumns.
func (r *rows) notification(n *notification.Notification, acceptedAt time.Time, s standing) {
	r.begin(writeColumns)
	r.instants(acceptedAt)
	r.uuid(n.ID)
	r.bytes(n.Digest[:])
	r.text(n.Source, n.RequestID, n.MerchantID, n.AppID, n.Scene, n.EventType, n.OrderID, n.OrderStatus)
	r.boolean(n.Terminal)
	r.bigint(n.StatusVersion)
	r.text(n.BatchID, n.NotifyURL)
	r.bytes(n.Body)
	r.text(n.ContentType, n.Amount.Currency)
	r.bigint(n.Amount.MinorUnits)
	r.instants(n.OccurredAt, n.OrderCreatedAt, n.NotBefore, n.ExpiresAt)
	r.text(n.OrderingKey, n.SupersedeKey, jsonObject(n.Labels))
	r.smallint(uint8(n.RequestedLane), uint8(n.Route.Lane))
	r.text(n.Route.IsolationKey, n.Route.Egress, n.Route.Schedule)
	r.smallint(uint8(n.Route.Persist))
	r.text(n.Route.Rule, n.Origin)

	r.smallint(uint8(n.State))
	r.text(string(n.Reason))
	r.bigint(n.Generation)
	r.integer(n.Attempts)
	r.integer(n.Step)
	r.instants(n.NextAt, n.WindowFrom)
	r.boolean(n.Resting)
	r.durations(n.DeferredFor)
	r.instants(n.DeferredSince, n.SettledAt)
	r.text(n.SettledBy)
	r.instants(or(n.UpdatedAt, acceptedAt))
	r.boolean(s.fed)
	r.instants(s.claim.until)
	r.text(s.claim.by)
	r.instants(s.claim.until)
	r.boolean(s.claim.held)
}

// progressValues are the parameters for progressColumns.
func progressValues(p *notification.Progress) []any {
	return []any{
		int16(p.State), string(p.Reason), p.Generation, int64(p.Attempts), int64(p.Step), instant(p.NextAt), instant(p.WindowFrom), p.Resting,
		p.DeferredFor.Microseconds(), instant(p.DeferredSince), instant(p.SettledAt), p.SettledBy, instant(p.UpdatedAt),
	}
}

// scannable is a row of a result.
type scannable interface{ Scan(dest ...any) error }

// scanNotification reads what readColumns hold, and after them whatever else was selected.
func scanNotification(row scannable, more ...any) (*notification.Notification, error) {
	n := &notification.Notification{}
	var digest []byte
	var labels string
	var deferred int64
	if err := row.Scan(append([]any{
		timeOf(&n.AcceptedAt), (*[16]byte)(&n.ID), &digest, &n.Source, &n.RequestID, &n.MerchantID, &n.AppID, &n.Scene, &n.EventType, &n.OrderID,
		&n.OrderStatus, &n.Terminal, &n.StatusVersion, &n.BatchID, &n.NotifyURL, &n.Body, &n.ContentType, &n.Amount.Currency,
		&n.Amount.MinorUnits, timeOf(&n.OccurredAt), timeOf(&n.OrderCreatedAt), timeOf(&n.NotBefore), timeOf(&n.ExpiresAt),
		&n.OrderingKey, &n.SupersedeKey, &labels,
		(*uint8)(&n.RequestedLane), (*uint8)(&n.Route.Lane), &n.Route.IsolationKey, &n.Route.Egress, &n.Route.Schedule,
		(*uint8)(&n.Route.Persist), &n.Route.Rule, &n.Origin,
		(*uint8)(&n.State), (*string)(&n.Reason), &n.Generation, &n.Attempts, &n.Step, timeOf(&n.NextAt), timeOf(&n.WindowFrom), &n.Resting,
		&deferred, timeOf(&n.DeferredSince), timeOf(&n.SettledAt), &n.SettledBy, timeOf(&n.UpdatedAt),
	}, more...)...); err != nil {
		return nil, fmt.Errorf("read notification: %w", err)
	}
	copy(n.Digest[:], digest)
	n.DeferredFor = time.Duration(deferred) * time.Microsecond
	if len(n.Body) == 0 {
		n.Body = nil
	}
	if labels != "" {
		if err := json.Unmarshal([]byte(labels), &n.Labels); err != nil {
			return nil, fmt.Errorf("read notification %s: labels: %w", n.ID, err)
		}
	}
	return n, nil
}

// instant is null for the zero time.
func instant(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}

// utc scans an instant: UTC, zero for null.
type utc struct{ to *time.Time }

func timeOf(to *time.Time) utc { return utc{to} }

// ScanTimestamptz implements pgtype.TimestamptzScanner.
func (u utc) ScanTimestamptz(v pgtype.Timestamptz) error {
	*u.to = time.Time{}
	if v.Valid {
		*u.to = v.Time.UTC()
	}
	return nil
}

func jsonObject(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	text, err := json.Marshal(m)
	if err != nil { // a map of strings always marshals
		panic(err)
	}
	return string(text)
}
