package outage

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/ledger"
	"notifyd/notification"
)

// What is remembered comes back as it was given, whichever half it stands in.
func TestRecentGivesBackWhatItWasGiven(t *testing.T) {
	r := newRecent(4)
	at := time.Date(2026, 11, 23, 3, 0, 0, 123456000, time.UTC)
	given := func(i byte) ledger.Reserved {
		return ledger.Reserved{
			Digest: [32]byte{i}, AcceptedAt: at.Add(time.Duration(i) * time.Second), Elsewhere: i == 2,
			Known: notification.Progress{State: notification.StateRetrying, Reason: notification.Reasons()[i], Generation: 1, Attempts: int(i)},
		}
	}
	for i := byte(1); i <= 3; i++ {
		want := given(i)
		n := &notification.Notification{ID: notification.ID{i}, Digest: want.Digest, AcceptedAt: want.AcceptedAt, Progress: want.Known}
		r.add(n.ID, want)
		if got, _ := r.get(n.ID); got.Known != (notification.Progress{}) {
			t.Errorf("%d has come as far as %+v before anything is on record", i, got.Known)
		}
		r.recorded(n)
	}
	for i := byte(1); i <= 3; i++ {
		got, ok := r.get(notification.ID{i})
		if diff := cmp.Diff(given(i), got); !ok || diff != "" {
			t.Errorf("%d came back otherwise (-want +got):\n%s", i, diff)
		}
	}
	if got, ok := r.get(notification.ID{9}); ok || !got.AcceptedAt.IsZero() {
		t.Errorf("of what it never saw it says %+v, %v", got, ok)
	}
}

// The collector must find nothing to follow in the tens of thousands that a node remembers.
func TestWhatIsRememberedHoldsNoPointer(t *testing.T) {
	var check func(path string, of reflect.Type)
	check = func(path string, of reflect.Type) {
		switch kind := of.Kind(); {
		case kind == reflect.Struct:
			for field := range of.Fields() {
				check(path+"."+field.Name, field.Type)
			}
		case kind == reflect.Array:
			check(path+"[]", of.Elem())
		case kind > reflect.Complex128: // strings, slices, maps, pointers and what holds them
			t.Errorf("%s is a %s", path, of)
		}
	}
	check("remembered", reflect.TypeFor[remembered]())
	check("id", reflect.TypeFor[notification.ID]())
}
