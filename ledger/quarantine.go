package ledger

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"notifyd/notification"
)

// Quarantined is a record that Postgres refused, kept whole.
type Quarantined struct {
	Number int64
	At     time.Time
	ID     notification.ID
	Reason string
	Record Record
}

// quarantine keeps a record aside, so that its neighbours go on and somebody sees it.
func (w *writers) quarantine(ctx context.Context, p *pending, cause error) {
	backoff := &backoff{next: backoffFirst, wake: &w.l.answered}
	for {
		err := w.l.addQuarantined(ctx, p, cause)
		if err == nil {
			w.finish(p, &QuarantinedError{p.Notification.ID, cause})
			return
		}
		w.l.log.Warn("a record cannot be put into quarantine", zap.Stringer("id", p.Notification.ID), zap.Error(err))
		if !backoff.wait(ctx) {
			w.fail([]*pending{p}, err)
			return
		}
	}
}

func (l *Postgres) addQuarantined(ctx context.Context, p *pending, cause error) error {
	var record bytes.Buffer
	if err := gob.NewEncoder(&record).Encode(p.Record); err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) error {
		inLines := linesOf([]*pending{p})
		if err := lockLines(ctx, tx, inLines); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `insert into quarantine (at, notification_id, reason, record) values ($1, $2, $3, $4)`,
			l.now(), [16]byte(p.Notification.ID), visible(cause.Error()), record.Bytes())
		if err != nil || len(inLines) == 0 || errors.Is(cause, errOtherContent) { // which is not what has the place
			return err
		}
		return l.leaveLines(ctx, tx, p)
	})
	if err != nil {
		return err
	}
	l.writers.counts.quarantined.Add(1)
	l.log.Error("a record is in quarantine", zap.Stringer("id", p.Notification.ID), zap.Error(cause))
	return nil
}

// Quarantine is a page of what was refused, oldest first, after a number.
func (l *Postgres) Quarantine(ctx context.Context, after int64, limit int) ([]Quarantined, error) {
	ctx, cancel := l.bounded(ctx)
	defer cancel()
	rows, err := l.pool.Query(ctx, `select id, at, notification_id, reason, record from quarantine where id > $1 order by id limit $2`,
		after, clampPage(limit))
	if err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quarantined, err error) {
		var record []byte
		if err := row.Scan(&q.Number, timeOf(&q.At), (*[16]byte)(&q.ID), &q.Reason, &record); err != nil {
			return q, err
		}
		return q, gob.NewDecoder(bytes.NewReader(record)).Decode(&q.Record)
	})
	if err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	return page, nil
}
