package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"notifyd/access"
	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// AccessService answers for the blacklist and the whitelist.
type AccessService struct{ d *Dispatcher }

// NewAccessService returns the service of a dispatcher that has an AccessStore.
func NewAccessService(d *Dispatcher) *AccessService { return &AccessService{d} }

// PutRule creates or replaces the rule of a subject and an effect.
func (s *AccessService) PutRule(ctx context.Context, req *connect.Request[notifydv1.PutRuleRequest]) (*connect.Response[notifydv1.PutRuleResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	p, now := req.Msg.Rule, s.d.now()
	if err := checkRule(p, now); err != nil {
		return nil, err
	}
	stored, err := s.put(ctx, ruleFromProto(p), req.Msg.Etag, actor(ctx, req.Msg.Operator))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.PutRuleResponse{Rule: ruleToProto(stored, now)}), nil
}

// DeleteRule ends a rule, and keeps who did it and why.
func (s *AccessService) DeleteRule(ctx context.Context, req *connect.Request[notifydv1.DeleteRuleRequest]) (*connect.Response[notifydv1.DeleteRuleResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	if !printable(req.Msg.Reason) {
		return nil, invalid("reason", fmt.Sprintf("%q: control characters are not allowed", req.Msg.Reason))
	}
	known, err := s.current(ctx, req.Msg.Id)
	if err != nil {
		return nil, err
	}
	if known == nil || known.Removed || known.Subject.ID == "" {
		return nil, notFound("rule", req.Msg.Id)
	}
	ended := *known
	ended.Removed, ended.Reason = true, req.Msg.Reason
	if _, err := s.put(ctx, &ended, req.Msg.Etag, actor(ctx, req.Msg.Operator)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.DeleteRuleResponse{}), nil
}

// put stores a rule and holds it on this node when it returns. When somebody else has changed it meanwhile, on any node, it
// begins again, unless the caller insists on a version.
func (s *AccessService) put(ctx context.Context, r *access.Rule, etag, by string) (*access.Rule, error) {
	ifVersion, err := versionOf(etag)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		known, err := s.current(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		next, over := *r, int64(0)
		if known != nil {
			over = known.Version
		}
		switch there := known != nil && !known.Removed; {
		case ifVersion != nil && *ifVersion != over && (there || *ifVersion != 0): // of a removed one there is none, for its callers
			return nil, stale("rule", r.ID)
		case there:
			next.CreatedAt, next.CreatedBy = known.CreatedAt, known.CreatedBy
		default:
			next.CreatedAt, next.CreatedBy = s.d.now(), by
		}
		next.UpdatedBy = by
		stored, err := s.d.accessStore.PutAccessRule(ctx, &next, &over)
		switch {
		case err == nil:
			if err := s.learn(ctx); err != nil {
				return nil, err
			}
			s.d.log.Info("a rule of access has changed", zap.String("rule", stored.ID), zap.Bool("removed", stored.Removed),
				zap.Stringer("mode", stored.Mode), zap.Time("expires_at", stored.ExpiresAt), zap.String("by", by))
			return stored, nil
		case !errors.Is(err, ledger.ErrConflict):
			return nil, s.d.unavailable("store rule", err)
		case ifVersion != nil || try == changeTries:
			return nil, stale("rule", r.ID)
		}
	}
}

// learn takes a change over that is stored already: who is told of a block can rely on it. When it fails the change holds
// within a second; the caller does not know, and puts it again.
func (s *AccessService) learn(ctx context.Context) error {
	if err := s.d.LearnAccess(ctx); err != nil {
		return s.d.unavailable("stored, but not read back: it will hold when the ledger answers; read rules", err)
	}
	return nil
}

// current is a rule as the ledger has it now, maybe a removed one; nil: there never was one.
func (s *AccessService) current(ctx context.Context, id string) (*access.Rule, error) {
	if err := s.d.LearnAccess(ctx); err != nil {
		return nil, s.d.unavailable("read rules", err)
	}
	return s.d.access.Get(id), nil
}

// ListRules lists by id.
func (s *AccessService) ListRules(ctx context.Context, req *connect.Request[notifydv1.ListRulesRequest]) (*connect.Response[notifydv1.ListRulesResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	kind, of := access.Kind(req.Msg.Kind), req.Msg.SubjectId //nolint:gosec // the numbers are the same, and validated
	if err := s.d.LearnAccess(ctx); err != nil {
		return nil, s.d.unavailable("read rules", err)
	}
	found, next, err := settingsPage(req.Msg, func(after string, limit int) ([]*access.Rule, error) {
		matching := slices.DeleteFunc(s.d.access.List(), func(r *access.Rule) bool {
			return r.ID <= after || r.Subject.ID == "" || kind != 0 && r.Subject.Kind != kind || of != "" && r.Subject.ID != of
		})
		return matching[:min(limit, len(matching))], nil
	}, func(r *access.Rule) string { return r.ID })
	if err != nil {
		return nil, s.d.unavailable("read rules", err)
	}
	out := &notifydv1.ListRulesResponse{NextPageToken: next}
	for _, r := range found {
		out.Rules = append(out.Rules, ruleToProto(r, s.d.now()))
	}
	return connect.NewResponse(out), nil
}

// The allow-only mode of a kind is a block of everybody, which is wider than any rule.
func policyID(kind access.Kind) string {
	return access.RuleID(access.Subject{Kind: kind}, access.EffectBlock)
}

// GetPolicy returns the switch of merchants, or of sources.
func (s *AccessService) GetPolicy(ctx context.Context, req *connect.Request[notifydv1.GetPolicyRequest]) (*connect.Response[notifydv1.GetPolicyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	kind := access.Kind(req.Msg.Kind) //nolint:gosec // the numbers are the same, and validated
	known, err := s.current(ctx, policyID(kind))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.GetPolicyResponse{Policy: policyToProto(kind, known)}), nil
}

// PutPolicy switches the allow-only mode.
func (s *AccessService) PutPolicy(ctx context.Context, req *connect.Request[notifydv1.PutPolicyRequest]) (*connect.Response[notifydv1.PutPolicyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	p := req.Msg.Policy
	if err := checkPolicy(p); err != nil {
		return nil, err
	}
	kind := access.Kind(p.Kind) //nolint:gosec // the numbers are the same, and validated
	r := &access.Rule{
		ID: policyID(kind), Subject: access.Subject{Kind: kind}, Effect: access.EffectBlock, Mode: access.Mode(p.Mode), Reason: p.Reason, Removed: !p.AllowOnly, //nolint:gosec // as above
	}
	stored, err := s.put(ctx, r, req.Msg.Etag, actor(ctx, req.Msg.Operator))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.PutPolicyResponse{Policy: policyToProto(kind, stored)}), nil
}

// ListChanges lists newest first.
func (s *AccessService) ListChanges(ctx context.Context, req *connect.Request[notifydv1.ListChangesRequest]) (*connect.Response[notifydv1.ListChangesResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	changes, next, err := settingsPage(req.Msg, func(after string, limit int) ([]access.Change, error) {
		before := int64(0)
		if after != "" {
			var err error
			if before, err = strconv.ParseInt(after, 10, 64); err != nil || before < 1 || before == math.MaxInt64 {
				return nil, invalid("page_token", fmt.Sprintf("%q: is not one of ours", after))
			}
		}
		found, err := s.d.accessStore.AccessChanges(ctx, req.Msg.RuleId, before, limit)
		if err != nil {
			return nil, s.d.unavailable("read changes", err)
		}
		return found, nil
	}, func(c access.Change) string { return strconv.FormatInt(c.Number, 10) })
	if err != nil {
		return nil, err
	}
	out := &notifydv1.ListChangesResponse{NextPageToken: next}
	for _, c := range changes {
		out.Changes = append(out.Changes, changeToProto(c))
	}
	return connect.NewResponse(out), nil
}

// checkRule refuses what goes beyond the proto file's rules.
func checkRule(p *notifydv1.AccessRule, now time.Time) error {
	var vs []*errdetails.BadRequest_FieldViolation
	refuse := func(field, description string) {
		vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: "rule." + field, Description: description})
	}
	for field, text := range map[string]string{"subject.id": p.Subject.Id, "subject.scene": p.Subject.Scene, "reason": p.Reason} {
		if !printable(text) {
			refuse(field, fmt.Sprintf("%q: control characters are not allowed", text))
		}
	}
	checkMode(p.Effect == notifydv1.AccessEffect_ACCESS_EFFECT_BLOCK, p.Mode, "an ALLOW has no mode", "a BLOCK needs one: REJECT, HOLD or RECORD_ONLY", refuse)
	switch fault := timeFault(p.ExpiresAt); {
	case fault != "":
		refuse("expires_at", fault)
	case p.ExpiresAt != nil && !fromTimestamp(p.ExpiresAt).After(now):
		refuse("expires_at", fromTimestamp(p.ExpiresAt).Format(time.RFC3339)+": is not in the future")
	}
	for field, given := range map[string]bool{
		"id": p.Id != "", "expired": p.Expired, "created_at": p.CreatedAt != nil, "created_by": p.CreatedBy != "", "updated_at": p.UpdatedAt != nil,
		"updated_by": p.UpdatedBy != "", "version": p.Version != 0,
	} {
		if given {
			refuse(field, "is output only; leave it empty")
		}
	}
	if p.Etag != "" {
		refuse("etag", "is output only; give it as the request's etag")
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

func checkPolicy(p *notifydv1.AccessPolicy) error {
	var vs []*errdetails.BadRequest_FieldViolation
	refuse := func(field, description string) {
		vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: "policy." + field, Description: description})
	}
	if !printable(p.Reason) {
		refuse("reason", fmt.Sprintf("%q: control characters are not allowed", p.Reason))
	}
	checkMode(p.AllowOnly, p.Mode, "goes with allow_only", "allow_only needs one: REJECT, HOLD or RECORD_ONLY", refuse)
	if p.UpdatedAt != nil {
		refuse("updated_at", "is output only; leave it empty")
	}
	if p.UpdatedBy != "" {
		refuse("updated_by", "is output only; leave it empty")
	}
	if p.Version != 0 {
		refuse("version", "is output only; leave it empty")
	}
	if p.Etag != "" {
		refuse("etag", "is output only; give it as the request's etag")
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

// checkMode refuses a mode where nothing is blocked, and its absence where something is.
func checkMode(blocks bool, mode notifydv1.AccessMode, extra, missing string, refuse func(field, description string)) {
	given := mode != notifydv1.AccessMode_ACCESS_MODE_UNSPECIFIED
	switch {
	case given && !blocks:
		refuse("mode", fmt.Sprintf("%s: %s", mode, extra))
	case !given && blocks:
		refuse("mode", "is not given: "+missing)
	}
}

func ruleFromProto(p *notifydv1.AccessRule) *access.Rule {
	r := &access.Rule{
		Subject: access.Subject{Kind: access.Kind(p.Subject.Kind), ID: p.Subject.Id, Scene: p.Subject.Scene},                 //nolint:gosec // the numbers are the same, and validated
		Effect:  access.Effect(p.Effect), Mode: access.Mode(p.Mode), Reason: p.Reason, ExpiresAt: fromTimestamp(p.ExpiresAt), //nolint:gosec // as above
	}
	r.ID = access.RuleID(r.Subject, r.Effect)
	return r
}

func ruleToProto(r *access.Rule, now time.Time) *notifydv1.AccessRule {
	p := &notifydv1.AccessRule{
		Subject: &notifydv1.AccessSubject{Kind: notifydv1.AccessKind(r.Subject.Kind), Id: r.Subject.ID, Scene: r.Subject.Scene},
		Effect:  notifydv1.AccessEffect(r.Effect), Mode: notifydv1.AccessMode(r.Mode), Reason: r.Reason, ExpiresAt: toTimestamp(r.ExpiresAt),
		Id: r.ID, Expired: r.Expired(now), CreatedAt: toTimestamp(r.CreatedAt), CreatedBy: r.CreatedBy, UpdatedAt: toTimestamp(r.UpdatedAt), UpdatedBy: r.UpdatedBy,
		Version: r.Version,
	}
	if r.Version > 0 { // what is kept of a change has none
		p.Etag = etagOf(r.Version)
	}
	return p
}

func policyToProto(kind access.Kind, r *access.Rule) *notifydv1.AccessPolicy {
	p := &notifydv1.AccessPolicy{Kind: notifydv1.AccessKind(kind), Etag: etagOf(0)}
	if r == nil {
		return p
	}
	p.Reason, p.UpdatedAt, p.UpdatedBy, p.Version, p.Etag = r.Reason, toTimestamp(r.UpdatedAt), r.UpdatedBy, r.Version, etagOf(r.Version)
	if !r.Removed {
		p.AllowOnly, p.Mode = true, notifydv1.AccessMode(r.Mode)
	}
	return p
}

func changeToProto(c access.Change) *notifydv1.AccessChange {
	p := &notifydv1.AccessChange{Number: c.Number, RuleId: c.After.ID, At: toTimestamp(c.At), By: c.After.UpdatedBy, Reason: c.After.Reason}
	if c.Before != nil && !c.Before.Removed {
		p.Before = ruleToProto(c.Before, c.At)
	}
	if !c.After.Removed {
		p.After = ruleToProto(c.After, c.At)
	}
	return p
}
