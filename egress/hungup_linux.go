package egress

import "golang.org/x/sys/unix"

// hungUp reports whether the merchant has closed or reset the connection, as far as the kernel knows by now: it looks,
// and reads nothing. net/http learns the same from a goroutine that on a busy machine may run too late.
func (w *wire) hungUp() (gone bool) {
	if w.raw == nil {
		return false
	}
	err := w.raw.Control(func(fd uintptr) {
		look := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}} //nolint:gosec // a file descriptor fits
		n, err := unix.Poll(look[:], 0)
		gone = err == nil && n > 0 && look[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}
