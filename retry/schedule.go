package retry

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"notifyd/merchant"
)

// Schedule says when a notification is tried again.
type Schedule struct {
	Name string // a built-in's; empty: the merchant's own list
	// Gaps are waits, each counted from the end of the attempt before: Gaps[0] stands between the first attempt and
	// the second. Shared between all who resolve it: read only.
	Gaps []time.Duration
	// Jitter is the share of a gap that is added at random, 0 to 1, so that a mass failure does not come back as one.
	Jitter float64
	// Window is how long after the start of the first attempt another may still be due; deferred time does not count.
	// Zero: as long as there are gaps.
	Window time.Duration
	// LeastAttempts are made even when the window is over.
	LeastAttempts int
}

// Sends is the number of counted attempts that the gaps allow.
func (s *Schedule) Sends() int { return len(s.Gaps) + 1 }

// What a schedule has unless it says otherwise.
const (
	DefaultSchedule      = "default"
	DefaultJitter        = 0.1
	DefaultLeastAttempts = 3
)

// Bounds of a merchant's own schedule.
const (
	MaxGaps   = 100
	MaxGap    = 30 * 24 * time.Hour
	MaxWindow = 30 * 24 * time.Hour // what the ledger retains has to outlast it
)

// builtin holds the schedules by name; see docs of each platform for where the numbers come from. Every window leaves
// room for the jitter and for attempts that take their whole timeout.
var builtin = map[string]Schedule{
	// Dense within the first 100 s, in which nearly every order is done; then 24 h 21 m 40 s in all.
	DefaultSchedule: preset(DefaultSchedule, 25*time.Hour,
		seconds(10, 10, 20, 30, 30), minutes(5, 15), hours(1, 2, 6, 15)),
	"1-5-15": preset("1-5-15", 30*time.Minute, minutes(1, 5, 15)),
	// Six sends: five retries after the first.
	"10s-x5": preset("10s-x5", 10*time.Minute, seconds(10, 10, 10, 10, 10)),
	// Eight sends in 24 h 24 m: a window of 24 h 22 m would cut the last.
	"alipay": preset("alipay", 25*time.Hour, minutes(4, 10, 10), hours(1, 2, 6, 15)),
	// Sixteen sends in 24 h 4 m.
	"wechatpay": preset("wechatpay", 25*time.Hour,
		seconds(15, 15, 30), minutes(3, 10, 20, 30, 30, 30, 60), hours(3, 3, 3, 6, 6)),
	// "5 sends, gaps 0, 1, 2, 4 min": five sends have four gaps between them, so the 0 is the gap after the first send
	// and not the wait before it. The second send follows the end of the first at once.
	"unionpay": preset("unionpay", 15*time.Minute, minutes(0, 1, 2, 4)),
	// "3 tries at once (9/18/27 s)", then the retry queue: 2 m to 8 h, then every 8 h up to 30 days. The three are read
	// as the gaps after the first send; 87 gaps of 8 h are what 30 days hold.
	"adyen": preset("adyen", 30*24*time.Hour,
		seconds(9, 18, 27), minutes(2, 5, 10, 15, 30), hours(1, 2, 4, 8), slices.Repeat(hours(8), 87)),
	// "Exponential, up to 3 days", the steps unpublished: chosen here as doubling from one minute, 13 sends in 68 h 15 m.
	"stripe": preset("stripe", 3*24*time.Hour, minutes(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)),
}

func preset(name string, window time.Duration, gaps ...[]time.Duration) Schedule {
	return Schedule{
		Name: name, Gaps: slices.Concat(gaps...), Jitter: DefaultJitter, Window: window, LeastAttempts: DefaultLeastAttempts,
	}
}

func seconds(n ...int) []time.Duration { return times(time.Second, n) }
func minutes(n ...int) []time.Duration { return times(time.Minute, n) }
func hours(n ...int) []time.Duration   { return times(time.Hour, n) }

