package dispatcher

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"notifyd/access"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const (
	kindMerchant = notifydv1.AccessKind_ACCESS_KIND_MERCHANT
	kindSource   = notifydv1.AccessKind_ACCESS_KIND_SOURCE
	blocks       = notifydv1.AccessEffect_ACCESS_EFFECT_BLOCK
	allows       = notifydv1.AccessEffect_ACCESS_EFFECT_ALLOW
	modeHold     = notifydv1.AccessMode_ACCESS_MODE_HOLD
	modeReject   = notifydv1.AccessMode_ACCESS_MODE_REJECT
)

func ruleOf(id string, change ...func(*notifydv1.AccessRule)) *notifydv1.AccessRule {
	p := &notifydv1.AccessRule{Subject: &notifydv1.AccessSubject{Kind: kindMerchant, Id: id}, Effect: blocks, Mode: modeHold, Reason: "欠费"}
	for _, c := range change {
		c(p)
	}
	return p
}

func (c client) putRule(t *testing.T, p *notifydv1.AccessRule, etag string) (*notifydv1.AccessRule, error) {
	t.Helper()
	res, err := got(c.access.PutRule(t.Context(), connect.NewRequest(&notifydv1.PutRuleRequest{Rule: p, Etag: etag})))
	return res.GetRule(), err
}

func (c client) deleteRule(t *testing.T, id, etag string) error {
	t.Helper()
	_, err := c.access.DeleteRule(t.Context(), connect.NewRequest(&notifydv1.DeleteRuleRequest{Id: id, Etag: etag, Reason: "paid"}))
	return err
}

func (c client) listRules(t *testing.T, req *notifydv1.ListRulesRequest) (ids []string) {
	t.Helper()
	for {
		res, err := got(c.access.ListRules(t.Context(), connect.NewRequest(req)))
		must(t, err)
		for _, r := range res.Rules {
			ids = append(ids, r.Id)
		}
		if req.PageToken = res.NextPageToken; req.PageToken == "" {
			return ids
		}
	}
}

