package health

import "time"

// windowSlots is into how many slots a window is cut: that part of it is how exact its edge is.
const windowSlots = 60

// windowCounts is how many things one window counts.
const windowCounts = 4

// window counts what happened within a span that ends now.
type window struct {
	slot  time.Duration
	slots [windowSlots]windowSlot
}

type windowSlot struct {
	number int64 // since 1970
	counts [windowCounts]uint64
}

func newWindow(span time.Duration) window { return window{slot: max(1, span/windowSlots)} }

// add counts one event under each index that is given.
func (w *window) add(now time.Time, indexes ...int) {
	number := now.UnixNano() / int64(w.slot)
	s := &w.slots[number%windowSlots]
	if s.number != number {
		*s = windowSlot{number: number}
	}
	for _, i := range indexes {
		s.counts[i]++
	}
}

// sum is what is counted within the span.
func (w *window) sum(now time.Time) (total [windowCounts]uint64) {
	newest := now.UnixNano() / int64(w.slot)
	for i := range w.slots {
		if s := &w.slots[i]; s.number > newest-windowSlots && s.number <= newest {
			for k := range total {
				total[k] += s.counts[k]
			}
		}
	}
	return total
}
