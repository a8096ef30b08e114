package async

import "time"

// class is whose turn it is among what waits for a slot of one key: the lower one's.
type class uint8

const (
	first   class = iota // never tried
	again                // a retry
	resent               // by an operator, or found overdue by the sweep
	classes = 3
)

// shortQueue is what waits in process for a slot of one key: first tries go ahead of retries, retries ahead of what was
// resent; within a class the order of arrival holds. The zero value is empty.
type shortQueue struct {
	lists [classes][]*entry
	len   int
}

func (s *shortQueue) push(e *entry) {
	s.lists[e.class] = append(s.lists[e.class], e)
	s.len++
}

// pop takes the next; nil: none waits.
func (s *shortQueue) pop() *entry {
	for i := range s.lists {
		if list := s.lists[i]; len(list) > 0 {
			e := list[0]
			list[0] = nil
			s.lists[i] = list[1:]
			s.len--
			return e
		}
	}
	return nil
}

// oldest is since when the one that has waited longest is in hand; zero: none waits.
func (s *shortQueue) oldest() (since time.Time) {
	for _, list := range s.lists {
		if len(list) > 0 && (since.IsZero() || list[0].Since().Before(since)) {
			since = list[0].Since()
		}
	}
	return since
}

// clear empties it and returns what waited.
func (s *shortQueue) clear() []*entry {
	waited := make([]*entry, 0, s.len)
	for e := s.pop(); e != nil; e = s.pop() {
		waited = append(waited, e)
	}
	return waited
}
