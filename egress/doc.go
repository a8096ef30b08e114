// Package egress is the way out: it signs a notification to the merchant's contract, sends it over HTTP, reads a
// bounded answer and says what happened. [Client.Send] is one attempt from beginning to end; [Classify] is the whole
// rule of what its outcome is; [CheckURL] and [Guard] keep every request away from private addresses.
package egress
