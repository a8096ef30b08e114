// Package sync is the synchronous fast lane: the caller waits for the merchant's answer (scan, netbank).
//
// The folder's name is given; the package is legal beside the standard library's sync, which its own files import as
// usual. Everywhere else this one is imported as synclane.
package sync
