//go:build !linux

package egress

// hungUp cannot look: what a merchant has closed meanwhile is found out by writing to it, which is unconfirmed.
func (w *wire) hungUp(bool) bool { return false }
