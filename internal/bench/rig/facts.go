package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Facts are what a figure means nothing without.
type Facts struct {
	Date       time.Time `json:"date"`
	Command    string    `json:"command"` // its arguments
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	MemoryGiB  int       `json:"memory_gib"`
	Kernel     string    `json:"kernel"`
	Go         string    `json:"go"`
	Postgres   string    `json:"postgres"`    // filled in by whoever has one running
	LoadBefore float64   `json:"load_before"` // the minute's load average
	LoadAfter  float64   `json:"load_after"`
	Took       string    `json:"took"`
}

// NewFacts looks at the machine before a run.
func NewFacts() Facts {
	return Facts{
		Date: time.Now().UTC().Truncate(time.Second), Command: strings.Join(os.Args[1:], " "), CPU: field("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(),
		MemoryGiB: kib(field("/proc/meminfo", "MemTotal")) >> 20, Kernel: firstLine("/proc/sys/kernel/osrelease"), Go: runtime.Version(),
		LoadBefore: loadAverage(),
	}
}

// Finish looks again after the run.
func (f *Facts) Finish() {
	f.LoadAfter, f.Took = loadAverage(), time.Since(f.Date).Round(time.Second).String()
}

// String is the header of a table.
func (f *Facts) String() string {
	return fmt.Sprintf("%s · %d cores (%s) · %d GiB · Linux %s · %s · load average %.2f", f.Date.Format(time.RFC3339), f.Cores, f.CPU, f.MemoryGiB, f.Kernel, f.Go, f.LoadBefore)
}

func firstLine(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	return line
}

// field is the value of the first line of a file that begins with a name and a colon.
func field(path, name string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func kib(value string) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(value, " kB"))
	return n
}

func loadAverage() float64 {
	minute, _, _ := strings.Cut(firstLine("/proc/loadavg"), " ")
	n, _ := strconv.ParseFloat(minute, 64)
	return n
}

// Footer is the end of a table.
func (f *Facts) Footer() string {
	return fmt.Sprintf("took %s; Postgres %s; load average %.2f", f.Took, f.Postgres, f.LoadAfter)
}

// WriteJSON keeps a run's results; an empty path keeps nothing.
func WriteJSON(path string, results any) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
