package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/alecthomas/kong"
	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/proto/notifyd/v1/notifydv1connect"
)

// fakeAccess has two pages of one rule each, and keeps what it was asked to put.
type fakeAccess struct {
	notifydv1connect.UnimplementedAccessServiceHandler
	put    *notifydv1.AccessRule
	policy *notifydv1.AccessPolicy
	fail   error
}

func serveAccess(t *testing.T, f *fakeAccess) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(notifydv1connect.NewAccessServiceHandler(f))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func (f *fakeAccess) PutRule(_ context.Context, req *connect.Request[notifydv1.PutRuleRequest]) (*connect.Response[notifydv1.PutRuleResponse], error) {
	f.put = req.Msg.Rule
	f.put.Id = "merchant/tea-house/block"
	return connect.NewResponse(&notifydv1.PutRuleResponse{Rule: f.put}), f.fail
}

func (f *fakeAccess) DeleteRule(context.Context, *connect.Request[notifydv1.DeleteRuleRequest]) (*connect.Response[notifydv1.DeleteRuleResponse], error) {
	return connect.NewResponse(&notifydv1.DeleteRuleResponse{}), f.fail
}

func (f *fakeAccess) PutPolicy(_ context.Context, req *connect.Request[notifydv1.PutPolicyRequest]) (*connect.Response[notifydv1.PutPolicyResponse], error) {
	f.policy = req.Msg.Policy
	return connect.NewResponse(&notifydv1.PutPolicyResponse{Policy: f.policy}), f.fail
}

func (f *fakeAccess) GetPolicy(_ context.Context, req *connect.Request[notifydv1.GetPolicyRequest]) (*connect.Response[notifydv1.GetPolicyResponse], error) {
	return connect.NewResponse(&notifydv1.GetPolicyResponse{Policy: &notifydv1.AccessPolicy{Kind: req.Msg.Kind}}), f.fail
}

func (f *fakeAccess) ListRules(_ context.Context, req *connect.Request[notifydv1.ListRulesRequest]) (*connect.Response[notifydv1.ListRulesResponse], error) {
	if f.fail != nil {
		return nil, f.fail
	}
	at := timestamppb.New(time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC))
	if req.Msg.PageToken == "" {
		first := &notifydv1.AccessRule{Id: "merchant/a/block", Mode: notifydv1.AccessMode_ACCESS_MODE_RECORD_ONLY, ExpiresAt: at, UpdatedBy: "alice", Reason: "esc\x1b[2J"}
		return connect.NewResponse(&notifydv1.ListRulesResponse{Rules: []*notifydv1.AccessRule{first}, NextPageToken: "more"}), nil
	}
	return connect.NewResponse(&notifydv1.ListRulesResponse{Rules: []*notifydv1.AccessRule{{Id: "source/b/allow", ExpiresAt: at, Expired: true, Reason: "ok"}}}), nil
}

func TestAccessCommands(t *testing.T) {
	refused := connect.NewError(connect.CodeAborted, errors.New("etag: the settings have changed meanwhile"))
	invalid := connect.NewError(connect.CodeInvalidArgument, errors.New("rule.reason: is empty"))
	away := connect.NewError(connect.CodeUnavailable, errors.New("read rules: postgres is away"))
	for name, c := range map[string]struct {
		args string
		fail error
		code int
		says []string
	}{
		"block":                  {"block merchant tea-house --mode hold --reason x --expires 2026-11-24T10:00:00Z", nil, 0, []string{"merchant/tea-house/block holds until 2026-11-24T10:00:00Z"}},
		"block, JSON":            {"block merchant tea-house --mode hold --reason x --json", nil, 0, []string{`"id":"merchant/tea-house/block"`, `"mode":"ACCESS_MODE_HOLD"`}},
		"allow":                  {"allow merchant tea-house --reason x", nil, 0, []string{"holds"}},
		"remove":                 {"remove merchant/tea-house/block --reason x", nil, 0, []string{"has ended"}},
		"only":                   {"only merchants --mode reject --reason go-live", nil, 0, []string{"only merchants that are allowed; the others: reject (go-live)"}},
		"off":                    {"only sources --off --reason over", nil, 0, []string{"all sources that no rule blocks"}},
		"list":                   {"list", nil, 0, []string{"all merchants", "all sources", "merchant/a/block record-only until 2026-11-24T10:00:00Z alice esc\uFFFD[2J", "source/b/allow - expired 2026-11-24T10:00:00Z"}},
		"list, JSON":             {"list --json", nil, 0, []string{`"id":"merchant/a/block"`, `"id":"source/b/allow"`}},
		"neither mode nor off":   {"only merchants --reason x", nil, exitUsage, []string{"give either --mode or --off"}},
		"no instant":             {"allow merchant m --reason x --expires tomorrow", nil, exitUsage, []string{`--expires "tomorrow": want an instant`}},
		"a time that has passed": {"allow merchant m --reason x --expires-in=-1s", nil, exitUsage, []string{"--expires-in -1s: want more than 0s"}},
		"refused":                {"remove x --reason x", refused, exitSome, []string{"aborted: etag: the settings have changed"}},
		"not valid":              {"remove x --reason x", invalid, exitUsage, []string{"rule.reason: is empty"}},
		"the ledger is away":     {"list", away, exitUnreachable, []string{"postgres is away"}},
	} {
		t.Run(name, func(t *testing.T) {
			var commands struct {
				Access accessCmd `cmd:""`
			}
			parser, err := kong.New(&commands)
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"access"}, strings.Fields(c.args)...)
			parsed, err := parser.Parse(append(args, "--server="+serveAccess(t, &fakeAccess{fail: c.fail})))
			if err != nil {
				t.Fatal(err)
			}
			var r runner
			chosen, ok := reflect.TypeAssert[command](parsed.Selected().Target.Addr())
			if !ok {
				t.Fatalf("%s cannot run", parsed.Command())
			}
			if code := r.exec(t.Context(), chosen); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			wants(t, "what is printed", strings.Join(strings.Fields(r.out.String()+r.err.String()), " "), c.says...)
		})
	}
	var r runner
	if code := r.exec(t.Context(), &accessListCmd{accessConn: accessConn{connection: connection{Server: closedPort(t)}}}); code != exitUnreachable {
		t.Errorf("nobody there: exit code %d", code)
	}
}
