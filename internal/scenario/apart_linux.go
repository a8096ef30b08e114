package scenario

import (
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Apart is the binary whose processes have the first core for themselves. The test gets the others, until its end. Where that
// cannot be, the test is skipped.
func (b *Binary) Apart(tb testing.TB) *Binary {
	tb.Helper()
	if _, err := exec.LookPath("taskset"); err != nil {
		tb.Skipf("no core of its own: %v", err)
	}
	var had, others unix.CPUSet
	if err := unix.SchedGetaffinity(0, &had); err != nil || had.Count() < 2 {
		tb.Skipf("no core of its own among %d: %v", had.Count(), err)
	}
	others = had
	first := 0
	for !had.IsSet(first) {
		first++
	}
	others.Clear(first)
	tb.Cleanup(func() { confine(tb, &had) })
	confine(tb, &others)
	changed := *b
	changed.cpus = strconv.Itoa(first)
	return &changed
}

// confine moves all threads of the test to some cores; new ones inherit that.
func confine(tb testing.TB, to *unix.CPUSet) {
	tb.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		tb.Fatal(err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = unix.SchedSetaffinity(id, to)
		}
		if err != nil && err != unix.ESRCH { //nolint:errorlint // a system call's own
			tb.Fatalf("move thread %s: %v", thread.Name(), err)
		}
	}
}
