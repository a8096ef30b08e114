// Package groupcommit makes one commit of whatever came while the commit before was under way: no added latency when there
// is little to do, large batches when there is much.
package groupcommit

import (
	"context"
	"sync"
	"time"
)

// Batcher collects items and commits them together. Commits of one batcher never overlap.
type Batcher[T any] struct {
	commit  func([]T) []error
	fits    func(batch []T, next T) bool
	running sync.WaitGroup

	linger time.Duration
	last   int       // size of the last batch
	lastAt time.Time // when it was committed

	mu      sync.Mutex
	waiting []entry[T]
	busy    bool
}

type entry[T any] struct {
	item T
	done func(error)
}

// New returns a batcher. commit returns an error for each item, or nil when all succeeded; fits says whether one more
// item belongs into the batch.
func New[T any](fits func(batch []T, next T) bool, commit func([]T) []error) *Batcher[T] {
	return &Batcher[T]{commit: commit, fits: fits}
}

// Linger makes a batcher wait for company before a commit, while there is some: when the batch before had several items and
// was committed a moment ago. It is called before the first Add.
func (b *Batcher[T]) Linger(d time.Duration) *Batcher[T] {
	b.linger = d
	return b
}

// lately is for how many lingers a batch of several speaks for the next one.
const lately = 10

func (b *Batcher[T]) awaitCompany() {
	if b.linger > 0 && b.last > 1 && time.Since(b.lastAt) < lately*b.linger {
		timer := time.NewTimer(b.linger)
		<-timer.C
	}
}

// AtMost is a fits function that bounds the number of items.
func AtMost[T any](n int) func([]T, T) bool {
	return func(batch []T, _ T) bool { return len(batch) < n }
}

// Add hands an item over; done is called once, after its commit.
func (b *Batcher[T]) Add(item T, done func(error)) {
	b.mu.Lock()
	b.waiting = append(b.waiting, entry[T]{item, done})
	if b.busy {
		b.mu.Unlock()
		return
	}
	b.busy = true
	b.running.Add(1)
	b.mu.Unlock()
	go b.run()
}

// Do adds an item and waits for its commit, or for ctx; the item is committed either way.
func (b *Batcher[T]) Do(ctx context.Context, item T) error {
	result := make(chan error, 1)
	b.Add(item, func(err error) { result <- err })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Len is how many items wait for their commit; those of the commit under way are not among them.
func (b *Batcher[T]) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}

// Wait returns when everything that was added has been committed.
func (b *Batcher[T]) Wait() { b.running.Wait() }

func (b *Batcher[T]) run() {
	defer b.running.Done()
	for {
		b.awaitCompany()
		batch, items := b.next()
		if len(batch) == 0 {
			return
		}
		errs := b.commit(items)
		b.last, b.lastAt = len(batch), time.Now()
		for i, e := range batch {
			if errs == nil {
				e.done(nil)
			} else {
				e.done(errs[i])
			}
		}
	}
}

func (b *Batcher[T]) next() ([]entry[T], []T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	var items []T
	for n < len(b.waiting) && (n == 0 || b.fits(items, b.waiting[n].item)) {
		items = append(items, b.waiting[n].item)
		n++
	}
	batch := b.waiting[:n:n]
	b.waiting = b.waiting[n:]
	if len(b.waiting) == 0 {
		b.waiting = nil
	}
	if n == 0 {
		b.busy = false
	}
	return batch, items
}
