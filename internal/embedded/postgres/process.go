package postgres

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	// What the postmaster understands by these signals.
	fastShutdown      = syscall.SIGINT  // disconnect all, checkpoint, end
	immediateShutdown = syscall.SIGQUIT // end at once; the next start recovers

	// The postmaster kills its own children 5 s after an immediate shutdown began.
	immediateGrace = 8 * time.Second
)

// process is one life of the postmaster.
type process struct {
	handle *os.Process
	born   time.Time
	exited chan struct{} // closed when it has ended
	err    error         // how; to be read after exited
}

// launch starts cmd from a goroutine that keeps its thread for as long as the
// child lives. Pdeathsig is sent when the *thread* that forked ends, and Go ends
// idle threads as it likes: without this the postmaster would shut down at random.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{exited: make(chan struct{}), born: time.Now()}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		p.handle = cmd.Process
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start postmaster: %w", err)
	}
	return p, nil
}

// end shuts the postmaster down and returns when it is gone: fast within grace or
// until hurry is closed, then immediate, then by force. Committed data is safe in
// each case. It returns false when fast was not enough.
func (p *process) end(grace time.Duration, hurry <-chan struct{}) bool {
	if p.signalAndWait(fastShutdown, grace, hurry) {
		return true
	}
	if !p.signalAndWait(immediateShutdown, immediateGrace, nil) {
		_ = p.handle.Kill() // fails only if it has ended by now
		<-p.exited
	}
	return false
}

func (p *process) signalAndWait(signal os.Signal, limit time.Duration, hurry <-chan struct{}) bool {
	_ = p.handle.Signal(signal) // fails only if it has ended by now
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
	case <-hurry:
	}
	return false
}
