package health

import (
	"container/list"
	"time"
)

const (
	// maxStreaks bounds the memory: of more merchants that fail at once those asked longest ago are forgotten.
	maxStreaks = 20_000
	// forgetAfter is longer than the longest gap of the schedules: after it nobody asks the merchant any more.
	forgetAfter = 25 * time.Hour
	// maxNamed bounds the alarms about single merchants.
	maxNamed = 200
)

// streaks are the merchants that fail right now. Each attempt and each merchant that comes of age costs the same,
// however many there are.
type streaks struct {
	by     map[string]*streak
	young  *list.List // in the order of since: not old enough to be an alarm
	ripe   *list.List // alarms
	recent *list.List // all, by their last attempt
}

// streak is a merchant's failed attempts in a row.
type streak struct {
	merchant string
	since    time.Time
	last     time.Time
	attempts int

	age, recency *list.Element // age: in young or ripe; nil while it is old enough and has too few attempts
	isRipe       bool
}

func newStreaks() *streaks {
	return &streaks{by: map[string]*streak{}, young: list.New(), ripe: list.New(), recent: list.New()}
}

// failed counts a failed attempt; least is how many make an alarm.
func (f *streaks) failed(merchant string, now time.Time, least int) {
	s := f.by[merchant]
	if s == nil {
		if len(f.by) >= maxStreaks {
			f.end(streakOf(f.recent.Front()))
		}
		s = f.begin(merchant, now)
		s.age = f.young.PushBack(s)
	}
	s.attempts++
	s.last = now
	f.recent.MoveToBack(s.recency)
	if s.age == nil && s.attempts >= least {
		f.ripen(s)
	}
}

func (f *streaks) begin(merchant string, since time.Time) *streak {
	s := &streak{merchant: merchant, since: since, last: since}
	s.recency = f.recent.PushBack(s)
	f.by[merchant] = s
	return s
}

func (f *streaks) ripen(s *streak) {
	s.isRipe, s.age = true, f.ripe.PushBack(s)
}

// acknowledged ends a merchant's streak.
func (f *streaks) acknowledged(merchant string) {
	if s := f.by[merchant]; s != nil {
		f.end(s)
	}
}

func (f *streaks) end(s *streak) {
	delete(f.by, s.merchant)
	f.recent.Remove(s.recency)
	switch {
	case s.isRipe:
		f.ripe.Remove(s.age)
	case s.age != nil:
		f.young.Remove(s.age)
	}
}

// adopt goes on with an alarm of an earlier run.
func (f *streaks) adopt(merchant string, since, seen time.Time, attempts int) {
	if f.by[merchant] != nil {
		return
	}
	s := f.begin(merchant, since)
	s.last, s.attempts = seen, attempts
	f.ripen(s)
}

// failing are the merchants that have failed for a span over enough attempts, the first ones by name, and how many more.
func (f *streaks) failing(now time.Time, span time.Duration, least int) (named []Failing, more int) {
	for e := f.recent.Front(); e != nil && now.Sub(streakOf(e).last) > forgetAfter; e = f.recent.Front() {
		f.end(streakOf(e))
	}
	for e := f.young.Front(); e != nil && now.Sub(streakOf(e).since) >= span; e = f.young.Front() {
		s := streakOf(e)
		f.young.Remove(e)
		s.age = nil
		if s.attempts >= least {
			f.ripen(s)
		}
	}
	for e := f.ripe.Front(); e != nil && len(named) < maxNamed; e = e.Next() {
		s := streakOf(e)
		named = append(named, Failing{Merchant: s.merchant, Since: s.since, Attempts: s.attempts})
	}
	return named, f.ripe.Len() - len(named)
}

func streakOf(e *list.Element) *streak {
	s, _ := e.Value.(*streak) // nothing else is in the lists
	return s
}
