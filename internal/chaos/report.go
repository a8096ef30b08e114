package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Head is the head of a table of reports in Markdown.
func Head() string {
	return "| fault | faults | accepted | lost | repeated | requests | delivered | dead | waiting | longest stall | time to normal | settled | seed |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
}

// Row is the report's row in that table.
func (r Report) Row(name string, seed uint64) string {
	return fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %d | %d | %d | %s | %s | %s | %d |\n", name, r.Incidents, r.Accepted, len(r.Lost), r.Repeated,
		r.Requests, r.Delivered, r.Dead, r.Waiting, brief(r.Stall), brief(r.Normal), brief(r.Settled), seed)
}

func brief(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// String says it all, in lines.
func (r Report) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "accepted %d, lost %d, delivered %d, dead %d, waiting %d; %d requests, %d repeated (%d of them unheard), %d resent, %d unrecorded\n",
		r.Accepted, len(r.Lost), r.Delivered, r.Dead, r.Waiting, r.Requests, r.Repeated, r.Unheard, r.Resent, r.Unrecorded)
	fmt.Fprintf(&out, "%d incidents; longest stall %s, back to normal within %s, all settled %s after the load; forgotten at most %s after an acknowledgement; %d too many at once; %d taken for new\n",
		r.Incidents, brief(r.Stall), brief(r.Normal), brief(r.Settled), r.Oldest.Round(time.Millisecond), r.Crowd, r.Anew)
	for _, code := range slices.Sorted(maps.Keys(r.Refused)) {
		fmt.Fprintf(&out, "answered %s: %d\n", code, r.Refused[code])
	}
	const most = 40
	for _, v := range r.Violations[:min(most, len(r.Violations))] {
		fmt.Fprintf(&out, "VIOLATED %s\n", v)
	}
	if n := len(r.Violations) - most; n > 0 {
		fmt.Fprintf(&out, "and %d more\n", n)
	}
	for _, s := range r.Stories {
		out.WriteString(s)
	}
	return out.String()
}
