package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	maxLine       = 1 << 20
	maxBatchBytes = 2 << 20                // of lines in one call; well below what the intake takes
	mostItems     = 1000                   // of the API
	idleFlush     = 200 * time.Millisecond // a pipe that is silent so long has its lines sent

	submitBound = 30 * time.Second
	// answerGrace is what calls under way get when the command is interrupted, so that their answers are counted.
	answerGrace = 2 * time.Second

	firstWait = 200 * time.Millisecond
	mostWait  = 5 * time.Second
)

// sendCmd submits a file of notifications.
type sendCmd struct {
	File        string        `help:"File of JSON lines, one notification each; - is standard input, which is also the default when it is not a terminal." short:"f" placeholder:"FILE"`
	Server      string        `help:"The intake." default:"http://127.0.0.1:8700" env:"NOTIFYD_SERVER"`
	Source      string        `help:"Source of lines that name none."`
	Batch       int           `help:"Notifications in one call (1 to 1000)." default:"100"`
	Concurrency int           `help:"Calls at a time (1 to 64)." default:"4"`
	RetryFor    time.Duration `help:"How long to go on with what the server cannot take now. Trying again never sends twice." default:"30s"`
	JSON        bool          `help:"Print errors and the summary as JSON lines on standard output." name:"json"`
	Quiet       bool          `help:"Print errors only." short:"q"`
}

// Help is the long text of --help.
func (sendCmd) Help() string {
	return `Each line is a notification in proto3 JSON (camelCase; 64-bit integers may be strings). A line that cannot be taken is
reported as "line N: field: rule" and does not stop the rest. Submitting a file again is safe: what was accepted before
counts as a duplicate.

Examples:

    notifyd send --file examples/notifications.jsonl
    zcat events.jsonl.gz | notifyd send --source billing --concurrency 8
    echo '{"source":"shop","requestId":"r1","merchantId":"lanshan-coffee","scene":"scan","payload":"{\"paid\":true}"}' | notifyd send

Exit codes: 0 everything was accepted, 1 something was refused or not submitted, 2 wrong usage, 3 no server.`
}

// Run submits until the input ends or ctx does.
func (c *sendCmd) Run(ctx context.Context, s *streams) error {
	if c.Batch < 1 || c.Batch > mostItems {
		return usageError("--batch %d: want 1 to %d", c.Batch, mostItems)
	}
	if c.Concurrency < 1 || c.Concurrency > 64 {
		return usageError("--concurrency %d: want 1 to 64", c.Concurrency)
	}
	if c.RetryFor < 0 {
		return usageError("--retry-for %s: want 0s or more", c.RetryFor)
	}
	to, err := newRemote(c.Server, c.Concurrency)
	if err != nil {
		return err
	}
	defer to.close()
	input, size, err := c.open(s)
	if err != nil {
		return err
	}
	defer func() { _ = input.Close() }() // it was only read
	job := &sending{cmd: c, to: to, report: &sendReport{streams: s, json: c.JSON, quiet: c.Quiet, size: size, began: time.Now()}}
	return job.run(ctx, input)
}

// open is the input and its size; -1: not known.
func (c *sendCmd) open(s *streams) (io.ReadCloser, int64, error) {
	if c.File == "" || c.File == "-" {
		if f, ok := s.In.(*os.File); ok && c.File == "" && isTerminal(f) {
			return nil, 0, usageError("nothing to send: give --file FILE, or pipe JSON lines into standard input (--file - reads what you type)")
		}
		return io.NopCloser(s.In), -1, nil
	}
	f, err := os.Open(c.File)
	if err != nil {
		return nil, 0, &exitError{code: exitUsage, err: fmt.Errorf("open notifications: %w", err)}
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("open notifications: %w", errors.Join(err, f.Close()))
	case info.IsDir():
		_ = f.Close() // nothing was read
		return nil, 0, usageError("open notifications: %s is a folder", c.File)
	case !info.Mode().IsRegular():
		return f, -1, nil
	}
	return f, info.Size(), nil
}

// sending is one run of the command: lines are read, gathered into batches, and submitted by a few workers.
type sending struct {
	cmd    *sendCmd
	to     *remote
	report *sendReport

	reached atomic.Bool // the server has answered before
	stop    context.CancelCauseFunc
}

// inputLine is one line of the input, without its end.
type inputLine struct {
	number int
	text   []byte
}

