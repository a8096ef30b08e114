package ledger

import (
	"time"

	"notifyd/notification"
)

// Reservation asks for an id: that it was accepted, with which content, and when.
type Reservation struct {
	ID         notification.ID
	Digest     [32]byte
	AcceptedAt time.Time
}

// Reserved is what the ledger knows of a reserved id: what was asked when Fresh, else what was there first.
type Reserved struct {
	Fresh      bool
	Digest     [32]byte
	AcceptedAt time.Time
	// Elsewhere says that Postgres is away and the queues keep the reservation: the first record makes the ledger's.
	Elsewhere bool
	// Known is how far it had come when this process last recorded it, while Postgres is away and cannot be asked; its
	// Generation is 0 where nothing is known. Of a Progress it has State, Reason, Generation and Attempts.
	Known notification.Progress
}

// Record is a snapshot of a notification on its way, with the attempts that are new in it.
type Record struct {
	Notification *notification.Notification // with its Progress; nobody may change it any more
	Attempts     []notification.Attempt
	New          bool // a hint: there is no row yet. It decides how the row is written, not what is in it
	// Unreserved says that the notification was accepted without a reservation (Postgres was away): it is looked up and made
	// now. When another node has accepted the same id meanwhile, its acceptance counts; other content under the same id is
	// quarantined. A record that is not New is looked up anyway.
	Unreserved bool
	// Patient says that nobody waits for it: it may wait a little longer for company.
	Patient bool
	// Unfed says that the delay queue does not know of the due time: Feed or TakeDue brings it back.
	Unfed bool
	// Hold changes who has the notification in hand, together with the snapshot: not if the row knows of something newer.
	// Nil leaves that as it is.
	Hold *Hold
}

// Hold says who has a notification in hand, and until when at most: as good as a claim towards others, and its holder's
// claim is granted over it. It never takes another run's live claim away; nor a claim of its own or a lapsed one, unless
// the snapshot has an outcome, or is final without one: the next claimer is to learn of an attempt that left no trace.
type Hold struct {
	By string // a node's run
	// Until is when it lapses. The zero time says that By has it in hand no more; without By it says nothing.
	Until time.Time
}

// Claim asks whether an attempt may be made: nobody else is making it, and nothing has made it void.
type Claim struct {
	ID         notification.ID
	AcceptedAt time.Time
	Generation int64
	Attempts   int       // made so far, as the claimer knows it
	By         string    // the claimer: a node's run
	Until      time.Time // when the claim lapses if no record comes
	AllowFinal bool      // a resend of a delivered one
	// OnlyLapsed grants only where an earlier claim has lapsed: without one the attempt that was asked for is on record.
	OnlyLapsed bool
	// Unreserved says that it was accepted while Postgres did not answer.
	Unreserved bool
	// Notification is what a row is made of where there is none, claimed from the start: of two copies without a row one
	// wins. Nil, or one that Postgres refuses: the verdict is ClaimNoRow.
	Notification *notification.Notification
}

// Lost says which streams' contents are gone.
type Lost struct {
	Notify, Merchant, Retry bool
}

// ClaimVerdict answers a claim.
type ClaimVerdict uint8

// The verdicts.
const (
	ClaimGranted ClaimVerdict = 1
	// ClaimGrantedAfterLapse: an earlier claim lapsed without an outcome; the caller records an interrupted attempt for it.
	ClaimGrantedAfterLapse ClaimVerdict = 2
	// ClaimStale: the generation or the attempts have moved on, or it is final, or the id was accepted with other content.
	ClaimStale ClaimVerdict = 3
	// ClaimBusy: somebody else's claim is alive until the time returned.
	ClaimBusy ClaimVerdict = 4
	// ClaimNoRow: nothing but perhaps a reservation is there, and none was made.
	ClaimNoRow ClaimVerdict = 5
	// ClaimBehind: the row has not heard of the attempts that the claimer knows of; their record is still on its way.
	ClaimBehind ClaimVerdict = 6
)

// Filter narrows a list; zero values do not.
type Filter struct {
	ID        notification.ID
	RequestID string // of any source, unless Source is given

	MerchantID, OrderID, Scene, BatchID, Source string

	States   []notification.State
	Reason   notification.Reason
	From, To time.Time // accepted in [From, To)
}

// Cursor is a place in a list, newest first, or in the reservations, oldest first. The zero value is the start, and
// after the last page the end.
type Cursor struct {
	AcceptedAt time.Time
	ID         notification.ID
}

// IsZero reports whether it is the start or the end.
func (c Cursor) IsZero() bool { return c.AcceptedAt.IsZero() }

// ProofCursor is a place among the reservations.
type ProofCursor = Cursor

// ProofRow is one reservation and what the ledger knows of it.
type ProofRow struct {
	ID         notification.ID
	AcceptedAt time.Time
	Answered   bool               // see MarkAnswered
	State      notification.State // zero: no row
	Resting    bool
	NextAt     time.Time
	Reason     notification.Reason
}
