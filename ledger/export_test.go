package ledger

import (
	"context"
	"time"
)

// The statements, for tests that look at their plans.
var (
	ListQuery                         = listQuery
	FeedStatement                     = feedStatement
	RescueStatement                   = rescueStatement
	TakeDueStatement, RecallStatement = takeDueStatement, recallStatement
)

const (
	ClaimLockStatement, ProofStatement = lockStatement, proofStatement
	SourcesStatement, BatchStatement   = sourcesStatement, batchStatement
)

var FindManyStatement, ClaimStatement = findManyStatement, claimStatement

// Named is where rows stand that a filter names.
func Named(accepted []time.Time, ids [][16]byte) *rowKeys { return &rowKeys{accepted, ids} }

// Migrations are the files of the schema.
var Migrations = migrations

// ResealUntil seals anew one page of merchants, and dies.
func (l *Postgres) ResealUntil(ctx context.Context, die func()) (int, error) {
	n, last, _, err := l.merchants.resealSome(ctx, "")
	if err != nil {
		return n, err
	}
	die()
	_, _, _, err = l.merchants.resealSome(ctx, last)
	return n, err
}
