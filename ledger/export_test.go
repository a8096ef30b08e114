package ledger

// The statements, for tests that look at their plans.
var (
	ListQuery       = listQuery
	FeedStatement   = feedStatement
	RescueStatement = rescueStatement
)

const ClaimLockStatement, ProofStatement = lockStatement, proofStatement

var FindManyStatement, ClaimStatement = findManyStatement, claimStatement
