package egress

import "golang.org/x/sys/unix"

// hungUp reports whether the merchant has closed or reset the connection, as far as the kernel knows by now: it looks,
// and reads nothing. silent: something to read counts as well.
func (w *wire) hungUp(silent bool) (gone bool) {
	if w.raw == nil {
		return false
	}
	signs := int16(unix.POLLRDHUP | unix.POLLHUP | unix.POLLERR)
	if silent {
		signs |= unix.POLLIN
	}
	err := w.raw.Control(func(fd uintptr) {
		look := [1]unix.PollFd{{Fd: int32(fd), Events: signs}} //nolint:gosec // a file descriptor fits
		n, err := unix.Poll(look[:], 0)
		gone = err == nil && n > 0 && look[0].Revents&signs != 0
	})
	return gone || err != nil
}
