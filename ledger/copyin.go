package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// copying is rows on their way into a table.
type copying struct {
	table   string
	columns []string
	rows    *rows
}

// copyIn writes rows into several tables in one round trip: the statements are one simple query, which is a transaction of
// its own where none is open, and the rows of all follow without waiting to be asked for them. Postgres drops what
// follows a statement that failed. pgx's CopyFrom asks first, takes one table at a time, and may read the rows on a
// goroutine of its own after it has returned. No rows at all are fine; each are sent once.
func copyIn(ctx context.Context, conn *pgconn.PgConn, parts ...copying) error {
	var statements []string
	messages := net.Buffers{nil}
	for _, part := range parts {
		if part.rows.count > 0 {
			statements = append(statements, "copy "+part.table+" ("+columnList(part.columns)+") from stdin binary")
			messages = append(messages, part.rows.messages())
		}
	}
	if len(statements) == 0 {
		return nil
	}
	messages[0] = queryMessage(strings.Join(statements, ";"))
	if err := sendAll(ctx, conn, messages); err != nil {
		hangUp(ctx, conn)
		return fmt.Errorf("copy rows: %w", err)
	}
	return endOfQuery(ctx, conn)
}

func queryMessage(sql string) []byte {
	message := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(sql)+1)) //nolint:gosec // a statement
	return append(append(message, sql...), 0)
}

func sendAll(ctx context.Context, conn *pgconn.PgConn, messages net.Buffers) error {
	cut := context.AfterFunc(ctx, func() { _ = conn.Conn().SetWriteDeadline(time.Unix(1, 0)) })
	_, err := messages.WriteTo(conn.Conn())
	if !cut() {
		return context.Cause(ctx)
	}
	return err
}

// endOfQuery reads what Postgres says until it is ready for the next query. The connection is lost if it never is.
func endOfQuery(ctx context.Context, conn *pgconn.PgConn) error {
	var refused error
	for {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			hangUp(ctx, conn)
			return fmt.Errorf("copy rows: %w", err)
		}
		switch message := message.(type) {
		case *pgproto3.ErrorResponse:
			refused = pgconn.ErrorResponseToPgError(message)
		case *pgproto3.ReadyForQuery:
			return refused
		}
	}
}

// hangUp closes a connection of which nobody knows what comes next, without waiting for anything.
func hangUp(ctx context.Context, conn *pgconn.PgConn) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	_ = conn.Close(over) // it is of no more use either way
}
