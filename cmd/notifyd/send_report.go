package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// sendReport counts and prints.
type sendReport struct {
	streams     *streams
	json, quiet bool
	size        int64 // of the input in bytes; -1: not known
	began       time.Time

	lines, bytes atomic.Int64

	mu                                    sync.Mutex
	accepted, duplicates, refused, failed int64
	shown                                 bool // a progress line is on the terminal
}

func (r *sendReport) accept(duplicate bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if duplicate {
		r.duplicates++
	} else {
		r.accepted++
	}
}

func (r *sendReport) refuse(number int, f *fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused++
	r.printFault(number, f)
}

func (r *sendReport) fail(number int, f *fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed++
	r.printFault(number, f)
}

func (r *sendReport) unaccepted() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused + r.failed
}

type sendViolation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
}

func (r *sendReport) printFault(number int, f *fault) {
	r.clear()
	if !r.json {
		for _, text := range f.lines() {
			say(r.streams.Err, "line %d: %s\n", number, text)
		}
		return
	}
	out := struct {
		Type       string          `json:"type"`
		Line       int             `json:"line"`
		Code       string          `json:"code"`
		Message    string          `json:"message"`
		Violations []sendViolation `json:"violations,omitempty"`
	}{Type: "error", Line: number, Code: f.Code.String(), Message: f.Message}
	for _, v := range f.Violations {
		out.Violations = append(out.Violations, sendViolation{strings.TrimPrefix(v.Field, "notification."), v.Description})
	}
	printJSON(r.streams.Out, out)
}

// progress prints where the command stands until done is closed. waiting is how many wait to be tried again.
func (r *sendReport) progress(done <-chan struct{}, waiting func() int) {
	if r.quiet || (r.json && !r.streams.ErrIsTerminal) {
		return
	}
	every := 5 * time.Second
	if r.streams.ErrIsTerminal {
		every = 200 * time.Millisecond
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			r.mu.Lock()
			r.clear()
			r.shown = r.streams.ErrIsTerminal
			end := "\n"
			if r.shown {
				end = ""
			}
			say(r.streams.Err, "%s%s", r.standing(waiting()), end)
			r.mu.Unlock()
		}
	}
}

// clear makes room where a progress line stands.
func (r *sendReport) clear() {
	if r.shown {
		say(r.streams.Err, "\r\x1b[K")
		r.shown = false
	}
}

func (r *sendReport) standing(waiting int) string {
	text := fmt.Sprintf("%d accepted, %d duplicates, %d refused, %d failed; %.0f/s", r.accepted, r.duplicates, r.refused, r.failed, r.perSecond())
	if waiting > 0 {
		text += fmt.Sprintf("; %d wait to be tried again", waiting)
	}
	if r.size > 0 {
		text += fmt.Sprintf("; %d%% read", 100*min(r.bytes.Load(), r.size)/r.size)
	}
	return text
}

func (r *sendReport) perSecond() float64 {
	return float64(r.accepted+r.duplicates) / max(time.Since(r.began).Seconds(), 0.001)
}

// summary ends the report. It returns how many lines were read of which it is not known that they were taken or not.
func (r *sendReport) summary(complete bool) (left int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	left = r.lines.Load() - r.accepted - r.duplicates - r.refused - r.failed
	took := time.Since(r.began)
	if r.json {
		printJSON(r.streams.Out, struct {
			Type         string  `json:"type"`
			Lines        int64   `json:"lines"`
			Accepted     int64   `json:"accepted"`
			Duplicates   int64   `json:"duplicates"`
			Refused      int64   `json:"refused"`
			Failed       int64   `json:"failed"`
			NotSubmitted int64   `json:"notSubmitted"` // or without an answer
			Complete     bool    `json:"complete"`     // the input was read to its end
			Seconds      float64 `json:"seconds"`
			PerSecond    float64 `json:"perSecond"`
		}{"summary", r.lines.Load(), r.accepted, r.duplicates, r.refused, r.failed, left, complete, took.Seconds(), r.perSecond()})
		return left
	}
	if left > 0 || !complete {
		say(r.streams.Err, "stopped early: %d of the lines that were read have no answer%s\n", left, map[bool]string{false: "; the rest of the input was not read"}[complete])
	}
	if !r.quiet {
		say(r.streams.Out, "%d lines in %s: %d accepted, %d duplicates, %d refused, %d failed; %.0f/s\n",
			r.lines.Load(), took.Round(time.Millisecond), r.accepted, r.duplicates, r.refused, r.failed, r.perSecond())
	}
	return left
}

// printJSON writes one line.
func printJSON(to io.Writer, value any) {
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value) // who closed the output does not want it
}
