package scenario

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Disk is a small file system that fills up. It is mounted for the processes that are started on it, and for no others.
type Disk struct {
	Dir    string // as those processes see it
	seen   string // as the test sees it
	holder *process
}

// NewDisk mounts one of a size in bytes at a new folder, until the test ends. Where that is not allowed, the test is skipped.
func NewDisk(tb testing.TB, bytes int64) *Disk {
	tb.Helper()
	for _, tool := range []string{"unshare", "nsenter", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Skipf("no small disk: %v", err)
		}
	}
	d := &Disk{Dir: DataDir(tb)}
	script := `mount -t tmpfs -o "size=$1,mode=755" tmpfs "$2" && echo ready && exec cat`
	mount := command(nil, "unshare", "--mount", "sh", "-c", script, "sh", strconv.FormatInt(bytes, 10), d.Dir)
	d.holder = spawn(tb, spawned{name: "disk", cmd: mount, ready: func(line string) bool { return line == "ready" }})
	if err := d.holder.awaitReady(); err != nil {
		tb.Skipf("no small disk: a mount in a namespace of its own is not allowed here: %v", err)
	}
	d.seen = fmt.Sprintf("/proc/%d/root%s", d.holder.PID(), d.Dir)
	return d
}

// inside is a command that runs where the disk is mounted.
func (d *Disk) inside(path string, args []string) (tool string, all []string) {
	return "nsenter", append([]string{"--mount=/proc/" + strconv.Itoa(d.holder.PID()) + "/ns/mnt", "--", path}, args...)
}

// Fill takes all space that is left.
func (d *Disk) Fill(tb testing.TB) {
	tb.Helper()
	file, err := os.OpenFile(d.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for size := 1 << 20; size >= 1; {
		if _, err := file.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 16
		} else if err != nil {
			tb.Fatalf("fill disk: %v", err)
		}
	}
}

// Free gives back what Fill took.
func (d *Disk) Free(tb testing.TB) {
	tb.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		tb.Fatalf("free disk: %v", err)
	}
}

func (d *Disk) ballast() string { return filepath.Join(d.seen, "ballast") }
