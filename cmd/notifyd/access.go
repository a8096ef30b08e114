package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// accessCmd keeps the blacklist and the whitelist.
type accessCmd struct {
	List    accessListCmd    `cmd:"" help:"List the rules, and whether only those that are allowed are served."`
	Block   accessBlockCmd   `cmd:"" help:"Block a merchant or a source."`
	Allow   accessAllowCmd   `cmd:"" help:"Let through what a wider block, or the allow-only mode, would not."`
	Remove  accessRemoveCmd  `cmd:"" help:"End a rule. What it held goes out at the merchant's release rate."`
	Only    accessOnlyCmd    `cmd:"" help:"Serve only the merchants, or the sources, that a rule allows; or everybody again."`
	Changes accessChangesCmd `cmd:"" help:"List who changed what, newest first."`
}

// Help is the long text of --help.
func (accessCmd) Help() string {
	return `Who is served: rules about merchants and sources, in every scene or in one. BLOCK beats ALLOW, the narrower rule beats the wider,
an expired one counts as absent. A change holds on every node within about a second.

Examples:

    notifyd access block merchant tea-house --mode hold --reason "fraud case 4711" --expires-in 24h
    notifyd access block source pay-old --mode reject --reason "retired"
    notifyd access allow merchant tea-house --scene refund --reason "refunds go on"
    notifyd access remove merchant/tea-house/block --reason "case closed"
    notifyd access only merchants --mode hold --reason "go-live"
    notifyd access list --json

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 no answer.`
}

// accessConn is what every command about access needs.
type accessConn struct {
	connection
	operatorFlag
	JSON bool `help:"Print JSON lines." name:"json"`
}

// call makes one client, and one exit code of what went wrong.
func (c *accessConn) call(do func(notifydv1connect.AccessServiceClient) error) error {
	return c.callService(func(to *remote) error {
		return do(notifydv1connect.NewAccessServiceClient(to.client.HTTPClient(), to.url))
	})
}

func (c *accessConn) callService(do func(to *remote) error) error {
	to, err := c.remote(c.options()...)
	if err != nil {
		return err
	}
	defer to.close()
	err = do(to)
	if _, decided := errors.AsType[*exitError](err); err == nil || decided {
		return err
	}
	f := faultOf(err)
	said := errors.New(strings.Join(f.lines(), "\n"))
	switch {
	case f.noServer():
		return to.unreachable(f)
	case f.Code == connect.CodeInvalidArgument:
		return &exitError{code: exitUsage, err: said}
	case errors.Is(err, context.Canceled) || f.Temporary():
		return &exitError{code: exitUnreachable, err: said}
	}
	return &exitError{code: exitSome, err: said}
}

// accessTarget is who a rule is about.
type accessTarget struct {
	Kind      string        `arg:"" enum:"merchant,source" help:"merchant or source."`
	ID        string        `arg:"" help:"Its id."`
	Scene     string        `help:"Only in this scene." placeholder:"SCENE"`
	Reason    string        `required:"" help:"For people: why." placeholder:"TEXT"`
	Expires   string        `help:"When it ends by itself (RFC 3339)." xor:"end" placeholder:"2026-11-24T10:00:00Z"`
	ExpiresIn time.Duration `help:"How long until it ends by itself." xor:"end" placeholder:"24h"`
	Etag      string        `help:"Change it only if nobody else has since it was listed; 0: only if there is none."`
}

func (c accessTarget) rule(effect notifydv1.AccessEffect, now time.Time) (*notifydv1.AccessRule, error) {
	expires, err := instant("--expires", c.Expires)
	if err != nil {
		return nil, err
	}
	switch {
	case c.ExpiresIn < 0:
		return nil, usageError("--expires-in %s: want more than 0s", c.ExpiresIn)
	case c.ExpiresIn > 0:
		expires = timestamppb.New(now.Add(c.ExpiresIn))
	}
	return &notifydv1.AccessRule{
		Subject: &notifydv1.AccessSubject{Kind: accessKinds[c.Kind], Id: c.ID, Scene: c.Scene}, Effect: effect, Reason: c.Reason, ExpiresAt: expires,
	}, nil
}