func (j *sending) run(parent context.Context, input io.Reader) error {
	ctx, stop := context.WithCancelCause(parent)
	defer stop(nil)
	j.stop = stop
	lines, read := make(chan inputLine), make(chan error, 1)
	// A read of a terminal or a pipe cannot be interrupted: after Ctrl-C this one goroutine ends with the process.
	go func() { read <- j.read(ctx, input, lines) }()
	batches := make(chan []inputLine)
	var workers, progress sync.WaitGroup
	for range j.cmd.Concurrency {
		workers.Go(func() {
			for batch := range batches {
				j.send(ctx, batch)
			}
		})
	}
	done := make(chan struct{})
	progress.Go(func() { j.report.progress(done) })
	j.gather(ctx, lines, batches)
	close(batches)
	workers.Wait()
	close(done)
	progress.Wait()

	var readErr error
	select {
	case readErr = <-read:
	default:
		readErr = context.Cause(ctx) // it is still reading: only the end of ctx stops gathering before
	}
	return j.verdict(readErr, context.Cause(ctx))
}

// verdict ends the report and decides the exit code.
func (j *sending) verdict(readErr, cause error) error {
	left := j.report.summary(readErr == nil)
	var stopped *exitError
	switch {
	case errors.As(cause, &stopped):
		return stopped
	case cause != nil && (left > 0 || readErr != nil):
		return &exitError{code: exitSome, err: errors.New("interrupted; sending the same input again is safe")}
	case readErr != nil:
		return &exitError{code: exitSome, err: fmt.Errorf("read notifications: %w", readErr)}
	case left > 0 || j.report.unaccepted() > 0:
		return &exitError{code: exitSome}
	}
	return nil
}

// read gives out lines until the input ends. It closes the channel.
func (j *sending) read(ctx context.Context, input io.Reader, to chan<- inputLine) error {
	defer close(to)
	in := bufio.NewReaderSize(&counted{from: input, n: &j.report.bytes}, 64<<10)
	for number := 1; ; number++ {
		text, err := readLine(in)
		if number == 1 {
			text = bytes.TrimPrefix(text, []byte("\xEF\xBB\xBF"))
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			j.report.lines.Add(1)
			select {
			case to <- inputLine{number, text}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readLine copies a line; of one that is too long it keeps one byte more than is allowed.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part[:min(len(part), maxLine+1-len(line))]...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// gather groups lines into batches until there are no more, or ctx ends.
func (j *sending) gather(ctx context.Context, lines <-chan inputLine, batches chan<- []inputLine) {
	var batch []inputLine
	size := 0
	idle := time.NewTimer(idleFlush)
	defer idle.Stop()
	flush := func() {
		if len(batch) == 0 {
			return
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
		}
		batch, size = nil, 0
	}
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				flush()
				return
			}
			batch, size = append(batch, line), size+len(line.text)
			if len(batch) >= j.cmd.Batch || size >= maxBatchBytes {
				flush()
			}
			idle.Reset(idleFlush)
		case <-idle.C:
			flush()
		case <-ctx.Done():
			return
		}
	}
}

// sendItem is a notification with the line it came from.
type sendItem struct {
	number       int
	notification *notifydv1.Notification
}

// send parses a batch and submits it until each item is accepted, refused or given up. When ctx ends it stops; what has no
// answer then is left over.
func (j *sending) send(ctx context.Context, batch []inputLine) {
	items := j.parse(batch)
	var giveUp time.Time
	for wait := firstWait; len(items) > 0 && ctx.Err() == nil; wait = min(2*wait, mostWait) {
		again, f := j.submit(ctx, items)
		if len(again) == 0 || ctx.Err() != nil {
			return
		}
		if giveUp.IsZero() {
			giveUp = time.Now().Add(j.cmd.RetryFor)
		}
		for _, r := range again {
			wait = max(wait, r.fault.retryAfter)
		}
		left := time.Until(giveUp)
		if left <= 0 {
			j.abandon(again, f)
			return
		}
		items = items[:0]
		for _, r := range again {
			items = append(items, r.item)
		}
		j.report.waiting.Add(int64(len(items)))
		pause(ctx, min(wait+rand.N(wait/4), left)) // spread out, so that the workers do not come back all at once
		j.report.waiting.Add(-int64(len(items)))
	}
}

// refusal is an item that was not taken this time.
type refusal struct {
	item  sendItem
	fault *fault
}

// submit makes one call and files its results. It returns what should be tried again, and the fault of the call if the
// call itself failed.
func (j *sending) submit(ctx context.Context, items []sendItem) (again []refusal, whole *fault) {
	results, err := j.call(ctx, items)
	if err == nil {
		j.reached.Store(true)
		for i, item := range items {
			switch r := results[i].GetResult().(type) {
			case *notifydv1.SubmitResult_Response:
				j.report.accept(r.Response.GetDuplicate())
			case *notifydv1.SubmitResult_Error:
				again = j.file(again, item, faultOfItem(r.Error))
			default:
				again = j.file(again, item, &fault{code: connect.CodeUnknown, message: "the server gave no result"})
			}
		}
		return again, nil
	}
	f := faultOf(err)
	switch {
	case f.nobody() && !j.reached.Load():
		if ctx.Err() == nil { // else it is only our own hanging up
			j.stop(j.to.unreachable(f))
		}
		return nil, f
	case f.code == connect.CodeUnauthenticated, f.code == connect.CodePermissionDenied, f.code == connect.CodeUnimplemented:
		j.stop(&exitError{code: exitSome, err: fmt.Errorf("%s: %s", j.to.url, strings.Join(f.lines(), "; "))}) // the others would hear the same
		return nil, f
	case !f.silent:
		j.reached.Store(true)
	}
	if ctx.Err() != nil {
		return nil, f // no answer: left over
	}
	for _, item := range items {
		again = j.file(again, item, f)
	}
	return again, f
}

// file keeps what may be taken later and reports what never will.
func (j *sending) file(again []refusal, item sendItem, f *fault) []refusal {
	if f.passing() {
		return append(again, refusal{item, f})
	}
	j.report.refuse(item.number, f)
	return again
}

// abandon reports what was not taken in all the time it had. Without a server nothing else would be taken either.
func (j *sending) abandon(rs []refusal, whole *fault) {
	for _, r := range rs {
		j.report.fail(r.item.number, &fault{code: r.fault.code, message: fmt.Sprintf("%s (given up after %s)", r.fault.message, j.cmd.RetryFor)})
	}
	if whole != nil && whole.noServer() {
		j.stop(j.to.unreachable(whole))
	}
}

// call outlives ctx by a moment, so that an interrupted command still counts what was accepted.
func (j *sending) call(ctx context.Context, items []sendItem) ([]*notifydv1.SubmitResult, error) {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), submitBound)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(answerGrace, cancel) })()
	req := &notifydv1.SubmitBatchRequest{Notifications: make([]*notifydv1.Notification, len(items))}
	for i, item := range items {
		req.Notifications[i] = item.notification
	}
	resp, err := j.to.notifications.SubmitBatch(bound, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	if got := len(resp.Msg.Results); got != len(items) {
		return nil, connect.NewWireError(connect.CodeInternal, fmt.Errorf("the server gave %d results for %d notifications", got, len(items)))
	}
	return resp.Msg.Results, nil
}

