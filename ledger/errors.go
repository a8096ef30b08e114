package ledger

import (
	"errors"
	"fmt"

	"notifyd/notification"
)

// What callers must tell apart.
var (
	ErrNotFound = errors.New("not in the ledger")
	// ErrReservedOnly says that the id was accepted but has no row yet: it is on its way, or was lost before its first row.
	ErrReservedOnly = errors.New("accepted, but no row yet")
	ErrFinal        = errors.New("already final")
	ErrInFlight     = errors.New("an attempt is in flight")
	// ErrConflict says that the settings are not the version that was to be replaced.
	ErrConflict = errors.New("the settings have changed meanwhile")
	// ErrTooLong says that a search was ended because it read for longer than it may.
	ErrTooLong = errors.New("the search took too long")
	// ErrBusy says that a search got no turn in time: others were searching. Nothing is wrong with it; it may be repeated.
	ErrBusy = errors.New("too many searches at once")
	// ErrAway says that Postgres does not answer.
	ErrAway = errors.New("the ledger is unavailable")
	// ErrIncomplete comes with what the queues know of a notification while Postgres does not answer.
	ErrIncomplete = errors.New("the ledger is unavailable: this is what the queues know")
	// ErrClosed says that the ledger has ended before the record was written. It may still have been.
	ErrClosed = errors.New("ledger is closed")
)

// QuarantinedError says that Postgres refuses the record as it is; it is kept in the quarantine table. Trying again is useless.
type QuarantinedError struct {
	ID  notification.ID
	Err error
}

func (e *QuarantinedError) Error() string {
	return fmt.Sprintf("record %s: quarantined: %v", e.ID, e.Err)
}

// Unwrap gives what Postgres said.
func (e *QuarantinedError) Unwrap() error { return e.Err }
