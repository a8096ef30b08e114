// Package notification holds the nouns of the engine: the notification, its attempts, and the closed sets of
// words that say where it stands. It imports the standard library only and does no I/O.
package notification
