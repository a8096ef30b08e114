package keys

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func secret(tb testing.TB) Key {
	tb.Helper()
	k, err := Generate(Symmetric, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func at(k Key, from time.Time) Key { k.ActiveFrom = from; return k }

func TestWithAndRetire(t *testing.T) {
	one, err := (&Set{Name: "k", Purpose: PurposeSign}).With(at(secret(t), start), 0, start)
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.With(at(secret(t), start.Add(10*day)), 7*day, start.Add(day))
	if err != nil {
		t.Fatal(err)
	}
	if !one.Keys[0].RetireAt.IsZero() {
		t.Error("the set that was there is changed")
	}
	ring := NewRing()
	two.Version = 1
	ring.Learn(two)
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{start.Add(-1), "[]"},
		{start, "[k/1]"},
		{start.Add(10*day - 1), "[k/1]"},
		{start.Add(10 * day), "[k/2 k/1]"},
		{start.Add(17*day - 1), "[k/2 k/1]"},
		{start.Add(17 * day), "[k/2]"},
	} {
		names := []string{}
		for _, k := range ring.Live("k", c.at) {
			names = append(names, k.ID())
		}
		if fmt.Sprint(names) != c.want {
			t.Errorf("at %s: %v, want %s", c.at, names, c.want)
		}
	}
	if _, err := two.With(at(secret(t), start.Add(11*day)), day, start.Add(11*day)); !errors.Is(err, ErrTooMany) {
		t.Errorf("a third one: %v", err)
	}
	if _, err := two.With(at(secret(t), start.Add(9*day)), day, start.Add(2*day)); !errors.Is(err, ErrOrder) {
		t.Errorf("before the one that it follows: %v", err)
	}
	if three, err := two.With(at(secret(t), start.Add(17*day)), day, start.Add(11*day)); err != nil || three.Newest().Version != 3 {
		t.Errorf("when the first one is over: %v", err)
	}
	ended, err := two.Retire(1, time.Time{}, start.Add(11*day))
	if err != nil || !ended.Get(1).RetireAt.Equal(start.Add(11*day)) {
		t.Errorf("retired: %v", err)
	}
	if _, err := ended.Retire(1, start.Add(20*day), start.Add(12*day)); !errors.Is(err, ErrRetired) {
		t.Errorf("brought back: %v", err)
	}
	if later, err := ended.Retire(2, start.Add(40*day), start.Add(13*day)); err != nil || later.Get(1).Material.Secret() != nil || later.Get(2).Material.Secret() == nil {
		t.Errorf("what is retired for long keeps its secret, or the other does not: %v", err)
	}
	many := one
	for i := range 3 * mostVersions {
		now := start.Add(time.Duration(i+1) * 10 * day)
		if many, err = many.With(at(secret(t), now), day, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(many.Keys) > mostVersions || many.Newest().Version != 3*mostVersions+1 {
		t.Errorf("%d versions are kept, newest %d", len(many.Keys), many.Newest().Version)
	}
}

func TestRingCheck(t *testing.T) {
	ring := NewRing()
	if ring.Learned() {
		t.Error("learned before Learn")
	}
	for i, s := range []Set{{Name: "platform", Purpose: PurposeSign}, {Name: "shop", Purpose: PurposeEncrypt, MerchantID: "m"}, {Name: "later", Purpose: PurposeSign}} {
		from := start
		if s.Name == "later" {
			from = start.Add(day)
		}
		set, err := s.With(at(secret(t), from), 0, start)
		if err != nil {
			t.Fatal(err)
		}
		set.Version = int64(i + 1)
		ring.Learn(set)
	}
	for name, c := range map[string]struct {
		merchant string
		purpose  Purpose
		says     string
	}{
		"platform": {"m", PurposeSign, ""}, "shop": {"m", PurposeEncrypt, ""}, "later": {"m", PurposeSign, "in use now"}, "gone": {"m", PurposeSign, "no such key"},
	} {
		if err := ring.Check(name, c.merchant, c.purpose, start); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ring.Check("shop", "other", PurposeEncrypt, start); err == nil || strings.Contains(err.Error(), "other") {
		t.Errorf("another merchant's: %v", err)
	}
	if err := ring.Check("platform", "m", PurposeVerify, start); err == nil || !strings.Contains(err.Error(), "for sign") {
		t.Errorf("for something else: %v", err)
	}
	older := &Set{Name: "platform", Version: 0}
	ring.Learn(older)
	if ring.Get("platform").Purpose != PurposeSign || ring.Version() != 3 {
		t.Error("an older version has replaced a newer one")
	}
}

// Whoever learns at the same time learns everything.
func TestRingLearnsAtOnce(t *testing.T) {
	ring := NewRing()
	var learning sync.WaitGroup
	for i := range 50 {
		learning.Go(func() { ring.Learn(&Set{Name: strconv.Itoa(i), Version: int64(i + 1)}) })
	}
	learning.Wait()
	if len(ring.List()) != 50 || ring.Version() != 50 {
		t.Errorf("%d names, version %d", len(ring.List()), ring.Version())
	}
}

func TestExpiring(t *testing.T) {
	end := start.Add(100 * day)
	expires := func(k Key, end time.Time) Key { k.NotAfter = end; return k }
	set, err := (&Set{Name: "client", Purpose: PurposeTLSClient}).With(expires(at(secret(t), start), end), 0, start)
	if err != nil {
		t.Fatal(err)
	}
	set.Version = 1
	ring := NewRing()
	ring.Learn(set)
	for before, want := range map[time.Duration]string{
		31 * day: "[]", 30*day + 1: "[]", 30 * day: "[30]", 14*day + 1: "[30]", 14 * day: "[14]", 7 * day: "[7]", day: "[1]", 1: "[1]", 0: "[0]", -50 * day: "[0]",
	} {
		days := []int{}
		for _, e := range ring.Expiring(end.Add(-before)) {
			days = append(days, e.Within)
		}
		if fmt.Sprint(days) != want {
			t.Errorf("%s before: %v, want %s", before, days, want)
		}
	}
	next, err := set.With(expires(at(secret(t), end.Add(-2*day)), end.Add(365*day)), 7*day, end.Add(-10*day))
	if err != nil {
		t.Fatal(err)
	}
	next.Version = 2
	ring.Learn(next)
	if found := ring.Expiring(end.Add(-day)); len(found) != 0 {
		t.Errorf("its successor is there in time: %v", found)
	}
}

func BenchmarkLive(b *testing.B) {
	set, err := (&Set{Name: "k", Purpose: PurposeSign}).With(at(secret(b), start), 0, start)
	if err != nil {
		b.Fatal(err)
	}
	set.Version = 1
	ring := NewRing()
	ring.Learn(set)
	b.ReportAllocs()
	for b.Loop() {
		if len(ring.Live("k", start)) != 1 {
			b.Fatal("not live")
		}
	}
}
