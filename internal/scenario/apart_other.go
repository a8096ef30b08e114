//go:build !linux

package scenario

import "testing"

// Apart is the binary whose processes have a core for themselves. It cannot be had here: the test is skipped.
func (b *Binary) Apart(tb testing.TB) *Binary {
	tb.Helper()
	tb.Skip("no core of its own: this is not linux")
	return nil
}
