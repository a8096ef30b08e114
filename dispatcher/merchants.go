package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/ledger"
	"notifyd/merchant"
	"notifyd/notification"
	notifydv1 "notifyd/proto/notifyd/v1"
	"notifyd/retry"
)

// MerchantService answers for merchants' settings.
type MerchantService struct {
	*Dispatcher
	// Queues is asked for what ListKeys says of own queues; nil: nothing is known of them.
	Queues  Queues
	secrets Secrets
	tester  Tester
}

// Secrets makes signing secrets.
type Secrets interface{ Generate() string }

// Tester makes test calls.
type Tester interface {
	// Test makes one attempt, with a wrong signature if asked to; signed is the string that was signed, a secret masked.
	Test(ctx context.Context, w notification.Work, m *merchant.Merchant, wrongSignature bool) (a notification.Attempt, signed []byte)
}

// NewMerchantService returns the service of a dispatcher.
func NewMerchantService(d *Dispatcher, secrets Secrets, tester Tester) *MerchantService {
	return &MerchantService{Dispatcher: d, secrets: secrets, tester: tester}
}

// PutMerchant creates or replaces.
func (s *MerchantService) PutMerchant(ctx context.Context, req *connect.Request[notifydv1.PutMerchantRequest]) (*connect.Response[notifydv1.PutMerchantResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	p := req.Msg.Merchant
	if err := s.check(p); err != nil {
		return nil, err
	}
	ifVersion, err := versionOf(req.Msg.Etag)
	if err != nil {
		return nil, err
	}
	generated := "" // by the try that is stored: a secret that another node has stored meanwhile stays
	stored, err := s.change(ctx, p.Id, ifVersion, func(known *merchant.Merchant) (*merchant.Merchant, error) {
		m := merchantFromProto(p)
		now := s.now()
		if generated = ""; s.contracts.MakesSecret(m, now) && m.Secrets.SigningSecret == "" && (known == nil || known.Secrets.SigningSecret == "") {
			generated = s.secrets.Generate()
			m.Secrets.SigningSecret = generated
		}
		if known != nil {
			m.Paused, m.PauseReason, m.Release = known.Paused, known.PauseReason, known.Release
			if m.Secrets.SigningSecret != "" || s.contracts.TakesSecret(m, now) {
				m.Secrets = m.Secrets.After(known.Secrets, m.Contract.Signer, now)
				if m.Contract.Profile != known.Contract.Profile || m.Contract.Signer.Algorithm != known.Contract.Signer.Algorithm {
					m.Secrets.PreviousSecret, m.Secrets.PreviousUntil = "", time.Time{} // it was one of another contract
				}
			}
		}
		return m, s.checkContracts(m, now)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.PutMerchantResponse{Merchant: merchantToProto(stored), GeneratedSecret: generated}), nil
}

// change replaces a merchant by what apply makes of it; nil: there is none yet. When somebody else has changed it
// meanwhile, on any node, it begins again, unless the caller insists on a version. apply changes nothing of what it gets.
func (s *MerchantService) change(ctx context.Context, id string, ifVersion *int64, apply func(known *merchant.Merchant) (*merchant.Merchant, error)) (*merchant.Merchant, error) {
	for try := 1; ; try++ {
		known, err := s.current(ctx, id)
		if err != nil {
			return nil, err
		}
		next, err := apply(known)
		if err != nil {
			return nil, err
		}
		over := ifVersion
		if over == nil {
			over = new(int64)
			if known != nil {
				*over = known.Version
			}
		}
		stored, err := s.store.PutMerchant(ctx, next, over)
		switch {
		case err == nil:
			// Not by learning this one alone: its version would hide others' changes before it. A failure is made good in a second.
			if err := s.LearnMerchants(ctx); err != nil {
				s.log.Debug("a change is stored; the snapshot does not have it yet", zap.Error(err))
			}
			s.async.Wake(id)
			return stored, nil
		case !errors.Is(err, ledger.ErrConflict):
			return nil, s.unavailable("store merchant", err)
		case ifVersion != nil || try == changeTries:
			return nil, stale("merchant", id)
		}
	}
}

// current is a merchant as the ledger has it now; nil: there is none. The snapshot may lag behind another node.
func (s *MerchantService) current(ctx context.Context, id string) (*merchant.Merchant, error) {
	if err := s.LearnMerchants(ctx); err != nil {
		return nil, s.unavailable("read merchants", err)
	}
	return s.merchants.Get(id), nil
}

// GetMerchant returns one, without its secrets.
func (s *MerchantService) GetMerchant(ctx context.Context, req *connect.Request[notifydv1.GetMerchantRequest]) (*connect.Response[notifydv1.GetMerchantResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m, err := s.current(ctx, req.Msg.Id)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, notFound("merchant", req.Msg.Id)
	}
	return connect.NewResponse(&notifydv1.GetMerchantResponse{Merchant: merchantToProto(m)}), nil
}

// ListMerchants lists by id.
func (s *MerchantService) ListMerchants(ctx context.Context, req *connect.Request[notifydv1.ListMerchantsRequest]) (*connect.Response[notifydv1.ListMerchantsResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	found, next, err := settingsPage(req.Msg, func(after string, limit int) ([]*merchant.Merchant, error) {
		return s.store.ListMerchants(ctx, after, limit)
	}, func(m *merchant.Merchant) string { return m.ID })
	if err != nil {
		return nil, s.unavailable("read merchants", err)
	}
	out := &notifydv1.ListMerchantsResponse{NextPageToken: next}
	for _, m := range found {
		out.Merchants = append(out.Merchants, merchantToProto(m))
	}
	return connect.NewResponse(out), nil
}

// PauseMerchant holds what is accepted for the merchant; attempts in flight end as they do.
func (s *MerchantService) PauseMerchant(ctx context.Context, req *connect.Request[notifydv1.PauseMerchantRequest]) (*connect.Response[notifydv1.PauseMerchantResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	m, err := s.changeKnown(ctx, req.Msg.Id, func(m *merchant.Merchant) { m.Paused, m.PauseReason = true, req.Msg.Reason })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.PauseMerchantResponse{Merchant: merchantToProto(m)}), nil
}

// ResumeMerchant releases what was held, at a rate if one is set. The rate and the instant until which it holds are
// settings: they survive restarts and hold on whatever node has the merchant's shard.
func (s *MerchantService) ResumeMerchant(ctx context.Context, req *connect.Request[notifydv1.ResumeMerchantRequest]) (*connect.Response[notifydv1.ResumeMerchantResponse], error) {
	if err := checkRequest(req.Msg); err != nil {
		return nil, err
	}
	now := s.now()
	m, err := s.changeKnown(ctx, req.Msg.Id, func(m *merchant.Merchant) {
		m.Paused, m.PauseReason, m.Release = false, "", merchant.Release{}
		if perSecond := cmp.Or(req.Msg.ReleasePerSecond, m.Limits.Release); perSecond > 0 {
			m.Release = merchant.Release{PerSecond: perSecond, AcceptedBefore: now}
		}
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&notifydv1.ResumeMerchantResponse{Merchant: merchantToProto(m)}), nil
}

// changeKnown changes a merchant that is there.
func (s *MerchantService) changeKnown(ctx context.Context, id string, apply func(*merchant.Merchant)) (*merchant.Merchant, error) {
	return s.change(ctx, id, nil, func(known *merchant.Merchant) (*merchant.Merchant, error) {
		if known == nil {
			return nil, notFound("merchant", id)
		}
		m := *known
		apply(&m)
		return &m, nil
	})
}

// check refuses what the engine cannot do, rather than swallowing it.
func (s *MerchantService) check(p *notifydv1.Merchant) error {
	var vs []*errdetails.BadRequest_FieldViolation
	refuse := func(field, description string) {
		vs = append(vs, &errdetails.BadRequest_FieldViolation{Field: "merchant." + field, Description: description})
	}
	const later = "has no effect in this version and is refused rather than ignored; leave it empty"
	for field, given := range map[string]bool{
		"tls":     p.Tls != nil,
		"version": p.Version != 0, "etag": p.Etag != "", "paused": p.Paused, "pause_reason": p.PauseReason != "", "release": p.Release != nil, "updated_at": p.UpdatedAt != nil,
	} {
		switch {
		case !given:
		case field == "etag":
			refuse(field, "is output only; give it as the request's etag")
		case field == "paused" || field == "pause_reason":
			refuse(field, "is output only; use PauseMerchant and ResumeMerchant")
		case field == "release":
			refuse(field, "is output only; use ResumeMerchant, or limits.release_per_second")
		case field == "version" || field == "updated_at":
			refuse(field, "is output only; leave it empty")
		default:
			refuse(field, later)
		}
	}
	if p.Egress != "" && p.Egress != "direct" {
		refuse("egress", fmt.Sprintf("%q: this version knows direct only", p.Egress))
	}
	s.checkSettings("", p.NotifyUrl, p.UrlPolicy, p.Schedule, refuse)
	own := timeoutsFromProto(p.Timeouts)
	s.checkTimeouts("timeouts", own, refuse)
	for scene, over := range p.Scenes {
		s.checkTimeouts("scenes["+strconv.Quote(scene)+"].timeouts", timeoutsFromProto(over.GetTimeouts()).Or(own), refuse)
		s.checkSettings("scenes["+strconv.Quote(scene)+"].", over.GetNotifyUrl(), p.UrlPolicy, over.GetSchedule(), refuse)
		if over == nil {
			refuse("scenes["+strconv.Quote(scene)+"]", "is empty")
		}
	}
	if len(vs) > 0 {
		return invalidAll(vs)
	}
	return nil
}

func (s *MerchantService) checkSettings(prefix, url string, policy *notifydv1.UrlPolicy, schedule *notifydv1.Schedule, refuse func(field, description string)) {
	if url != "" {
		if err := s.urls.CheckURL(url, policyFromProto(policy), url); err != nil {
			refuse(prefix+"notify_url", err.Error())
		}
	}
	if schedule != nil {
		if err := retry.Validate(scheduleFromProto(schedule)); err != nil {
			refuse(prefix+"schedule", err.Error())
		}
	}
}

// checkTimeouts keeps an attempt within the time after which somebody else may make it.
func (s *MerchantService) checkTimeouts(field string, own merchant.Timeouts, refuse func(field, description string)) {
	t := own.Or(merchant.Timeouts{Total: s.cfg.Total, Grace: s.cfg.Grace})
	if longest := t.Total + t.Grace; longest >= s.cfg.AttemptBound {
		refuse(field, fmt.Sprintf("total and grace together are %s: must be less than the engine's attempt bound of %s", longest, s.cfg.AttemptBound))
	}
}

func merchantFromProto(p *notifydv1.Merchant) *merchant.Merchant {
	m := &merchant.Merchant{
		ID: p.Id, Name: p.Name, NotifyURL: p.NotifyUrl, URLPolicy: policyFromProto(p.UrlPolicy), Egress: p.Egress,
		Contract: contractFromProto(p.Contract),
		Limits: merchant.Limits{
			RatePerSecond: p.Limits.GetRatePerSecond(), Burst: int(p.Limits.GetBurst()), MaxInFlight: int(p.Limits.GetMaxInFlight()),
			OwnQueue: p.Limits.GetOwnQueue(), Release: p.Limits.GetReleasePerSecond(),
		},
		Timeouts: timeoutsFromProto(p.Timeouts), Schedule: scheduleFromProto(p.Schedule), Isolation: isolationWords[p.Isolation],
		Persist: notification.Persist(p.Persist), //nolint:gosec // the numbers are the same, and validated
		Secrets: merchant.Secrets{SigningSecret: p.Contract.GetSigner().GetSecret()},
	}
	if p.Ordering.GetDeadPredecessor() == notifydv1.DeadPredecessor_DEAD_PREDECESSOR_BLOCKS {
		m.Ordering.DeadPredecessor = merchant.DeadBlocks
	}
	if len(p.Scenes) > 0 {
		m.Scenes = map[string]merchant.SceneSettings{}
	}
	for scene, over := range p.Scenes {
		m.Scenes[scene] = merchant.SceneSettings{
			NotifyURL: over.NotifyUrl, Timeouts: timeoutsFromProto(over.Timeouts), Schedule: scheduleFromProto(over.Schedule),
			Persist: notification.Persist(over.Persist), Acknowledgement: ackFromProto(over.Acknowledgement), //nolint:gosec // as above
		}
	}
	return m
}

func merchantToProto(m *merchant.Merchant) *notifydv1.Merchant {
	p := &notifydv1.Merchant{
		Id: m.ID, Name: m.Name, NotifyUrl: m.NotifyURL, Egress: m.Egress, Persist: notifydv1.Persist(m.Persist),
		Contract: contractToProto(m.Contract),
		Timeouts: timeoutsToProto(m.Timeouts), Schedule: scheduleToProto(m.Schedule),
		Version: m.Version, Etag: etagOf(m.Version), Paused: m.Paused, PauseReason: m.PauseReason, UpdatedAt: toTimestamp(m.UpdatedAt),
	}
	if u := m.URLPolicy; len(u.Hosts) > 0 || len(u.Ports) > 0 || u.HTTPSOnly {
		p.UrlPolicy = &notifydv1.UrlPolicy{Hosts: u.Hosts, Ports: u.Ports, HttpsOnly: u.HTTPSOnly}
	}
	if l := m.Limits; l != (merchant.Limits{}) {
		p.Limits = &notifydv1.Limits{RatePerSecond: l.RatePerSecond, Burst: int32(l.Burst), MaxInFlight: int32(l.MaxInFlight), OwnQueue: l.OwnQueue, ReleasePerSecond: l.Release} //nolint:gosec // validated on the way in
	}
	if r := m.Release; r != (merchant.Release{}) {
		p.Release = &notifydv1.Release{PerSecond: r.PerSecond, AcceptedBefore: toTimestamp(r.AcceptedBefore)}
	}
	if m.Ordering.DeadPredecessor == merchant.DeadBlocks {
		p.Ordering = &notifydv1.Ordering{DeadPredecessor: notifydv1.DeadPredecessor_DEAD_PREDECESSOR_BLOCKS}
	}
	for value, word := range isolationWords {
		if word == m.Isolation && word != "" {
			p.Isolation = value
		}
	}
	if len(m.Scenes) > 0 {
		p.Scenes = map[string]*notifydv1.SceneSettings{}
	}
	for scene, over := range m.Scenes {
		p.Scenes[scene] = &notifydv1.SceneSettings{
			NotifyUrl: over.NotifyURL, Timeouts: timeoutsToProto(over.Timeouts), Schedule: scheduleToProto(over.Schedule),
			Persist: notifydv1.Persist(over.Persist), Acknowledgement: ackToProto(over.Acknowledgement),
		}
	}
	return p
}

var isolationWords = map[notifydv1.Isolation]merchant.Isolation{
	notifydv1.Isolation_ISOLATION_MERCHANT:       merchant.IsolationMerchant,
	notifydv1.Isolation_ISOLATION_MERCHANT_SCENE: merchant.IsolationMerchantScene,
	notifydv1.Isolation_ISOLATION_MERCHANT_URL:   merchant.IsolationMerchantURL,
}

func policyFromProto(p *notifydv1.UrlPolicy) merchant.URLPolicy {
	return merchant.URLPolicy{Hosts: p.GetHosts(), Ports: p.GetPorts(), HTTPSOnly: p.GetHttpsOnly()}
}

func timeoutsFromProto(p *notifydv1.Timeouts) merchant.Timeouts {
	if p == nil {
		return merchant.Timeouts{}
	}
	return merchant.Timeouts{
		Connect: p.Connect.AsDuration(), TLS: p.Tls.AsDuration(), FirstByte: p.FirstByte.AsDuration(), Total: p.Total.AsDuration(),
		Grace: p.Grace.AsDuration(), NoGrace: p.Grace != nil && p.Grace.AsDuration() == 0,
	}
}

func timeoutsToProto(t merchant.Timeouts) *notifydv1.Timeouts {
	if t == (merchant.Timeouts{}) {
		return nil
	}
	given := func(v time.Duration) *durationpb.Duration {
		if v == 0 {
			return nil
		}
		return durationpb.New(v)
	}
	p := &notifydv1.Timeouts{Connect: given(t.Connect), Tls: given(t.TLS), FirstByte: given(t.FirstByte), Total: given(t.Total), Grace: given(t.Grace)}
	if t.NoGrace {
		p.Grace = durationpb.New(0)
	}
	return p
}

func scheduleFromProto(p *notifydv1.Schedule) merchant.Schedule {
	if p == nil {
		return merchant.Schedule{}
	}
	s := merchant.Schedule{Name: p.Name, Jitter: p.Jitter, Window: p.Window.AsDuration(), LeastAttempts: int(p.LeastAttempts)}
	for _, gap := range p.Gaps {
		s.Gaps = append(s.Gaps, gap.AsDuration())
	}
	return s
}

func scheduleToProto(s merchant.Schedule) *notifydv1.Schedule {
	if s.Name == "" && len(s.Gaps) == 0 && s.Jitter == nil && s.Window == 0 && s.LeastAttempts == 0 {
		return nil
	}
	p := &notifydv1.Schedule{Name: s.Name, Jitter: s.Jitter, LeastAttempts: int32(s.LeastAttempts)} //nolint:gosec // validated on the way in
	if s.Window > 0 {
		p.Window = durationpb.New(s.Window)
	}
	for _, gap := range s.Gaps {
		p.Gaps = append(p.Gaps, durationpb.New(gap))
	}
	return p
}