// parse reports the lines that are no notification.
func (j *sending) parse(batch []inputLine) []sendItem {
	items := make([]sendItem, 0, len(batch))
	for _, line := range batch {
		n := &notifydv1.Notification{}
		if len(line.text) > maxLine {
			j.report.refuse(line.number, badLine("is longer than 1 MiB"))
			continue
		}
		if err := protojson.Unmarshal(line.text, n); err != nil {
			j.report.refuse(line.number, badLine(jsonFault(err)))
			continue
		}
		if n.Source == "" {
			n.Source = j.cmd.Source
		}
		items = append(items, sendItem{line.number, n})
	}
	return items
}

func badLine(description string) *fault {
	return &fault{code: connect.CodeInvalidArgument, message: description, violations: []*notifydv1.Violation{{Field: "json", Description: description}}}
}

var jsonPlace = regexp.MustCompile(`^(?:syntax error )?\(line \d+:(\d+)\): `)

// jsonFault makes protojson's error, which counts lines of its own and varies its spaces on purpose, fit for a report.
func jsonFault(err error) string {
	text := strings.TrimSpace(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto:"))
	if place := jsonPlace.FindStringSubmatch(text); place != nil {
		return strings.TrimPrefix(text, place[0]) + " (column " + place[1] + ")"
	}
	return text
}

// counted counts what is read.
type counted struct {
	from io.Reader
	n    *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// sendReport counts and prints.
type sendReport struct {
	streams     *streams
	json, quiet bool
	size        int64 // of the input in bytes; -1: not known
	began       time.Time

	lines, bytes, waiting atomic.Int64

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
	}{Type: "error", Line: number, Code: f.code.String(), Message: f.message}
	for _, v := range f.violations {
		out.Violations = append(out.Violations, sendViolation{strings.TrimPrefix(v.Field, "notification."), v.Description})
	}
	printJSON(r.streams.Out, out)
}

// progress prints where the command stands until done is closed.
func (r *sendReport) progress(done <-chan struct{}) {
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
			say(r.streams.Err, "%s%s", r.standing(), end)
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

func (r *sendReport) standing() string {
	text := fmt.Sprintf("%d accepted, %d duplicates, %d refused, %d failed; %.0f/s", r.accepted, r.duplicates, r.refused, r.failed, r.perSecond())
	if waiting := r.waiting.Load(); waiting > 0 {
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
