package ledger

import "time"

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
func Named(accepted []time.Time, ids [][16]byte) *keys { return &keys{accepted, ids} }

// Migrations are the files of the schema.
var Migrations = migrations
