//go:build faults

package faults

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

type rule struct {
	action string
	at     int // the how manieth time; 0: every time
	seen   int
}

// rules are read once: the one global of the project, in builds for tests only.
var rules = sync.OnceValue(func() map[string]*rule {
	out := map[string]*rule{}
	for text := range strings.SplitSeq(os.Getenv(Variable), ",") {
		point, what, ok := strings.Cut(strings.TrimSpace(text), "=")
		if !ok {
			continue
		}
		r := &rule{at: 1}
		action, number, _ := strings.Cut(what, "@")
		r.action = action
		if number == "*" {
			r.at = 0
		} else if n, err := strconv.Atoi(number); err == nil {
			r.at = n
		}
		out[point] = r
	}
	return out
})

var mu sync.Mutex

// Before is called right before a write.
func Before(write string) error { return act(write + ".before") }

// After is called right after a write that took effect.
func After(write string) error { return act(write + ".after") }

func act(point string) error {
	r := rules()[point]
	if r == nil {
		return nil
	}
	mu.Lock()
	r.seen++
	hit := r.at == 0 || r.seen == r.at
	mu.Unlock()
	if !hit {
		return nil
	}
	fmt.Fprintf(os.Stderr, "fault injected at %s: %s\n", point, r.action) // who injects it learns that it was reached
	switch r.action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "panic":
		panic("fault injected at " + point)
	}
	return fmt.Errorf("fault injected at %s", point)
}
