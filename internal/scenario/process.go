package scenario

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a server that a test starts, hurts and ends.
type process struct {
	name   string
	cmd    *exec.Cmd
	began  chan struct{} // closed when it is ready
	exited chan struct{}
	err    error

	mu    sync.Mutex
	lines []string
}

// spawned is what spawn needs to know.
type spawned struct {
	name  string
	cmd   *exec.Cmd
	ready func(line string) bool // called with each line that the process prints, until it says that the process is ready
	log   string                 // a file to add the lines to; empty: a failed test quotes them
}

// spawn starts a process that lives until the test's end at most.
func spawn(tb testing.TB, s spawned) *process {
	tb.Helper()
	cmd := s.cmd
	p := &process{name: s.name, cmd: cmd, began: make(chan struct{}), exited: make(chan struct{})}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if _, err := cmd.StdinPipe(); err != nil { // its end tells the process that the test is gone
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", s.name, err)
	}
	keep := io.Discard
	if s.log != "" {
		file, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = file.Close() }) // after the process' end: the last clean-up is the first to run
		keep = file
	}
	go p.read(io.TeeReader(stdout, keep), s.ready)
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() && s.log == "" {
			tb.Logf("%s said:\n%s", s.name, p.Output())
		}
	})
	return p
}

// read keeps what the process says.
func (p *process) read(r io.Reader, ready func(line string) bool) {
	began := false
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		p.mu.Lock()
		p.lines = append(p.lines, line)
		p.mu.Unlock()
		if !began && ready(line) {
			began = true
			close(p.began)
		}
	}
	p.err = p.cmd.Wait()
	close(p.exited)
}

// startBound is more than a start takes on a busy machine, recovery included.
const startBound = 60 * time.Second

// awaitReady waits until the process is ready.
func (p *process) awaitReady() error {
	timeout := time.NewTimer(startBound)
	defer timeout.Stop()
	select {
	case <-p.began:
		return nil
	case <-p.exited:
		return fmt.Errorf("%s ended before it was ready: %v\n%s", p.name, p.cmd.ProcessState, p.Output())
	case <-timeout.C:
		return fmt.Errorf("%s was not ready in %s\n%s", p.name, startBound, p.Output())
	}
}

// Signal sends a signal.
func (p *process) Signal(tb testing.TB, sig os.Signal) {
	tb.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("signal %s: %v", p.name, err)
	}
}

// Pause stops the process where it stands, as a machine that sleeps does; Resume lets it go on.
func (p *process) Pause(tb testing.TB) { tb.Helper(); p.Signal(tb, syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *process) Resume(tb testing.TB) { tb.Helper(); p.Signal(tb, syscall.SIGCONT) }

// Exited is closed when the process has ended.
func (p *process) Exited() <-chan struct{} { return p.exited }

// Output is everything the process has said.
func (p *process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// PID is the process' number.
func (p *process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL, as a crash does, and waits for its end.
func (p *process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// Stop ends the process with SIGTERM and waits until it has drained.
func (p *process) Stop(tb testing.TB) {
	tb.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.NewTimer(startBound)
	defer timeout.Stop()
	select {
	case <-p.exited:
		if p.err != nil {
			tb.Errorf("%s did not stop cleanly: %v\n%s", p.name, p.err, p.Output())
		}
	case <-timeout.C:
		tb.Errorf("%s did not stop in %s\n%s", p.name, startBound, p.Output())
		p.Kill()
	}
}
