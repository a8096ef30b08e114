// Package outage carries on while a dependency is away. Watch says whether one is. Ledger stands before Postgres: while
// that is away, ids are reserved and records kept in JetStream, or in a journal on this node's disk when JetStream is away
// too, and a drainer moves them into Postgres when it answers again. Queues stands before JetStream: what cannot be
// published or scheduled becomes a row that is due.
//
// # What each place holds
//
// Stream RESERVED has one message for each id that was accepted while Postgres was away: it can only be created, so of a
// hundred submissions of an id on any nodes one is fresh. Stream SPILL has the records that Postgres could not take, by id.
// The journal has those that JetStream could not take either: one node's, on its own disk, and found by that node only.
// Writing a record into several of them is harmless, because the ledger keeps the newest by its own rules.
//
// # What may go wrong while Postgres is away
//
// A claim is judged by what SPILL, the journal and this process know, and granted otherwise. This process knows what it
// has recorded lately itself. So a notification that was canceled before the outage, or that another node, or this one
// long ago, delivered or took in hand, and of which another copy is on its way, can be sent once more; the merchant gets it
// under the same id. An id that another node accepted before the outage is accepted again
// here when it is submitted again: with the same content it can be sent twice, with other content it is put into the
// ledger's quarantine when the ledger hears of it. The same holds for a node that is cut off alone, which leaves its
// shards to the others after two seconds, and for an id whose reservation another node has moved into Postgres meanwhile.
package outage