func times(unit time.Duration, n []int) []time.Duration {
	out := make([]time.Duration, len(n))
	for i, count := range n {
		out[i] = unit * time.Duration(count)
	}
	return out
}

var names = []string{DefaultSchedule, "1-5-15", "10s-x5", "alipay", "wechatpay", "unionpay", "adyen", "stripe"}

// Names are the built-in schedules.
func Names() []string { return slices.Clone(names) }

// Default is the schedule of those who have chosen none.
func Default() Schedule { return builtin[DefaultSchedule] }

// Resolve gives the schedule that holds for an attempt: the route's if it names one, else the merchant's own, else the
// default. The route's replaces the merchant's whole, jitter and window included. A schedule that cannot be used is an
// error that names the field, and the default is what comes with it, so that nothing waits for ever.
func Resolve(own merchant.Schedule, routed string) (Schedule, error) {
	if routed != "" {
		own = merchant.Schedule{Name: routed}
	}
	if err := Validate(own); err != nil {
		return Default(), err
	}
	return resolve(own), nil
}

func resolve(own merchant.Schedule) Schedule {
	out := Schedule{
		Gaps: own.Gaps, Jitter: DefaultJitter, LeastAttempts: min(DefaultLeastAttempts, len(own.Gaps)+1),
	}
	if len(own.Gaps) == 0 {
		name := own.Name
		if name == "" {
			name = DefaultSchedule
		}
		out = builtin[name]
	}
	if own.Jitter != nil {
		out.Jitter = *own.Jitter
	}
	if own.Window > 0 {
		out.Window = own.Window
	}
	if own.LeastAttempts > 0 {
		out.LeastAttempts = own.LeastAttempts
	}
	return out
}

// ScheduleError is one fault of one schedule.
type ScheduleError struct {
	Field string // "gaps[3]"
	Value string
	Must  string // what the value has to be
}

// Error names field, value and what the value has to be.
func (e *ScheduleError) Error() string {
	return fmt.Sprintf("check schedule: %s: %s %s", e.Field, e.Value, e.Must)
}

// Validate checks what a merchant has set. Every fault is reported, as ScheduleErrors joined into one error.
func Validate(own merchant.Schedule) error {
	var errs []error
	refuse := func(field, value, must string) {
		errs = append(errs, &ScheduleError{Field: field, Value: value, Must: must})
	}
	if _, known := builtin[own.Name]; own.Name != "" && !known {
		refuse("name", strconv.Quote(own.Name), "must be one of "+strings.Join(names, ", "))
	}
	if own.Name != "" && len(own.Gaps) > 0 {
		refuse("gaps", strconv.Itoa(len(own.Gaps))+" gaps", "must be empty beside a name")
	}
	if len(own.Gaps) > MaxGaps {
		refuse("gaps", strconv.Itoa(len(own.Gaps))+" gaps", fmt.Sprintf("must be at most %d", MaxGaps))
	}
	for i, gap := range own.Gaps {
		if gap < 0 || gap > MaxGap {
			refuse("gaps["+strconv.Itoa(i)+"]", gap.String(), "must be between 0s and "+MaxGap.String())
		}
	}
	if j := own.Jitter; j != nil && !(*j >= 0 && *j <= 1) { // so that NaN is refused too
		refuse("jitter", fmt.Sprint(*j), "must be between 0 and 1")
	}
	if own.Window < 0 || own.Window > MaxWindow {
		refuse("window", own.Window.String(), "must be between 0s and "+MaxWindow.String())
	}
	if own.LeastAttempts < 0 {
		refuse("least_attempts", strconv.Itoa(own.LeastAttempts), "must not be negative")
	}
	if len(errs) == 0 {
		if s := resolve(own); own.LeastAttempts > s.Sends() {
			refuse("least_attempts", strconv.Itoa(own.LeastAttempts), fmt.Sprintf("must be at most %d: the gaps allow no more", s.Sends()))
		}
	}
	return errors.Join(errs...)
}
