// Package contract says how each merchant is told: it makes requests and judges answers, and does no I/O. A contract is a
// profile by name, a small piece of settings over the primitives of the packages below, and what a merchant has of its own.
//
// The steps of one request:
//
//	values      what the engine knows of the notification, the time, a nonce
//	fields      the payload as the merchant's fields            contract/encode
//	encryption  a part of it is sealed, where the contract says so
//	signature   of a string that a pattern makes                contract/sign
//	placement   in a field, in the JSON body, or in a header
//	bytes       what was signed is what is sent and kept (P5)
//
// and of one answer: the rule of contract/answer.
package contract