// What is put is what is listed; etags guard it; who changed what stays on record.
func TestRules(t *testing.T) {
	cfg, operatorKey := alice(t)
	f := newFront(t, cfg)
	c := f.client(t, bearer(operatorKey))
	expires := timestamppb.New(f.clock.now().Add(time.Hour))
	stored, err := c.putRule(t, ruleOf("m", func(p *notifydv1.AccessRule) { p.Subject.Scene, p.ExpiresAt = "payout", expires }), "0")
	must(t, err)
	made := timestamppb.New(f.clock.now())
	want := ruleOf("m", func(p *notifydv1.AccessRule) { p.Subject.Scene, p.ExpiresAt = "payout", expires })
	want.Id, want.CreatedAt, want.CreatedBy, want.UpdatedAt, want.UpdatedBy = "merchant/m/payout/block", made, "alice", made, "alice"
	want.Version, want.Etag = stored.Version, etagOf(stored.Version)
	list, err := got(c.access.ListRules(t.Context(), connect.NewRequest(&notifydv1.ListRulesRequest{})))
	must(t, err)
	if len(list.Rules) != 1 || !proto.Equal(list.Rules[0], want) || !proto.Equal(stored, want) {
		t.Fatalf("put    %s\nlisted %s\nwant   %s", protojson.Format(stored), protojson.Format(list), protojson.Format(want))
	}
	if r := f.access.Judge("m", "pay", "payout", f.clock.now()); r == nil || r.ID != want.Id {
		t.Error("it does not hold on this node when the answer is there")
	}
	const stale = `rule "merchant/m/payout/block": the settings have changed meanwhile; read it again`
	_, err = c.putRule(t, asPut(want), "0")
	wantError(t, "made twice", err, connect.CodeAborted, stale, "")
	f.clock.advance(time.Minute)
	second, err := c.putRule(t, asPut(want, func(p *notifydv1.AccessRule) { p.Mode = modeReject }), stored.Etag)
	if err != nil || !second.CreatedAt.AsTime().Equal(made.AsTime()) || second.UpdatedAt.AsTime().Equal(made.AsTime()) || second.Version <= stored.Version {
		t.Errorf("%v, %v", second, err)
	}
	wantError(t, "ended with a stale etag", c.deleteRule(t, want.Id, stored.Etag), connect.CodeAborted, stale, "")
	_, err = c.putRule(t, asPut(want), stored.Etag)
	wantError(t, "put with a stale etag", err, connect.CodeAborted, stale, "")
	_, err = c.putRule(t, asPut(want), "x")
	wantError(t, "no etag", err, connect.CodeInvalidArgument, `"x": is not one of ours`, "etag")

	f.clock.advance(2 * time.Hour)
	list, err = got(c.access.ListRules(t.Context(), connect.NewRequest(&notifydv1.ListRulesRequest{})))
	if err != nil || len(list.Rules) != 1 || !list.Rules[0].Expired {
		t.Errorf("expired: %v, %v", list, err)
	}
	must(t, c.deleteRule(t, want.Id, second.Etag))
	wantError(t, "ended twice", c.deleteRule(t, want.Id, ""), connect.CodeNotFound, want.Id, "")
	if ids := c.listRules(t, &notifydv1.ListRulesRequest{}); len(ids) != 0 {
		t.Errorf("ended, and listed: %s", ids)
	}
	again, err := c.putRule(t, ruleOf("m", func(p *notifydv1.AccessRule) { p.Subject.Scene = "payout" }), "0")
	if err != nil || again.CreatedAt.AsTime().Equal(made.AsTime()) {
		t.Errorf("made again: %v, %v", again, err)
	}

	var lines []string
	req := &notifydv1.ListChangesRequest{RuleId: want.Id, PageSize: 3}
	for {
		res, err := got(c.access.ListChanges(t.Context(), connect.NewRequest(req)))
		must(t, err)
		for _, ch := range res.Changes {
			lines = append(lines, fmt.Sprintf("%s %s: %s -> %s", ch.By, ch.Reason, ch.Before.GetMode(), ch.After.GetMode()))
		}
		if req.PageToken = res.NextPageToken; req.PageToken == "" {
			break
		}
	}
	for i, want := range []string{
		"alice 欠费: ACCESS_MODE_UNSPECIFIED -> ACCESS_MODE_HOLD", "alice paid: ACCESS_MODE_REJECT -> ACCESS_MODE_UNSPECIFIED",
		"alice 欠费: ACCESS_MODE_HOLD -> ACCESS_MODE_REJECT", "alice 欠费: ACCESS_MODE_UNSPECIFIED -> ACCESS_MODE_HOLD",
	} {
		if len(lines) != 4 || lines[i] != want {
			t.Fatalf("changes: %q", lines)
		}
	}
	_, err = c.access.ListChanges(t.Context(), connect.NewRequest(&notifydv1.ListChangesRequest{PageToken: "x"}))
	wantError(t, "a token of somebody else", err, connect.CodeInvalidArgument, `"x": is not one of ours`, "page_token")
}

// asPut is what a caller puts of what it has read.
func asPut(p *notifydv1.AccessRule, change ...func(*notifydv1.AccessRule)) *notifydv1.AccessRule {
	out := &notifydv1.AccessRule{Subject: p.Subject, Effect: p.Effect, Mode: p.Mode, Reason: p.Reason, ExpiresAt: p.ExpiresAt}
	for _, c := range change {
		c(out)
	}
	return out
}

func TestListRules(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	for _, id := range []string{"b", "a"} {
		for _, kind := range []notifydv1.AccessKind{kindMerchant, kindSource} {
			_, err := c.putRule(t, ruleOf(id, func(p *notifydv1.AccessRule) { p.Subject.Kind = kind }), "")
			must(t, err)
		}
	}
	_, err := c.putRule(t, ruleOf("a", func(p *notifydv1.AccessRule) { p.Effect, p.Mode = allows, 0 }), "")
	must(t, err)
	_, err = c.access.PutPolicy(t.Context(), connect.NewRequest(&notifydv1.PutPolicyRequest{Policy: &notifydv1.AccessPolicy{Kind: kindMerchant, AllowOnly: true, Mode: modeHold, Reason: "x"}}))
	must(t, err)
	for want, req := range map[string]*notifydv1.ListRulesRequest{
		"[merchant/a/allow merchant/a/block merchant/b/block source/a/block source/b/block]": {},
		"[merchant/a/allow merchant/a/block merchant/b/block]":                               {Kind: kindMerchant},
		"[merchant/a/allow merchant/a/block source/a/block]":                                 {SubjectId: "a"},
		"[source/b/block]": {Kind: kindSource, SubjectId: "b"},
		"[]":               {SubjectId: "c"},
	} {
		for _, size := range []int32{0, 1, 2} {
			req.PageSize = size
			if got := fmt.Sprint(c.listRules(t, req)); got != want {
				t.Errorf("%v: %s, want %s", req, got, want)
			}
		}
	}
}

