package retry

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"notifyd/merchant"
)

func TestBuiltinSchedules(t *testing.T) {
	tests := map[string]struct {
		sends int
		total string // of all gaps
		first []string
	}{
		"default":   {12, "24h21m40s", []string{"10s", "10s", "20s", "30s", "30s", "5m0s", "15m0s", "1h0m0s", "2h0m0s", "6h0m0s", "15h0m0s"}},
		"1-5-15":    {4, "21m0s", []string{"1m0s", "5m0s", "15m0s"}},
		"10s-x5":    {6, "50s", []string{"10s", "10s", "10s", "10s", "10s"}},
		"alipay":    {8, "24h24m0s", []string{"4m0s", "10m0s", "10m0s", "1h0m0s", "2h0m0s", "6h0m0s", "15h0m0s"}},
		"wechatpay": {16, "24h4m0s", []string{"15s", "15s", "30s", "3m0s", "10m0s", "20m0s", "30m0s", "30m0s", "30m0s", "1h0m0s", "3h0m0s", "3h0m0s", "3h0m0s", "6h0m0s", "6h0m0s"}},
		"unionpay":  {5, "7m0s", []string{"0s", "1m0s", "2m0s", "4m0s"}},
		"adyen":     {100, "712h2m54s", []string{"9s", "18s", "27s", "2m0s", "5m0s", "10m0s", "15m0s", "30m0s", "1h0m0s", "2h0m0s", "4h0m0s", "8h0m0s", "8h0m0s"}},
		"stripe":    {13, "68h15m0s", []string{"1m0s", "2m0s", "4m0s", "8m0s"}},
	}
	if len(tests) != len(Names()) || len(tests) != len(builtin) {
		t.Fatalf("names %v, built in %d, tested %d", Names(), len(builtin), len(tests))
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Resolve(merchant.Schedule{}, name)
			if err != nil {
				t.Fatal(err)
			}
			var total time.Duration
			var gaps []string
			for _, gap := range s.Gaps {
				total += gap
				gaps = append(gaps, gap.String())
			}
			if s.Name != name || s.Sends() != want.sends || total.String() != want.total || s.Jitter != DefaultJitter {
				t.Errorf("have %s with %d sends over %v, jitter %v", s.Name, s.Sends(), total, s.Jitter)
			}
			if !slices.Equal(gaps[:len(want.first)], want.first) {
				t.Errorf("gaps %v", gaps)
			}
			if s.Window < total || s.LeastAttempts > s.Sends() {
				t.Errorf("window %v cuts %v, or least attempts %d is above %d", s.Window, total, s.LeastAttempts, s.Sends())
			}
			if !slices.Contains(Names(), name) {
				t.Errorf("not among the names %v", Names())
			}
		})
	}
}

// S3.8: nearly every order is done within 100 s, so that is where the default schedule looks most often.
func TestDefaultIsDenseWithin100Seconds(t *testing.T) {
	var at time.Duration
	within := 1
	for _, gap := range Default().Gaps {
		if at += gap; at <= 100*time.Second {
			within++
		}
	}
	if within != 6 {
		t.Errorf("%d attempts within 100 s, want 6", within)
	}
}

func TestResolve(t *testing.T) {
	half := 0.5
	list := merchant.Schedule{Gaps: []time.Duration{time.Second, time.Minute}}
	tests := []struct {
		name   string
		own    merchant.Schedule
		routed string
		want   Schedule
	}{
		{"nothing chosen", merchant.Schedule{}, "", Default()},
		{"by name", merchant.Schedule{Name: "alipay"}, "", builtin["alipay"]},
		{"the route's before the merchant's", list, "alipay", builtin["alipay"]},
		{"a list", list, "", Schedule{Gaps: list.Gaps, Jitter: 0.1, LeastAttempts: 3}},
		{"one gap", merchant.Schedule{Gaps: []time.Duration{0}}, "", Schedule{Gaps: []time.Duration{0}, Jitter: 0.1, LeastAttempts: 2}},
		{
			"a name with its own window, jitter and least attempts",
			merchant.Schedule{Name: "1-5-15", Window: time.Hour, Jitter: &half, LeastAttempts: 4},
			"",
			Schedule{Name: "1-5-15", Gaps: builtin["1-5-15"].Gaps, Jitter: 0.5, Window: time.Hour, LeastAttempts: 4},
		},
		{"only a window", merchant.Schedule{Window: time.Hour}, "", Schedule{Name: "default", Gaps: Default().Gaps, Jitter: 0.1, Window: time.Hour, LeastAttempts: 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			have, err := Resolve(test.own, test.routed)
			if err != nil || !same(have, test.want) {
				t.Errorf("have %+v, %v\nwant %+v", have, err, test.want)
			}
		})
	}
	if have, err := Resolve(merchant.Schedule{}, "hourly"); err == nil || !same(have, Default()) {
		t.Errorf("an unknown name gave %+v, %v", have, err)
	}
}

func same(a, b Schedule) bool {
	return a.Name == b.Name && slices.Equal(a.Gaps, b.Gaps) && a.Jitter == b.Jitter && a.Window == b.Window && a.LeastAttempts == b.LeastAttempts
}

func TestValidate(t *testing.T) {
	number := func(f float64) *float64 { return &f }
	tests := []struct {
		field string // empty: it is fine
		own   merchant.Schedule
	}{
		{"", merchant.Schedule{}},
		{"", merchant.Schedule{Name: "unionpay", LeastAttempts: 5}},
		{"", merchant.Schedule{Gaps: []time.Duration{0, MaxGap}, Jitter: number(1), Window: MaxWindow}},
		{"name", merchant.Schedule{Name: "hourly"}},
		{"gaps", merchant.Schedule{Name: "default", Gaps: []time.Duration{time.Second}}},
		{"gaps", merchant.Schedule{Gaps: make([]time.Duration, MaxGaps+1)}},
		{"gaps[1]", merchant.Schedule{Gaps: []time.Duration{0, -1}}},
		{"gaps[0]", merchant.Schedule{Gaps: []time.Duration{MaxGap + 1}}},
		{"jitter", merchant.Schedule{Jitter: number(-0.1)}},
		{"jitter", merchant.Schedule{Jitter: number(1.1)}},
		{"jitter", merchant.Schedule{Jitter: number(math.NaN())}},
		{"window", merchant.Schedule{Window: -1}},
		{"window", merchant.Schedule{Window: MaxWindow + 1}},
		{"least_attempts", merchant.Schedule{LeastAttempts: -1}},
		{"least_attempts", merchant.Schedule{Name: "unionpay", LeastAttempts: 6}},
		{"least_attempts", merchant.Schedule{Gaps: []time.Duration{1}, LeastAttempts: 3}},
	}
	for _, test := range tests {
		err := Validate(test.own)
		var fault *ScheduleError
		switch {
		case test.field == "" && err != nil:
			t.Errorf("%+v refused: %v", test.own, err)
		case test.field != "" && (!errors.As(err, &fault) || fault.Field != test.field):
			t.Errorf("%+v gave %v, want a fault of %s", test.own, err, test.field)
		}
	}
	several := Validate(merchant.Schedule{Name: "hourly", Window: -1})
	if text := several.Error(); !strings.Contains(text, `name: "hourly" must be one of default`) || !strings.Contains(text, "window: -1ns must be between") {
		t.Errorf("not every fault is reported: %s", text)
	}
}
