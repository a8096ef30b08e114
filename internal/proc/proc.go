// Package proc reads what Linux knows of processes.
package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// stat is what /proc/PID/stat says of one process.
type stat struct {
	parent int
	cpu    time.Duration // of the process itself
	ended  time.Duration // of its children that have ended
}

func readStat(pid string) (stat, bool) {
	raw, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return stat{}, false
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+2:])
	number := func(i int) int { n, _ := strconv.Atoi(fields[i-3]); return n } // fields are counted from 1, the first here is the third
	ticks := func(a, b int) time.Duration { return time.Duration(number(a)+number(b)) * clockTick }
	return stat{parent: number(4), cpu: ticks(14, 15), ended: ticks(16, 17)}, true
}

// CPU is the CPU time of one process so far: from its own clock, which counts nanoseconds, and where a sandbox's kernel
// has no such clock from its ticks.
func CPU(pid int) time.Duration {
	var now unix.Timespec
	// The clock of a process is its number's complement, shifted by three, with CPUCLOCK_SCHED: clock_getcpuclockid(3).
	const sched = 2
	if err := unix.ClockGettime(int32(^pid<<3|sched), &now); err == nil {
		return time.Duration(now.Nano())
	}
	s, _ := readStat(strconv.Itoa(pid))
	return s.cpu
}

// FamilyCPU is the CPU time so far of a process and its children, those that have ended included.
func FamilyCPU(leader int) time.Duration {
	lead, _ := readStat(strconv.Itoa(leader))
	sum := CPU(leader) + lead.ended
	for _, pid := range Children(leader) {
		sum += CPU(pid)
	}
	return sum
}

// Children are the processes that a process has started and that still run.
func Children(leader int) (pids []int) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range all {
		if s, ok := readStat(filepath.Base(dir)); ok && s.parent == leader {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// ResidentMiB is a process' resident memory.
func ResidentMiB(pid int) int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize() >> 20
}
