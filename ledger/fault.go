package ledger

import (
	"errors"
	"strings"

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
	codeUniqueViolation    = "23505"
	codeCheckViolation     = "23514" // this schema has no check but the partitions' bounds
	codeUndefinedTable     = "42P01"
	codeSerialization      = "40001"
	codeDeadlock           = "40P01"
	codeCannotConnectNow   = "57P03"
	codeTooManyConnections = "53300"
	codeLockNotAvailable   = "55P03"
	codeCanceled           = "57014" // by the statement timeout, or by somebody
	classData              = "22"
	classIntegrity         = "23"
	classLimit             = "54" // for example a text too long for an index
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

// Away reports whether an error of Open says that Postgres cannot be reached or is just starting: worth another try, as a
// wrong password is not.
func Away(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); !ok {
		return false
	}
	var pg *pgconn.PgError
	return !errors.As(err, &pg) || pg.Code == codeCannotConnectNow || pg.Code == codeTooManyConnections
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
