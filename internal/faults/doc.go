// Package faults hurts the engine at its durable writes, for tests: a binary built with the tag "faults" can be told by
// its environment to die, to fail or to panic right before or right after a named write. Any other build does nothing here.
//
// NOTIFYD_FAULTS holds comma-separated rules: <write>.<before|after>=<kill|fail|panic>[@<n>], for example
// "publish.after=kill@3": the process dies at the end of its third publish. Without a number the first one counts; "@*" is
// every one. "before=fail" is a write that failed, "after=fail" one that took effect though its writer hears of a failure.
package faults

// Variable is where the rules stand.
const Variable = "NOTIFYD_FAULTS"

// The writes. Each is a step after which the truth about a notification lies somewhere else.
const (
	Reserve   = "reserve"   // ids into the table of reservations
	LineUp    = "line_up"   // the place and the row of what has an ordering_key or a supersede_key
	Publish   = "publish"   // an envelope into its shard
	Send      = "send"      // the request to the merchant
	Classify  = "classify"  // what came of it, in memory only
	Record    = "record"    // snapshot and attempts into the ledger
	Spill     = "spill"     // the same into the spill stream
	Journal   = "journal"   // the same into the local journal
	Schedule  = "schedule"  // the next attempt into the delay window
	Claim     = "claim"     // a claim on a row
	Own       = "own"       // a notification into its own queue
	Unown     = "unown"     // its removal from there
	Ack       = "ack"       // the acknowledgement of an envelope
	Elsewhere = "elsewhere" // a reservation into its stream while Postgres is away
)

// Writes are all names.
func Writes() []string {
	return []string{Reserve, LineUp, Publish, Send, Classify, Record, Spill, Journal, Schedule, Claim, Own, Unown, Ack, Elsewhere}
}
