package envelope

import (
	"strconv"
	"strings"

	"notifyd/notification"
)

// The streams. Names and subjects are on disk: changing one strands what is stored under it.
const (
	NotifyStream   = "NOTIFY"   // accepted notifications, by shard
	MerchantStream = "MERCHANT" // own queues, by isolation key
	RetryStreams   = 4          // RETRY_0 … : what is due later, and what has come due
	SpillStream    = "SPILL"    // records that Postgres could not take, by id
	ReservedStream = "RESERVED" // ids accepted while Postgres was away
)

// RetryStream names the stream that keeps a shard's delayed work; schedules have streams of their own because the
// server collects all due ones in one pass under that stream's lock.
func RetryStream(shard int) string { return "RETRY_" + strconv.Itoa(shard%RetryStreams) }

// NotifySubject takes a shard's envelopes.
func NotifySubject(shard int) string { return "notify." + strconv.Itoa(shard) }

// DelaySubject holds the one schedule of an id: publishing again replaces it, purging cancels it.
func DelaySubject(shard int, id notification.ID) string {
	return "retry." + strconv.Itoa(shard%RetryStreams) + ".delay." + strconv.Itoa(shard) + "." + id.String()
}

// DueSubject receives what has come due.
func DueSubject(shard int) string {
	return "retry." + strconv.Itoa(shard%RetryStreams) + ".due." + strconv.Itoa(shard)
}

// DueSubjects are the due subjects of one retry stream.
func DueSubjects(stream int) string { return "retry." + strconv.Itoa(stream) + ".due.*" }

// RetrySubjects are all subjects of one retry stream.
func RetrySubjects(stream int) []string { return []string{"retry." + strconv.Itoa(stream) + ".>"} }

// OwnQueueSubject is one merchant's own queue.
func OwnQueueSubject(isolationKey string) string {
	return "own." + notification.KeyToken(isolationKey)
}

// SpillSubject holds the records of one id that wait for Postgres.
func SpillSubject(id notification.ID) string { return "spill." + id.String() }

// ReservedSubject holds the one reservation of an id that was accepted while Postgres was away.
func ReservedSubject(id notification.ID) string { return "reserved." + id.String() }

// UndecodableSubject keeps messages that could not be read, for people.
const UndecodableSubject = "own._undecodable"

// PlaceOf names the place that a stored message's subject stands for: shard, own_queue, delay or due.
func PlaceOf(subject string) string {
	parts := strings.Split(subject, ".")
	switch {
	case parts[0] == "notify":
		return "shard"
	case parts[0] == "own":
		return "own_queue"
	case parts[0] == "retry" && len(parts) > 2:
		return parts[2]
	}
	return "unknown"
}
