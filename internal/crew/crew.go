// Package crew runs short jobs in goroutines that stay for the next one. A job that goes deep makes a new goroutine's stack
// grow several times, which costs more than the goroutine itself.
package crew

import "sync"

// Crew is ready as its zero value. It must not be copied.
type Crew struct {
	jobs sync.WaitGroup

	mu      sync.Mutex
	running int
	idle    []chan func() // of goroutines that wait for a job, while others run; the last one has the warmest stack
}

// mostIdle bounds the goroutines that wait: a stack of an attempt has some 16 KiB.
const mostIdle = 256

// Go runs a job in a goroutine of its own.
func (c *Crew) Go(job func()) {
	c.jobs.Add(1)
	c.mu.Lock()
	c.running++
	last := len(c.idle) - 1
	if last < 0 {
		c.mu.Unlock()
		go c.work(job)
		return
	}
	worker := c.idle[last]
	c.idle = c.idle[:last]
	c.mu.Unlock()
	worker <- job
}

// Add and Done count what somebody else does as a job.
func (c *Crew) Add() { c.jobs.Add(1) }

// Done ends what Add began.
func (c *Crew) Done() { c.jobs.Done() }

// Wait returns when no job runs.
func (c *Crew) Wait() { c.jobs.Wait() }

func (c *Crew) work(job func()) {
	next := make(chan func(), 1)
	for ok := true; ok; {
		c.run(job)
		if ok = c.stays(next); ok {
			job, ok = <-next
		}
	}
}

// run counts a job as ended also when it ends its goroutine. With the last job that runs, all who wait for one may go.
func (c *Crew) run(job func()) {
	defer c.jobs.Done()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running--; c.running == 0 {
			for _, worker := range c.idle {
				close(worker)
			}
			c.idle = nil
		}
	}()
	job()
}

func (c *Crew) stays(next chan func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == 0 || len(c.idle) == mostIdle {
		return false
	}
	c.idle = append(c.idle, next)
	return true
}
