// Package interop proves contracts against the SDKs that the platforms' merchants use. It is a module of its own, so that
// none of them comes near the engine's dependencies; there is nothing in it but tests.
package interop