func TestPolicies(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	get := func(kind notifydv1.AccessKind) *notifydv1.AccessPolicy {
		res, err := got(c.access.GetPolicy(t.Context(), connect.NewRequest(&notifydv1.GetPolicyRequest{Kind: kind})))
		must(t, err)
		return res.Policy
	}
	put := func(p *notifydv1.AccessPolicy, etag string) (*notifydv1.AccessPolicy, error) {
		res, err := got(c.access.PutPolicy(t.Context(), connect.NewRequest(&notifydv1.PutPolicyRequest{Policy: p, Etag: etag, Operator: "bob"})))
		return res.GetPolicy(), err
	}
	before := get(kindSource)
	if before.AllowOnly || before.Etag != "0" || before.Kind != kindSource {
		t.Errorf("before: %v", before)
	}
	on, err := put(&notifydv1.AccessPolicy{Kind: kindSource, AllowOnly: true, Mode: modeReject, Reason: "go-live"}, before.Etag)
	if err != nil || !on.AllowOnly || on.Mode != modeReject || on.UpdatedBy != "bob" || !proto.Equal(on, get(kindSource)) {
		t.Fatalf("on: %v, %v", on, err)
	}
	if get(kindMerchant).AllowOnly {
		t.Error("the other kind's is on, too")
	}
	_, err = c.submit(t, payment("a", final))
	wantError(t, "not on the list", err, connect.CodeFailedPrecondition, "notification.source: only sources that a rule allows", "")
	_, err = c.putRule(t, ruleOf("pay", func(p *notifydv1.AccessRule) { p.Subject.Kind, p.Effect, p.Mode = kindSource, allows, 0 }), "")
	must(t, err)
	_, err = c.submit(t, payment("a", final))
	must(t, err)
	_, err = put(&notifydv1.AccessPolicy{Kind: kindSource, Reason: "over"}, before.Etag)
	wantError(t, "a stale etag", err, connect.CodeAborted, "read it again", "")
	wantError(t, "a policy is no rule to delete", c.deleteRule(t, "source/block", ""), connect.CodeNotFound, "source/block", "")
	off, err := put(&notifydv1.AccessPolicy{Kind: kindSource, Reason: "over"}, on.Etag)
	if err != nil || off.AllowOnly || off.Mode != 0 || off.Reason != "over" {
		t.Errorf("off: %v, %v", off, err)
	}
	on, err = put(&notifydv1.AccessPolicy{Kind: kindSource, AllowOnly: true, Mode: modeHold, Reason: "again"}, off.Etag)
	if err != nil || !on.AllowOnly {
		t.Errorf("on again: %v, %v", on, err)
	}
}