var (
	accessKinds = map[string]notifydv1.AccessKind{
		"merchant": notifydv1.AccessKind_ACCESS_KIND_MERCHANT, "merchants": notifydv1.AccessKind_ACCESS_KIND_MERCHANT,
		"source": notifydv1.AccessKind_ACCESS_KIND_SOURCE, "sources": notifydv1.AccessKind_ACCESS_KIND_SOURCE,
	}
	accessModes = map[string]notifydv1.AccessMode{
		"reject": notifydv1.AccessMode_ACCESS_MODE_REJECT, "hold": notifydv1.AccessMode_ACCESS_MODE_HOLD, "record-only": notifydv1.AccessMode_ACCESS_MODE_RECORD_ONLY,
	}
)

type accessBlockCmd struct {
	accessConn
	accessTarget
	Mode string `required:"" enum:"reject,hold,record-only" help:"What becomes of what is submitted: reject it, hold it until the rule ends, or record-only (accepted, canceled at once)."`
}

// Run puts the rule.
func (c *accessBlockCmd) Run(ctx context.Context, s *streams) error {
	rule, err := c.rule(notifydv1.AccessEffect_ACCESS_EFFECT_BLOCK, time.Now())
	if err != nil {
		return err
	}
	rule.Mode = accessModes[c.Mode]
	return c.put(ctx, s, rule, c.Etag)
}

type accessAllowCmd struct {
	accessConn
	accessTarget
}

// Run puts the rule.
func (c *accessAllowCmd) Run(ctx context.Context, s *streams) error {
	rule, err := c.rule(notifydv1.AccessEffect_ACCESS_EFFECT_ALLOW, time.Now())
	if err != nil {
		return err
	}
	return c.put(ctx, s, rule, c.Etag)
}

func (c *accessConn) put(ctx context.Context, s *streams, rule *notifydv1.AccessRule, etag string) error {
	return c.call(func(rules notifydv1connect.AccessServiceClient) error {
		res, err := rules.PutRule(ctx, connect.NewRequest(&notifydv1.PutRuleRequest{Rule: rule, Etag: etag}))
		if err != nil {
			return err
		}
		if c.JSON {
			printProto(s, res.Msg.Rule)
			return nil
		}
		say(s.Out, "%s holds%s\n", printable(res.Msg.Rule.Id), untilWhen(res.Msg.Rule))
		return nil
	})
}

type accessRemoveCmd struct {
	accessConn
	ID     string `arg:"" help:"The rule's id, as it is listed."`
	Reason string `required:"" help:"For people: why." placeholder:"TEXT"`
	Etag   string `help:"Only if nobody has changed it since it was listed."`
}

// Run ends the rule.
func (c *accessRemoveCmd) Run(ctx context.Context, s *streams) error {
	return c.call(func(rules notifydv1connect.AccessServiceClient) error {
		if _, err := rules.DeleteRule(ctx, connect.NewRequest(&notifydv1.DeleteRuleRequest{Id: c.ID, Reason: c.Reason, Etag: c.Etag})); err != nil {
			return err
		}
		if c.JSON {
			printJSON(s.Out, map[string]string{"removed": c.ID})
			return nil
		}
		say(s.Out, "%s has ended; what it held goes out\n", printable(c.ID))
		return nil
	})
}

type accessOnlyCmd struct {
	accessConn
	Kind   string `arg:"" enum:"merchants,sources" help:"merchants or sources."`
	Mode   string `enum:",reject,hold,record-only" default:"" help:"What becomes of the others: reject, hold or record-only."`
	Off    bool   `help:"Serve everybody again whom no rule blocks."`
	Reason string `required:"" help:"For people: why." placeholder:"TEXT"`
	Etag   string `help:"Only if nobody has changed it since."`
}

// Run switches the mode.
func (c *accessOnlyCmd) Run(ctx context.Context, s *streams) error {
	if c.Off == (c.Mode != "") {
		return usageError("access only %s: give either --mode or --off", c.Kind)
	}
	policy := &notifydv1.AccessPolicy{Kind: accessKinds[c.Kind], AllowOnly: !c.Off, Mode: accessModes[c.Mode], Reason: c.Reason}
	return c.call(func(rules notifydv1connect.AccessServiceClient) error {
		res, err := rules.PutPolicy(ctx, connect.NewRequest(&notifydv1.PutPolicyRequest{Policy: policy, Etag: c.Etag}))
		if err != nil {
			return err
		}
		c.show(s, res.Msg.Policy)
		return nil
	})
}

