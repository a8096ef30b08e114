// Package folderlock keeps two engines from using one data folder at once.
package folderlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another process, or another part of this one, holds the folder.
var ErrInUse = errors.New("folder is in use")

// Name is the file inside the folder that carries the lock. It stays when the
// lock is released: unlinking it would let two holders lock two different files.
const Name = "notifyd.lock"

// Lock is held from Acquire until Release or the end of the process, kill -9
// included: the kernel drops it with the last descriptor, and the descriptor is
// not inherited by child processes.
type Lock struct {
	file *os.File
}

// Acquire locks the folder, which must exist, without waiting. Where it is taken
// the error wraps ErrInUse and names the holder, if the holder could write its id.
func Acquire(folder string) (*Lock, error) {
	path := filepath.Join(folder, Name)
	// The engine may be root in a folder of somebody else: a link must not lead it astray.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := flock(file); err != nil {
		holder := readHolder(file)
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w%s", folder, ErrInUse, holder)
		}
		return nil, fmt.Errorf("lock %s: %w", folder, err)
	}
	// The id only serves the message of whoever finds the folder taken, so failing
	// to write it (a full disk) is no reason not to start.
	if file.Truncate(0) == nil {
		_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{file: file}, nil
}

// Release gives the folder free. A second call does nothing.
func (l *Lock) Release() error {
	if err := l.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("release lock: %w", err)
	}
	return nil
}

func flock(file *os.File) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func readHolder(file *os.File) string {
	content := make([]byte, 32)
	n, _ := file.ReadAt(content, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(content[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" by process %d", pid)
}