// Bad input is told with field, value and rule.
func TestBadRules(t *testing.T) {
	f := newFront(t, CallersConfig{})
	c := f.client(t, nobody)
	past := timestamppb.New(f.clock.now().Add(-time.Second))
	for name, bad := range map[string]struct {
		change         func(*notifydv1.AccessRule)
		field, message string
	}{
		"no subject":            {func(p *notifydv1.AccessRule) { p.Subject = nil }, "rule.subject", "required"},
		"no kind":               {func(p *notifydv1.AccessRule) { p.Subject.Kind = 0 }, "rule.subject.kind", ""},
		"no id":                 {func(p *notifydv1.AccessRule) { p.Subject.Id = "" }, "rule.subject.id", ""},
		"control characters":    {func(p *notifydv1.AccessRule) { p.Subject.Id = "a\nb" }, "rule.subject.id", `"a\nb": control characters are not allowed`},
		"no effect":             {func(p *notifydv1.AccessRule) { p.Effect = 0 }, "rule.effect", ""},
		"a block without mode":  {func(p *notifydv1.AccessRule) { p.Mode = 0 }, "rule.mode", "is not given: a BLOCK needs one: REJECT, HOLD or RECORD_ONLY"},
		"an allowance with one": {func(p *notifydv1.AccessRule) { p.Effect = allows }, "rule.mode", "ACCESS_MODE_HOLD: an ALLOW has no mode"},
		"a mode of tomorrow":    {func(p *notifydv1.AccessRule) { p.Mode = 9 }, "rule.mode", ""},
		"no reason":             {func(p *notifydv1.AccessRule) { p.Reason = "" }, "rule.reason", ""},
		"expired already":       {func(p *notifydv1.AccessRule) { p.ExpiresAt = past }, "rule.expires_at", past.AsTime().Format(time.RFC3339) + ": is not in the future"},
		"no instant":            {func(p *notifydv1.AccessRule) { p.ExpiresAt = &timestamppb.Timestamp{Nanos: -1} }, "rule.expires_at", "must be an instant"},
		"output only":           {func(p *notifydv1.AccessRule) { p.CreatedBy = "eve" }, "rule.created_by", "is output only; leave it empty"},
		"etag":                  {func(p *notifydv1.AccessRule) { p.Etag = "1" }, "rule.etag", "give it as the request's etag"},
	} {
		_, err := c.putRule(t, ruleOf("m", bad.change), "")
		wantError(t, name, err, connect.CodeInvalidArgument, bad.message, bad.field)
	}
	_, err := c.access.PutPolicy(t.Context(), connect.NewRequest(&notifydv1.PutPolicyRequest{Policy: &notifydv1.AccessPolicy{Kind: kindSource, AllowOnly: true, Reason: "x"}}))
	wantError(t, "allow-only without mode", err, connect.CodeInvalidArgument, "allow_only needs one", "policy.mode")
	_, err = c.access.PutPolicy(t.Context(), connect.NewRequest(&notifydv1.PutPolicyRequest{Policy: &notifydv1.AccessPolicy{Kind: kindSource, Mode: modeHold, Reason: "x"}}))
	wantError(t, "a mode without allow-only", err, connect.CodeInvalidArgument, "goes with allow_only", "policy.mode")
	_, err = c.access.DeleteRule(t.Context(), connect.NewRequest(&notifydv1.DeleteRuleRequest{Id: "merchant/m/block"}))
	wantError(t, "ended without a reason", err, connect.CodeInvalidArgument, "", "reason")
	wantError(t, "no such rule", c.deleteRule(t, "merchant/m/block", ""), connect.CodeNotFound, "merchant/m/block", "")
	if changes, err := f.memory.AccessChanges(t.Context(), "", 0, 10); err != nil || len(changes) != 0 {
		t.Errorf("refused, and on record: %v, %v", changes, err)
	}
}

// Two nodes change rules at once: none is lost, and each holds on the other once it has looked.
func TestRulesOnTwoNodes(t *testing.T) {
	a := newFront(t, CallersConfig{})
	b := newNode(t, CallersConfig{}, a.memory, a.clock)
	var putting sync.WaitGroup
	for i, node := range []*front{a, b} {
		c := node.client(t, nobody)
		putting.Go(func() {
			for j := range 10 {
				if _, err := c.putRule(t, ruleOf(fmt.Sprintf("shop-%d-%d", i, j)), ""); err != nil {
					t.Error(err)
				}
				if _, err := c.putRule(t, ruleOf("contended"), ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	putting.Wait()
	for _, node := range []*front{a, b} {
		must(t, node.LearnAccess(t.Context()))
		if got := len(node.access.List()); got != 21 {
			t.Errorf("%d rules, want 21", got)
		}
	}
	must(t, a.client(t, nobody).deleteRule(t, "merchant/contended/block", ""))
	must(t, b.LearnAccess(t.Context()))
	if b.access.Judge("contended", "pay", "scan", b.clock.now()) != nil || b.access.Get("merchant/contended/block").UpdatedBy != "" {
		t.Error("ended on one node, it holds on the other")
	}
	if r := b.access.Get("merchant/contended/block"); r == nil || !r.Removed || r.Effect != access.EffectBlock {
		t.Errorf("%+v", r)
	}
}
