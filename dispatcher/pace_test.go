package dispatcher

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var p pace
	began := time.Unix(1000, 0)
	if p.late(began) {
		t.Error("late before anything began")
	}
	first, second := p.begin(began), p.begin(began.Add(paceSlice/2))
	for after, want := range map[time.Duration]bool{0: false, paceSlice: false, 2*paceSlice - 1: false, 2 * paceSlice: true, time.Minute: true} {
		if got := p.late(began.Add(after)); got != want {
			t.Errorf("after %s: late %v", after, got)
		}
	}
	first()
	if !p.late(began.Add(time.Second)) {
		t.Error("the second one is not late")
	}
	second()
	if p.late(began.Add(time.Second)) || len(p.under) != 0 {
		t.Errorf("late though nobody waits: %v", p.under)
	}
}
