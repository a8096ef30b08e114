package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	"notifyd/client"
)

const (
	maxLine       = 1 << 20
	maxBatchBytes = 2 << 20 // of lines in one call; well below what the intake takes
	mostItems     = 1000    // of the API
	mostCalls     = 64
	idleFlush     = 200 * time.Millisecond // a pipe that is silent so long has its lines sent

	submitBound = 30 * time.Second
	// answerGrace is what calls under way get when the command is interrupted, so that their answers are counted.
	answerGrace = 2 * time.Second
)

// sendCmd submits a file of notifications.
type sendCmd struct {
	connection
	callerKeys
	File        string        `help:"File of JSON lines, one notification each; - is standard input, which is also the default when it is not a terminal." short:"f" placeholder:"FILE"`
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
	if c.Concurrency < 1 || c.Concurrency > mostCalls {
		return usageError("--concurrency %d: want 1 to %d", c.Concurrency, mostCalls)
	}
	if c.RetryFor < 0 {
		return usageError("--retry-for %s: want 0s or more", c.RetryFor)
	}
	input, size, err := c.open(s)
	if err != nil {
		return err
	}
	defer func() { _ = input.Close() }() // it was only read
	job := &sending{cmd: c, report: &sendReport{streams: s, json: c.JSON, quiet: c.Quiet, size: size, began: time.Now()}}
	if job.to, err = c.remote(append(job.options(), c.options()...)...); err != nil {
		return err
	}
	defer job.to.close()
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
	progress.Go(func() { j.report.progress(done, func() int { return j.to.client.Stats().Retrying }) })
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
	notification *client.Notification
}

// options make the client submit as the flags say.
func (j *sending) options() []client.Option {
	return []client.Option{
		client.WithSource(j.cmd.Source), client.WithBatch(j.cmd.Batch, maxBatchBytes), client.WithParallel(j.cmd.Concurrency),
		client.WithCallTimeout(submitBound), client.WithRetryFor(j.cmd.RetryFor), client.WithAnswerGrace(answerGrace),
		client.WithOnRetry(func(_ *client.Notification, err *client.Error, _ time.Duration) { j.stopWithoutServer(&fault{err}) }),
	}
}

// send parses a batch and submits it until each item is accepted, refused or given up. When ctx ends it stops; what has no
// answer then is left over.
func (j *sending) send(ctx context.Context, batch []inputLine) {
	items := j.parse(batch)
	ns := make([]*client.Notification, len(items))
	for i, item := range items {
		ns[i] = item.notification
	}
	j.to.client.SubmitEach(ctx, ns, func(i int, a client.Answer) {
		if a.Err == nil {
			j.reached.Store(true)
			j.report.accept(a.Result.GetDuplicate())
			return
		}
		j.file(ctx, items[i].number, faultOf(a.Err))
	})
}

// file reports what was not accepted, and stops everything where the others would hear the same.
func (j *sending) file(ctx context.Context, number int, f *fault) {
	denied := f.Code == connect.CodeUnauthenticated || f.Code == connect.CodePermissionDenied || f.Code == connect.CodeUnimplemented
	switch {
	case j.stopWithoutServer(f):
	case f.WholeCall && denied:
		j.stop(&exitError{code: exitSome, err: fmt.Errorf("%s: %s", j.to.url, strings.Join(f.lines(), "; "))})
	case !f.Answered && ctx.Err() != nil: // left over
	case f.Temporary():
		failed := *f.Error
		failed.Message = fmt.Sprintf("%s (given up after %s)", f.Message, j.cmd.RetryFor)
		j.report.fail(number, &fault{&failed})
		if f.WholeCall && f.noServer() { // nothing else would be taken either
			j.stop(j.to.unreachable(f))
		}
	default:
		j.report.refuse(number, f)
	}
}

// stopWithoutServer stops everything when there is no server and never was one: waiting for it makes no sense then.
func (j *sending) stopWithoutServer(f *fault) bool {
	if f.Answered {
		j.reached.Store(true)
	}
	none := f.WholeCall && f.nobody() && !j.reached.Load()
	if none {
		j.stop(j.to.unreachable(f))
	}
	return none
}

// parse reports the lines that are no notification.
func (j *sending) parse(batch []inputLine) []sendItem {
	items := make([]sendItem, 0, len(batch))
	for _, line := range batch {
		n := &client.Notification{}
		if len(line.text) > maxLine {
			j.report.refuse(line.number, badLine("is longer than 1 MiB"))
			continue
		}
		if err := protojson.Unmarshal(line.text, n); err != nil {
			j.report.refuse(line.number, badLine(jsonFault(err)))
			continue
		}
		items = append(items, sendItem{line.number, n})
	}
	return items
}

func badLine(description string) *fault {
	return &fault{&client.Error{Code: connect.CodeInvalidArgument, Message: description, Violations: []*client.Violation{{Field: "json", Description: description}}}}
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
