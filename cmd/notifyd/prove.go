package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// proveCmd checks that nothing that was accepted is lost.
type proveCmd struct {
	connection
	operatorFlag
	Before string         `help:"Check what was accepted before this instant (RFC 3339)." xor:"cutoff" placeholder:"2026-11-22T10:00:00Z"`
	Age    *time.Duration `help:"Check what was accepted at least so long ago. Without it the server decides: 30s." xor:"cutoff" placeholder:"30s"`
	From   string         `help:"Leave out what was accepted before this instant (RFC 3339)." placeholder:"2026-11-22T00:00:00Z"`
	JSON   bool           `help:"Print JSON lines." name:"json"`
}

// Help is the long text of --help.
func (proveCmd) Help() string {
	return `Counts every notification that was accepted before a cut-off, from the record that is written at acceptance, and finds each
one: it is final, or it waits in a named place. Whatever is not found is listed by id.

Examples:

    notifyd prove
    notifyd prove --age 5m --json
    notifyd prove --from 2026-11-22T00:00:00Z --before 2026-11-23T00:00:00Z

Exit codes: 0 nothing is missing, 1 something is, 2 wrong usage, 3 the proof could not be made.`
}

// Run asks the server for a proof and prints it.
func (c *proveCmd) Run(ctx context.Context, s *streams) error {
	req, err := c.request(time.Now())
	if err != nil {
		return err
	}
	to, err := c.remote(c.options()...)
	if err != nil {
		return err
	}
	defer to.close()
	stream, err := to.notifications.Prove(ctx, connect.NewRequest(req))
	if err != nil {
		return c.failed(to, err)
	}
	defer func() { _ = stream.Close() }() // everything wanted has been read
	last := &notifydv1.ProveResponse{}
	for stream.Receive() {
		last = stream.Msg()
		c.missing(s, last.MissingIds)
		if s.ErrIsTerminal && !last.Done {
			say(s.Err, "\r\x1b[K%d checked", last.Accepted)
		}
	}
	if s.ErrIsTerminal {
		say(s.Err, "\r\x1b[K")
	}
	if err := stream.Err(); err != nil {
		return c.failed(to, err)
	}
	if !last.Done {
		return &exitError{code: exitUnreachable, err: fmt.Errorf("%s ended the proof early: nothing is proven", to.url)}
	}
	c.summary(s, last)
	if found := sum(last.Final) + sum(last.Waiting) + last.Missing + last.Unanswered; found != last.Accepted {
		return &exitError{code: exitSome, err: fmt.Errorf("the counts do not add up: %d accepted, %d accounted for", last.Accepted, found)}
	}
	if last.Missing > 0 {
		return &exitError{code: exitSome}
	}
	return nil
}

func (c *proveCmd) request(now time.Time) (*notifydv1.ProveRequest, error) {
	req := &notifydv1.ProveRequest{}
	var err error
	if req.AcceptedBefore, err = instant("--before", c.Before); err != nil {
		return nil, err
	}
	if req.AcceptedFrom, err = instant("--from", c.From); err != nil {
		return nil, err
	}
	switch {
	case c.Age == nil:
	case *c.Age < 0:
		return nil, usageError("--age %s: want 0s or more", *c.Age)
	case c.Before != "":
		return nil, usageError("--before and --age can't be used together")
	default:
		req.AcceptedBefore = timestamppb.New(now.Add(-*c.Age))
	}
	return req, nil
}

// instant reads an RFC 3339 instant; nil: none is given.
func instant(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usageError("%s %q: want an instant such as 2026-11-22T10:00:00Z", flag, text)
	}
	return timestamppb.New(at), nil
}

// failed says why there is no proof.
func (c *proveCmd) failed(to *remote, err error) error {
	f := faultOf(err)
	switch {
	case errors.Is(err, context.Canceled) || f.Code == connect.CodeCanceled:
		return &exitError{code: exitUnreachable, err: errors.New("interrupted: nothing is proven")}
	case f.noServer():
		return to.unreachable(f)
	case f.Code == connect.CodeInvalidArgument:
		return usageError("%s", f.lines()[0])
	}
	return &exitError{code: exitUnreachable, err: fmt.Errorf("nothing is proven: %s", f.lines()[0])}
}

// missing lists ids as they come: there may be many.
func (c *proveCmd) missing(s *streams, ids []string) {
	if len(ids) > 0 && s.ErrIsTerminal {
		say(s.Err, "\r\x1b[K")
	}
	for _, id := range ids {
		if c.JSON {
			printJSON(s.Out, struct {
				Type string `json:"type"`
				ID   string `json:"id"`
			}{"missing", id})
			continue
		}
		say(s.Out, "missing %s\n", printable(id))
	}
}

func (c *proveCmd) summary(s *streams, p *notifydv1.ProveResponse) {
	before := p.AcceptedBefore.AsTime()
	if c.JSON {
		printJSON(s.Out, struct {
			Type           string           `json:"type"`
			AcceptedBefore time.Time        `json:"acceptedBefore"`
			Accepted       int64            `json:"accepted"`
			Final          map[string]int64 `json:"final"`
			Waiting        map[string]int64 `json:"waiting"`
			Missing        int64            `json:"missing"`
			Unanswered     int64            `json:"unanswered"`
			Proven         bool             `json:"proven"`
		}{"summary", before, p.Accepted, notNil(p.Final), notNil(p.Waiting), p.Missing, p.Unanswered, p.Missing == 0})
		return
	}
	table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, n int64) { say(table, "%s\t%d\t\n", name, n) }
	say(s.Out, "accepted before %s\n", before.Format(time.RFC3339))
	row("reserved", p.Accepted)
	for _, state := range slices.Sorted(maps.Keys(p.Final)) {
		row("final: "+state, p.Final[state])
	}
	for _, place := range slices.Sorted(maps.Keys(p.Waiting)) {
		row("waiting: "+place, p.Waiting[place])
	}
	if p.Unanswered > 0 {
		row("cut short, nobody was told", p.Unanswered)
	}
	row("missing", p.Missing)
	_ = table.Flush() // who closed the output does not want it
	switch {
	case p.Accepted == 0:
		say(s.Out, "nothing was accepted in that time\n")
	case p.Missing == 0:
		say(s.Out, "proven: each one is final or waits in a named place\n")
	default:
		say(s.Out, "NOT PROVEN: %d accepted notifications were not found\n", p.Missing)
	}
}

func notNil(m map[string]int64) map[string]int64 {
	if m == nil {
		return map[string]int64{}
	}
	return m
}

func sum(counts map[string]int64) (total int64) {
	for _, n := range counts {
		total += n
	}
	return total
}
