//go:build !faults

package faults

// Before is called right before a write.
func Before(string) error { return nil }

// After is called right after a write that took effect.
func After(string) error { return nil }
