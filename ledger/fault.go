package ledger

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// fault says what to do about an error of a batch.
type fault uint8

const (
	faultPassing   fault = iota + 1 // not the batch's: the connection, the server, its disk; try again later
	faultCollision                  // a deadlock or the like; try again at once
	faultDuplicate                  // something is there already; repeat with care
	faultPartition                  // a day has no partition
	faultData                       // Postgres refuses something in it
)

// SQLSTATEs that are told apart; see errcodes in Postgres' manual.
const (
	codeUniqueViolation  = "23505"
	codeCheckViolation   = "23514" // this schema has no check but the partitions' bounds
	codeUndefinedTable   = "42P01"
	codeSerialization    = "40001"
	codeDeadlock         = "40P01"
	codeLockNotAvailable = "55P03"
	codeReadOnly         = "25006"
	codeIdleTooLong      = "25P03" // the process was paused in the middle of a transaction
	codeCanceled         = "57014" // by the statement timeout, or by somebody
	codeNoDatabase       = "3D000"
	classData            = "22"
	classIntegrity       = "23"
	classLimit           = "54" // for example a text too long for an index
	classConnection      = "08"
	classPassword        = "28"
	classResources       = "53" // disk full, memory, too many connections
	classOperator        = "57" // shutting down, starting, canceled
	classSystem          = "58" // its disk fails
)

func classify(err error) fault {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return faultPassing
	}
	switch {
	case pg.Code == codeUniqueViolation:
		return faultDuplicate
	case pg.Code == codeCheckViolation:
		return faultPartition
	case pg.Code == codeSerialization, pg.Code == codeDeadlock:
		return faultCollision
	case strings.HasPrefix(pg.Code, classData), strings.HasPrefix(pg.Code, classIntegrity), strings.HasPrefix(pg.Code, classLimit):
		return faultData
	default:
		return faultPassing
	}
}

// Unavailable reports whether an error says that Postgres is away, too slow, or cannot write: it has nothing to do with
// what was asked, and something else may stand in. False for answers and refusals, and when it was the caller who left.
// A deadline that passed counts, also the caller's own.
func Unavailable(err error) bool {
	if _, refused := errors.AsType[*QuarantinedError](err); refused || err == nil || errors.Is(err, ErrTooLong) || errors.Is(err, ErrBusy) {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return unavailableCode(pg.Code) || isConnectError(err)
	}
	if errors.Is(err, context.Canceled) {
		return false
	}
	for _, sign := range []error{
		ErrAway, context.DeadlineExceeded, os.ErrDeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, pgconn.ErrConnClosed,
		pgx.ErrTxCommitRollback,
	} {
		if errors.Is(err, sign) {
			return true
		}
	}
	_, network := errors.AsType[net.Error](err)
	return network || isConnectError(err) || pgconn.SafeToRetry(err)
}

func unavailableCode(code string) bool {
	switch code {
	case codeReadOnly, codeIdleTooLong, codeLockNotAvailable:
		return true
	}
	return slices.Contains([]string{classConnection, classResources, classOperator, classSystem}, code[:min(2, len(code))])
}

func isConnectError(err error) bool {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting
}

// Away reports whether an error of Open says that Postgres cannot be reached or is just starting: worth another try, as a
// wrong password is not.
func Away(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && (strings.HasPrefix(pg.Code, classPassword) || pg.Code == codeNoDatabase) {
		return false
	}
	return Unavailable(err)
}

// isLockFault reports whether somebody else had a lock for too long: worth another try.
func isLockFault(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == codeLockNotAvailable || pg.Code == codeDeadlock)
}

func isUndefinedTable(err error) bool { return hasCode(err, codeUndefinedTable) }

func hasCode(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}