func (c *accessConn) show(s *streams, p *notifydv1.AccessPolicy) {
	kind := word(p.Kind.String(), "ACCESS_KIND_") + "s"
	switch {
	case c.JSON:
		printProto(s, p)
	case p.AllowOnly:
		say(s.Out, "only %s that are allowed; the others: %s (%s)\n", kind, word(p.Mode.String(), "ACCESS_MODE_"), printable(p.Reason))
	default:
		say(s.Out, "all %s that no rule blocks\n", kind)
	}
}

type accessListCmd struct {
	accessConn
	Kind string `enum:",merchant,source" default:"" help:"Only rules about merchants, or about sources."`
	ID   string `help:"Only rules about this merchant or source." name:"id"`
}

// Run lists the switches, then the rules.
func (c *accessListCmd) Run(ctx context.Context, s *streams) error {
	return c.call(func(rules notifydv1connect.AccessServiceClient) error {
		for _, kind := range []string{"merchant", "source"} {
			if c.Kind != "" && c.Kind != kind {
				continue
			}
			res, err := rules.GetPolicy(ctx, connect.NewRequest(&notifydv1.GetPolicyRequest{Kind: accessKinds[kind]}))
			if err != nil {
				return err
			}
			c.show(s, res.Msg.Policy)
		}
		table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
		defer func() { _ = table.Flush() }() // who closed the output does not want it
		req := &notifydv1.ListRulesRequest{Kind: accessKinds[c.Kind], SubjectId: c.ID, PageSize: 1000}
		for {
			res, err := rules.ListRules(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, r := range res.Msg.Rules {
				if c.JSON {
					printProto(s, r)
					continue
				}
				say(table, "%s\t%s\t%s\t%s\t%s\n", printable(r.Id), word(r.Mode.String(), "ACCESS_MODE_"), strings.TrimSpace(untilWhen(r)), printable(r.UpdatedBy), printable(r.Reason))
			}
			if req.PageToken = res.Msg.NextPageToken; req.PageToken == "" {
				return nil
			}
		}
	})
}

type accessChangesCmd struct {
	accessConn
	Rule string `help:"Only changes of this rule, by its id." placeholder:"RULE"`
}

// Run lists the changes.
func (c *accessChangesCmd) Run(ctx context.Context, s *streams) error {
	return c.call(func(rules notifydv1connect.AccessServiceClient) error {
		req := &notifydv1.ListChangesRequest{RuleId: c.Rule, PageSize: 1000}
		for {
			res, err := rules.ListChanges(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, change := range res.Msg.Changes {
				c.change(s, change)
			}
			if req.PageToken = res.Msg.NextPageToken; req.PageToken == "" {
				return nil
			}
		}
	})
}

func (c *accessChangesCmd) change(s *streams, change *notifydv1.AccessChange) {
	if c.JSON {
		printProto(s, change)
		return
	}
	what := "removed"
	switch {
	case change.Before == nil:
		what = "put"
	case change.After != nil:
		what = "changed"
	}
	by := change.By
	if by == "" {
		by = "somebody"
	}
	say(s.Out, "%s  %s %s by %s: %s\n", change.At.AsTime().Format(time.RFC3339), printable(change.RuleId), what, printable(by), printable(change.Reason))
}

// untilWhen is the end of a rule, with a space before it; empty: it has none.
func untilWhen(r *notifydv1.AccessRule) string {
	switch {
	case r.ExpiresAt == nil:
		return ""
	case r.Expired:
		return " expired " + r.ExpiresAt.AsTime().Format(time.RFC3339)
	}
	return " until " + r.ExpiresAt.AsTime().Format(time.RFC3339)
}

// word is an enum's value as people write it; unspecified is a dash.
func word(value, prefix string) string {
	value = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(value, prefix), "_", "-"))
	if value == "unspecified" {
		return "-"
	}
	return value
}

// printProto prints a message as a line of JSON, as the API writes it.
func printProto(s *streams, m proto.Message) {
	text, err := protojson.MarshalOptions{EmitDefaultValues: false}.Marshal(m)
	if err != nil {
		say(s.Err, "notifyd: %s\n", fmt.Errorf("print: %w", err))
		return
	}
	printJSON(s.Out, json.RawMessage(text))
}
