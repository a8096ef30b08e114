package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

type proofStream = connect.ServerStream[notifydv1.ProveResponse]

// proves sends fixed answers.
func proves(answers ...*notifydv1.ProveResponse) *fakeIntake {
	return &fakeIntake{prove: func(stream *proofStream, _ *notifydv1.ProveRequest) error {
		for _, a := range answers {
			a.AcceptedBefore = timestamppb.New(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		return nil
	}}
}

func TestProve(t *testing.T) {
	counts := func(missing int64, ids ...string) *notifydv1.ProveResponse {
		return &notifydv1.ProveResponse{
			Accepted: 12 + missing, Final: map[string]int64{"delivered": 8, "dead": 1}, Waiting: map[string]int64{"due_index": 3},
			Missing: missing, MissingIds: ids, Done: true,
		}
	}
	off := counts(0)
	off.Accepted = 20
	for name, test := range map[string]struct {
		fake *fakeIntake
		code int
		says []string
	}{
		"none missing":  {proves(&notifydv1.ProveResponse{Accepted: 5}, counts(0)), 0, []string{"accepted before 2026-11-22T10:00:00Z", "final: delivered  8", "waiting: due_index  3", "missing  0", "proven: each one"}},
		"some missing":  {proves(&notifydv1.ProveResponse{MissingIds: []string{"id1"}}, counts(2, "id2")), exitSome, []string{"missing id1\n", "missing id2\n", "NOT PROVEN: 2 accepted"}},
		"nothing there": {proves(&notifydv1.ProveResponse{Done: true}), 0, []string{"nothing was accepted"}},
		"counts off":    {proves(off), exitSome, []string{"do not add up: 20 accepted, 12 accounted for"}},
		"ended early":   {proves(&notifydv1.ProveResponse{Accepted: 5}), exitUnreachable, []string{"nothing is proven"}},
		"ledger down": {&fakeIntake{prove: func(*proofStream, *notifydv1.ProveRequest) error {
			return connect.NewError(connect.CodeUnavailable, errors.New("read reservations: down"))
		}}, exitUnreachable, []string{"nothing is proven: unavailable: read reservations: down"}},
		"bad span": {&fakeIntake{prove: func(*proofStream, *notifydv1.ProveRequest) error {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("accepted_from: is not before accepted_before"))
		}}, exitUsage, []string{"is not before"}},
	} {
		t.Run(name, func(t *testing.T) {
			var r runner
			if code := r.exec(t.Context(), &proveCmd{connection: connection{Server: serveFake(t, test.fake)}}); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			wants(t, "the report", strings.Join(strings.Fields(r.out.String()+r.err.String()), " "), normal(test.says)...)
		})
	}
	t.Run("unreachable", func(t *testing.T) {
		var r runner
		if code := r.exec(t.Context(), &proveCmd{connection: connection{Server: closedPort(t)}}); code != exitUnreachable {
			t.Errorf("exit code %d", code)
		}
		wants(t, "standard error", r.err.String(), "cannot reach")
	})
	t.Run("JSON", func(t *testing.T) {
		var r runner
		if code := r.exec(t.Context(), &proveCmd{connection: connection{Server: serveFake(t, proves(counts(1, "id1")))}, JSON: true}); code != exitSome {
			t.Errorf("exit code %d", code)
		}
		first, last, _ := strings.Cut(r.out.String(), "\n")
		var summary struct {
			Accepted, Missing int64
			Proven            bool
			Final             map[string]int64
		}
		if err := json.Unmarshal([]byte(last), &summary); err != nil || first != `{"type":"missing","id":"id1"}` || summary.Accepted != 13 || summary.Missing != 1 || summary.Proven || summary.Final["delivered"] != 8 {
			t.Errorf("printed %s: %v", r.out.String(), err)
		}
	})
}

// normal makes columns of a table one space wide.
func normal(texts []string) []string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = strings.Join(strings.Fields(text), " ")
	}
	return out
}

func TestProveSpan(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	minute, negative := time.Minute, -time.Minute
	req, err := (&proveCmd{Age: &minute, From: "2026-11-22T08:00:00+08:00"}).request(now)
	if err != nil || !req.AcceptedBefore.AsTime().Equal(now.Add(-minute)) || !req.AcceptedFrom.AsTime().Equal(now.Add(-12*time.Hour)) {
		t.Errorf("%v, %v", req, err)
	}
	if req, err := (&proveCmd{}).request(now); err != nil || req.AcceptedBefore != nil || req.AcceptedFrom != nil {
		t.Errorf("%v, %v, want the server's defaults", req, err)
	}
	for name, c := range map[string]*proveCmd{
		"before": {Before: "yesterday"}, "from": {From: "2026-11-22"}, "age": {Age: &negative}, "both": {Age: &minute, Before: "2026-11-22T10:00:00Z"},
	} {
		var coded *exitError
		if _, err := c.request(now); !errors.As(err, &coded) || coded.code != exitUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
}
