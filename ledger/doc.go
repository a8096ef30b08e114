// Package ledger remembers every notification, every attempt and every merchant in Postgres. It is the only package
// that speaks SQL.
//
// A notification is first reserved (Reserve: its id and content digest, once per group commit), later written as a full
// row together with its attempts (Record, through the writers in batches), claimed before an attempt that somebody may
// have made void (Claim), and found again (Find, FindMany, List). The sweep feeds what falls due to the delay queue and
// rescues what was forgotten (Feed, Rescue). rules.go says, without I/O, what may follow what; Postgres and Memory are
// both held to it by package ledgertest.
package ledger
