package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// What may still run on the data after a kill -9: of the engine, a postmaster that
// is shutting down (or one that somebody started by hand); of the postmaster,
// its children, which notice it at their next wait. The engine holds the folder's
// lock here, so whatever runs there is nobody's any more.

const (
	leftoverPoll  = 20 * time.Millisecond
	orphanGrace   = 5 * time.Second
	postmasterPid = "postmaster.pid"
)

// leftovers are the server processes that work in a data folder.
type leftovers struct {
	postmaster *os.Process // nil when it is gone
	children   []*os.Process
}

func (l leftovers) none() bool { return l.postmaster == nil && len(l.children) == 0 }

func (l leftovers) all() []*os.Process {
	if l.postmaster == nil {
		return l.children
	}
	return append([]*os.Process{l.postmaster}, l.children...)
}

// endLeftovers ends what runs on the data, as gently as time allows, and returns
// when it is gone.
func endLeftovers(ctx context.Context, data string, grace time.Duration, log *zap.Logger) error {
	found, err := findLeftovers(data)
	if err != nil || found.none() {
		return err
	}
	log.Warn("ending a postgres left from before",
		zap.Bool("postmaster", found.postmaster != nil), zap.Int("children", len(found.children)))
	if found.postmaster != nil {
		_ = found.postmaster.Signal(fastShutdown)
	} else {
		grace = min(grace, orphanGrace)
		signalAll(found.children, syscall.SIGTERM)
	}
	if gone, err := awaitLeftovers(ctx, data, grace); gone || err != nil {
		return err
	}
	if found, err = findLeftovers(data); err != nil {
		return err
	}
	signalAll(found.all(), immediateShutdown)
	if gone, err := awaitLeftovers(ctx, data, immediateGrace); gone || err != nil {
		return err
	}
	if found, err = findLeftovers(data); err != nil {
		return err
	}
	signalAll(found.all(), syscall.SIGKILL)
	gone, err := awaitLeftovers(ctx, data, immediateGrace)
	if err == nil && !gone {
		err = fmt.Errorf("end postgres left from before: it survived kill -9: see which processes use %s", data)
	}
	return err
}

func signalAll(processes []*os.Process, signal os.Signal) {
	for _, p := range processes {
		_ = p.Signal(signal) // fails only if it has ended by now
	}
}

func awaitLeftovers(ctx context.Context, data string, limit time.Duration) (gone bool, err error) {
	timer, tick := time.NewTimer(limit), time.NewTicker(leftoverPoll)
	defer timer.Stop()
	defer tick.Stop()
	for {
		found, err := findLeftovers(data)
		if err != nil || found.none() {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("end postgres left from before: %w", ctx.Err())
		case <-timer.C:
			return false, nil
		case <-tick.C:
		}
	}
}

// findLeftovers goes by the working folder, which every server process has in its
// data folder: process ids in files may have been given to somebody else since.
func findLeftovers(data string) (leftovers, error) {
	var found leftovers
	home, err := os.Stat(data)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("find postgres left from before: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found, fmt.Errorf("find postgres left from before: %w", err)
	}
	recorded := recordedPid(data)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !isPostgres(pid) {
			continue
		}
		// The handle is taken before the look: it cannot slip to another process after.
		handle, err := os.FindProcess(pid)
		if err != nil || !worksIn(pid, home) {
			continue
		}
		if pid == recorded {
			found.postmaster = handle
		} else {
			found.children = append(found.children, handle)
		}
	}
	return found, nil
}

func isPostgres(pid int) bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.TrimSpace(string(name)) == "postgres"
}

func worksIn(pid int, home fs.FileInfo) bool {
	working, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && os.SameFile(working, home)
}

// recordedPid is the first line of the file that the postmaster keeps, or 0.
func recordedPid(data string) int {
	content, err := os.ReadFile(filepath.Join(data, postmasterPid))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return 0
	}
	return pid
}

// removeStalePid removes the postmaster's file when the id in it now belongs to
// some other program: Postgres would take that for its predecessor and refuse.
// A dead id it sorts out itself. To be called when nothing runs on the data.
func removeStalePid(data string) error {
	pid := recordedPid(data)
	if pid == 0 || isPostgres(pid) || !exists(pid) {
		return nil
	}
	if err := os.Remove(filepath.Join(data, postmasterPid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale postmaster.pid: %w", err)
	}
	return nil
}

func exists(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}
