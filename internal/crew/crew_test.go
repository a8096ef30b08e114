package crew_test

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"notifyd/internal/bubble"
	"notifyd/internal/crew"
)

func TestEveryJobRunsAndIsWaitedFor(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var c crew.Crew
		c.Wait() // for nothing
		var ran, most, now atomic.Int64
		for range 100 {
			c.Go(func() {
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(time.Millisecond)
				ran.Add(1)
				now.Add(-1)
			})
		}
		if c.Wait(); ran.Load() != 100 || most.Load() != 100 {
			t.Errorf("%d of 100 jobs ran, %d of them at once, want all", ran.Load(), most.Load())
		}
	})
}

// The next job finds the goroutine of one before, as long as any job runs.
func TestGoroutinesStayForTheNextJob(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var c crew.Crew
		end := make(chan struct{})
		c.Go(func() { <-end })
		for range 10 {
			c.Go(func() {})
			synctest.Wait()
		}
		if got := crewGoroutines(); got != 2 {
			t.Errorf("%d goroutines for one job that runs and ten one after another, want 2", got)
		}
		for range 1000 {
			c.Go(func() { time.Sleep(time.Second) })
		}
		time.Sleep(2 * time.Second)
		if got := crewGoroutines(); got != 257 {
			t.Errorf("%d goroutines after a thousand jobs at once, want 257", got)
		}
		close(end)
		c.Wait()
		synctest.Wait()
		if got := crewGoroutines(); got != 0 {
			t.Errorf("%d goroutines without a job", got)
		}
		c.Go(func() {})
		c.Wait()
	})
}

// crewGoroutines is how many goroutines are a crew's. Others come and go: those of the test before end a moment after it.
func crewGoroutines() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("created by notifyd/internal/crew.(*Crew).Go"))
}

// A job that ends its goroutine, as t.FailNow does, has ended.
func TestAJobThatEndsItsGoroutine(t *testing.T) {
	var c crew.Crew
	c.Go(func() { runtime.Goexit() })
	c.Wait()
	var after sync.WaitGroup
	after.Add(1)
	c.Go(after.Done)
	after.Wait()
}

// deep grows a stack as far as an attempt does.
func deep(n int) int {
	var frame [256]byte
	frame[n%256] = 1
	if n == 0 {
		return int(frame[0])
	}
	return deep(n-1) + int(frame[n%256])
}

func BenchmarkDeepJobs(b *testing.B) {
	for name, run := range map[string]func(*sync.WaitGroup, func()){
		"goroutines": func(done *sync.WaitGroup, job func()) { done.Go(job) },
		"crew": func() func(*sync.WaitGroup, func()) {
			var c crew.Crew
			c.Go(func() { <-b.Context().Done() }) // there is always some job
			return func(done *sync.WaitGroup, job func()) {
				done.Add(1)
				c.Go(func() { defer done.Done(); job() })
			}
		}(),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var done sync.WaitGroup
				for range 16 {
					run(&done, func() { deep(24) })
				}
				done.Wait()
			}
		})
	}
}
