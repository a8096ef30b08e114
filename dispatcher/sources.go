package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/source"
)

const (
	// liveKeys of a kind let one take over from the other; more would be forgotten.
	liveKeys = 2
	// An expired key is shown for so long, then the next change drops it.
	expiredKeysFor = 30 * 24 * time.Hour
	// changeTries is how often a change is made again that somebody else's change has overtaken.
	changeTries = 10
)

// SourceService answers for the sources and their keys.
type SourceService struct{ d *Dispatcher }

// NewSourceService returns the service of a dispatcher that has a SourceStore.
func NewSourceService(d *Dispatcher) *SourceService { return &SourceService{d} }

// PutSource creates or replaces; the keys stay.
func (s *SourceService) PutSource(ctx context.Context, req *connect.Request[notifydv1.PutSourceRequest]) (*connect.Response[notifydv1.PutSourceResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	p := req.Msg.Source
	if err := checkSource(p); err != nil {
		return nil, err
	}
	ifVersion, err := versionOf(req.Msg.Etag)
	if err != nil {
		return nil, err
	}
	stored, err := s.change(ctx, p.Id, ifVersion, func(known *source.Source) (*source.Source, error) {
		for i, name := range p.Certificates {
			for _, other := range s.d.sources.NamedBy(name) {
				if other != p.Id {
					return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("source.certificates[%d]: %q: proves source %q already", i, name, other))
				}
			}
		}
		put := sourceFromProto(p)
		if known != nil {
			put.Keys, put.Secrets = known.Keys, known.Secrets
		}
		return put, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.PutSourceResponse{Source: sourceToProto(stored)}), nil
}

// change replaces a source by what apply makes of it; nil: there is none yet. When somebody else has changed it
// meanwhile, on any node, it begins again, unless the caller insists on a version. apply changes nothing of what it gets.
func (s *SourceService) change(ctx context.Context, id string, ifVersion *int64, apply func(known *source.Source) (*source.Source, error)) (*source.Source, error) {
	for try := 1; ; try++ {
		known, err := s.current(ctx, id)
		if err != nil {
			return nil, err
		}
		next, err := apply(known)
		if err != nil {
			return nil, err
		}
		now := s.d.now()
		next = next.WithoutKeys(func(k source.Key) bool { return !k.Live(now.Add(-expiredKeysFor)) })
		over := ifVersion
		if over == nil {
			over = new(int64)
			if known != nil {
				*over = known.Version
			}
		}
		stored, err := s.d.sourceStore.PutSource(ctx, next, over)
		switch {
		case err == nil:
			if err := s.d.LearnSources(ctx); err != nil { // made good within a second
				s.d.log.Debug("a change is stored; the snapshot does not have it yet", zap.Error(err))
			}
			return stored, nil
		case !errors.Is(err, ledger.ErrConflict):
			return nil, s.d.unavailable("store source", err)
		case ifVersion != nil || try == changeTries:
			return nil, stale("source", id)
		}
	}
}

// current is a source as the ledger has it now; nil: there is none. The snapshot may lag behind another node.
func (s *SourceService) current(ctx context.Context, id string) (*source.Source, error) {
	if err := s.d.LearnSources(ctx); err != nil {
		return nil, s.d.unavailable("read sources", err)
	}
	return s.d.sources.Get(id), nil
}

// GetSource returns one, without its secrets.
func (s *SourceService) GetSource(ctx context.Context, req *connect.Request[notifydv1.GetSourceRequest]) (*connect.Response[notifydv1.GetSourceResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	found, err := s.current(ctx, req.Msg.Id)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, notFound("source", req.Msg.Id)
	}
	return connect.NewResponse(&notifydv1.GetSourceResponse{Source: sourceToProto(found)}), nil
}

// ListSources lists by id.
func (s *SourceService) ListSources(ctx context.Context, req *connect.Request[notifydv1.ListSourcesRequest]) (*connect.Response[notifydv1.ListSourcesResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	found, next, err := settingsPage(req.Msg, func(after string, limit int) ([]*source.Source, error) {
		return s.d.sourceStore.ListSources(ctx, after, limit)
	}, func(one *source.Source) string { return one.ID })
	if err != nil {
		return nil, s.d.unavailable("read sources", err)
	}
	out := &notifydv1.ListSourcesResponse{NextPageToken: next}
	for _, one := range found {
		out.Sources = append(out.Sources, sourceToProto(one))
	}
	return connect.NewResponse(out), nil
}

// CreateSourceKey makes a key. When its answer is lost, the key is listed and can be revoked; nobody has its secret.
func (s *SourceService) CreateSourceKey(ctx context.Context, req *connect.Request[notifydv1.CreateSourceKeyRequest]) (*connect.Response[notifydv1.CreateSourceKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	kind := source.Kind(req.Msg.Kind) //nolint:gosec // the numbers are the same, and validated
	secret := source.NewSecret(kind)
	key := source.Key{ID: secret.KeyID, Kind: kind, Label: req.Msg.Label, CreatedAt: s.d.now(), ExpiresAt: fromTimestamp(req.Msg.ExpiresAt)}
	switch {
	case !printable(key.Label):
		return nil, invalid("label", fmt.Sprintf("%q: control characters are not allowed", key.Label))
	case timeFault(req.Msg.ExpiresAt) != "":
		return nil, invalid("expires_at", timeFault(req.Msg.ExpiresAt))
	case !key.Live(key.CreatedAt):
		return nil, invalid("expires_at", key.ExpiresAt.Format(time.RFC3339)+": is not in the future")
	}
	stored, err := s.change(ctx, req.Msg.SourceId, nil, func(known *source.Source) (*source.Source, error) {
		if known == nil {
			return nil, notFound("source", req.Msg.SourceId)
		}
		if live := known.LiveKeys(kind, key.CreatedAt); len(live) >= liveKeys {
			return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("source %q has %d live %ss already: %s; revoke one first", known.ID, len(live), kind, keyNames(live)))
		}
		return known.WithKey(key, secret.Kept()), nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.CreateSourceKeyResponse{Key: keyToProto(key), Secret: secret.Reveal(), Source: sourceToProto(stored)}), nil
}

// RevokeSourceKey ends a key: here at once, elsewhere when the other nodes look again.
func (s *SourceService) RevokeSourceKey(ctx context.Context, req *connect.Request[notifydv1.RevokeSourceKeyRequest]) (*connect.Response[notifydv1.RevokeSourceKeyResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	stored, err := s.change(ctx, req.Msg.SourceId, nil, func(known *source.Source) (*source.Source, error) {
		if known == nil {
			return nil, notFound("source", req.Msg.SourceId)
		}
		without := known.WithoutKeys(func(k source.Key) bool { return k.ID == req.Msg.KeyId })
		if len(without.Keys) == len(known.Keys) {
			return nil, notFound("key", req.Msg.KeyId)
		}
		return without, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.RevokeSourceKeyResponse{Source: sourceToProto(stored)}), nil
}

func keyNames(keys []source.Key) string {
	names := make([]string, len(keys))
	for i, k := range keys {
		if names[i] = k.ID; k.Label != "" {
			names[i] += fmt.Sprintf(" (%s)", k.Label)
		}
	}
	return strings.Join(names, " and ")
}

// checkSource refuses what goes beyond the proto file's rules.
func checkSource(p *notifydv1.Source) error {
	var vs []*errdetails.BadRequest_FieldViolation
	refuse := func(field, description string) {
		vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: "source." + field, Description: description})
	}
	text := func(field, text string) {
		if !printable(text) {
			refuse(field, fmt.Sprintf("%q: control characters are not allowed", text))
		}
	}
	text("id", p.Id)
	text("name", p.Name)
	for i, pattern := range p.Merchants {
		field := fmt.Sprintf("merchants[%d]", i)
		text(field, pattern)
		if err := source.CheckMerchant(pattern); err != nil {
			refuse(field, err.Error())
		}
	}
	for i, name := range p.Certificates {
		field := fmt.Sprintf("certificates[%d]", i)
		text(field, name)
		if err := source.CheckCertificate(name); err != nil {
			refuse(field, err.Error())
		}
	}
	if p.Limits.GetBurst() > 0 && p.Limits.GetRatePerSecond() == 0 {
		refuse("limits.burst", fmt.Sprintf("%d: has no effect without rate_per_second", p.Limits.GetBurst()))
	}
	if len(p.Keys) > 0 {
		refuse("keys", "is output only; use CreateSourceKey and RevokeSourceKey")
	}
	if p.Etag != "" {
		refuse("etag", "is output only; give it as the request's etag")
	}
	if p.Version != 0 {
		refuse("version", "is output only; leave it empty")
	}
	if p.UpdatedAt != nil {
		refuse("updated_at", "is output only; leave it empty")
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

func sourceFromProto(p *notifydv1.Source) *source.Source {
	return &source.Source{
		ID: p.Id, Name: p.Name, Merchants: p.Merchants, Certificates: p.Certificates, AllowNonTerminal: p.AllowNonTerminal, Disabled: p.Disabled,
		Limits: source.Limits{
			RatePerSecond: p.Limits.GetRatePerSecond(), Burst: int(p.Limits.GetBurst()), MaxRequestBytes: p.Limits.GetMaxRequestBytes(),
		},
	}
}

func sourceToProto(s *source.Source) *notifydv1.Source {
	p := &notifydv1.Source{
		Id: s.ID, Name: s.Name, Merchants: s.Merchants, Certificates: s.Certificates, AllowNonTerminal: s.AllowNonTerminal, Disabled: s.Disabled,
		Version: s.Version, Etag: etagOf(s.Version), UpdatedAt: toTimestamp(s.UpdatedAt),
	}
	if l := s.Limits; l != (source.Limits{}) {
		p.Limits = &notifydv1.SourceLimits{RatePerSecond: l.RatePerSecond, Burst: int32(l.Burst), MaxRequestBytes: l.MaxRequestBytes} //nolint:gosec // validated on the way in
	}
	for _, k := range s.Keys {
		p.Keys = append(p.Keys, keyToProto(k))
	}
	return p
}

func keyToProto(k source.Key) *notifydv1.SourceKey {
	return &notifydv1.SourceKey{
		Id: k.ID, Kind: notifydv1.SourceKeyKind(k.Kind), Label: k.Label, CreatedAt: toTimestamp(k.CreatedAt), ExpiresAt: toTimestamp(k.ExpiresAt),
	}
}
