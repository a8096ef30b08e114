package groupcommit_test

import (
	"errors"
	"sync"
	"testing"

	"notifyd/internal/groupcommit"
)

func TestWhatWaitsIsCommittedTogether(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	var sizes []int
	b := groupcommit.New(groupcommit.AtMost[int](4), func(items []int) []error {
		entered <- struct{}{}
		<-release
		sizes = append(sizes, len(items))
		errs := make([]error, len(items))
		for i, item := range items {
			if item == 3 {
				errs[i] = errors.New("three")
			}
		}
		return errs
	})
	var mu sync.Mutex
	failed := map[int]bool{}
	add := func(item int) {
		b.Add(item, func(err error) {
			mu.Lock()
			failed[item] = err != nil
			mu.Unlock()
		})
	}
	add(0)
	<-entered // the first commit is under way: the others wait for it together
	for i := 1; i <= 6; i++ {
		add(i)
	}
	close(release)
	b.Wait()
	if want := []int{1, 4, 2}; len(sizes) != 3 || sizes[0] != want[0] || sizes[1] != want[1] || sizes[2] != want[2] {
		t.Fatalf("batches of %v, want %v", sizes, want)
	}
	for i := range 7 {
		if got, ok := failed[i]; !ok || got != (i == 3) {
			t.Errorf("item %d: called %v, failed %v", i, ok, got)
		}
	}
}
