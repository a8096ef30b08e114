// Package bubble starts the tests that run on testing/synctest's clock.
package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test runs f as synctest.Test does, on one processor at a time where the race detector watches.
//
// Go 1.26 runs a bubble's timer that is due when it is set (time.NewTimer(0), Reset(0)) in the goroutine that sets
// it, with the race detector's one context for all the bubble's timers. Two threads in that context at once end the
// process: "SIGSEGV in __tsan::TraceSwitchPart", "ThreadSanitizer: CHECK failed" (golang/go#78156). What the detector
// reports does not suffer: it judges by what happens before what, not by what happens at the same time.
func Test(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if raceDetector {
		oneProcessor.enter()
		defer oneProcessor.leave()
	}
	synctest.Test(t, f)
}

// oneProcessor counts the bubbles that run: how many processors Go uses is a setting of the whole process.
var oneProcessor processors

type processors struct {
	mu      sync.Mutex
	bubbles int
	before  int
}

func (p *processors) enter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bubbles++; p.bubbles == 1 {
		p.before = runtime.GOMAXPROCS(1)
	}
}

func (p *processors) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bubbles--; p.bubbles == 0 {
		runtime.GOMAXPROCS(p.before)
	}
}
