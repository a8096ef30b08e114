package rig

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Phase is a stretch of an open loop at one rate.
type Phase struct {
	Rate float64 // notifications or requests a second
	For  time.Duration
}

// Slot is one call of an open loop: when it is to be made, whether or not those before it have an answer.
type Slot struct {
	Number int
	At     time.Time
}

// slots are the calls of some phases, each of size members.
func slots(began time.Time, size int, phases []Phase) (all []Slot) {
	at := began
	for _, p := range phases {
		gap := time.Duration(float64(size) / p.Rate * float64(time.Second))
		end := at.Add(p.For)
		for ; at.Before(end); at = at.Add(gap) {
			all = append(all, Slot{Number: len(all), At: at})
		}
	}
	return all
}

// Paced is what an open or a closed loop measured.
type Paced struct {
	Began time.Time
	Took  time.Duration
	// Latencies are from the instant at which each call was to be made until its answer, in nanoseconds: what waits for a
	// caller that is busy with a slow call has waited.
	Latencies []int64
	// Late is how long after that instant each call was handed to a caller, in nanoseconds: the generator's own fault.
	Late []int64
}

// openLoop makes each call at its instant, with as many callers at a time at most. do fails only for what ends the run.
func openLoop(size, callers int, phases []Phase, do func(Slot) error) (Paced, error) {
	p := Paced{Began: time.Now().Add(50 * time.Millisecond)} // the callers are there before the first call
	all := slots(p.Began, size, phases)
	p.Late, p.Latencies = make([]int64, len(all)), make([]int64, len(all))
	due := make(chan Slot, len(all))
	var failed atomic.Pointer[error]
	var callersGone sync.WaitGroup
	for range callers {
		callersGone.Go(func() {
			for slot := range due {
				if failed.Load() != nil {
					continue
				}
				if err := do(slot); err != nil {
					failed.Store(&err)
				}
				p.Latencies[slot.Number] = int64(time.Since(slot.At))
			}
		})
	}
	pace(all, due, p.Late)
	callersGone.Wait()
	p.Took = time.Since(p.Began)
	if err := failed.Load(); err != nil {
		return p, *err
	}
	return p, nil
}

// pace hands out each slot at its instant. The runtime's timers fire up to a millisecond late in an idle process; the
// kernel's are within some tens of microseconds.
func pace(all []Slot, due chan<- Slot, late []int64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(due)
	for _, slot := range all {
		for {
			wait := time.Until(slot.At)
			if wait <= 0 {
				break
			}
			rest := syscall.NsecToTimespec(int64(wait))
			_ = syscall.Nanosleep(&rest, nil) // woken early by a signal, it sleeps again
		}
		late[slot.Number] = int64(time.Since(slot.At))
		due <- slot
	}
}

// closedLoop makes n calls, each caller one after another.
func closedLoop(n, callers int, do func(Slot) error) (Paced, error) {
	p := Paced{Began: time.Now(), Latencies: make([]int64, n)}
	var next atomic.Int64
	errs := make(chan error, callers)
	for range callers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					errs <- nil
					return
				}
				at := time.Now()
				if err := do(Slot{Number: i, At: at}); err != nil {
					errs <- err
					return
				}
				p.Latencies[i] = int64(time.Since(at))
			}
		}()
	}
	var first error
	for range callers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	p.Took = time.Since(p.Began)
	return p, first
}
